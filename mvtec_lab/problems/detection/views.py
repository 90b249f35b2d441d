"""Boxes in the views of an image."""

from __future__ import annotations

import torch
from torch import Tensor


def viewed_boxes(boxes: Tensor, number: int, size: int) -> Tensor:
    """Return an image's boxes [K, 4] in its view of this number (``view``); ``size``: pixels a side of the image."""
    x0, y0, x1, y1 = boxes.unbind(1)
    x0, x1 = (size - x1, size - x0) if number & 1 else (x0, x1)
    y0, y1 = (size - y1, size - y0) if number & 2 else (y0, y1)
    return torch.stack([y0, x0, y1, x1] if number & 4 else [x0, y0, x1, y1], dim=1)
