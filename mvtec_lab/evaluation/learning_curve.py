"""Extrapolate a figure over the number of training images by a power law of its error.

error = a * images^-b, fitted on the logarithms: learning curves follow it over wide ranges (Cortes et al., NIPS 1993;
Hestness et al., arXiv 1712.00409). It has no floor below which no image helps, so that it is a hope rather than a
promise, and not followed further than to twice the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST_POINTS = 3  # two numbers of images always lie on a power law
DRAWS = 2_000  # of the points around their standard errors: the bounds then move by less than a tenth of a point
LEAST_ERROR = 1e-3  # an error of 0 has no logarithm


class Forecast(NamedTuple):
    """Hold what an error is expected to be with more images, with its 95% interval."""

    images: float
    value: float
    low: float
    high: float


def forecast(images: Sequence[float], errors: Sequence[float], spreads: Sequence[float], at: float) -> Forecast | None:
    """Return the error that is expected with ``at`` images a class; None with fewer than LEAST_POINTS points.

    Args:
        images: training images a class, each once.
        errors: at these, in (0, 1] of a share.
        spreads: standard errors of the errors. They are taken as independent of each other; errors on the same test
            images are not, which makes the interval rather too wide.
        at: the images that are asked for.
    """
    if len(images) < LEAST_POINTS:
        return None
    x, y = np.log(np.asarray(images, dtype=np.float64)), np.asarray(errors, dtype=np.float64)
    drawn = y + np.random.default_rng(0).normal(size=(DRAWS, len(y))) * np.asarray(spreads, dtype=np.float64)
    values = [_at(x, each, np.log(at)) for each in (y[None], drawn)]
    low, high = np.quantile(values[1], (0.025, 0.975))
    return Forecast(at, float(values[0][0]), float(low), float(high))


def _at(x: np.ndarray, errors: np.ndarray, at: float) -> np.ndarray:
    """Return the power laws of errors [B, N] at a logarithm of images, [B]."""
    logs, centred = np.log(errors.clip(LEAST_ERROR)), x - x.mean()
    slopes = logs @ centred / (centred**2).sum()
    return np.asarray(np.exp(logs.mean(axis=1) + slopes * (at - x.mean())))
