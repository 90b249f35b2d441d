"""Divide the spread of a run's metric into what causes it: test images, split, and seed.

The model is x = mean + seed + image + rest for each image of a test set, and one more part for the split: which images
train, and which fold they are tested in. Estimates are by the method of moments: what a mean square holds of the parts
below it is taken off (Searle, Casella and McCulloch, Variance Components, 1992, chapter 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LEAST_FREEDOM = 2  # with one the upper bound of a standard deviation is 32 times the estimate: it says nothing
WHOLE = 3  # test sets: as for the interval of their mean


class Component(NamedTuple):
    """Hold a part of the variance of one run's metric.

    Args:
        variance: as it is estimated, 0 where the parts below it explain all.
        freedom: degrees of freedom of the estimate (Satterthwaite's where it is a difference).
        raw: the variance that the bounds are of: that before the parts below it were taken off.
    """

    variance: float
    freedom: float
    raw: float

    @property
    def deviation(self) -> float:
        """Return the standard deviation."""
        return float(np.sqrt(self.variance))

    def interval(self, most: float = np.inf) -> tuple[float, float]:
        """Return the 95% interval of the standard deviation, at most ``most``.

        It is the chi-square interval of the mean square that the estimate rests on, less what was taken off (Williams,
        Biometrika 49, 1962): exact where nothing was, else conservative at its upper end.
        """
        from scipy import stats

        taken = self.raw - self.variance
        low, high = (self.freedom * self.raw / stats.chi2.ppf(q, self.freedom) - taken for q in (0.975, 0.025))
        return min(most, float(np.sqrt(max(0.0, low)))), min(most, float(np.sqrt(max(0.0, high))))


class Components(NamedTuple):
    """Hold the parts of the variance of one run's metric; None: the runs do not tell it apart.

    Args:
        images: by the choice of test images.
        split: by which images train and which fold is tested; without several seeds a fold, by the seed as well.
        seed: by initial weights, order of batches and augmentation.
    """

    images: Component
    split: Component | None = None
    seed: Component | None = None

    @property
    def variance(self) -> float:
        """Return the sum of the parts that are known."""
        return sum(part.variance for part in self if part is not None)


def of_images(values: npt.ArrayLike, strata: npt.ArrayLike | None = None) -> float:
    """Return the variance of a run's mean by the choice of its test images, as they are drawn within each stratum.

    The chance of a model in a single image is taken off where there are several runs: it belongs to the seed, as more
    seeds average it away. Of a single run it cannot be told from the images, and stays in.

    Args:
        values: of each run and image, [R, N].
        strata: of each image, its class, [N]; None: one for all. A stratum of one image has the spread of the others.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    runs, images = values.shape
    means, groups = values.mean(axis=0), np.zeros(images) if strata is None else np.asarray(strata)
    squares, freedom = 0.0, 0
    for group in np.unique(groups):
        of_group = means[groups == group]
        squares += float(((of_group - of_group.mean()) ** 2).sum())
        freedom += len(of_group) - 1
    between = squares / max(freedom, 1)
    rest = values - means - values.mean(axis=1, keepdims=True) + values.mean()
    residual = float((rest**2).sum()) / ((runs - 1) * (images - 1)) if runs > 1 and images > 1 else 0.0
    return max(0.0, between - residual / runs) / images


def components(values: Sequence[Sequence[npt.ArrayLike]], images: Sequence[float], tested: int) -> Components | None:
    """Return the parts of the variance of one run's metric; None where the runs have no spread to divide.

    Attempts are taken to scatter alike, so that the seeds of all count together. They share their test sets, so that
    these count once.

    Args:
        values: of each attempt and each of its test sets, the metric of every seed, [S].
        images: the variance by the choice of test images, of each attempt.
        tested: the number of different test images.
    """
    means = [np.array([np.mean(np.asarray(of_set)) for of_set in attempt]) for attempt in values]
    seeds = [np.asarray(of_set, dtype=np.float64) for attempt in values for of_set in attempt]
    freedom = sum(len(of_set) - 1 for of_set in seeds)
    by_seed = sum(float(((of_set - of_set.mean()) ** 2).sum()) for of_set in seeds) / freedom if freedom else 0.0
    by_images = float(np.mean(images))
    seed = Component(by_seed, freedom, by_seed) if freedom >= LEAST_FREEDOM else None
    split, several = None, [(m, attempt) for m, attempt in zip(means, values, strict=True) if len(m) >= WHOLE]
    if several:
        between = float(np.mean([m.var(ddof=1) for m, _ in several]))
        least = min(len(m) for m, _ in several) - 1
        each = float(np.mean([np.mean([1 / len(np.atleast_1d(s)) for s in attempt]) for _, attempt in several]))
        of_seeds = by_seed * each if seed else 0.0
        variance = max(0.0, between - by_images - of_seeds)
        split = Component(variance, least, between)
    if seed is None and split is None:
        return None
    return Components(Component(by_images, max(tested - 1, 1), by_images), split, seed)
