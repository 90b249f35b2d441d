"""Fit-once methods over frozen maps: what they share is here, what each of them is in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import length_hint
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.base import AnomalyDetector, Batches, Scores
from mvtec_lab.problems.anomaly.features import FeatureMaps
from mvtec_lab.progress import bar

SEARCH_BYTES = 2**26  # what a search may hold at once beside its arguments, unless a single query takes more
SIGMA = 4 / 224  # of a map's Gaussian, of its side: the papers' 4 pixels of 224
POOLED = (32,)  # pixels a cell of the last maps, which are pooled: what a classifier sees


class FrozenModel(nn.Module):
    """The method itself; maps are those of FeatureMaps for a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.remarks: list[str] = []  # as an AnomalyDetector's

    def fit(self, maps: Iterable[list[Tensor]]) -> None:
        raise NotImplementedError

    def forward(self, maps: list[Tensor], size: int) -> Scores:
        """size: S of the images, pixels."""
        raise NotImplementedError


class FrozenDetector(AnomalyDetector):
    """Frozen maps and a model of them, which is fitted in one pass over the good images."""

    def __init__(self, features: FeatureMaps, model: FrozenModel) -> None:
        super().__init__()
        self.features, self.model = features, model
        self.remarks = model.remarks
        self.mean, self.std = features.mean, features.std
        self.weights_name, self.weights_note = features.weights_name, features.weights_note

    @torch.no_grad()
    def prepare(self, batches: Batches) -> None:
        with torch.autocast(self.device.type, enabled=False):  # sums of squares want float32
            self.model.fit(_Reading(batches(), self.features))

    def forward(self, images: Tensor) -> Scores:
        maps = self.features(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.model(maps, images.shape[-1])


class _Reading:
    """The maps of each batch, under a progress bar; as long as the batches are, where they tell."""

    def __init__(self, batches: Iterable[Tensor], features: FeatureMaps) -> None:
        self.batches, self.features = batches, features

    def __iter__(self) -> Iterator[list[Tensor]]:
        with bar() as progress:
            for batch in progress.track(self.batches, length_hint(self) or None, description="reading good images"):
                yield self.features(batch)

    def __length_hint__(self) -> int:
        return length_hint(self.batches)


def pooled(maps: Sequence[Tensor]) -> Tensor:
    """Global average of every channel: [N, C of all maps]."""
    return torch.cat([found.mean((2, 3)) for found in maps], dim=1)


def joined(maps: Sequence[Tensor], mode: str) -> Tensor:
    """One map [N, C of all maps, H, W] at the finest one's resolution; mode: of F.interpolate."""
    size = max((found.shape[-2:] for found in maps), key=lambda shape: shape[0] * shape[1])
    return torch.cat(
        [found if found.shape[-2:] == size else F.interpolate(found, size, mode=mode) for found in maps], 1
    )


def cells(joint: Tensor) -> Tensor:
    """A map [N, C, H, W] as rows [N, H x W, C]."""
    return joint.flatten(2).transpose(1, 2).contiguous()


def smooth(scores: Tensor, size: int) -> Tensor:
    """Maps [N, h, w] at the images' resolution [N, size, size]: bilinear, then Gaussian, as the papers do.

    Both are linear and separable: one matrix for each side does them at once.
    """
    rows, columns = (_smoothing(int(side), size, scores) for side in scores.shape[1:])
    return rows @ scores @ columns.T


def _smoothing(side: int, size: int, like: Tensor) -> Tensor:
    sigma = SIGMA * size
    radius = min(round(4 * sigma), size - 1)  # four deviations, SciPy's default
    offsets = torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    basis = torch.eye(side, dtype=like.dtype, device=like.device)[None]
    lines = F.interpolate(basis, size, mode="linear").transpose(0, 1)  # [side, 1, size]
    lines = F.conv1d(F.pad(lines, (radius, radius), mode="reflect"), (kernel / kernel.sum())[None, None])
    return lines[:, 0].T


def nearest(queries: Tensor, bank: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Euclidean distances [N, k] to the k nearest rows of bank [M, D], nearest first, and their places [N, k].

    Found by a matrix product, in parts that bound the memory; measured by the difference, which loses no digits.
    """
    norms = bank.square().sum(1)
    rows = max(1, SEARCH_BYTES // (4 * (len(bank) + k * bank.shape[1])))
    found = []
    # An exported file takes any number of queries, so none of its sizes may depend on it.
    for part in (queries,) if torch.compiler.is_compiling() else queries.split(rows):
        squares = torch.addmm(norms, part, bank.T, alpha=-2)  # but for the query's own norm, the same for all
        places = squares.argmin(1, keepdim=True) if k == 1 else squares.topk(k, largest=False).indices
        distances, order = (part[:, None] - bank[places]).square().sum(2).sqrt().sort(dim=1)
        found.append((distances, places.gather(1, order)))
    return torch.cat([distances for distances, _ in found]), torch.cat([places for _, places in found])


def collect(blocks: Iterable[Tensor], count: int, what: str, remedy: str, beside: int = 0) -> Tensor:
    """Blocks [n, ...] one below the other, none of them held twice.

    Args:
        count: how many there will be; 0: unknown.
        beside: bytes a row that will be taken as well, later and as long as these are held.

    Raises:
        LabError: there is none; they take more memory than is free, by an estimate from the first one.
    """
    rows, filled = torch.empty(0), 0
    for block in blocks:
        wanted = len(rows)
        if not filled:
            wanted = max(count, 1) * len(block)
        elif filled + len(block) > wanted:
            wanted = 2 * (filled + len(block))
        if wanted > len(rows):
            require_memory(wanted * (block[0].nbytes + beside), block.device, what, remedy)
            grown = block.new_empty(wanted, *block.shape[1:])  # takes up memory as it is written to
            if filled:
                grown[:filled] = rows[:filled]
            rows = grown
        rows[filled : filled + len(block)] = block
        filled += len(block)
    if not filled:
        raise LabError("there are no good images to learn from: put some into train/good")
    return rows[:filled]


def require_memory(needed: int, device: torch.device, what: str, remedy: str) -> None:
    """Raises LabError where so many bytes are not free."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        try:
            lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        except (OSError, StopIteration):  # not Linux
            return
    if needed > free:
        raise LabError(f"{what} take about {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free: {remedy}")


def require_images(found: int, needed: int, method: str) -> None:
    """Raises LabError where there are too few good images; method: what needs them."""
    if found < needed:
        raise LabError(f"{method} needs at least {needed} good images to learn from, and got {found}")


class PooledModel(FrozenModel):
    """A model of globally averaged features, which does not localise."""

    def fit(self, maps: Iterable[list[Tensor]]) -> None:
        features = collect((pooled(m) for m in maps), length_hint(maps), "features", "give fewer images")
        require_images(len(features), 2, "this method")  # one has no spread
        self.learn(features)

    def forward(self, maps: list[Tensor], size: int) -> Scores:
        return Scores(self.score(pooled(maps)), None)

    def learn(self, features: Tensor) -> None:
        """From [N, D], one row a good image."""
        raise NotImplementedError

    def score(self, features: Tensor) -> Tensor:
        """[N, D] to [N]"""
        raise NotImplementedError
