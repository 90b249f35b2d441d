"""Simulate the levels of the verdict's tests, the coverage of its intervals and the power at the differences it states.

    python -m benchmarks.levels

Every generator is fixed: the tables are the same each time, and tests/test_levels.py holds the lab to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
from scipy import special, stats

from benchmarks import common, metrics
from mvtec_lab.evaluation import differences, statistics
from mvtec_lab.evaluation.anomaly import PixelScores
from mvtec_lab.evaluation.differences import EXTRA, LEAST_RUNS, Difference

ALPHA = 0.05
REPEATS = 1_000  # of a cell: a share of 5% is then known to within 1.4 points
SCATTERS = (0.0, 0.03, 0.05, 0.08)  # standard deviation of the trained networks' true accuracy

# Seeds ----------------------------------------------------------------------------------------------------------------

# What decides whether an image is classified rightly: the shares of its difficulty for all networks and for those of
# one attempt; the rest is chance.
IMAGES = ((0.5, 0.0), (0.3, 0.3), (0.2, 0.7))
ACCURACIES = (0.9, 0.75, 0.75)  # of the networks, for each of IMAGES


def trained(
    rng: np.random.Generator,
    images: int,
    seeds: int,
    scatter: float,
    accuracy: Sequence[float],
    shares: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Return which images the networks of two attempts classify rightly [2, R, N], and their true accuracies [2, R]."""
    noise = rng.normal(size=(1, 1, images)), rng.normal(size=(2, 1, images)), rng.normal(size=(2, seeds, images))
    weights = np.sqrt([*shares, 1 - sum(shares)])
    true = np.clip(np.array(accuracy)[:, None] + scatter * rng.normal(size=(2, seeds)), 0.005, 0.995)
    difficulty = sum(weight * part for weight, part in zip(weights, noise, strict=True))
    return (difficulty < stats.norm.ppf(true)[:, :, None]).astype(float), true


def accuracies(right: np.ndarray) -> Difference:
    """Return the difference that a comparison computes from two attempts' predictions [2, R, N] on one test set."""
    shares = right.mean(axis=1)
    if right.shape[1] < LEAST_RUNS:
        return differences.accuracy_difference(*shares)[0]
    # McNemar's generalisation is slow, and of no use to the test over seeds.
    with mock.patch.object(statistics, "paired_test", return_value=("", 1.0)):
        found, _ = differences.accuracy_difference(*shares)
    figures = right.mean(axis=2)
    return differences.with_seeds(found, [figures[0] - figures[1]])


def seeds_level(images: int, seeds: int, scatter: float, repeats: int = REPEATS) -> float:
    """Return how often equal attempts are called different, the most over several kinds of images.

    With one training of each: how often the worse of two trained networks is called the better one.
    """
    rng, worst = np.random.default_rng(0), 0.0
    for shares, accuracy in zip(IMAGES, ACCURACIES, strict=True):
        wrong = 0
        for _ in range(repeats):
            right, true = trained(rng, images, seeds, scatter, (accuracy, accuracy), shares)
            found = accuracies(right)
            better = true[0] - true[1] if seeds == 1 and scatter else np.zeros(1)
            wrong += found.p < ALPHA and found.value * better.mean() <= 0
        worst = max(worst, wrong / repeats)
    return worst


def seeds_power(images: int, seeds: int, scatter: float, points: float, repeats: int = REPEATS) -> float:
    """Return how often attempts whose mean accuracy differs by ``points`` are called different."""
    rng, accuracy = np.random.default_rng(1), (0.75 + points / 2, 0.75 - points / 2)
    called = (accuracies(trained(rng, images, seeds, scatter, accuracy, IMAGES[1])[0]).p for _ in range(repeats))
    return float(np.mean([p < ALPHA for p in called]))


# Scores ---------------------------------------------------------------------------------------------------------------


