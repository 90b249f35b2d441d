"""Simulate how often the verdict over several products calls equal attempts different, and finds those that differ.

    python -m benchmarks.products

The generator is fixed: the tables are the same each time, and tests/test_products.py holds the lab to them.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks import common
from mvtec_lab.evaluation.products import (
    EXACT,
    LEAST,
    OWN,
    RANKS,
    ROUNDED,
    decides_by_ranks,
    friedman,
    signed_rank,
)
from mvtec_lab.evaluation.products_planning import OverProducts, ways_over_products

ALPHA = 0.05
PILOTS, FOLLOWED, CELLS = 2_000, 1_000, 8  # of plans: sweeps that are asked, sweeps that follow, at so many numbers
FEW = 50  # products: what those show besides that ask for no more
REPEATS = 2_000  # of a cell: a share of 5% is then known to within one point
FOLDS, SHARE = 5, 0.25  # tested images over those that the learner had
PRODUCTS = (2, 3, 5, 8, 15)
SIZES = (16, 40, 83, 24, 120)  # test images of the products in turn, and the attempts' accuracy there
ACCURACIES = (0.75, 0.6, 0.9, 0.85, 0.7)
SPREADS = (0.0, 0.03, 0.08)  # standard deviation between products of the true difference of two attempts
PLANS = ((3, 0.03, 0.08), (5, 0.03, 0.08), (5, 0.08, 0.08), (8, 0.03, 0.05))  # products, spread and difference
# Of what makes an image hard: for all networks, and for all of an attempt; the rest is chance.
COMMON, ALONE = 0.3, 0.3
# A network's true accuracy scatters by 3 points, of which half is common to all folds: they share training images.
SCATTER, SHARED = 0.03, 0.5
LIMITS = 0.02, 0.98  # of an accuracy


class Sweep(NamedTuple):
    """Hold the accuracy of each fold, [repeats, attempts, folds], and the images of one product."""

    images: int
    accuracy: np.ndarray


def draw(
    products: int, spread: float, attempts: int = 2, ahead: float = 0.0, repeats: int = REPEATS, seed: int = 0
) -> list[Sweep]:
    """Return sweeps over products; the first attempt's true accuracy is ``ahead`` of the others on average.

    It is so on each product: accuracies that are cut at 0.98 would take a tenth of 8 points away.
    """
    rng, sweeps = np.random.default_rng(seed), []
    for number in range(products):
        images, accuracy = SIZES[number % len(SIZES)], ACCURACIES[number % len(ACCURACIES)]
        true = accuracy + spread / np.sqrt(2) * rng.normal(size=(repeats, attempts))
        half = _half(accuracy, spread, ahead) if ahead else 0.0
        true += np.where(np.arange(attempts) == 0, half, -half)
        sweeps.append(Sweep(images, _folds(rng, np.clip(true, *LIMITS), images)))
    return sweeps


@cache
def _half(accuracy: float, spread: float, ahead: float) -> float:
    """Return by how much one attempt is above ``accuracy`` and the other below, so that ``ahead`` is what remains."""
    own, luck = np.random.default_rng(2).normal(size=(2, 20_000))

    def mean(accuracy: float) -> float:
        return float(np.clip(np.clip(accuracy + spread / np.sqrt(2) * own, *LIMITS) + SCATTER * luck, *LIMITS).mean())

    halves = np.linspace(0.4, 1.5, 45) * ahead
    return float(np.interp(ahead, [mean(accuracy + half) - mean(accuracy - half) for half in halves], halves))


def _folds(rng: np.random.Generator, true: np.ndarray, images: int) -> np.ndarray:
    """Return the accuracy of each fold [R, A, F] of attempts with true accuracies [R, A]."""
    luck = np.sqrt(SHARED) * rng.normal(size=(*true.shape, 1))
    luck = luck + np.sqrt(1 - SHARED) * rng.normal(size=(*true.shape, FOLDS))
    limit = stats.norm.ppf(np.clip(true[..., None] + SCATTER * luck, *LIMITS))
    hard = np.sqrt(COMMON) * rng.normal(size=(len(true), 1, images))
    hard = hard + np.sqrt(ALONE) * rng.normal(size=(*true.shape, images))
    hard = hard + np.sqrt(1 - COMMON - ALONE) * rng.normal(size=(*true.shape, images))
    fold = np.arange(images) % FOLDS
    right = hard < limit[:, :, fold]
    return np.stack([right[:, :, fold == f].mean(axis=2) for f in range(FOLDS)], axis=2)


def called(sweeps: list[Sweep], test: str = "verdict") -> float:
    """Return how often the verdict calls at least one pair with the first attempt, or any pair of equals, different.

    Args:
        sweeps: of ``draw``.
        test: verdict: that which decides; mean: the random-effects mean; ranks: the signed-rank test.
    """
    pairs = list(combinations(range(sweeps[0].accuracy.shape[1]), 2))
    ranked = test == "ranks" or (test == "verdict" and decides_by_ranks(len(sweeps), len(pairs), ALPHA))
    p = np.stack([by_ranks(sweeps, pair) if ranked else by_mean(sweeps, pair).p for pair in pairs])
    return float(np.mean(p.min(axis=0) * len(pairs) < ALPHA))  # Holm's first step


class Means(NamedTuple):
    """Hold ``Overall`` of many sweeps, [R]; weights [R, P]."""

    value: np.ndarray
    p: np.ndarray
    error: np.ndarray
    own: np.ndarray
    weights: np.ndarray


def by_mean(sweeps: list[Sweep], pair: tuple[int, int]) -> Means:
    """Return the random-effects means of a pair: ``mean_over_products`` of all sweeps at once."""
    changes, images = _changes(sweeps, pair), np.array([sweep.images for sweep in sweeps])
    values, freedom = changes.mean(axis=2), len(sweeps) - 1
    least = FOLDS / images / np.sqrt(FOLDS)  # one image in a single fold
    seen = np.maximum(changes.std(axis=2, ddof=1), least) ** 2 * max(1 / FOLDS, SHARE / (1 + SHARE))
    variances = OWN * seen + (1 - OWN) * (seen * images).mean(axis=1, keepdims=True) / images
    alike = 1 / variances
    apart = (alike * (values - _mean(values, alike)) ** 2).sum(axis=1, keepdims=True)
    total = alike.sum(axis=1, keepdims=True)
    between = np.maximum(0, (apart - freedom) / (total - (alike**2).sum(axis=1, keepdims=True) / total))
    weights = 1 / (variances + between)
    mean = _mean(values, weights)
    rounded = ROUNDED * (weights / images**2).mean(axis=1)
    scatter = np.maximum((weights * (values - mean) ** 2).sum(axis=1) / freedom, np.maximum(rounded, LEAST))
    error = np.sqrt(scatter / weights.sum(axis=1))
    p = 2 * stats.t.sf(np.abs(mean[:, 0]) / error, freedom)
    own = variances.mean(axis=1) / (variances.mean(axis=1) + between[:, 0])
    return Means(mean[:, 0], p, error, own, weights / weights.sum(axis=1, keepdims=True))


def by_ranks(sweeps: list[Sweep], pair: tuple[int, int]) -> np.ndarray:
    """Return the p of the signed-rank test of a pair: ``signed_rank`` of all sweeps at once."""
    values = np.round(_changes(sweeps, pair).mean(axis=2), 9)
    ranked = stats.rankdata(np.abs(values), axis=1) * (values != 0)
    seen = np.abs((np.sign(values) * ranked).sum(axis=1))
    if len(sweeps) > EXACT:
        return np.array([signed_rank(each) for each in values])
    signs = np.array(list(product((-1.0, 1.0), repeat=len(sweeps)))).T
    parts = np.array_split(np.arange(len(values)), 10)  # all at once would be 64 MiB
    return np.concatenate([np.mean(np.abs(ranked[of] @ signs) >= seen[of, None] - 1e-9, axis=1) for of in parts])


def _changes(sweeps: list[Sweep], pair: tuple[int, int]) -> np.ndarray:
    """Return the differences of a pair, [R, P, FOLDS]."""
    return np.stack([sweep.accuracy[:, pair[0]] - sweep.accuracy[:, pair[1]] for sweep in sweeps], axis=1)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (weights * values).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)


def followed(products: int, spread: float, ahead: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how many products PILOTS sweeps ask for to show a difference, and how often so many then show it.

    A pilot that asks for more than there can be is left out. Power is simulated at the numbers up to EXACT, where one
    product more makes a step, and at CELLS others, between which it is interpolated.
    """
    pilots, asked = draw(products, spread, 2, ahead, PILOTS, seed=1), []
    found, images = by_mean(pilots, (0, 1)), round(float(np.mean([sweep.images for sweep in pilots])))
    for error, own, weights in zip(found.error, found.own, found.weights, strict=True):
        evidence = OverProducts(error**2 * products, own, products, images, tuple(1 / (products * weights)))
        asked += [max(d.products for d in ways) for ways in [ways_over_products(evidence, ahead, ALPHA)] if ways]
    many = [number for number in asked if number > EXACT]
    cells = {*np.percentile(many, np.linspace(0, 100, CELLS)).round().astype(int).tolist()} if many else set()
    numbers = sorted(cells | {*asked} - {*many})
    power = [called(draw(number, spread, 2, ahead, FOLLOWED, seed=2)) for number in numbers]
    return np.array(asked), np.interp(asked, numbers, power)


