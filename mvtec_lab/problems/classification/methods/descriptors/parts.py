"""What an image is described by: one class per part, each with one entry in ``descriptors.PARTS``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mvtec_lab.problems.classification.methods.descriptors.maps import Seen

TEMPERATURE = (
    0.5  # of the softmax over places, in deviations of good images' distances: the best of four on a drawn product
)
COARSE = 7  # cells a side of the coarse map: an eighth of an object
RANKS = 9  # of distances: the 1st, 2nd, 4th ... 256th largest, a third of the 784 cells of 448 pixels
TINY = 1e-6  # below any distance that is not rounding

Sums = tuple[Tensor, ...]


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


SETTINGS = (TEMPERATURE, COARSE, RANKS, TINY)  # a part of the key of rows that the cache keeps


class Block(NamedTuple):
    """Name a block of a part's columns, which are of one kind."""

    width: int
    weight: float = 1.0  #: blocks of equal weight count alike, whatever their widths
    optional: bool = False  #: inner folds may leave it out beside others


class Part(nn.Module):
    """Describe images by rows of numbers; a part is a subclass with ``rows``.

    A part that ``fits`` learns from training images before it is asked; what it keeps of them are buffers. It says what
    it has to know of an image as tensors that add up over images: so copies of it that have not seen some of the images
    cost next to nothing.
    """

    memory: ClassVar[bool] = True  # it asks for good patches
    fits: ClassVar[bool] = False  # it is fitted on training images and their labels or masks
    in_place: ClassVar[bool] = False  # it compares patches with good ones in the same place
    version: ClassVar[int] = 1  # counted up when its rows change, so that rows that the cache keeps are not met

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting

    @property
    def blocks(self) -> list[Block]:
        """Return the blocks that a row consists of."""
        return [Block(sum(self.setting.widths))]

    @property
    def key(self) -> list[Any]:
        """Return what its rows depend on beside an image and the good patches; a part of the key in the cache."""
        return [type(self).__module__, type(self).__name__, self.version]

    def rows(self, seen: Seen) -> Tensor:
        """Return the descriptors of an image, [D]; D is the sum of the widths of ``blocks``."""
        raise NotImplementedError

    def sums(self, seen: Seen, marked: Tensor | None, label: str) -> Sums | None:
        """Return what a part that ``fits`` has to know of a training image; None: the image teaches nothing.

        Args:
            seen: of this image.
            marked: the share of each cell that its mask marks, [cells] in [0, 1]; None: that is not known.
            label: its class.
        """
        raise NotImplementedError

    def learn(self, sums: Sums | None) -> None:
        """Fit the part to the sums of all training images; None: none of them teaches anything."""
        raise NotImplementedError

    def remark(self, silent: int, images: int) -> str:
        """Return what has to be said where some of the training images taught nothing; empty where nothing has.

        Args:
            silent: how many of them.
            images: how many there are.
        """
        return ""


class Global(Part):
    """Average every map over the image: what a linear probe sees, of more layers."""

    memory = False

    @property
    def blocks(self) -> list[Block]:
        # Balanced accuracy with and without it beside local and where: 0.922 and 0.908 on bottle, 0.760 and 0.810 on a
        # drawn relay, whose pose varies. Inner folds kept it in 30 of 30 fits there, and left it out in 15 of 15 here.
        return [Block(sum(self.setting.widths), optional=True)]

    def rows(self, seen: Seen) -> Tensor:
        return torch.cat([_mean(layer, seen.shown(layer.shape[-1])) for layer in seen.maps])


class Anomaly(Part):
    """Average patches where they are unlike good ones."""

    def rows(self, seen: Seen) -> Tensor:
        return weights(seen, in_place=False) @ seen.patches


class Residual(Part):
    """Average how patches differ from the mean of good ones in their cell, where they are unlike good ones."""

    def rows(self, seen: Seen) -> Tensor:
        return weights(seen, in_place=False) @ seen.away


class Local(Part):
    """Do what ``Anomaly`` and ``Residual`` do where patches are unlike good ones *in the same place*.

    A good patch in a wrong place is unlike the good ones then.
    """

    in_place = True

    @property
    def blocks(self) -> list[Block]:
        return 2 * super().blocks

    def rows(self, seen: Seen) -> Tensor:
        there = weights(seen, in_place=True)
        return torch.cat([there @ seen.patches, there @ seen.away])


class Where(Part):
    """Tell how far and how widely an image is unlike good ones in place, and on a coarse map where."""

    in_place = True

    @property
    def blocks(self) -> list[Block]:
        # At full weight the map cost a point or two where a defect may lie anywhere.
        return [Block(self._ranks + 4), Block(self._coarse**2, 0.5)]

    @property
    def _coarse(self) -> int:
        return min(COARSE, self.setting.side)

    @property
    def _ranks(self) -> int:
        return sum(2**k <= max(1, self.setting.side**2 // 3) for k in range(RANKS))

    def rows(self, seen: Seen) -> Tensor:
        side = seen.side
        highest = seen.local.sort(descending=True).values[[2**k - 1 for k in range(self._ranks)]]
        there = weights(seen, in_place=True)
        axis = (2 * torch.arange(side, device=there.device) + 1) / side - 1  # the middles of cells, in [-1, 1]
        place = torch.stack([axis.repeat_interleave(side), axis.repeat(side)])  # [2, cells]
        away = place - place @ there[:, None]
        spread = (there * away) @ away.T
        width, height = spread[0, 0], spread[1, 1]
        sizes = torch.stack([width + 1e-4, height + 1e-4, width + height + 1e-4, width * height - spread[0, 1] ** 2])
        coarse = pooled(seen.local.view(side, side), self._coarse)
        return torch.cat([highest.clamp_min(TINY), sizes.clamp_min(TINY), coarse.clamp_min(TINY)]).log()


class Distances(Part):
    """Give the map of distances to good patches, [cells]: what is shown, no descriptor."""

    def __init__(self, setting: Setting, in_place: bool) -> None:
        super().__init__(setting)
        self.where = in_place

    @property
    def key(self) -> list[Any]:
        return [*super().key, self.where]

    def rows(self, seen: Seen) -> Tensor:
        return seen.local if self.where else seen.free


def weights(seen: Seen, in_place: bool) -> Tensor:
    """Return what each patch weighs, [cells], summing to 1: the more, the farther it is from good ones."""
    steps = (seen.local if in_place else seen.free) / (TEMPERATURE * seen.memory.spread[int(in_place)].clamp_min(TINY))
    return steps.masked_fill(seen.shown(seen.side) == 0, -torch.inf).softmax(0)


def pooled(scores: Tensor, cells: int) -> Tensor:
    """Return the maxima of a map [S, S] on a coarser grid, [cells * cells]: adaptive_max_pool2d, in a form for ONNX."""
    side = len(scores)
    bins = [slice(k * side // cells, -(-(k + 1) * side // cells)) for k in range(cells)]
    rows = torch.stack([scores[part].amax(0) for part in bins])
    return torch.stack([rows[:, part].amax(1) for part in bins], 1).flatten()


def _mean(layer: Tensor, shown: Tensor) -> Tensor:
    return layer[0].flatten(1) @ (shown / shown.sum().clamp_min(1))