def scores_of(kind: str, draws: np.ndarray, good: int, auroc: float) -> np.ndarray:
    """Turn standard normal draws, good images first, into scores of a true AUROC.

    normal: both kinds are normal; wide: the defects spread three times as wide; few: a few good images outscore all
    defects, the others none; missed: a few defects lie below all good images, the others above.
    """
    scores, uniform = draws.copy(), special.ndtr(draws)
    if kind == "normal":
        scores[good:] += np.sqrt(2) * stats.norm.ppf(auroc)
    elif kind == "wide":
        scores[good:] = 3 * scores[good:] + np.sqrt(10) * stats.norm.ppf(auroc)
    elif kind == "few":
        scores = uniform + np.where(uniform > auroc, 2.0, 0.0)
        scores[good:] = uniform[good:] + 1
    else:
        scores = uniform + 1
        scores[good:] = uniform[good:] + np.where(uniform[good:] > 1 - auroc, 2.0, 0.0)
    return scores


def auroc_called(
    good: int,
    defects: int,
    kinds: tuple[str, str],
    aurocs: tuple[float, float],
    extra: float = EXTRA["image_auroc"],
    repeats: int = REPEATS,
) -> float:
    """Return how often two methods' AUROC are called different; half of an image's difficulty is common to both."""
    rng, truth, called = np.random.default_rng(0), np.arange(good + defects) >= good, 0
    with mock.patch.dict(EXTRA, {"image_auroc": extra}):
        for _ in range(repeats):
            common_part, own = rng.normal(size=len(truth)), rng.normal(size=(2, len(truth)))
            draws = (common_part + own) / np.sqrt(2)
            both = [scores_of(kind, d, good, a) for kind, d, a in zip(kinds, draws, aurocs, strict=True)]
            called += differences.auroc_difference(*both, truth).p < ALPHA
    return called / repeats


# Maps -----------------------------------------------------------------------------------------------------------------

EDGES = np.linspace(-3, 8, 47).astype(np.float32)  # of the scores; far from them all pixels are counted together


def maps_of(good: np.ndarray, defect: np.ndarray, areas: np.ndarray) -> PixelScores:
    """Return counts of pixels whose scores have given centres.

    Args:
        good: the centre of each image's sound pixels, [N].
        defect: the centre of the defective pixels of the last images, [D].
        areas: how many of 1,000 pixels are defective, [D].
    """

    def histogram(centre: float) -> np.ndarray:
        return np.diff(special.ndtr(EDGES - centre), prepend=0, append=1).astype(np.float32)

    pixels, first = PixelScores.__new__(PixelScores), len(good) - len(defect)
    pixels.edges, pixels.missing = EDGES, []
    pixels.names = [f"{i:03}" for i in range(len(good))]
    pixels.kinds = ["good"] * first + ["hole"] * len(defect)
    pixels._counts = [np.stack([1_000 * histogram(c), *np.zeros((2, len(EDGES) + 1))]) for c in good]
    for counts, centre, area in zip(pixels._counts[first:], defect, areas, strict=True):
        counts[1], counts[2] = area * histogram(centre), histogram(centre)
    return pixels


# What a method's maps look like: the share of images whose sound pixels score high, and of defects that are missed.
MAPS = {"plain": (0.0, 0.0), "alarms": (0.05, 0.0), "misses": (0.0, 0.1)}
SEPARATION = {  # with which AUPRO is 0.82, or pixel AUROC 0.91, whatever the kind: bisected on 6,000 images
    ("plain", "pixel_aupro"): 2.45,
    ("alarms", "pixel_aupro"): 3.03,
    ("misses", "pixel_aupro"): 2.83,
    ("plain", "pixel_auroc"): 2.2,
    ("alarms", "pixel_auroc"): 2.56,
    ("misses", "pixel_auroc"): 3.39,
}


def pixels_called(
    good: int,
    defects: int,
    kinds: tuple[str, str],
    metric: str,
    apart: float = 0.0,
    extra: float | None = None,
    repeats: int = 300,
) -> float:
    """Return how often two methods' AUPRO or pixel AUROC are called different; ``apart``: the first's advantage."""
    rng, column, called = np.random.default_rng(0), ("pixel_auroc", "pixel_ap", "pixel_aupro").index(metric), 0
    for _ in range(repeats):
        areas, found = 40 * np.exp(0.5 * rng.normal(size=defects)), []
        shared = rng.normal(size=good + defects), rng.normal(size=defects)
        for kind, ahead in zip(kinds, (apart, 0.0), strict=True):
            sound, marked = ((s + rng.normal(size=len(s))) / np.sqrt(2) for s in shared)
            alarms, misses = MAPS[kind]
            centres = np.where(special.ndtr(sound) > 1 - alarms, 3.5, 0.3 * sound)
            places = np.where(special.ndtr(marked) < misses, -1.0, SEPARATION[kind, metric] + ahead + 0.7 * marked)
            pixels = maps_of(centres, places, areas)
            found.append((pixels.metrics()[metric], pixels.contributions()[0][:, column]))
        each, images = found[0][1] - found[1][1], np.arange(good + defects) < good
        value, more = found[0][0] - found[1][0], EXTRA[metric] if extra is None else extra
        called += differences.of_images(value, (each[images], each[~images]), more).p < ALPHA
    return called / repeats


