"""Outlines and fills that the drawn images are made of.

Lengths are fractions of the image side, angles radians, colours RGB in [0, 255], outlines polygons (points, 2) of x, y.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

Rng = np.random.Generator

WHITE = np.full(3, 255.0)


def at(angle: Any) -> np.ndarray:
    """Return the points of the unit circle at these angles, (..., 2)."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


CIRCLE = at(np.linspace(0, 2 * np.pi, 32, endpoint=False))


def any_angle(rng: Rng) -> float:
    """Draw an angle in [0, 2 pi)."""
    return rng.uniform(0, 2 * np.pi)


def wobbly(rng: Rng, centre: np.ndarray, radius: float, wobble: float) -> np.ndarray:
    """Return the outline of something nearly round; ``wobble`` is the relative size of its three harmonics."""
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    waves = np.sum([rng.normal(0, wobble / k) * np.cos(k * t + any_angle(rng)) for k in (2, 3, 5)], axis=0)
    return centre + (radius * (1 + waves))[:, None] * at(t)


def band(path: np.ndarray, radius: float) -> np.ndarray:
    """Return the outline of a wire along ``path``, pointed a little at both ends."""
    along = np.gradient(path, axis=0)
    across = radius * np.stack([-along[:, 1], along[:, 0]], -1) / np.hypot(*along.T)[:, None]
    across[[0, -1]] *= 0.6
    return np.concatenate([path + across, (path - across)[::-1]])


def fill(canvas: np.ndarray, outline: np.ndarray, colour: np.ndarray) -> None:
    """Paint the inside of an outline, its edge smooth."""
    points = np.rint((outline * len(canvas) - 0.5) * 16).astype(np.int32)  # 16: four fractional bits
    cv2.fillPoly(canvas, [points], colour.tolist(), cv2.LINE_AA, shift=4)


def bevel(canvas: np.ndarray, outline: np.ndarray, colour: np.ndarray, depth: float, shift: np.ndarray) -> None:
    """Fill an outline: darker at the rim, the lightest part moved by ``shift``."""
    middle = outline.mean(axis=0)
    for t in np.linspace(0, 1, 7):
        fill(canvas, middle + (outline - middle) * (1 - depth * t) + shift * t, colour * (0.68 + 0.32 * t))


def cloud(rng: Rng, nodes: int, side: int) -> np.ndarray:
    """Return smooth noise, [side, side], of unit variance at its ``nodes`` x ``nodes`` nodes."""
    return cv2.resize(rng.standard_normal((nodes, nodes), np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
