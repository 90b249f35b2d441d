"""Compare two methods on the same images: the difference, whether it is luck, and which difference would be found.

A test rests on a sum of noises: of the good images, of the defects, of the seeds. The careful test assumes that some of
them are larger than they seem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mvtec_lab.evaluation import statistics

POWER = 0.8  # Cohen's convention: a difference that is said to be found is found eight times in ten
LEAST_RUNS = 3  # two have a spread of one degree of freedom: an interval that nearly always leaves the metric's range
# Extra images of each kind in the tests of ``of_images`` and ``careful_difference``: the least of 0.2, 0.5 and 1 with
# which at most 6% of simulated methods with equal values were called different (``python -m benchmarks.levels``).
# For pixel AP none is enough: one good image in twenty with a false reject changes it more than the rest shows.
EXTRA = {"image_auroc": 1.0, "pixel_auroc": 0.2, "pixel_aupro": 0.5, "brier": 0.5}
DRAWS = 400  # of the noises' estimates, when power is computed: it is then known to within 2 points


class Noise(NamedTuple):
    """Hold an independent part of a difference's variance.

    Args:
        variance: as the test takes it.
        seen: as it seems.
        freedom: its degrees of freedom.
        grows: with the difference, as that of images does; that of seeds does not.
        known: the degrees of freedom of an earlier test that it was estimated from; None: of this one.
    """

    variance: float
    seen: float
    freedom: float
    grows: bool = True
    known: float | None = None


class Difference(NamedTuple):
    """Hold the difference of two methods on the same images, the first's value minus the second's.

    Args:
        value: the difference.
        low, high: its 95% interval.
        p: two-sided.
        noises: which the test rests on.
        limit: the largest difference that there can be.
    """

    value: float
    low: float
    high: float
    p: float
    noises: tuple[Noise, ...]
    limit: float = 1.0


def _tested(value: float, noises: Sequence[Noise], centre: float, limit: float = 1.0) -> Difference:
    """Return a difference with Student's interval and p, Satterthwaite's degrees of freedom."""
    from scipy import stats

    error, freedom = _added(np.array([noise.variance for noise in noises]), [noise.freedom for noise in noises])
    if error == 0:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0, tuple(noises), limit)
    half = stats.t.ppf(0.975, freedom) * error
    p = float(2 * stats.t.sf(abs(centre) / error, freedom))
    low, high = max(-limit, float(centre - half)), min(limit, float(centre + half))
    return Difference(value, low, high, p, tuple(noises), limit)


def _added(variances: np.ndarray, freedoms: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard error of a sum of independent parts [K, ...], and Satterthwaite's degrees of freedom."""
    total, parts = variances.sum(axis=0), np.tensordot(1 / np.array(freedoms), variances**2, axes=1)
    return np.sqrt(total), np.divide(total**2, parts, out=np.full_like(total, sum(freedoms)), where=parts > 0)


def accuracy_difference(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Difference, str]:
    """Return the difference of two accuracies on the same images, and the name of the test.

    Args:
        first, second: as ``paired_test`` takes them, [N].
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    name, p = statistics.paired_test(first, second)
    interval, seen = statistics.paired_interval(first, second), difference.var() / len(difference)
    return _by_interval(float(difference.mean()), interval, p, seen, len(difference)), name


def balanced_difference(
    first: npt.ArrayLike, second: npt.ArrayLike, statistic: Callable[[np.ndarray], np.ndarray]
) -> tuple[Difference, str]:
    """Return the difference of two balanced accuracies on the same images, and the name of the test.

    Arguments as ``permutation_test`` takes them.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    truth, right = first.sum(axis=2).argmax(axis=1), [np.trace(each, axis1=1, axis2=2) for each in (first, second)]
    classes = [(right[0][truth == c], right[1][truth == c]) for c in np.unique(truth)]
    values = [float(np.mean(ours - theirs)) for ours, theirs in classes]
    interval = statistics.mean_interval(values, [statistics.paired_interval(*shares) for shares in classes])
    seen = sum((ours - theirs).var() / len(ours) for ours, theirs in classes) / len(classes) ** 2
    p = statistics.permutation_test(statistic, first, second)
    return _by_interval(float(np.mean(values)), interval, p, seen, len(truth)), statistics.PERMUTATION


