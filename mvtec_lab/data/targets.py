"""What an image's mask says of its defects, in TorchVision's conventions."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from mvtec_lab.data.frame import Frame

TARGETS = ("mask", "boxes")  # what a data set can give beside image and label


def resize_mask(mask: np.ndarray, frame: int | Frame) -> np.ndarray:
    """Return a mask [H, W] bool as [S, S] uint8, 1 in pixels of which it covers more than half.

    A mask that covers half of no pixel, as a scratch in a large image, is 1 in all pixels that it touches.
    """
    frame, size = Frame.of(frame), mask.shape[:2]
    *_, height, width = frame.place(size)
    shape = min(mask.shape[1], width), min(mask.shape[0], height)  # area averaging needs an axis that shrinks
    cover = cv2.resize(mask.astype(np.float32), shape, interpolation=cv2.INTER_AREA)
    cover = cv2.resize(cover, (width, height), interpolation=cv2.INTER_LINEAR)
    over_half = cover > 0.5
    return frame.pad((over_half if over_half.any() else cover > 0).astype(np.uint8), size)


def components(mask: np.ndarray) -> np.ndarray:
    """Return the 8-connected components of a mask [H, W] as masks, uint8 [K, H, W], in the order of ``boxes_of``."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return (labels == np.arange(1, count)[:, None, None]).astype(np.uint8)


def boxes_of(mask: np.ndarray) -> Tensor:
    """Return one box per 8-connected component of a mask [H, W], in pixels: float32 [K, 4], x0, y0, x1, y1.

    x1 and y1 are exclusive, so that a box of a single pixel has the area 1.
    """
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    left, top, width, height = stats[1:, :4].T  # the first component is the background
    return torch.from_numpy(np.stack([left, top, left + width, top + height], axis=1)).float()
