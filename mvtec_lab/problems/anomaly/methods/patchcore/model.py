"""PatchCore: a bank of patches of good images, and the distance to the nearest of them. See README.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import length_hint

import torch
import torch.nn.functional as F
from torch import Tensor

from mvtec_lab.problems.anomaly.base import Scores
from mvtec_lab.problems.anomaly.frozen import (
    FeatureModel,
    FrozenFeatureModel,
    Maps,
    cells,
    collect,
    finest,
    joined,
    smooth,
)
from mvtec_lab.problems.anomaly.methods.patchcore import METHOD
from mvtec_lab.problems.memory import nearest, require_memory
from mvtec_lab.progress import bar

NEIGHBOURS = 9  # of the re-weighting: the paper leaves b open, anomalib takes 9
LARGEST = 50_000  # patches in a bank: scoring an image of 28 x 28 cells takes a core 0.3 seconds then
PROJECTED = 128  # dimensions in which patches are chosen: the official code's
# Only this number of the farthest patches is measured to each new centre; the others wait until these have come nearer
# than those were. They fit into a core's cache.
ACTIVE = 4096
BLOCK = 2**22  # distances at once where all patches are measured: 16 MB


class PatchBank(FeatureModel):
    """Keep a share of the good images' patches, and measure the distance from the nearest one.

    Args:
        channels: C, number of channels of all layers together.
        coreset: share of the patches.
    """

    bank: Tensor

    def __init__(self, channels: int, coreset: float) -> None:
        super().__init__()
        self.coreset = coreset
        self.register_buffer("bank", torch.zeros(0, channels))

    def require_memory(self, maps: Sequence[Tensor], images: int, device: torch.device) -> None:
        channels = self.bank.shape[1]
        values = channels + (PROJECTED if channels > PROJECTED else 0)  # of a patch
        remedy = "give fewer images, a smaller data.image_size, or coarser model.options.layers"
        require_memory(4 * images * finest(maps).numel() * values, device, "patches of good images", remedy)

    def fit(self, maps: Iterable[Maps]) -> None:
        patches = collect(map(shown, maps), length_hint(maps))
        count = min(len(patches), max(round(self.coreset * len(patches)), NEIGHBOURS))
        if count > LARGEST:
            asked = f"model.options.coreset={self.coreset:g} asks for {count} patches"
            self.remarks.append(f"{asked}: the bank ends at {LARGEST}")
            count = LARGEST
        self.bank = patches[coreset(project(patches), count)]

    def forward(self, maps: Maps, size: int) -> Scores:
        patches, of_image = embed(maps), maps.cells()
        distances, indices = (part.view(patches.shape[:2]) for part in nearest(patches.flatten(0, 1), self.bank))
        distances = distances if of_image is None else distances * of_image
        farthest = distances.argmax(1, keepdim=True)
        queries = patches.gather(1, farthest[..., None].expand(-1, -1, patches.shape[2]))  # [N, 1, C]
        score = reweighted(queries[:, 0], self.bank, indices.gather(1, farthest)[:, 0])
        return Scores(score, smooth(distances.unflatten(1, (-1, finest(maps)[1])), size, maps.inside))


class PatchCore(FrozenFeatureModel):
    """Score an image by its patch that is farthest from all patches in a bank (Roth et al., CVPR 2022)."""

    method = METHOD

    def build_model(self) -> PatchBank:
        return PatchBank(sum(self.features.channels), self.options["coreset"])


def shown(maps: Maps) -> Tensor:
    """Return the patches [n, C] of a batch that show its images, not what lies beside them."""
    patches, of_image = embed(maps), maps.cells()
    return patches.flatten(0, 1) if of_image is None else patches[of_image]


def embed(maps: list[Tensor]) -> Tensor:
    """Return the mean of each cell's 3 x 3 neighbourhood in every layer: [N, cells, C]."""
    return cells(joined([F.avg_pool2d(layer, 3, stride=1, padding=1) for layer in maps], mode="bilinear"))


def reweighted(queries: Tensor, bank: Tensor, indices: Tensor) -> Tensor:
    """Return the scores [N] of the farthest patches [N, C], by the paper's equation 7.

    The distance from its nearest row of the bank, which is at indices [N], counts less where the rows around that one
    are about as near: then it is no rare patch.
    """
    around = nearest(bank[indices], bank, min(NEIGHBOURS, len(bank)))[1]
    distances = (queries[:, None] - bank[around]).norm(dim=2)
    own = (queries - bank[indices]).norm(dim=1)
    if len(bank) == 1:
        return own
    return (1 - (own - distances.logsumexp(1)).exp()) * own


def project(patches: Tensor) -> Tensor:
    """Return patches in random directions, which keep distances (Johnson & Lindenstrauss), or as they are if few."""
    channels = patches.shape[1]
    if channels <= PROJECTED:
        return patches
    generator = torch.Generator().manual_seed(0)  # drawn on the CPU: the same on every device
    directions = torch.randn(channels, PROJECTED, generator=generator) / PROJECTED**0.5
    return patches @ directions.to(patches)


def coreset(points: Tensor, count: int) -> Tensor:
    """Return the indices [count] of rows of points [N, D] by greedy k-center: each is the farthest from those before.

    The choice is the exact one, up to rounding, but it is lazy: a row's distance from the chosen ones only ever falls.
    As long as the farthest of ``ACTIVE`` rows is no nearer than all others were when last measured, it is the farthest
    of all. A step is a matrix-vector product over these few rows; a matrix product measures all N to many new centres
    at once, every hundred steps or so. The first row is the farthest from the mean.
    """
    norms = points.norm(dim=1).square()  # (points.square() would be a second copy of them all)
    squares = torch.full_like(norms, torch.inf)  # distances from the chosen rows
    chosen = [int(torch.addmv(norms, points, points.mean(0), alpha=-2).argmax())]
    measured = 0  # how many of the chosen rows ``squares`` knows
    with bar() as progress:
        task = progress.add_task("choosing patches", total=count)
        while len(chosen) < count:
            fresh = torch.tensor(chosen[measured:], device=points.device)
            measured = len(chosen)
            for start in range(0, len(points), rows := max(1, BLOCK // len(fresh))):
                part = slice(start, start + rows)
                nearer = torch.addmm(norms[fresh], points[part], points[fresh].T, alpha=-2).amin(1).add_(norms[part])
                squares[part] = torch.minimum(squares[part], nearer.clamp_min_(0))
            squares[fresh] = -1  # never again, not even where all rows are equal
            near, indices = squares.topk(min(ACTIVE, len(points)))
            few, few_norms, others = points[indices], norms[indices], float(near[-1])
            while len(chosen) < count:
                value, farthest = near.max(0)
                if float(value) < max(others, 0):
                    break
                chosen.append(int(indices[farthest]))
                nearer = torch.addmv(few_norms, few, few[farthest], alpha=-2).add_(few_norms[farthest]).clamp_min_(0)
                near = torch.minimum(near, nearer)
                near[farthest] = -1
            progress.update(task, completed=len(chosen))
    return torch.tensor(chosen, device=points.device)