# Balanced accuracy ----------------------------------------------------------------------------------------------------

CLASSES = (  # test images of each class
    (20, 20, 20, 20),
    (58, 20, 22, 21),
    (12, 5, 4, 4),
    (20, 10, 6, 3),
    (58, 12, 10, 10, 13, 14, 10, 11, 12),
    (12, 2, 2, 3, 3, 3, 2, 2, 2),
    (20,) + (5,) * 14,
    (10,) + (2,) * 14,
)
RECALLS = (0.6, 0.8, 0.95)  # their mean; the classes differ by up to 30 points, or 8 near 1


def coverage(counts: Sequence[int], recall: float, repeats: int = 3 * REPEATS) -> tuple[float, float]:
    """Return how often the 95% interval of balanced accuracy holds the truth, and how often it lies below it."""
    rng, images, away = np.random.default_rng(0), np.array(counts), 0.04 if recall > 0.9 else 0.15
    recalls = recall + np.linspace(away, -away, len(counts))
    intervals = np.array([statistics.balanced_interval(rng.binomial(images, recalls), images) for _ in range(repeats)])
    low, high = intervals.T
    return float(np.mean((low <= recalls.mean()) & (recalls.mean() <= high))), float(np.mean(high < recalls.mean()))


# Power at the difference that is stated -------------------------------------------------------------------------------


@dataclass
class Design:
    """Hold how a difference is tested.

    Args:
        name: of the design.
        draw: tests two methods whose true metrics differ by a given change.
        finds: returns the difference that the verdict states for such a test, at some level.
    """

    name: str
    draw: Callable[[np.random.Generator, float], Difference]
    finds: Callable[[Difference, float], float | None]


def models(images: int, shares: Sequence[float]) -> Design:
    def draw(rng: np.random.Generator, change: float) -> Difference:
        return accuracies(trained(rng, images, 1, 0, (0.8 + change / 2, 0.8 - change / 2), shares)[0])

    def finds(seen: Difference, alpha: float) -> float | None:
        disagreement = seen.noises[0].seen * images + seen.value**2
        return differences.found_by_mcnemar(images, disagreement, seen.value, alpha)

    alike = f"{100 * shares[1]:.0f}% of what is hard is hard for one of them alone"
    return Design(f"accuracy of two models, {images} images, {alike}", draw, finds)


def attempts(images: int, seeds: int, scatter: float) -> Design:
    def draw(rng: np.random.Generator, change: float) -> Difference:
        mean = (0.75 + change / 2, 0.75 - change / 2)
        return accuracies(trained(rng, images, seeds, scatter, mean, IMAGES[1])[0])

    name = f"accuracy, {images} images, {seeds} seeds that scatter by {100 * scatter:.0f} points"
    return Design(name, draw, lambda seen, alpha: differences.found_difference(seen.noises, (0.75, 0.75), alpha))


def scores(auroc: float) -> Design:
    truth = np.arange(83) >= 20

    def draw(rng: np.random.Generator, change: float) -> Difference:
        both = (rng.normal(size=83) + rng.normal(size=(2, 83))) / np.sqrt(2)
        ours, theirs = (scores_of("normal", d, 20, a) for d, a in zip(both, (auroc, auroc - change), strict=True))
        return differences.auroc_difference(ours, theirs, truth)

    def finds(seen: Difference, alpha: float) -> float | None:
        return differences.found_difference(seen.noises, (auroc, auroc - abs(seen.value)), alpha)

    return Design(f"image AUROC below {auroc}, 20 good images and 63 defects", draw, finds)


