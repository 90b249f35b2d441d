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
        sharpness: mean size of the second derivative of grey levels (Laplacian), as a share of that of the first
            (Sobel): neither light nor contrast counts, nor areas that are all white.
        red, blue: logarithms of the channel's mean, as a share of green's: more light of all colours does not count.
        width, height: pixels.
        miniature: grey levels at SIDE x SIDE pixels, [SIDE * SIDE].
    """

    brightness: float
    sharpness: float
    red: float
    blue: float
    width: int
    height: int
    miniature: np.ndarray


def appearance(image: np.ndarray) -> Appearance:
    """Return the measures of an image [H, W, 3] uint8 RGB, in its own size."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    height, width = grey.shape
    second = float(np.abs(cv2.Laplacian(grey, cv2.CV_32F)).mean())
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    first = float(np.sqrt(across**2 + down**2).mean())  # cv2.magnitude rounds by where the array lies in memory
    colours = np.log(np.maximum(cv2.mean(image)[:3], 1e-3))
    return Appearance(
        brightness=float(grey.mean()),
        sharpness=second / max(first, 1e-6),
        red=float(colours[0] - colours[1]),
        blue=float(colours[2] - colours[1]),
        width=width,
        height=height,
        miniature=cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel(),
    )
