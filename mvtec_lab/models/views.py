"""The eight views of a square image, mirrored and turned, and of boxes in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def view(image: Tensor, number: int) -> Tensor:
    """Return a view [..., S, S] of a square image or map: 0 itself, 1 to 3 mirrored, 4 to 7 these, turned over.

    Bit 0 mirrors left and right, bit 1 top and bottom, bit 2 then swaps rows and columns.
    """
    image = image.flip(-1) if number & 1 else image
    image = image.flip(-2) if number & 2 else image
    return image.transpose(-1, -2) if number & 4 else image


def unviewed(image: Tensor, number: int) -> Tensor:
    """Return the image that ``view`` made this view of."""
    image = image.transpose(-1, -2) if number & 4 else image
    return view(image, number & 3)


def viewed_boxes(boxes: Tensor, number: int, size: int) -> Tensor:
    """Return an image's boxes [K, 4] in its view of this number (``view``); ``size``: pixels a side of the image."""
    x0, y0, x1, y1 = boxes.unbind(1)
    x0, x1 = (size - x1, size - x0) if number & 1 else (x0, x1)
    y0, y1 = (size - y1, size - y0) if number & 2 else (y0, y1)
    return torch.stack([y0, x0, y1, x1] if number & 4 else [x0, y0, x1, y1], dim=1)


def unviewed_boxes(boxes: Tensor, number: int, size: int) -> Tensor:
    """Return the boxes of an image that ``viewed_boxes`` moved into this view."""
    turned = boxes[:, [1, 0, 3, 2]] if number & 4 else boxes
    return viewed_boxes(turned, number & 3, size)


def drawn(batch: Mapping[str, Any], views: int) -> dict[str, Any]:
    """Return a training batch with its images and masks as views, and ``view`` [N], which ones they are.

    Args:
        batch: ``seed`` [N], which chooses the views; ``image`` and ``mask`` [N, ..., S, S], as far as it has them.
        views: how many there are to choose from.
    """
    chosen = batch["seed"] % views
    moved = {
        name: torch.stack([view(part, number) for part, number in zip(batch[name], chosen.tolist(), strict=True)])
        for name in ("image", "mask")
        if name in batch
    }
    return {**batch, **moved, "view": chosen}