def folds(images: int, repeats: int) -> Design:
    """Return the design of two nearest-centroid learners on five folds, with noisy copies of the same features."""
    labels = np.arange(images) % 2
    shift = np.interp(np.linspace(0, 0.4, 9), *_advantages(images))  # of the features, for a change in accuracy

    def learner_folds(rng: np.random.Generator, advantage: float) -> np.ndarray:
        common_part, own = rng.normal(size=(images, 4)), rng.normal(size=(2, images, 4))
        both = (common_part + own) / np.sqrt(2) + np.array([0.15 + advantage, 0.15])[:, None, None] * (2 * labels - 1)[
            :, None
        ]
        found = []
        for _ in range(repeats):
            for test in np.array_split(rng.permutation(images), 5):
                train = np.setdiff1d(np.arange(images), test)
                right = [_centroids(x[train], labels[train], x[test]) == labels[test] for x in both]
                found.append(right[0].mean() - right[1].mean())
        return np.array(found)

    def draw(rng: np.random.Generator, change: float) -> Difference:
        found = learner_folds(rng, float(np.interp(change, np.linspace(0, 0.4, 9), shift)))
        noise = differences.noise_of_test_sets(found, 0.25, 5 / images)
        p = statistics.corrected_t_test(found, 0.25, 5 / images)
        return Difference(float(found.mean()), -1.0, 1.0, p, (noise,))

    name = f"accuracy, {images} images in {5 * repeats} folds"
    return Design(name, draw, lambda seen, alpha: differences.found_difference(seen.noises, (0.5, 0.5), alpha))


