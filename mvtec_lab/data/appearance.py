"""Measure how an image looks as a whole, whatever it shows: brightness, sharpness, colour."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

SIDE = 16  # pixels of a miniature


class Appearance(NamedTuple):
    """Hold the measures of an image.

    Args:
        brightness: mean grey level, 0 to 255.
        sharpness: mean size of the second derivative of grey levels from pixel to pixel, as a share of their standard
            deviation, so that more light or contrast does not count.
        red: mean a* of CIELAB, from green (below 0) to red.
        yellow: mean b*, from blue (below 0) to yellow.
        width, height: pixels.
        miniature: grey levels at SIDE x SIDE pixels, [SIDE * SIDE].
    """

    brightness: float
    sharpness: float
    red: float
    yellow: float
    width: int
    height: int
    miniature: np.ndarray


def appearance(image: np.ndarray) -> Appearance:
    """Return the measures of an image [H, W, 3] uint8 RGB, in its own size."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    height, width = grey.shape
    second = float(np.abs(cv2.Laplacian(grey, cv2.CV_32F)).mean())
    small = cv2.resize(image, (min(width, 256), min(height, 256)), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3).mean(axis=0)
    return Appearance(
        brightness=float(grey.mean()),
        sharpness=second / max(float(grey.std()), 1e-6),
        red=float(lab[1]),
        yellow=float(lab[2]),
        width=width,
        height=height,
        miniature=cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel(),
    )
