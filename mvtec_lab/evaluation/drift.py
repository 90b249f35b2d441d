"""Tell whether new images are like known ones: two-sample tests by permutation, and what a difference is.

Pure functions on arrays. The statistic is the energy distance (Szekely and Rizzo, InterStat 2004): it is 0 where two
distributions are equal and above 0 where they differ in anything, in one dimension as in a thousand, and has no
setting. Its p-value is the share of random divisions of all images with a distance at least as large: exact at any
number of images, as long as new images are drawn as the known ones were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import norm, t

from mvtec_lab.evaluation.statistics import holm

ALPHA = 0.05  # of all tests together: the share of unchanged batches that are called changed
PERMUTATIONS = 9_999  # so that p can be 0.0001, and, for six tests, 0.0006
FEWEST = 3  # new images: of two, an interval says nothing
MOST = 500  # images on either side: the tests take time with their square
USUAL = 0.95  # share of the reference images between whose values a new image is usual
TIMES = 4  # as many new images beyond them as are expected without a change, and one matters
ENOUGH = 0.8  # share of new images from which one matters anyway: TIMES what 11 reference images let expect is more
FLOOR = 0.1  # of the mean spread of all features, as in engine.unknown


@dataclass(frozen=True)
class Sample:
    """Hold what is compared: values of reference images [n, D] and of new ones [m, D].

    Args:
        name: of the test, as monitor.json has it.
        relative: whether values are logarithms, so that a difference is a factor.
        nearest: whether a new image is usual by its distance to the nearest reference image, as where there are many
            values, and not by that to their mean.
    """

    name: str
    reference: np.ndarray
    new: np.ndarray
    relative: bool = False
    nearest: bool = False

    def axis(self) -> tuple[np.ndarray, np.ndarray]:
        """Return one number for each image of both sides, [n] and [m], by which a new one is usual or not."""
        if self.nearest:
            return strangeness(self.reference, self.new)[:2]
        if self.reference.shape[1] > 1:
            usual = self.reference.mean(axis=0)
            return np.linalg.norm(self.reference - usual, axis=1), np.linalg.norm(self.new - usual, axis=1)
        return self.reference[:, 0], self.new[:, 0]

    @property
    def ends(self) -> int:
        """Return at how many ends of the axis an image is unusual: at one of distances, as near is not unusual."""
        return 1 if self.nearest or self.reference.shape[1] > 1 else 2

    def unusual(self) -> float:
        """Return the share of new images outside the range of USUAL of the reference images."""
        old, new = self.axis()
        if self.ends == 1:
            return float((new > np.quantile(old, USUAL)).mean())
        low, high = np.quantile(old, [(1 - USUAL) / 2, (1 + USUAL) / 2])
        return float(((new < low) | (new > high)).mean())

    def expected(self) -> float:
        """Return the share of new images that is expected there without a change: of few reference images, a large one.

        Of n values in their order, np.quantile takes the one at place 1 + q (n - 1) as the quantile q, and another
        value of the same distribution is below the one at place k with probability k / (n + 1). Between two places this
        is exact of evenly spread values; of 8 from a normal distribution the share is 5% smaller.
        """
        n, beyond = len(self.reference), (1 - USUAL) / self.ends
        return self.ends * (1 + beyond * (n - 1)) / (n + 1)


@dataclass(frozen=True)
class Shift:
    """Hold the difference of two means (new - reference), its 95% interval (Welch), and what would be seen.

    ``shown`` is the difference that so many images show in eight of ten cases, at the level that is left to the test
    with the smallest p-value.
    """

    difference: float
    low: float
    high: float
    shown: float


@dataclass(frozen=True)
class Tested:
    """Hold a test of a sample: its p-value, the same adjusted for all tests (Holm), and the share of unusual images."""

    sample: Sample
    p: float
    p_holm: float
    unusual: float

    @property
    def shown(self) -> bool:
        """Tell whether a difference is shown, however small."""
        return self.p_holm <= ALPHA

    @property
    def changed(self) -> bool:
        """Tell whether a difference is shown that matters: many images show small ones, which are in every data set."""
        return self.shown and self.unusual >= self.alarm

    @property
    def alarm(self) -> float:
        """Return the share of unusual images from which a difference that is shown is an alarm, in whole percent."""
        return round(min(TIMES * self.sample.expected(), ENOUGH), 2)


def all_tested(samples: Sequence[Sample], permutations: int = PERMUTATIONS) -> list[Tested]:
    """Return the test of each sample, in their order."""
    p_values = [p_of(sample, permutations) for sample in samples]
    return [
        Tested(sample, p, adjusted, sample.unusual())
        for sample, p, adjusted in zip(samples, p_values, holm(p_values), strict=True)
    ]


def p_of(sample: Sample, permutations: int = PERMUTATIONS) -> float:
    """Return the p-value of the hypothesis that both sides are drawn from one distribution.

    Raises:
        ValueError: a value is no finite number.
    """
    n, m = len(sample.reference), len(sample.new)
    values = np.concatenate([sample.reference, sample.new]).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{sample.name}: a value is no finite number")
    # By both sides together: what treated them differently would not be exact.
    spread = values.std(axis=0)
    values = (values - values.mean(axis=0)) / np.maximum(spread, max(FLOOR * float(spread.mean()), 1e-12))
    apart = cdist(values, values)
    new = _divisions(n, m, permutations)
    within = np.einsum("ij,ij->i", new @ apart, new)  # sums of the distances among new images
    between = new @ apart.sum(axis=1) - within
    energy = 2 * between / (n * m) - within / m**2 - (apart.sum() - 2 * between - within) / n**2
    return float(np.mean(energy >= energy[0] - 1e-9 * abs(energy[0])))  # equal divisions differ in the last digits


@lru_cache(maxsize=4)  # of tests on the same images
def _divisions(n: int, m: int, permutations: int) -> np.ndarray:
    """Return which images are new, 1, and which not, 0: as they are in the first row, then by chance."""
    rng, new = np.random.default_rng(0), np.zeros((permutations + 1, n + m))
    new[0, n:] = 1
    for row in new[1:]:
        row[rng.permutation(n + m)[:m]] = 1
    return new


def least_new(reference: int, tests: int) -> int:
    """Return how many new images have so many divisions that a p-value can be small enough for all tests."""
    return next(m for m in range(FEWEST, 10_000) if comb(reference + m, m) * ALPHA >= tests)


def evenly(count: int, most: int = MOST) -> np.ndarray:
    """Return the indices of at most so many of some images, spread over all of them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def shift_of(sample: Sample, tests: int) -> Shift:
    """Return how far the means of a sample of one dimension are apart."""
    a, b = sample.reference.ravel(), sample.new.ravel()
    parts = np.array([np.var(side, ddof=1) / len(side) if len(side) > 1 else np.nan for side in (a, b)])
    error = float(np.sqrt(parts.sum()))
    freedom = parts.sum() ** 2 / max(float((parts**2 / [len(a) - 1, len(b) - 1]).sum()), 1e-300)
    difference, reach = float(b.mean() - a.mean()), error * float(t.ppf(0.975, freedom))
    spread = float(np.std(a, ddof=1)) * (1 / len(a) + 1 / len(b)) ** 0.5
    shown = spread * float(norm.isf(ALPHA / tests / 2) + norm.isf(0.2))
    return Shift(difference, difference - reach, difference + reach, shown)


def strangeness(reference: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how far images are from the nearest reference image, of the others each: [n] and [m]; and which one [m].

    Distances are in the features [n, D] and [m, D], in spreads of the reference, as engine.unknown has them.
    """
    spread = reference.std(axis=0)
    spread = np.maximum(spread, max(FLOOR * float(spread.mean()), 1e-12))
    scale = spread * reference.shape[1] ** 0.5
    inside = cdist(reference / scale, reference / scale)
    np.fill_diagonal(inside, np.inf)
    across = cdist(new / scale, reference / scale)
    return inside.min(axis=1), across.min(axis=1), across.argmin(axis=1)