def rank_alike(sweeps: list[Sweep]) -> float:
    """Return how often Friedman's test tells attempts apart."""
    table = np.stack([s.accuracy.mean(axis=2) for s in sweeps], axis=1)
    return float(np.mean([friedman(each) < ALPHA for each in table]))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def show_plans() -> None:
    rows = []
    for products, spread, ahead in PLANS:
        asked, power = followed(products, spread, ahead)
        low, middle, high = np.percentile(asked, (10, 50, 90)).round().astype(int)
        told = percent(len(asked) / PILOTS)
        numbers = f"{products}", f"{100 * spread:.0f}", f"{100 * ahead:.0f}"
        few = asked <= FEW
        rest = f"{percent(power[few].mean())} ({100 * few.sum() / PILOTS:.0f})"
        rows.append([*numbers, told, f"{middle} ({low} to {high})", percent(power.mean()), rest])
    notes = [
        "told: the pilots that hear of a number within reach, %; products that they ask for: the median, in brackets "
        "what eight of ten lie between; shown: how often so many show the difference, %, the mean",
        f"at most {FEW}: the same of the pilots that ask for no more, and how many these are, %",
    ]
    headings = ["products of the pilot", "spread", "points", "told", "products asked for", "shown", f"at most {FEW}"]
    common.show("products_plans", notes, headings, rows, False)


