"""What an image is described by: one class per part, each with one entry in ``descriptors.PARTS``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.problems.classification.methods.descriptors.maps import Near, Seen

TEMPERATURE = 1.0  # of the softmax over places, in deviations of good images' distances
COARSE = 7  # cells a side of the map of where: an eighth of an object
HIGHEST = (1, 4, 16)  # numbers of patches whose mean distance is told
TINY = 1e-6  # below any distance that is not rounding


@dataclass(frozen=True)
class Setting:
    """Hold what parts are built from.

    Args:
        classes: the class names in the order of their index.
        widths: channels of each layer.
        side: cells a side of the patches' grid.
    """

    classes: Sequence[str]
    widths: Sequence[int]
    side: int


class Part(nn.Module):
    """Describe images by rows of numbers; a part is a subclass with ``rows``.

    A part that ``fits`` is shown training images by ``learn`` before it is asked; what it keeps of them are buffers.
    """

    memory: ClassVar[bool] = True  # it asks for good patches
    fits: ClassVar[bool] = False  # it is fitted on training images and their labels or masks
    version: ClassVar[int] = 1  # counted up when its rows change, so that rows that the cache keeps are not met

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting

    @property
    def widths(self) -> list[int]:
        """Return the widths of the blocks that a row consists of: each weighs alike, so one has what is of one kind."""
        return [sum(self.setting.widths)]

    def rows(self, seen: Seen) -> Tensor:
        """Return the descriptors of N images, [N, D], each image's by itself; D is the sum of ``widths``."""
        raise NotImplementedError

    def learn(self, images: Any, places: Sequence[int]) -> None:
        """Fit the part on training images (``fitting.Images``), by their places."""


class Global(Part):
    """Average every map over the image: what a linear probe sees, of more layers."""

    memory = False

    def rows(self, seen: Seen) -> Tensor:
        return torch.cat([_mean(layer, seen.shown(layer.shape[-1])) for layer in seen.maps], 1)


class Anomaly(Part):
    """Average patches where they are unlike good ones."""

    def rows(self, seen: Seen) -> Tensor:
        return pooled(seen.patches, weights(seen, seen.free, 0))


class Residual(Part):
    """Average the difference to the nearest good patch where patches are unlike good ones."""

    def rows(self, seen: Seen) -> Tensor:
        return pooled(seen.patches - seen.free.good, weights(seen, seen.free, 0))


class Local(Part):
    """Average patches, and their difference to the nearest good patch in place, where they are unlike good ones there.

    It is for products that lie still: a good patch in a wrong place is unlike the good ones.
    """

    @property
    def widths(self) -> list[int]:
        return 2 * super().widths

    def rows(self, seen: Seen) -> Tensor:
        there = weights(seen, seen.local, 1)
        return torch.cat([pooled(seen.patches, there), pooled(seen.patches - seen.local.good, there)], 1)


class Where(Part):
    """Tell where an image is unlike good ones in place: a coarse map, how much, and the place of the peak."""

    @property
    def widths(self) -> list[int]:
        return [min(COARSE, self.setting.side) ** 2, len(HIGHEST) + 2, 2]

    def rows(self, seen: Seen) -> Tensor:
        side = seen.side
        far = seen.local.distances.unflatten(1, (side, side))
        coarse = F.adaptive_max_pool2d(far[:, None], min(COARSE, side)).flatten(1)
        highest = far.flatten(1).sort(1, descending=True).values
        means = [highest[:, :number].mean(1) for number in HIGHEST]
        spread = [far.flatten(1).mean(1), far.flatten(1).std(1, correction=0)]
        peak = far.flatten(1).argmax(1)
        place = torch.stack([peak // side, peak % side], 1).float() / max(side - 1, 1)
        levels = torch.cat([coarse, torch.stack([*means, *spread], 1)], 1)
        return torch.cat([levels.clamp_min(TINY).log(), place], 1)


class Free(Part):
    """Give the map of distances to good patches, wherever they lie: what is shown, no descriptor."""

    def rows(self, seen: Seen) -> Tensor:
        return seen.free.distances


class InPlace(Part):
    """Give the map of distances to good patches in place: what is shown, no descriptor."""

    def rows(self, seen: Seen) -> Tensor:
        return seen.local.distances


def weights(seen: Seen, near: Near, which: int) -> Tensor:
    """Return what each patch weighs, [N, cells], summing to 1: the more, the farther it is from good ones.

    Args:
        which: 0 for distances to any good patch, 1 for those in place.
    """
    steps = near.distances / (TEMPERATURE * seen.memory.spread[which].clamp_min(TINY))
    return steps.masked_fill(seen.shown(seen.side) == 0, -torch.inf).softmax(1)


def pooled(patches: Tensor, of_patch: Tensor) -> Tensor:
    """Return the weighted mean of patches [N, cells, C]: [N, C]; ``of_patch`` as ``weights`` returns it."""
    return torch.einsum("np,npc->nc", of_patch, patches)


def _mean(layer: Tensor, shown: Tensor) -> Tensor:
    return pooled(layer.flatten(2).transpose(1, 2), shown / shown.sum(1, keepdim=True).clamp_min(1))
