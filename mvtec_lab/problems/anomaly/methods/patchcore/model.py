"""PatchCore: a bank of patches of good images, and the distance to the nearest of them. See README.md."""

from __future__ import annotations

from collections.abc import Iterable
from operator import length_hint

import torch
import torch.nn.functional as F
from torch import Tensor

from mvtec_lab.problems.anomaly.base import Scores
from mvtec_lab.problems.anomaly.frozen import FrozenModel, cells, collect, joined, nearest, smooth
from mvtec_lab.progress import bar

NEIGHBOURS = 9  # of the re-weighting: the paper leaves b open, anomalib takes 9
LARGEST = 50_000  # patches in a bank: scoring an image of 28 x 28 cells takes a core 0.3 seconds then
PROJECTED = 128  # dimensions in which patches are chosen: the official code's
# Of the farthest patches, so many are measured to each new centre; all others have to be only when these have come
# nearer than those were. They fit into a core's cache.
ACTIVE = 4096
BLOCK = 2**22  # distances at once where all patches are measured: 16 MB


class PatchCore(FrozenModel):
    """Args: coreset: share of the patches that the bank keeps."""

    bank: Tensor

    def __init__(self, channels: int, coreset: float) -> None:
        super().__init__()
        self.coreset = coreset
        self.register_buffer("bank", torch.zeros(0, channels))

    def fit(self, maps: Iterable[list[Tensor]]) -> None:
        remedy = "give fewer images, a smaller data.image_size, or coarser model.options.layers"
        blocks = (embed(m).flatten(0, 1) for m in maps)
        projected = 4 * PROJECTED if self.bank.shape[1] > PROJECTED else 0  # bytes a patch
        patches = collect(blocks, length_hint(maps), "patches of good images", remedy, projected)
        count = min(len(patches), max(round(self.coreset * len(patches)), NEIGHBOURS))
        if count > LARGEST:
            self.remarks.append(
                f"model.options.coreset={self.coreset:g} asks for {count} patches: the bank ends at {LARGEST}"
            )
            count = LARGEST
        self.bank = patches[coreset(project(patches), count)]

    def forward(self, maps: list[Tensor], size: int) -> Scores:
        patches = embed(maps)
        distances, places = (found.view(patches.shape[:2]) for found in nearest(patches.flatten(0, 1), self.bank))
        farthest = distances.argmax(1, keepdim=True)
        queries = patches.gather(1, farthest[..., None].expand(-1, -1, patches.shape[2]))  # [N, 1, D]
        score = reweighted(queries[:, 0], self.bank, places.gather(1, farthest)[:, 0])
        finest = max(found.shape[-1] for found in maps)
        return Scores(score, smooth(distances.unflatten(1, (-1, finest)), size))


def embed(maps: list[Tensor]) -> Tensor:
    """Each cell with its neighbourhood of 3 x 3, of all layers: [N, cells, C]."""
    return cells(joined([F.avg_pool2d(found, 3, stride=1, padding=1) for found in maps], mode="bilinear"))


def reweighted(queries: Tensor, bank: Tensor, places: Tensor) -> Tensor:
    """The paper's equation 7 for the farthest patch [N, D] of each image, whose nearest row of bank is at places [N].

    The distance to it counts less where the rows around that one are about as near: then it is no rare patch.
    """
    around = nearest(bank[places], bank, min(NEIGHBOURS, len(bank)))[1]
    distances = (queries[:, None] - bank[around]).norm(dim=2)
    own = (queries - bank[places]).norm(dim=1)
    if len(bank) == 1:
        return own
    return (1 - (own - distances.logsumexp(1)).exp()) * own


def project(patches: Tensor) -> Tensor:
    """Random directions that keep distances (Johnson & Lindenstrauss), where there are more channels than that."""
    channels = patches.shape[1]
    if channels <= PROJECTED:
        return patches
    generator = torch.Generator().manual_seed(0)  # drawn on the CPU: the same on every device
    directions = torch.randn(channels, PROJECTED, generator=generator) / PROJECTED**0.5
    return patches @ directions.to(patches)


def coreset(points: Tensor, count: int) -> Tensor:
    """Places [count] of rows of points [N, D], by greedy k-center: each next row is the farthest from those chosen.

    Exactly that, up to rounding, but lazily: a row's distance to those chosen only ever falls. So long as the farthest
    of ``ACTIVE`` rows is no nearer than all others were when last measured, it is the farthest of all. A step is
    a matrix-vector product over these few rows, and all N are measured to many new centres at once, by one matrix
    product, every hundred steps or so. The first row is the farthest from the mean.
    """
    norms = points.norm(dim=1).square()  # (points.square() would be a second copy of them all)
    squares = torch.full_like(norms, torch.inf)  # distances to those chosen
    chosen = [int(torch.addmv(norms, points, points.mean(0), alpha=-2).argmax())]
    measured = 0  # how many of them have been
    with bar() as progress:
        task = progress.add_task("choosing patches", total=count)
        while len(chosen) < count:
            fresh = torch.tensor(chosen[measured:], device=points.device)
            measured = len(chosen)
            for start in range(0, len(points), rows := max(1, BLOCK // len(fresh))):
                part = slice(start, start + rows)
                found = torch.addmm(norms[fresh], points[part], points[fresh].T, alpha=-2).amin(1).add_(norms[part])
                squares[part] = torch.minimum(squares[part], found.clamp_min_(0))
            squares[fresh] = -1  # never again, not even where all rows are equal
            near, places = squares.topk(min(ACTIVE, len(points)))
            few, few_norms, others = points[places], norms[places], float(near[-1])
            while len(chosen) < count:
                value, farthest = near.max(0)
                if float(value) < max(others, 0):
                    break
                chosen.append(int(places[farthest]))
                found = torch.addmv(few_norms, few, few[farthest], alpha=-2).add_(few_norms[farthest]).clamp_min_(0)
                near = torch.minimum(near, found)
                near[farthest] = -1
            progress.update(task, completed=len(chosen))
    return torch.tensor(chosen, device=points.device)
