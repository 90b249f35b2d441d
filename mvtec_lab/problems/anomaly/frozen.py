"""The base of the methods that fit a model to frozen feature maps in one pass, and the steps that they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import length_hint
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.base import Batches, Scores
from mvtec_lab.problems.anomaly.features import BackboneModel
from mvtec_lab.problems.padding import at, within
from mvtec_lab.progress import bar

SIGMA = 4 / 224  # of a map's Gaussian, as a share of its side: the papers' 4 pixels of 224


class Maps(list[Tensor]):
    """Hold what FeatureMaps returns for a batch, and which pixels show the images, as AnomalyModel.inside says."""

    def __init__(self, layers: Iterable[Tensor], inside: Tensor | None = None) -> None:
        super().__init__(layers)
        self.inside = inside

    def cells(self) -> Tensor | None:
        """Return which cells of the finest map show an image, [N, cells] bool; None: all of them do."""
        return None if self.inside is None else at(self.inside, finest(self)).flatten(1) > 0


class FeatureModel(nn.Module):
    """Learn the maps of good images and score maps."""

    def __init__(self) -> None:
        super().__init__()
        self.required: dict[str, int] = {}  # number of good images that fitting needs, by what needs them
        self.remarks: list[str] = []  # as an AnomalyModel's

    def require_memory(self, maps: Sequence[Tensor], images: int, device: torch.device) -> None:
        """Raise LabError if fitting to this many images, whose maps are of such shapes, takes more than is free."""

    def fit(self, maps: Iterable[Maps]) -> None:
        """Learn the maps of all good images, batch by batch."""
        raise NotImplementedError

    def forward(self, maps: Maps, size: int) -> Scores:
        """Score the maps of images whose sides are ``size`` pixels."""
        raise NotImplementedError


class FrozenFeatureModel(BackboneModel):
    """Fit a FeatureModel to frozen maps in one pass over the good images. A subclass defines ``build_model``."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.model = self.build_model()
        self.remarks = self.model.remarks

    def build_model(self) -> FeatureModel:
        """Return the model of the maps, not yet fitted."""
        raise NotImplementedError

    def plan(self, images: int, device: torch.device) -> None:
        self._require_images(images)
        size = self.hparams["image_size"]
        self.model.require_memory(self.features(torch.empty(1, 3, size, size)), images, device)

    @torch.no_grad()
    def prepare(self, batches: Batches) -> None:
        with torch.autocast(self.device.type, enabled=False):  # sums of squares want float32
            self.model.fit(_Reading(batches(), self))

    def forward(self, images: Tensor) -> Scores:
        maps = Maps(self.features(images), self.inside(images))
        with torch.autocast(images.device.type, enabled=False):
            return self.model(maps, images.shape[-1])

    def _require_images(self, count: int) -> None:
        for what, least in self.model.required.items():
            if count < least:
                raise LabError(f"{what} needs at least {least} good images to learn from, and got {count}")


class _Reading:
    """Yield the maps of each batch under a progress bar, and refuse what does not fit into memory."""

    def __init__(self, batches: Iterable[Tensor], model: FrozenFeatureModel) -> None:
        self.batches, self.model = batches, model

    def __iter__(self) -> Iterator[Maps]:
        count = planned = 0
        with bar() as progress:
            for batch in progress.track(self.batches, length_hint(self) or None, description="reading good images"):
                maps = Maps(self.model.features(batch), self.model.inside(batch))
                count += len(batch)
                if count > planned:  # the first batch, or more of them than was announced
                    planned = 2 * count if planned else count * max(length_hint(self), 1)
                    self.model.model.require_memory(maps, planned, batch.device)
                yield maps
        self.model._require_images(count)

    def __length_hint__(self) -> int:
        return length_hint(self.batches)


def pooled(maps: Sequence[Tensor]) -> Tensor:
    """Return the global average of every channel: [N, C of all maps]."""
    return torch.cat([layer.mean((2, 3)) for layer in maps], dim=1)


def finest(maps: Sequence[Tensor]) -> torch.Size:
    """Return the height and width of the map with the most cells."""
    return max((layer.shape[-2:] for layer in maps), key=lambda shape: shape[0] * shape[1])


def joined(maps: Sequence[Tensor], mode: str) -> Tensor:
    """Return one map [N, C of all maps, H, W] at the finest one's resolution; ``mode`` is F.interpolate's."""
    size = finest(maps)
    return torch.cat(
        [layer if layer.shape[-2:] == size else F.interpolate(layer, size, mode=mode) for layer in maps], 1
    )


def cells(joint: Tensor) -> Tensor:
    """Return a map [N, C, H, W] as rows [N, H x W, C]."""
    return joint.flatten(2).transpose(1, 2).contiguous()


def smooth(scores: Tensor, size: int, inside: Tensor | None = None) -> Tensor:
    """Return maps [N, h, w] at the images' resolution [N, size, size]: bilinear, then Gaussian, as the papers do.

    Both steps are linear and separable: one matrix per side does them at once.

    Args:
        inside: which pixels show the images, as ``Maps`` holds it: the others have no part in it, and become 0.
    """
    rows, columns = (_smoothing(int(side), size, scores) for side in scores.shape[1:])
    return within(scores, inside, lambda maps: rows @ maps @ columns.T)


def _smoothing(side: int, size: int, like: Tensor) -> Tensor:
    sigma = SIGMA * size
    radius = min(round(4 * sigma), size - 1)  # four deviations, SciPy's default
    offsets = torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    basis = torch.eye(side, dtype=like.dtype, device=like.device)[None]
    lines = F.interpolate(basis, size, mode="linear").transpose(0, 1)  # [side, 1, size]
    lines = F.conv1d(F.pad(lines, (radius, radius), mode="reflect"), (kernel / kernel.sum())[None, None])
    return lines[:, 0].T


def collect(blocks: Iterable[Tensor], count: int = 0) -> Tensor:
    """Return blocks [n, ...] one below the other; no block is held twice.

    Args:
        count: how many blocks will come; 0: unknown.

    Raises:
        LabError: there is no block.
    """
    rows, filled = torch.empty(0), 0
    for block in blocks:
        size = len(rows)
        if not filled:
            size = max(count, 1) * len(block)
        elif filled + len(block) > size:
            size = 2 * (filled + len(block))
        if size > len(rows):
            grown = block.new_empty(size, *block.shape[1:])  # takes up memory as it is written to
            if filled:
                grown[:filled] = rows[:filled]
            rows = grown
        rows[filled : filled + len(block)] = block
        filled += len(block)
    if not filled:
        raise LabError("there are no good images to learn from: put some into train/good")
    return rows[:filled]


class PooledModel(FeatureModel):
    """Learn and score globally averaged features [N, D], one row per image; there is no map."""

    def __init__(self) -> None:
        super().__init__()
        self.required["this method"] = 2  # a single image has no spread

    def fit(self, maps: Iterable[Maps]) -> None:
        self.learn(collect(map(pooled, maps), length_hint(maps)))

    def forward(self, maps: Maps, size: int) -> Scores:
        return Scores(self.score(pooled(maps)), None)

    def learn(self, features: Tensor) -> None:
        """Learn the features [N, D] of good images."""
        raise NotImplementedError

    def score(self, features: Tensor) -> Tensor:
        """Return the scores [N] of features [N, D]."""
        raise NotImplementedError
