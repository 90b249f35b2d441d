"""Put the differences of two attempts on several products together: pure functions.

Products are the sample: the question is what a further product like these would show. They differ in size and
difficulty, so each has a standard error of its own.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mvtec_lab.evaluation import statistics

RANKS = 5  # products from which on ranks are given: Demsar, JMLR 7, 2006
EXACT = 13  # products up to which all signs are tried, 8,192 of them; beyond, SciPy does without permutations
# The share of a product's own variance in its weight, the rest is that of a product of its size. An own variance of
# five folds is off by half: with weights of it alone 6 to 11% of equal attempts were called different, with a fifth of
# it 4 to 6% (``python -m benchmarks.products``).
OWN = 0.2
# A difference is a whole number of images, to which luck rounds it: that alone has a twelfth of a step's square as its
# variance. Two products of equally few images often differ by exactly the same share, which without that is p < 0.001:
# of two equal attempts on 16 test images of each 11% were called different, with it 0.5%.
ROUNDED = 1 / 12
# The least scatter of the differences, of what their errors let expect, where steps are far smaller than these.
LEAST = 1e-3


class Overall(NamedTuple):
    """Hold the mean difference over products.

    Args:
        value: the mean, each product by its weight.
        low, high: its 95% interval.
        p: two-sided, that the mean over all such products is 0.
        spread: the standard deviation of the true differences between products (tau), as estimated.
        inconsistency: the share of the differences' variance that is not the products' own noise (I squared).
        weights: of the products, [P], with the sum 1.
        error: the standard error of the mean.
        own: the share of a difference's variance that is the luck of its product's images, the mean over products.
    """

    value: float
    low: float
    high: float
    p: float
    spread: float
    inconsistency: float
    weights: tuple[float, ...]
    error: float
    own: float


def mean_over_products(differences: npt.ArrayLike, errors: npt.ArrayLike, images: npt.ArrayLike) -> Overall:
    """Return the random-effects mean of the differences on several products.

    DerSimonian and Laird, Controlled Clinical Trials 7, 1986, for the spread between products; Hartung and Knapp,
    Statistics in Medicine 20, 2001, for the interval: Student's t with a degree of freedom for each product but one.

    Args:
        differences: of each product, [P], at least two.
        errors: their standard errors, [P].
        images: on which each rests, [P]: the fewer, the less a product weighs.

    Raises:
        ValueError: fewer than two products, or a figure that is not finite.
    """
    from scipy import stats

    values, errors, images = (np.asarray(each, dtype=np.float64) for each in (differences, errors, images))
    freedom = len(values) - 1
    if freedom < 1:
        raise ValueError("a single product has no spread: give two or more")
    if not np.isfinite([*values, *errors, *images]).all():
        raise ValueError("a difference or its error is not finite")
    of_size = float(np.mean(errors**2 * images)) / images
    variances = OWN * errors**2 + (1 - OWN) * of_size if errors.any() else 1 / images
    alike = 1 / variances
    apart = float((alike * (values - _mean(values, alike)) ** 2).sum())
    between = max(0.0, (apart - freedom) / float(alike.sum() - (alike**2).sum() / alike.sum()))
    weights = 1 / (variances + between)
    mean = _mean(values, weights)
    rounded = ROUNDED * float((weights / images**2).mean())
    scatter = max(float((weights * (values - mean) ** 2).sum()) / freedom, rounded, LEAST)
    error = float(np.sqrt(scatter / weights.sum())) if values.any() else 0.0
    half = float(stats.t.ppf(0.975, freedom)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    inconsistency = max(0.0, 1 - freedom / apart) if apart else 0.0
    shares = tuple((weights / weights.sum()).tolist())
    own = float(variances.mean() / (variances.mean() + between))
    return Overall(mean, mean - half, mean + half, p, between**0.5, inconsistency, shares, error, own)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((weights * values).sum() / weights.sum())


def mean_of_shares(shares: npt.ArrayLike, lows: npt.ArrayLike, highs: npt.ArrayLike) -> tuple[float, float]:
    """Return the 95% interval of the mean of a share over products.

    These are the outer bounds of two: Student's interval over the products, and the one that follows from the products'
    own intervals, as the squares of their distances add up (MOVER; Zou and Donner, Statistics in Medicine 27, 2008). Of
    a rare mistake most products have none or the same number, so that the first by itself would be far too sure.

    Args:
        shares: of each product, [P], at least two, in [0, 1].
        lows, highs: the bounds of their own 95% intervals, [P].
    """
    values, below, above = (np.asarray(each, dtype=np.float64) for each in (shares, lows, highs))
    low, high = statistics.corrected_interval(values, 0.0)  # products share no image
    mean, number = float(values.mean()), len(values)
    low = min(low, mean - float(np.linalg.norm(values - below)) / number)
    high = max(high, mean + float(np.linalg.norm(above - values)) / number)
    return max(low, 0.0), min(high, 1.0)


def signed_rank(differences: npt.ArrayLike) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test over products [P]; ranks of zeros as Pratt has them.

    Up to EXACT products all signs are tried here: SciPy's exact p does not hold with ties, which accuracies of a few
    dozen images often have, and its permutations take 50 ms.
    """
    from scipy import stats

    values = np.round(np.asarray(differences, dtype=np.float64), 9)  # equal shares differ by rounding alone
    if not values.any():
        return 1.0
    if len(values) > EXACT:
        return float(stats.wilcoxon(values, zero_method="pratt").pvalue)
    ranked = stats.rankdata(np.abs(values))[values != 0]
    signs = np.array(list(product((-1, 1), repeat=len(ranked))))
    seen = abs(float((np.sign(values[values != 0]) * ranked).sum()))
    return float(np.mean(np.abs(signs @ ranked) >= seen - 1e-9))