def main() -> None:
    show_plans()
    rows = []
    for products in PRODUCTS:
        for attempts in (2, 4):
            ranked = decides_by_ranks(products, attempts * (attempts - 1) // 2, ALPHA)
            null = [draw(products, spread, attempts) for spread in SPREADS]
            apart = [draw(products, 0.03, attempts, ahead) for ahead in (0.05, 0.1)]
            rows.append(
                [
                    f"{products}",
                    f"{attempts}",
                    "signed rank" if ranked else "mean",
                    *(percent(called(sweeps)) for sweeps in null),
                    percent(rank_alike(null[1])) if products >= RANKS and attempts > 2 else "",
                    *(percent(called(sweeps)) for sweeps in apart),
                ]
            )
    notes = [
        "sweeps of equal attempts of which any two are called different at 0.05, %, Holm's correction included, by the "
        "spread of their difference between products; Friedman's test beside, at a spread of 3 points",
        "then sweeps whose first attempt is ahead by 5 or 10 points, at a spread of 3",
        "products of 16 to 120 test images and accuracies of 0.6 to 0.9, five folds each",
    ]
    headings = ["products", "attempts", "test", *(f"spread {100 * s:.0f}" for s in SPREADS), "Friedman"]
    common.show("products", notes, [*headings, "5 points", "10 points"], rows, False)


if __name__ == "__main__":
    main()
