"""Intervals and tests for metrics of a few images, on SciPy: pure functions.

It is imported where it is called: that takes a second, which only a comparison pays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 2_000  # of a bootstrap: its 95% bounds then move by less than a hundredth from one seed to the next
PERMUTATIONS = 9_999  # a p-value of 0.05 is then known to within 0.004
MCNEMAR, PERMUTATION = "mid-p McNemar test", "paired permutation test"


def interval_with_seeds(
    value: float, interval: tuple[float, float], values: npt.ArrayLike, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of a mean over seeds: its interval over images, widened by the spread of the seeds.

    The two are added as Zou and Donner do; a bound may lie outside the range of the metric.

    Args:
        value: the mean.
        interval: its interval over the images.
        values: the metric of each seed, [R].
        confidence: in (0, 1).
    """
    from scipy import stats

    values = np.asarray(values, dtype=np.float64)
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    below, above = np.hypot(value - interval[0], half), np.hypot(interval[1] - value, half)
    return float(value - below), float(value + above)


def wilson_interval(correct: float, total: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion, which stays within [0, 1] and holds for a few dozen images.

    Counts that are means over several runs are rounded to whole images.
    """
    from scipy.stats import binomtest

    total = max(1, round(total))
    interval = binomtest(min(round(correct), total), total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def corrected_interval(
    values: npt.ArrayLike, ratio: float, resolution: float = 0.0, confidence: float = 0.95, *, one_round: int = 0
) -> tuple[float, float]:
    """Return the interval of a mean over resampled splits, wider than Student's: their training images overlap.

    The corrected resampled t of Nadeau and Bengio, Machine Learning 52, 2003.

    Args:
        values: one per split, [n], n at least 2.
        ratio: test images over the images that the learner had, validation included.
        resolution: what a single image changes in a value. Splits that agree by chance would make the interval as
            narrow as one likes: the values are taken to vary at least as if one image had fallen the other way.
        confidence: in (0, 1).
        one_round: see ``of_mean``.
    """
    from scipy import stats

    mean, error, freedom = _corrected(values, ratio, resolution, one_round)
    half = stats.t.ppf((1 + confidence) / 2, freedom) * error
    return float(mean - half), float(mean + half)


def corrected_t_test(differences: npt.ArrayLike, ratio: float, resolution: float = 0.0, *, one_round: int = 0) -> float:
    """Return the two-sided p of the corrected resampled t-test that two learners differ.

    Arguments as above, but ``differences`` are the first learner's values minus the second's.
    """
    from scipy import stats

    mean, error, freedom = _corrected(differences, ratio, resolution, one_round)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, freedom))


def practical_equivalence(
    differences: npt.ArrayLike, ratio: float, rope: float, resolution: float = 0.0, *, one_round: int = 0
) -> tuple[float, float, float]:
    """Return the probabilities that the first learner is worse, practically equal (within ``rope``), and better.

    The Bayesian correlated t-test of Corani and Benavoli, Machine Learning 100, 2015; arguments as above.
    """
    from scipy import stats

    mean, error, freedom = _corrected(differences, ratio, resolution, one_round)
    if error == 0:
        worse, better = float(mean < -rope), float(mean > rope)
    else:
        worse = float(stats.t.cdf(-rope, freedom, mean, error))
        better = float(1 - stats.t.cdf(rope, freedom, mean, error))
    return worse, 1 - worse - better, better


def corrected_error(values: npt.ArrayLike, ratio: float, resolution: float = 0.0, *, one_round: int = 0) -> float:
    """Return the standard error of the corrected resampled t; arguments as above."""
    return float(_corrected(values, ratio, resolution, one_round)[1])


def of_mean(sets: int, ratio: float, one_round: int = 0) -> float:
    """Return the variance that the corrected resampled t takes for a mean over test sets, in units of that on one.

    Args:
        sets: the number of test sets.
        ratio: as above.
        one_round: the test sets of one round of folds, where further rounds, which test the same images again, do not
            make it smaller; 0: they do. A probability moves less from one training to the next than the class that is
            named, and with ``1 / sets`` ten rounds call up to 13% of attempts with equal log loss different. What
            learns good images alone learns the same ones in every fold: there it is up to 21% of equal image AUROC
            (``python -m benchmarks.folds``).
    """
    return 1 / (min(sets, one_round) if one_round else sets) + ratio


def _corrected(values: npt.ArrayLike, ratio: float, resolution: float, one_round: int) -> tuple[float, float, int]:
    """Return the mean, its standard error and the degrees of freedom."""
    spread = _spread(values, resolution)
    return spread.mean(), np.sqrt(spread.var(ddof=1) * of_mean(len(spread), ratio, one_round)), len(spread) - 1


def _spread(values: npt.ArrayLike, resolution: float) -> np.ndarray:
    """Return the values, or others with the same mean where they vary less than one image in one of them would make."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise ValueError("a single split has no spread: give two or more")
    least = resolution / np.sqrt(len(values))
    if values.std(ddof=1) >= least:
        return values
    ramp = np.linspace(-1, 1, len(values))
    return values.mean() + ramp * (least / ramp.std(ddof=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, Holm 1979: below 0.05, at most 5% of families hold a false one."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted.tolist()


def paired_test(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[str, float]:
    """Return the name of the test that two learners differ on the same images, and its two-sided p.

    Args:
        first, second: whether the learner was right in each image, [N]. Values of 0 and 1 take McNemar's mid-p test;
            means over several runs take its generalisation, the permutation test that swaps the two at random.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if np.isin([first, second], (0, 1)).all():
        only, differ = int(np.sum(first > second)), int(np.sum(first != second))
        return MCNEMAR, float(mcnemar_mid_p(only, differ))
    return PERMUTATION, _permuted(first, second, lambda a, b, axis: np.mean(a - b, axis=axis))


def mcnemar_mid_p(only: npt.ArrayLike, differ: npt.ArrayLike) -> np.ndarray:
    """Return the two-sided mid-p of McNemar's test: half of what is as likely as what was seen counts.

    Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13, 2013. The exact test, which counts all of it,
    calls equal models different in 0.1% of cases on 16 images, and finds half as much. This one calls at most 5.1% so,
    as long as the two disagree in at most 80% of the images (``python -m benchmarks.metrics``).

    Args:
        only: images that the first alone classifies rightly.
        differ: images that one of the two alone classifies rightly.
    """
    from scipy import stats

    only, differ = np.asarray(only), np.asarray(differ)
    less = np.minimum(only, differ - only)
    mid = 2 * stats.binom.cdf(less, differ, 0.5) - stats.binom.pmf(less, differ, 0.5)
    return np.where(2 * only == differ, 1.0, mid)


def _permuted(first: np.ndarray, second: np.ndarray, statistic: Callable[..., np.ndarray]) -> float:
    """Return the two-sided p of a statistic where the two of each pair are swapped at random."""
    from scipy import stats

    test = stats.permutation_test(
        (first, second),
        statistic,
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def paired_interval(first: npt.ArrayLike, second: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the difference of two accuracies on the same images: Bonett and Price, 2012."""
    from scipy import stats

    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    total = len(difference) + 2
    up, down = (difference.clip(0).sum() + 1) / total, ((-difference).clip(0).sum() + 1) / total
    half = stats.norm.ppf((1 + confidence) / 2) * np.sqrt((up + down - (up - down) ** 2) / total)
    return max(-1.0, float(up - down - half)), min(1.0, float(up - down + half))


def permutation_test(
    statistic: Callable[[np.ndarray], np.ndarray], first: npt.ArrayLike, second: npt.ArrayLike
) -> float:
    """Return the two-sided p that two learners classify the same images alike, by a statistic of their confusions.

    Learners that trade one class for another do not classify alike, and may still be equal in the statistic.
    Which prediction belongs to which learner is drawn at random for each image, and all draws are made where few images
    tell the two apart.

    Args:
        statistic: as ``bootstrap`` takes it.
        first, second: how each learner classified each image, [N, C, C], with the sum 1 per image.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    differ = (first != second).any(axis=(1, 2))
    ours, theirs, change = first.sum(axis=0), second.sum(axis=0), (second - first)[differ]
    if len(change) < 2:
        return 1.0  # a single image is as likely to fall the other way

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        swapped = np.tensordot((a >= len(change)).astype(np.float64), change, axes=1)
        return statistic(ours + swapped) - statistic(theirs - swapped)

    return _permuted(np.arange(len(change)), np.arange(len(change)) + len(change), difference)


def mean_interval(values: npt.ArrayLike, intervals: npt.ArrayLike) -> tuple[float, float]:
    """Return the interval of the mean of independent values [n] that have intervals of their own [n, 2].

    Zou and Donner, Statistics in Medicine 27, 2008. A bootstrap, which sees no spread in a class of two images that are
    both right, covers 70 to 90% instead of 95 where the rarest class has two to four.
    """
    values, (low, high) = np.asarray(values, dtype=np.float64), np.asarray(intervals, dtype=np.float64).T
    below, above = (np.sqrt(((bound - values) ** 2).sum()) / len(values) for bound in (low, high))
    return float(values.mean() - below), float(values.mean() + above)


def balanced_interval(right: npt.ArrayLike, images: npt.ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of balanced accuracy, from the images of each class and those that are right, [C].

    A bound is a balanced accuracy that lies as far from the one seen as its own standard error allows; towards it all
    recalls move alike on the logistic scale, from where they are with one image more of either kind in each class. Of a
    single class it is nearly Wilson's. Intervals of each recall combined (Zou and Donner) covered 83 to 94%, this one
    94 to 99% (``python -m benchmarks.levels``).
    """
    from scipy import optimize, special, stats

    right, images = np.asarray(right, dtype=np.float64), np.asarray(images, dtype=np.float64)
    seen, start = float((right / images).mean()), special.logit((right + 1) / (images + 2))
    quantile = stats.t.ppf((1 + confidence) / 2, max(1.0, images.sum() - len(images)))

    def recalls(shift: float) -> np.ndarray:
        return np.asarray(special.expit(start + shift))

    def beyond(shift: float, side: int) -> float:
        recall = recalls(shift)
        error = np.sqrt((recall * (1 - recall) / images).sum()) / len(images)
        return float(recall.mean() - seen - side * quantile * error)

    far = 15.0  # on the logistic scale, where recalls are all but 0 and 1: at these themselves there is no error at all
    low = 0.0 if seen == 0 else recalls(optimize.brentq(beyond, -far, far, args=(-1,))).mean()
    high = 1.0 if seen == 1 else recalls(optimize.brentq(beyond, -far, far, args=(1,))).mean()
    return float(low), float(high)


def mann_whitney_interval(auroc: float, good: int, defects: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the score interval of an AUROC of ``good`` and ``defects`` images; it has a width at 1 too.

    Newcombe, Statistics in Medicine 25, 2006, part 2, method 5: Hanley and McNeil's variance, at the bound itself and
    with both numbers less one at their mean.
    """
    from scipy import optimize, stats

    z, others = stats.norm.ppf((1 + confidence) / 2), (good + defects) / 2 - 1

    def beyond(bound: float) -> float:
        spread = 1 + others * ((1 - bound) / (2 - bound) + bound / (1 + bound))
        return (auroc - bound) ** 2 - z**2 * bound * (1 - bound) * spread / (good * defects)

    tiny = 1e-9  # at 0 and 1 the estimate itself is a root, and not the bound
    low = optimize.brentq(beyond, 0, auroc - tiny) if auroc > tiny else 0.0
    high = optimize.brentq(beyond, auroc + tiny, 1) if auroc < 1 - tiny else 1.0
    return float(low), float(high)


def image_weights(labels: npt.ArrayLike) -> np.ndarray:
    """Return what each image [N] changes in balanced accuracy: 1 / (classes x images of its class)."""
    _, place, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[place])


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], confusions: npt.ArrayLike, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of a statistic of a confusion matrix over resampled images.

    Args:
        statistic: maps confusion matrices [..., C, C], rows truth, to values [...], as ``macro_f1`` does.
        confusions: the predictions of each image, [N, C, C]: a single 1, or several where several runs predicted it.
        confidence: in (0, 1).
    """
    from scipy import stats

    each = np.asarray(confusions, dtype=np.float64)
    test = stats.bootstrap(
        (np.arange(len(each)),),
        lambda index, axis: statistic(_summed(each, index)),
        n_resamples=RESAMPLES,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",  # the corrected ones fail where no resample differs, as with a perfect attempt
        rng=np.random.default_rng(0),
    )
    return float(test.confidence_interval.low), float(test.confidence_interval.high)


def _summed(each: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the sums of the matrices that each row of ``index`` names: [..., N] to [..., C, C]."""
    rows = index.reshape(-1, index.shape[-1])
    drawn = np.zeros((len(rows), len(each)))
    for row, picks in zip(drawn, rows, strict=True):
        row += np.bincount(picks.astype(np.int64), minlength=len(each))
    return (drawn @ each.reshape(len(each), -1)).reshape(*index.shape[:-1], *each.shape[1:])


def balanced_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Return the mean recall over the classes that occur: [..., C, C] to [...]."""
    truth = matrix.sum(axis=-1)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return (hits / np.maximum(truth, 1)).sum(axis=-1) / np.maximum((truth > 0).sum(axis=-1), 1)


def macro_f1(matrix: np.ndarray) -> np.ndarray:
    """Return the mean F1 over the classes that occur or are predicted: [..., C, C] to [...]."""
    named = matrix.sum(axis=-1) + matrix.sum(axis=-2)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return (2 * hits / np.maximum(named, 1)).sum(axis=-1) / np.maximum((named > 0).sum(axis=-1), 1)