def _centroids(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    centres = np.stack([train[labels == c].mean(axis=0) for c in (0, 1)])
    return np.asarray(((test[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1))


def _advantages(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the changes in accuracy, ascending, that advantages of 0 to 2 make, and these advantages.

    The noise of 0.4 N images moves a centroid in four dimensions: the direction of the learner has an angle to the true
    one.
    """
    advantages = np.linspace(0, 2, 81)
    rng, off = np.random.default_rng(2), np.sqrt(1 / (0.8 * images))
    error = off * rng.normal(size=(4_000, 4))

    def accuracy(strength: float) -> float:
        direction = strength + error
        return float(special.ndtr(strength * direction.sum(axis=1) / np.linalg.norm(direction, axis=1)).mean())

    return np.array([accuracy(0.15 + a) - accuracy(0.15) for a in advantages]), advantages


DESIGNS = (
    *(models(images, shares) for images, shares in ((83, IMAGES[0]), (83, IMAGES[2]), (40, IMAGES[1]))),
    *(attempts(83, seeds, scatter) for seeds, scatter in ((3, 0.05), (5, 0.03), (10, 0.08))),
    *(scores(auroc) for auroc in (0.99, 0.9)),
    *(folds(images, repeats) for images, repeats in ((240, 1), (120, 2))),
)


def stated_power(design: Design, comparisons: int, repeats: int = REPEATS) -> tuple[float, float]:
    """Return the difference that a verdict states, and how often a test at Holm's first step finds that difference.

    The verdict states the median over the pairs of a sweep; here these differ by half of it.
    """
    rng, alpha, stated = np.random.default_rng(0), ALPHA / comparisons, 0.1
    for _ in range(3):
        seen = [design.finds(design.draw(rng, stated / 2), alpha) for _ in range(200)]
        stated = float(np.median([1.0 if each is None else each for each in seen]))
    return stated, float(np.mean([design.draw(rng, stated).p < alpha for _ in range(repeats)]))


# Tables ---------------------------------------------------------------------------------------------------------------

SEEDS = (1, 3, 5, 10)
SIZES = ((20, 63), (5, 15))  # good images and defects: bottle's, and few
AUROCS = (0.68, 0.88, 0.9, 0.95)
SCORES = (("normal", "normal"), ("few", "few"), ("few", "normal"), ("few", "wide"), ("few", "missed"))
PIXELS = (("plain", "plain"), ("alarms", "alarms"), ("alarms", "plain"), ("misses", "plain"), ("alarms", "misses"))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def show_seeds() -> None:
    cells = [(n, seeds) for n in (83, 16) for seeds in SEEDS]
    rows = [[f"{n}", f"{r}", *(percent(seeds_level(n, r, s)) for s in SCATTERS)] for n, r in cells]
    powers = ((n, r, points) for n, r in cells if r >= LEAST_RUNS for points in ((0.15, 0.25) if n == 83 else (0.4,)))
    rows += [
        [
            f"{n}",
            f"{r}, {100 * points:.0f} points apart",
            *(percent(seeds_power(n, r, s, points, 300)) for s in SCATTERS),
        ]
        for n, r, points in powers
    ]
    notes = [
        "equal attempts called different at 0.05, %, the most over three kinds of images; below, how often attempts "
        "that do differ are told apart",
        "1 seed: the verdict speaks of the trained models, and is wrong where it names the worse one",
    ]
    common.show("seeds", notes, ["images", "seeds", *(f"scatter {100 * s:.0f} points" for s in SCATTERS)], rows, False)


def show_scores() -> None:
    def both(*cell: Any) -> str:
        return " / ".join(percent(auroc_called(*cell, extra)) for extra in (0.0, EXTRA["image_auroc"]))

    rows = [
        [
            f"{good} / {defects}",
            " and ".join(dict.fromkeys(kinds)),
            *(both(good, defects, kinds, (a, a)) for a in AUROCS),
        ]
        for (good, defects), kinds in product(SIZES, SCORES)
    ]
    apart = [(0.95, 0.7), (0.99, 0.8), (0.99, 0.7)]
    found = ", ".join(f"{a} and {b} in {both(20, 63, SCORES[0], (a, b))}" for a, b in apart)
    notes = [
        "methods of equal image AUROC called different at 0.05, %: DeLong's variance / one image more of each kind",
        f"normal scores of 20 / 63 that do differ are told apart, %: {found}",
        "few: a few good images outscore all defects; missed: a few defects lie below all good images; wide: the "
        "defects spread three times as wide",
    ]
    common.show("scores", notes, ["good / defects", "scores", *map(str, AUROCS)], rows, False)


def show_pixels() -> None:
    metrics = {"pixel_aupro": "AUPRO", "pixel_auroc": "pixel AUROC"}
    rows = [
        [
            f"{good} / {defects}",
            " and ".join(dict.fromkeys(kinds)),
            *(
                " / ".join(percent(pixels_called(good, defects, kinds, m, extra=e)) for e in (0.0, None))
                for m in metrics
            ),
        ]
        for (good, defects), kinds in product(SIZES, PIXELS)
    ]
    apart = {points: pixels_called(20, 63, PIXELS[0], "pixel_aupro", away) for points, away in ((8, 0.5), (11, 0.75))}
    found = " and ".join(f"by {points} points in {percent(share)}" for points, share in apart.items())
    notes = [
        "methods of equal figures called different at 0.05, %: a jackknife's t / with "
        + ", ".join(f"{EXTRA[m]:g} images more of each kind ({name})" for m, name in metrics.items()),
        f"plain maps of 20 / 63 whose AUPRO differs are told apart, %: {found}",
        "alarms: one good image in twenty scores high everywhere; misses: one defect in ten scores high nowhere",
    ]
    common.show("pixels", notes, ["good / defects", "maps", *metrics.values()], rows, False)


def show_coverage() -> None:
    found_rows = [[", ".join(map(str, counts)), *(coverage(counts, r) for r in RECALLS)] for counts in CLASSES]
    rows = [[name, *(f"{percent(held)} ({percent(below)})" for held, below in cells)] for name, *cells in found_rows]
    notes = ["how often the 95% interval of balanced accuracy holds the truth, %, and in brackets lies below it"]
    common.show("coverage", notes, ["test images of each class", *(f"recall {r}" for r in RECALLS)], rows, False)


def show_power() -> None:
    rows = [
        [design.name, *(f"{100 * x:.1f}: {percent(p)}" for x, p in (stated_power(design, m) for m in (1, 3, 10)))]
        for design in DESIGNS
    ]
    notes = ["the points that a verdict says are found in eight of ten cases, and how often they are, %"]
    common.show("power", notes, ["test", "1 comparison", "3", "10"], rows, False)


def main() -> None:
    metrics.main()
    for show in (show_coverage, show_scores, show_pixels, show_power, show_seeds):
        show()


if __name__ == "__main__":
    main()