def mean_difference(first: npt.ArrayLike, second: npt.ArrayLike, limit: float) -> tuple[Difference, str]:
    """Return the difference of the means of two methods' values on the same images, and the name of the test.

    The interval is Student's, p that of the permutation test that swaps the two methods at random.

    Args:
        first, second: the values of the images, [N], at least two.
        limit: the largest difference that there can be.
    """
    change = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    name, p = statistics.paired_test(first, second)
    value, variance = float(change.mean()), float(change.var(ddof=1) / len(change))
    noises = [Noise(variance, variance, len(change) - 1, grows=False)]
    return _tested(value, noises, value, limit)._replace(p=p), name


def careful_difference(
    first: npt.ArrayLike, second: npt.ArrayLike, extra: float, limit: float
) -> tuple[Difference, str]:
    """Return the difference of two methods' mean values on the same images, and the name of the test.

    The test is Student's, with extra images that differ by 1, half of them to each side (``of_images``): of a method
    that is rarely wrong, and then very much, few images show nothing. The permutation test called up to 8% of methods
    different that state probabilities of equal Brier score on 16 images, this one up to 6%.

    Args:
        first, second: the values of the images, [N], at least two.
        extra: the number of extra images.
        limit: the largest difference that there can be.
    """
    change = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    value = float(change.mean())
    noises = [noise._replace(grows=False) for noise in of_images(value, (change,), extra).noises]
    return _tested(value, noises, value, limit), "t-test over images"


def _by_interval(value: float, interval: tuple[float, float], p: float, seen: float, images: int) -> Difference:
    from scipy import stats

    low, high = interval
    error = (high - low) / (2 * stats.norm.ppf(0.975))
    noise = Noise(float(error**2), float(seen), images - 1)
    return Difference(value, max(-1.0, low), min(1.0, high), p, (noise,))


def auroc_difference(first: npt.ArrayLike, second: npt.ArrayLike, truth: npt.ArrayLike) -> Difference:
    """Test whether two scores of the same images [N] differ in AUROC; ``truth`` [N] bool: which are defects.

    Several runs on the same images [R, N] count by their means.

    The variance is DeLong's (DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988), by midranks as in Sun and Xu,
    IEEE Signal Processing Letters 21, 2014, with one image more of each kind (``of_images``) and Student's t. Without
    these it calls up to 25% of methods of equal AUROC different, where a few of 20 good images outscore all defects.

    Raises:
        ValueError: fewer than two good images or defects.
    """
    truth = np.asarray(truth, dtype=bool)
    if min(truth.sum(), (~truth).sum()) < 2:
        raise ValueError("a test of AUROC needs two good images and two defects at least")
    ours, theirs = (
        _placements(np.atleast_2d(np.asarray(scores, dtype=np.float64)), truth) for scores in (first, second)
    )
    above, below = (a - b for a, b in zip(ours, theirs, strict=True))
    value = 0.0 if np.abs([*above, *below]).max() < 1e-12 else float(above.mean())  # but for rounding
    return of_images(value, (below, above), EXTRA["image_auroc"])