@cache
def needed_sum(products: int, alpha: float) -> int:
    """Return the least sum of the positive ranks that is significant at level ``alpha``, two-sided, without ties.

    Args:
        products: their number, as many as ``decides_by_ranks`` asks for.
        alpha: the level of the test.
    """
    chances = np.ones(1)  # of each sum, when every sign is as likely as the other
    for rank in range(1, products + 1):
        further = np.pad(chances, (0, rank))
        further[rank:] += chances
        chances = further / 2
    return int(np.argmax(2 * chances[::-1].cumsum()[::-1] < alpha))


def decides_by_ranks(products: int, comparisons: int, alpha: float) -> bool:
    """Tell whether the signed-rank test can show a difference at level ``alpha``, Holm's correction included.

    With all products on one side its p is 2 / 2^products: with five never below 0.05.
    """
    return products >= RANKS and 2.0 ** (1 - products) * comparisons < alpha


def ranks(values: npt.ArrayLike) -> np.ndarray:
    """Return the mean rank of each attempt [A], the best is 1, from values [P, A], the higher the better."""
    return _ranked(values).mean(axis=0)


def friedman(values: npt.ArrayLike) -> float:
    """Return the p that all attempts rank alike: Friedman's test, by the F of Iman and Davenport.

    Communications in Statistics A9, 1980: chi squared is too careful with few products.

    Args:
        values: of each product and attempt, [P, A], the higher the better; two of each at least.
    """
    from scipy import stats

    ranked = _ranked(values)
    products, attempts = ranked.shape
    middle, freedom = (attempts + 1) / 2, attempts - 1
    total = float(((ranked - middle) ** 2).sum())
    between = products * float(((ranked.mean(axis=0) - middle) ** 2).sum())
    if total == 0:
        return 1.0
    rest = total - between
    if rest < 1e-9 * total:  # the same order on every product
        return 0.0
    return float(stats.f.sf(between * (products - 1) / rest, freedom, freedom * (products - 1)))


def _ranked(values: npt.ArrayLike) -> np.ndarray:
    from scipy import stats

    return np.asarray(stats.rankdata(-np.round(np.asarray(values, dtype=np.float64), 9), axis=1))
