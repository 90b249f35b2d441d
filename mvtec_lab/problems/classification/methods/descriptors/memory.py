"""The patches of good images that an image's patches are compared with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mvtec_lab.problems.memory import nearest, nearest_in_place

TINY = 1e-12
DIRECTIONS = 64  # principal ones, in which patches are searched: on drawn products all 448 channels found worse ones
JUDGED = 32  # good images by whose distances those of others are measured


class Memory(nn.Module):
    """Remember the patches of some good images, and the mean of all good patches in each cell.

    A patch is standardised by the good ones, each layer weighing alike, and searched for in their principal directions.
    What is kept is in half precision, 6 MB for 50 images of 448 pixels; a checkpoint computes what the run computed.

    Args:
        widths: C of each layer.
        side: cells a side.
        images: M, how many good images are remembered.
    """

    mean: Tensor  # [C] of good patches
    scale: Tensor  # [C]
    directions: Tensor  # [C, R]
    usual: Tensor  # [cells, C], the mean of good patches in each cell
    bank: Tensor  # [side, side, M, R]
    hidden: Tensor  # [side, side, M] bool: padding beside a letterboxed image
    owner: Tensor  # [M], the group of each image
    spread: Tensor  # [2], the deviation of good images' distances, to patches anywhere and in place

    def __init__(self, widths: Sequence[int], side: int, images: int = 0) -> None:
        super().__init__()
        self.widths, self.side = list(widths), side
        channels = sum(widths)
        searched = min(DIRECTIONS, channels)
        half = {"usual": (side * side, channels), "bank": (side, side, images, searched)}
        single = {"mean": (channels,), "scale": (channels,), "directions": (channels, searched), "spread": (2,)}
        for shapes, kind in ((half, torch.half), (single, torch.float32)):
            for name, shape in shapes.items():
                self.register_buffer(name, torch.zeros(shape, dtype=kind))
        self.register_buffer("hidden", torch.zeros(side, side, images, dtype=torch.bool))
        self.register_buffer("owner", torch.zeros(images, dtype=torch.int32))

    def packed(self) -> np.ndarray:
        """Return everything that it holds as one row, [1, n] float32, which a cache can keep."""
        return torch.cat([value.cpu().flatten().float() for value in self.buffers()])[None].numpy()

    def hold(self, row: Tensor) -> None:
        """Take over what ``packed`` returned of a memory of as many images, [n]."""
        values = list(self.buffers())
        for value, part in zip(values, row.split([value.numel() for value in values]), strict=True):
            value.copy_(part.view_as(value))

    def learn(self, patches: Iterable[tuple[Tensor, Tensor]], groups: Sequence[int]) -> None:
        """Take in good images, of which the first ones are remembered.

        Args:
            patches: of each image, [cells, C], and which of them show it, [cells] 0 or 1.
            groups: of each image, from 0 up.
        """
        cells, channels = self.usual.shape
        kept, judged = range(len(self.owner)), range(len(groups))[-JUDGED:]
        images: dict[int, tuple[Tensor, Tensor]] = {}
        total, number = torch.zeros(cells, channels, dtype=torch.double), torch.zeros(cells, 1, dtype=torch.double)
        gram = torch.zeros(channels, channels, dtype=torch.double)
        for place, (of_image, shown) in enumerate(patches):
            visible = of_image.cpu() * shown.cpu()[:, None]
            total, number, gram = total + visible, number + shown.cpu()[:, None], gram + visible.T @ visible
            if place in kept or place in judged:
                images[place] = of_image, shown
        mean = total.sum(0) / number.sum()
        moments = gram / number.sum() - mean[:, None] * mean
        deviation = moments.diagonal().clamp_min(0).sqrt()
        layers = torch.cat([torch.full((width,), (len(self.widths) * width) ** -0.5) for width in self.widths])
        # A channel that never differs says nothing.
        scale = torch.where(deviation > 1e-6 * mean.abs() + TINY, layers / deviation.clamp_min(TINY), 0.0)
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        self.directions.copy_(torch.linalg.eigh(moments * scale[:, None] * scale)[1][:, -self.bank.shape[-1] :])
        self.usual.copy_(torch.where(number > 0, (total / number.clamp_min(1) - mean) * scale, 0.0))
        for row, place in enumerate(kept):
            of_image, shown = images[place]
            self.bank[:, :, row] = self._searched(of_image).unflatten(0, (self.side, self.side)).half()
            self.hidden[:, :, row] = shown.view(self.side, self.side) == 0
            self.owner[row] = groups[place]
        far = []
        for place in judged:
            of_image, shown = images[place]
            pair = [self.distances(of_image, shown, in_place, groups[place]) for in_place in (False, True)]
            far.append(torch.stack(pair)[:, shown > 0])
        self.spread.copy_(torch.cat(far, 1).std(1, correction=0))

    def standardised(self, patches: Tensor) -> Tensor:
        """Return patches [..., C] with good ones' mean 0 and mean square 1, to which each layer contributes alike."""
        return (patches - self.mean) * self.scale

    def _searched(self, patches: Tensor) -> Tensor:
        return self.standardised(patches) @ self.directions

    def distances(self, patches: Tensor, shown: Tensor, in_place: bool, own: int = -1) -> Tensor:
        """Return how far the patches of an image [cells, C] are from the nearest good ones, [cells]; 0 if not shown.

        Args:
            shown: which of them show the image, [cells] 0 or 1.
            in_place: among good patches at most a cell away, instead of all of them.
            own: group of good images that are left out, as the image is of it, unless it is the only one; -1: none.
        """
        queries, hidden = self._searched(patches), self.hidden
        if (self.owner != own).any():
            hidden = hidden | (self.owner == own)
        if in_place:
            grid = queries.view(1, self.side, self.side, -1)
            far = nearest_in_place(grid, self.bank, hidden=hidden)[0].flatten()
        else:
            far = nearest(queries, self.bank[~hidden].float())[0][:, 0]
        return torch.where(far < math.inf, far, 0.0) * shown

    def digest(self) -> str:
        """Return a digest of everything that it computes with."""
        return hashlib.blake2b(self.packed().data, digest_size=16).hexdigest()
