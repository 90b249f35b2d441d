"""Maps of a frozen backbone, and what parts see of an image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.models.maps import FeatureMaps
from mvtec_lab.models.views import unviewed, view
from mvtec_lab.problems.classification.methods.descriptors.memory import Memory
from mvtec_lab.problems.padding import at

# Pixels a side of the maps' cells: parts of an object, of which PatchCore takes the first two, and what a classifier
# pools. GRID is where patches lie: the smallest defects of MVTec's bottle cover one such cell of 448 pixels.
CELLS, GRID = (8, 16, 32), 16


class Cells(nn.Module):
    """Turn normalised images [N, 3, S, S] into maps of some layers, none finer than the patches' grid.

    A map is the mean over views of the image, each turned back: so place and handedness stay, whether or not the
    product may lie in another way, and what a view adds by chance is averaged out.

    Args:
        backbone, weights: as in ``FeatureMaps``.
        layers: names of layers; None: the last ones with cells of ``CELLS`` pixels.
        size: S, pixels.
        views: how many views (``models.views.view``): the first ones.
    """

    def __init__(
        self, backbone: str, weights: str | None, layers: Sequence[str] | None, size: int, views: int = 1
    ) -> None:
        super().__init__()
        self.features = FeatureMaps(backbone, weights, layers, CELLS)
        self.views = views
        with torch.no_grad():
            sides = [int(each.shape[-1]) for each in self.features(torch.zeros(1, 3, size, size))]
        self.side = min(sides, key=lambda side: abs(size / side - GRID))
        self.widths = self.features.channels
        self.shapes = [(min(side, self.side), width) for side, width in zip(sides, self.widths, strict=True)]

    def forward(self, images: Tensor) -> Tensor:
        """Return the maps as one row per image, which a cache can keep: channels last, layer by layer."""
        of_views = [self._seen(images, number) for number in range(self.views)]
        layers = [torch.stack(layer).mean(0) for layer in zip(*of_views, strict=True)]
        return torch.cat([layer.permute(0, 2, 3, 1).flatten(1) for layer in layers], 1)

    def _seen(self, images: Tensor, number: int) -> list[Tensor]:
        maps = self.features(view(images, number))
        side = self.side
        return [
            unviewed(F.adaptive_avg_pool2d(layer, side) if layer.shape[-1] > side else layer, number) for layer in maps
        ]

    def maps(self, rows: Tensor) -> list[Tensor]:
        """Return the maps [N, C, H, W] of rows."""
        parts = rows.split([side * side * width for side, width in self.shapes], dim=1)
        return [
            part.unflatten(1, (side, side, width)).permute(0, 3, 1, 2)
            for part, (side, width) in zip(parts, self.shapes, strict=True)
        ]

    def extra_repr(self) -> str:
        return f"side={self.side}, views={self.views}"  # a part of a cache's key


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Return the maps of one image as patches [cells, C of all maps] on the finest grid, others interpolated."""
    side = max(layer.shape[-1] for layer in maps)
    layers = [
        layer if layer.shape[-1] == side else F.interpolate(layer, (side, side), mode="bilinear") for layer in maps
    ]
    return torch.cat(layers, 1)[0].flatten(1).T.contiguous()


class Seen:
    """Give what is seen of one image.

    Args:
        maps: [1, C, H, W] of each layer.
        memory: the good patches; None: no part asks for them.
        inside: which pixels show the image, [1, S, S] bool; None: all of them.
    """

    def __init__(self, maps: Sequence[Tensor], memory: Memory | None, inside: Tensor | None = None) -> None:
        self.maps, self.inside = list(maps), inside
        self._memory = memory
        self.side = max(layer.shape[-1] for layer in maps)

    @property
    def memory(self) -> Memory:
        assert self._memory is not None
        return self._memory

    def shown(self, side: int) -> Tensor:
        """Return which cells of a grid show the image, [side x side] float, 0 or 1."""
        if self.inside is None:
            return self.maps[0].new_ones(side * side)
        return at(self.inside, (side, side)).flatten()

    @cached_property
    def patches(self) -> Tensor:
        """Return the patches [cells, C], standardised by those of good images; each layer weighs alike."""
        return self.memory.standardised(self._joined)

    @cached_property
    def away(self) -> Tensor:
        """Return how the patches [cells, C] differ from the mean of good ones in the same cell."""
        return self.patches - self.memory.usual.float()

    @cached_property
    def free(self) -> Tensor:
        """Return how far patches are from good ones, wherever these lie, [cells]; 0 beside a letterboxed image."""
        return self.memory.distances(self._joined, self.shown(self.side), False)

    @cached_property
    def local(self) -> Tensor:
        """Return how far patches are from good ones that lie at most one cell away, [cells]; 0 as ``free``."""
        return self.memory.distances(self._joined, self.shown(self.side), True)

    @cached_property
    def _joined(self) -> Tensor:
        return joined(self.maps)