def _placements(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each defect the share of good images below it, for each good image that of the defects above it: the
    means over the runs [R, N]; ties count half."""
    from scipy import stats

    ranks = stats.rankdata(scores, axis=1)
    defects, good = int(truth.sum()), int((~truth).sum())
    above = (ranks[:, truth] - stats.rankdata(scores[:, truth], axis=1)) / good
    below = 1 - (ranks[:, ~truth] - stats.rankdata(scores[:, ~truth], axis=1)) / defects
    return above.mean(axis=0), below.mean(axis=0)


def of_images(value: float, parts: Sequence[npt.ArrayLike], extra: float) -> Difference:
    """Test a difference that is the mean of the contributions of the good images, and of those of the defects.

    A test by the spread of the images seen ignores what none of them shows: where one good image in twenty has a higher
    score than all defects, a third of the samples of 20 hold no such image. So each kind gets extra images that
    contribute as much as possible, half of them to each side, as in Bonett and Price's interval of paired proportions.

    Args:
        value: the difference.
        parts: the contributions of the good images [G] and of the defects [D], each with the mean ``value``.
        extra: the number of extra images of each kind: 0 is DeLong's variance.

    Raises:
        ValueError: fewer than two images of a kind.
    """
    noises = []
    for part in (np.asarray(part, dtype=np.float64) for part in parts):
        if len(part) < 2:
            raise ValueError("a test needs two good images and two defects at least")
        total = len(part) + extra
        square, mean = (np.sum(part**2) + extra) / total, part.sum() / total
        seen = float(part.var(ddof=1) / len(part))
        variance = float((square - mean**2) / total) if extra else seen
        noises.append(Noise(variance, seen, len(part) - 1))
    return _tested(value, noises, value)


def resampled_difference(value: float, drawn: npt.ArrayLike, images: int, limit: float = 1.0) -> tuple[Difference, str]:
    """Return a difference whose standard error is that over draws of the images, and the name of the test.

    Args:
        value: the difference.
        drawn: the difference in each draw of the same images for both, [B].
        images: their number.
        limit: the largest difference that there can be.
    """
    variance = float(np.asarray(drawn, dtype=np.float64).var(ddof=1))
    return _tested(value, [Noise(variance, variance, images - 1)], value, limit), "paired bootstrap over images"


def with_seeds(difference: Difference, groups: Sequence[npt.ArrayLike]) -> Difference:
    """Add the luck of training to a difference over images, so that it is about two methods, not two trained models.

    The variances of images and of seeds are added. The chance of a model in a single image is in both, so that the sum
    is rather too large. In simulations of networks whose true accuracy scatters by 0 to 8 points, 3 to 10 seeds and
    16 or 83 images, it called at most 6% of equal methods different (``python -m benchmarks.levels``).

    Args:
        difference: of the means over the runs.
        groups: values, one per seed, whose means are added or subtracted: the differences of two methods with the same
            seeds, or the values of each method.
    """
    noises, common = list(difference.noises), sum(noise.seen for noise in difference.noises)
    for group in groups:
        values = np.asarray(group, dtype=np.float64)
        variance = float(values.var(ddof=1)) / len(values)
        seen = variance - min(variance, common) / 2  # half of what both may have in common
        noises.append(Noise(variance, seen, len(values) - 1, grows=False))
    return _tested(difference.value, noises, (difference.low + difference.high) / 2, difference.limit)


def noise_of_test_sets(differences: npt.ArrayLike, ratio: float, resolution: float, *, one_round: int = 0) -> Noise:
    """Return the noise of a mean difference over test sets, as ``corrected_t_test`` takes it; arguments as there."""
    variance = variance_of_test_sets(differences, ratio, resolution, one_round=one_round)
    return noise_over_sets(variance, len(np.asarray(differences)), ratio, one_round=one_round)


def variance_of_test_sets(differences: npt.ArrayLike, ratio: float, resolution: float, *, one_round: int = 0) -> float:
    """Return the variance of the difference on one test set, as ``corrected_t_test`` takes it; arguments as there."""
    error = statistics.corrected_error(differences, ratio, resolution, one_round=one_round)
    return error**2 / statistics.of_mean(len(np.asarray(differences)), ratio, one_round)


def noise_over_sets(
    variance: float, sets: int, ratio: float, known: float | None = None, *, one_round: int = 0
) -> Noise:
    """Return the noise of a mean difference over test sets, from its variance on one of them.

    The corrected resampled t-test is careful. The variance that is seen is at least that of images which are each
    tested once.

    Args:
        variance: on one test set.
        sets: the number of test sets.
        ratio: test images over the images that the learner had.
        known: the degrees of freedom of ``variance`` where other test sets gave it.
        one_round: see ``statistics.of_mean``.
    """
    seen = variance * max(1 / sets, 1 / one_round if one_round else ratio / (1 + ratio))
    return Noise(variance * statistics.of_mean(sets, ratio, one_round), seen, sets - 1, grows=False, known=known)


def power_of(noises: Sequence[Noise], figures: tuple[float, float], alpha: float) -> Callable[[float], float]:
    """Return the probability that a t-test at level ``alpha`` finds a difference, as a function of that difference.

    The noises that were seen stand for the true ones, and those of the next test are drawn around them. Where other
    images gave them, the true ones are drawn as well: few degrees of freedom leave them uncertain. The noise of images
    grows with the distance of the worse method, as the variance of a share does.

    Args:
        noises: of the difference.
        figures: the values of the two methods, in [0, 1], as they were seen.
        alpha: the level of the test.
    """
    from scipy import special

    rng, freedoms = np.random.default_rng(0), [noise.freedom for noise in noises]
    drawn = np.stack([rng.chisquare(noise.freedom, DRAWS) / noise.freedom for noise in noises])
    true = np.stack([true_variance(noise, rng, DRAWS) for noise in noises])
    variance, seen = (true * np.array([noise[i] for noise in noises])[:, None] for i in (0, 1))
    grows, high, now = np.array([[noise.grows] for noise in noises]), max(figures), sum(map(_of_share, figures))

    def power(change: float) -> float:
        growth = max(1.0, (_of_share(high) + _of_share(high - change)) / now)
        more = seen * grows * (growth - 1)
        error, freedom = _added((variance + more) * drawn, freedoms)
        cut = special.stdtrit(freedom, 1 - alpha / 2) * error
        spread = np.sqrt(np.maximum((seen + more).sum(axis=0), 1e-12))  # 0: none was seen
        return float(special.ndtr((change - cut) / spread).mean())

    return power


def true_variance(noise: Noise, rng: np.random.Generator, draws: int) -> np.ndarray:
    """Return what the true variance may be in units of the one that was seen, one value a draw."""
    from scipy import stats

    if noise.known is not None:
        return noise.known / np.maximum(rng.chisquare(noise.known, draws), 1e-9)
    # An estimate of few degrees of freedom is more often too small than too large: its median is made the true one.
    return np.full(draws, noise.freedom / stats.chi2.median(noise.freedom))


def found_difference(
    noises: Sequence[Noise], figures: tuple[float, float], alpha: float, most: float = 1.0
) -> float | None:
    """Return the difference that a t-test at level ``alpha`` finds with a probability of POWER.

    Args:
        noises, figures, alpha: as ``power_of`` takes them.
        most: the largest difference that there can be.

    Returns:
        The difference; None where not even ``most`` is found.
    """
    if np.isinf(most):  # far beyond what any power needs
        most = 100 * float(np.sqrt(sum(noise.variance for noise in noises))) or 1.0
    return least_found(power_of(noises, figures, alpha), most)


def least_found(power: Callable[[float], float], most: float) -> float | None:
    """Return the least difference that is found with a probability of POWER; None where not even ``most`` is.

    Args:
        power: the probability that a difference of some size is found.
        most: the largest difference that there can be.
    """
    from scipy import optimize

    if power(most) < POWER:
        return None
    least = 1e-6 * most
    if power(least) >= POWER:  # two methods that say the same of every image: next to no noise was seen
        return float(least)
    return float(optimize.brentq(lambda change: power(change) - POWER, least, most, xtol=1e-4 * most))


def _of_share(share: float) -> float:
    """Return what the variance of a share is proportional to; constant below a half, and next to 1."""
    share = min(max(share, 0.5), 0.99)
    return share * (1 - share)


def power_of_mcnemar(images: int, disagreement: float, difference: float, alpha: float) -> Callable[[float], float]:
    """Return the probability that McNemar's mid-p test finds a difference in accuracy, as a function of it.

    A larger difference makes two models disagree in more images. Their number is assumed to lie halfway between the
    number that was seen and the number that keeps the product of both kinds, which is so where one model's odds of
    being right rise by one factor: simulated networks lie there.

    Args:
        images: how many both are tested on.
        disagreement: the share of images that one of the two gets right and the other wrong, as it was seen.
        difference: of the two accuracies, as it was seen.
        alpha: the level of the test.
    """
    from scipy import stats

    product = max(disagreement**2 - difference**2, 0.0)
    counts = np.arange(images + 1)  # images that the two differ in, and of these the least that one side must have
    # The exact test's number, or one less.
    least = np.maximum(counts - stats.binom.ppf(alpha / 2, counts, 0.5) - 1, (counts + 1) // 2)
    for _ in range(2):
        least += statistics.mcnemar_mid_p(least, counts) >= alpha

    def power(change: float) -> float:
        share = min(1.0, (max(disagreement, change) + np.sqrt(product + change**2)) / 2)
        side = stats.binom.sf(least - 1, counts, (1 + change / max(share, change, 1e-9)) / 2)
        return float(stats.binom.pmf(counts, images, share) @ side)

    return power


def found_by_mcnemar(images: int, disagreement: float, difference: float, alpha: float) -> float | None:
    """Return the difference in accuracy that McNemar's mid-p test finds with a probability of POWER.

    Arguments as ``power_of_mcnemar`` takes them.

    Returns:
        The difference; None where it finds none: too few images.
    """
    from scipy import optimize

    power = power_of_mcnemar(images, disagreement, difference, alpha)
    if power(1.0) < POWER:
        return None
    return float(optimize.brentq(lambda change: power(change) - POWER, 0.0, 1.0, xtol=1e-5))
