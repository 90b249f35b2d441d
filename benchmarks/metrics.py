"""Simulate what accuracy, balanced accuracy, log loss and Brier score find of a true difference, and what they call
different where there is none.

Two attempts learn centroids from their own noisy view of the same images, whose difficulty they mostly share, and state
probabilities that are calibrated, or too sure. On one split they are models that nothing more is learnt by; over folds
they are trained anew in each, so that folds share training images as those of the lab do. Called different is what
the lab calls different: p below 0.05 and an interval without 0; of McNemar's test p alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from unittest import mock

import numpy as np
from scipy import optimize, stats

from benchmarks import common
from mvtec_lab.evaluation import differences, statistics
from mvtec_lab.evaluation.differences import EXTRA, Difference
from mvtec_lab.evaluation.proper import brier_scores, log_losses

ALPHA = 0.05
NULLS = 2_000  # of a cell: a share of 5% is then known to within a point
BATCH = 250  # simulations at once
METRICS = ("accuracy", "balanced_accuracy", "log_loss", "brier")
# What follows was chosen for figures like those of head and finetune on bottle, 5 folds x 2 (in brackets those here): a
# log loss of 0.60 (0.62) and a Brier score of 0.31 (0.30) at an accuracy of 0.82 (0.80), which varies over folds by 10
# points (9); the two disagree in 20% (19%) of the images, and their log losses correlate by 0.56 (0.55).
MEAN = 0.8  # of both accuracies
CLASSES = 4
DIMENSIONS = 12  # of the features; the classes differ along four of them
SHARED = 0.6  # of an image's difficulty is common to both attempts
TAIL = 5  # degrees of freedom of the difficulty: some images lie far off for everyone
TOO_SURE = 3.7  # logits are so many times as large as calibrated ones: finetune's are on bottle
UNSURE = 0.25  # augment's on bottle
POINTS = (0.05, 0.1, 0.2)  # true differences in accuracy
POWERS = 1_000  # simulations of a cell: its share is known to within 3 points


@dataclass(frozen=True)
class Design:
    """Hold how two attempts are tested.

    Args:
        name: in the table.
        counts: test images of each class on one split, all images where there are folds.
        seeds: trainings on the one split, whose accuracy scatters.
        repeats: of five folds; 0: one split.
    """

    name: str
    counts: tuple[int, ...]
    seeds: int = 1
    repeats: int = 0


FOLDS = 5
OF_16, OF_83, OF_80 = (8, 4, 2, 2), (42, 21, 10, 10), (40, 20, 10, 10)  # good images are the most frequent ones
DESIGNS = (
    Design("one split, 16 test images", OF_16),
    Design("one split, 83 test images", OF_83),
    Design("one split, 83 test images, 5 seeds", OF_83, seeds=5),
    Design("80 images, 5 folds x 1", OF_80, repeats=1),
    Design("80 images, 5 folds x 2", OF_80, repeats=2),
    Design("80 images, 5 folds x 10", OF_80, repeats=10),
)
SCATTER = 0.35  # of a seed's centroids, along each dimension: accuracy scatters by some 3 points


# The attempts ---------------------------------------------------------------------------------------------------------


def labels_of(counts: Sequence[int]) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


def features(rng: np.random.Generator, labels: np.ndarray, strengths: Sequence[float], number: int) -> np.ndarray:
    """Return both attempts' views of ``number`` sets of images, [number, 2, N, D]."""
    common_part = rng.normal(size=(number, 1, len(labels), DIMENSIONS))
    own = rng.normal(size=(number, 2, len(labels), DIMENSIONS))
    far = np.sqrt(TAIL / rng.chisquare(TAIL, size=(number, 1, len(labels), 1)))
    noise = far * (np.sqrt(SHARED) * common_part + np.sqrt(1 - SHARED) * own)
    return noise + np.array(strengths)[:, None, None] * np.eye(CLASSES, DIMENSIONS)[labels]


def logits_of(views: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the logits [..., N, C] of views [..., N, D] for centroids [..., C, D]."""
    return views @ np.swapaxes(centroids, -1, -2) - (centroids**2).sum(axis=-1)[..., None, :] / 2


def learnt(design: Design, rng: np.random.Generator, strengths: Sequence[float], number: int) -> Iterator[np.ndarray]:
    """Yield the logits of both attempts' test images, [number, 2, N, C], for each seed or fold."""
    labels, scale = labels_of(design.counts), np.array(strengths)[:, None, None]
    views = features(rng, labels, strengths, number)
    if not design.repeats:
        for _ in range(design.seeds):
            luck = rng.normal(size=(number, 2, CLASSES, DIMENSIONS)) * (SCATTER if design.seeds > 1 else 0.0)
            yield logits_of(views, scale * np.eye(CLASSES, DIMENSIONS) + luck)
        return
    for test in folds_of(design, rng):
        train = np.setdiff1d(np.arange(len(labels)), test)
        mean = np.eye(CLASSES)[labels[train]] / np.bincount(labels[train])[labels[train], None]
        yield logits_of(views[:, :, test], np.swapaxes(mean, 0, 1) @ views[:, :, train])


def folds_of(design: Design, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the test images of each fold of each repeat, drawn by class."""
    labels = labels_of(design.counts)
    for _ in range(design.repeats):
        fold = np.zeros(len(labels), dtype=int)
        for label in range(CLASSES):
            fold[labels == label] = rng.permutation(np.arange((labels == label).sum()) % FOLDS)
        yield from (np.flatnonzero(fold == index) for index in range(FOLDS))


def of_one(design: Design) -> np.ndarray:
    """Return the labels of one test set."""
    counts = np.array(design.counts) // (FOLDS if design.repeats else 1)
    return labels_of(counts)


@cache
def truths(folds: bool, scattered: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return strengths, the accuracy that each gives, and what makes its logits calibrated; from many images."""
    design = Design("", OF_80, repeats=1) if folds else Design("", OF_83, seeds=2 if scattered else 1)
    strengths, labels, accuracies, factors = np.linspace(0.6, 5, 23), of_one(design), [], []
    for strength in strengths:
        rng = np.random.default_rng(1)
        logits = np.concatenate([part.reshape(-1, CLASSES) for part in learnt(design, rng, (strength,) * 2, 100)])
        truth = np.tile(labels, len(logits) // len(labels))
        accuracies.append(float((logits.argmax(axis=1) == truth).mean()))
        factors.append(calibrating(truth, logits))
    return strengths, np.maximum.accumulate(accuracies), np.array(factors)


def calibrating(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the factor with which logits have the lowest log loss."""

    def loss(factor: float) -> float:
        return float(log_losses(labels, softmax(factor * logits)).mean())

    return float(optimize.minimize_scalar(loss, bounds=(0.02, 5), method="bounded", options={"xatol": 1e-3}).x)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def strength_of(design: Design, accuracy: float) -> tuple[float, float]:
    """Return the strength of an attempt that reaches a true accuracy in a design, and what calibrates its logits."""
    strengths, accuracies, factors = truths(bool(design.repeats), design.seeds > 1)
    strength = float(np.interp(accuracy, accuracies, strengths))
    return strength, float(np.interp(strength, strengths, factors))


# The tests ------------------------------------------------------------------------------------------------------------


def values_of(metric: str, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the value of each image, whose mean is the metric: probabilities [..., N, C] to [..., N]."""
    flat = probabilities.reshape(-1, CLASSES)
    truth = np.tile(labels, len(flat) // len(labels))
    if metric in ("log_loss", "brier"):
        values = (log_losses if metric == "log_loss" else brier_scores)(truth, flat)
        return values.reshape(probabilities.shape[:-1])
    right = (probabilities.argmax(axis=-1) == labels).astype(float)
    return right if metric == "accuracy" else right * statistics.image_weights(labels) * len(labels)


@cache
def _signs(images: int) -> tuple[np.ndarray, int]:
    """Return all changes of sign of so many images, or as many random ones as the lab draws, and 1 for the latter."""
    if 2**images <= statistics.PERMUTATIONS:
        return np.array(list(product((1.0, -1.0), repeat=images))), 0
    return np.random.default_rng(0).choice([1.0, -1.0], (statistics.PERMUTATIONS, images)), 1


def permuted(change: np.ndarray) -> float:
    """Return the p of the lab's permutation tests of a mean, a hundred times as fast: swapping changes the sign."""
    signs, drawn = _signs(len(change))
    null, seen = signs @ change, change.sum()
    within = 1e-12 * np.abs(change).sum()
    sides = ((null <= seen + within).sum(), (null >= seen - within).sum())
    return min(1.0, 2 * (min(sides) + drawn) / (len(null) + drawn))


def compared(metric: str, labels: np.ndarray, values: np.ndarray) -> Difference:
    """Compare two attempts as the lab does on one test set, from their images' values [2, R, N]."""
    first, second = values.mean(axis=1)
    change = first - second
    if metric == "accuracy" and values.shape[1] == 1:
        return differences.accuracy_difference(first, second)[0]
    p = permuted(change[change != 0]) if (change != 0).sum() > 1 else 1.0
    fast = mock.patch.object(statistics, "paired_test", return_value=("", p))
    with fast, mock.patch.object(statistics, "permutation_test", return_value=p):
        if metric == "accuracy":
            found = differences.accuracy_difference(first, second)[0]
        elif metric == "balanced_accuracy":
            weights = statistics.image_weights(labels) * len(labels)
            right, other = np.eye(CLASSES)[labels], np.eye(CLASSES)[(labels + 1) % CLASSES]
            shares = [(m / weights)[:, None] * right + (1 - m / weights)[:, None] * other for m in (first, second)]
            confusions = [np.eye(CLASSES)[labels][:, :, None] * share[:, None, :] for share in shares]
            found = differences.balanced_difference(*confusions, statistics.balanced_accuracy)[0]
        elif metric == "log_loss":
            found = differences.mean_difference(first, second, np.inf)[0]
        else:
            found = differences.careful_difference(first, second, EXTRA["brier"], 2.0)[0]
    if values.shape[1] >= differences.LEAST_RUNS:
        figures = values.mean(axis=2)
        found = differences.with_seeds(found, [figures[0] - figures[1]])
    return found


def over_folds(metric: str, labels: np.ndarray, change: np.ndarray) -> bool:
    """Tell whether the lab calls two attempts different by the differences of their folds."""
    steps = {"accuracy": 1 / len(labels), "balanced_accuracy": statistics.image_weights(labels).max()}
    once = metric in PROPER
    return (
        statistics.corrected_t_test(change, 1 / (FOLDS - 1), steps.get(metric, 0.0), one_round=FOLDS if once else 0)
        < ALPHA
    )


@cache
def called(
    design: Design,
    accuracies: tuple[float, float],
    sure: tuple[float, float] = (1.0, 1.0),
    metrics: tuple[str, ...] = METRICS,
    number: int = NULLS,
) -> dict[str, tuple[float, float]]:
    """Return for each metric how often the first attempt is called better, and how often the second.

    Args:
        design: of the test.
        accuracies: the true ones.
        sure: how many times as large as calibrated the logits of each are.
        metrics: that decide.
        number: of simulations.
    """
    rng, labels, counts = np.random.default_rng(0), of_one(design), {metric: np.zeros(2) for metric in metrics}
    strengths, factors = zip(*(strength_of(design, accuracy) for accuracy in accuracies), strict=True)
    scale = np.array(factors) * np.array(sure)
    for _ in range(-(-number // BATCH)):
        parts = [softmax(scale[:, None, None] * part) for part in learnt(design, rng, strengths, BATCH)]
        for metric in metrics:
            # [BATCH, 2, R, N]: R seeds of one test set, or folds
            values = np.stack([values_of(metric, labels, part) for part in parts], axis=2)
            sign = -1 if metric in ("log_loss", "brier") else 1
            for each in values:
                counts[metric] += _better(design, metric, labels, sign * each)
    done = BATCH * -(-number // BATCH)
    return {metric: (float(first) / done, float(second) / done) for metric, (first, second) in counts.items()}


def _better(design: Design, metric: str, labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return which of two attempts is called better, as 1 at its place: higher values [2, R, N] are better."""
    if design.repeats:
        change = values.mean(axis=2)[0] - values.mean(axis=2)[1]
        different, lead = over_folds(metric, labels, change), change.mean()
    else:
        found, alone = compared(metric, labels, values), metric == "accuracy" and values.shape[1] == 1
        different, lead = found.p < ALPHA and (alone or found.low > 0 or found.high < 0), found.value
    return np.array([different and lead > 0, different and lead < 0], dtype=float)


@cache
def even(design: Design, metric: str, accuracies: tuple[float, float], within: tuple[float, float]) -> float | None:
    """Return how sure the first attempt is where both have the same true log loss or Brier score.

    Args:
        design: of the test.
        metric: ``log_loss`` or ``brier``.
        accuracies: the true ones; the second is calibrated.
        within: which multiples of calibrated logits are tried.

    Returns:
        The multiple; None where none makes them equal.
    """
    rng, labels = np.random.default_rng(2), of_one(design)
    strengths, factors = zip(*(strength_of(design, accuracy) for accuracy in accuracies), strict=True)
    parts = list(learnt(design, rng, strengths, 100 if design.seeds > 1 or design.repeats > 1 else 400))
    first, second = (np.concatenate([part[:, side] for part in parts]) * factors[side] for side in (0, 1))
    theirs = values_of(metric, labels, softmax(second)).mean()

    def beyond(sure: float) -> float:
        return float(values_of(metric, labels, softmax(sure * first)).mean() - theirs)

    return float(optimize.brentq(beyond, *within, xtol=1e-3)) if beyond(within[0]) * beyond(within[1]) < 0 else None


# Tables ---------------------------------------------------------------------------------------------------------------

TITLES = dict(zip(METRICS, ("accuracy", "balanced accuracy", "log loss", "Brier score"), strict=True))
PROPER = METRICS[2:]
EQUALLY = {"": (1.0, 1.0), ", too sure": (TOO_SURE, TOO_SURE)}
KINDS = [(m, more) for m in METRICS for more in EQUALLY if m in PROPER or not more]  # accuracy does not see it
UNEQUAL = (DESIGNS[0], DESIGNS[1], *DESIGNS[4:])  # of the second table
# Cases of it: points by which the first attempt is more accurate, how sure it is, and what that is like. A pair: as
# sure, within these bounds, as makes its log loss or Brier score that of the second. The second is calibrated.
CASES: tuple[tuple[float, float | tuple[float, float], str], ...] = (
    (0.0, TOO_SURE, "equal accuracy, one too sure"),
    (0.0, UNSURE, "equal accuracy, one not sure enough"),
    (0.1, TOO_SURE, "10 points better, but too sure"),
    (0.1, UNSURE, "10 points better, but not sure enough"),
    (0.1, (1.0, 50.0), "10 points better, and too sure by so much that both have the same score"),
    (0.1, (0.01, 1.0), "10 points better, and unsure by so much that both have the same score"),
)


IMAGES = (5, 8, 10, 12, 16, 20, 24, 30, 40, 60, 83, 120, 200)  # of McNemar's test
DISAGREEMENTS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.9, 1.0)


def apart(points: float) -> tuple[float, float]:
    """Return the accuracies of two attempts that differ by ``points``."""
    return MEAN + points / 2, MEAN - points / 2


def level(design: Design, metric: str, more: str = "", number: int = NULLS) -> float:
    """Return how often equal attempts, which are equally sure, are called different."""
    return sum(called(design, apart(0.0), EQUALLY[more], PROPER if more else METRICS, number)[metric])


def power(design: Design, metric: str, points: float, more: str = "", number: int = POWERS) -> float:
    """Return how often the more accurate of two attempts, which are equally sure, is called better."""
    return called(design, apart(points), EQUALLY[more], PROPER if more else METRICS, number)[metric][0]


def unequal(
    design: Design, metric: str, points: float, sure: float | tuple[float, float], number: int = POWERS
) -> tuple[float, float] | None:
    """Return how often the first attempt is called better, which is not calibrated, and how often the second."""
    of: tuple[str, ...] = (*METRICS[:1], *PROPER)
    if isinstance(sure, tuple):
        if metric not in PROPER or (found := even(design, metric, apart(points), sure)) is None:
            return None
        sure, of = found, (metric,)
    return called(design, apart(points), (sure, 1.0), of, number)[metric]


def percent(*shares: float) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in shares)


def show_metrics(number: int = NULLS) -> None:
    powers = min(number, POWERS)
    rows = [
        [
            design.name,
            *(
                f"{percent(level(design, metric, more, number))}: "
                + " / ".join(f"{100 * power(design, metric, points, more, powers):.0f}" for points in POINTS)
                for metric, more in KINDS
            ),
        ]
        for design in DESIGNS
    ]
    points = ", ".join(f"{100 * each:.0f}" for each in POINTS)
    notes = [
        f"equal attempts called different at 0.05, %, of {number:,}; then how often the better one is called "
        f"better where true accuracies differ by {points} points around {100 * MEAN:.0f}%, %, of {powers:,}",
        f"too sure: the logits of both are {TOO_SURE:g} times as large as calibrated ones",
        f"images of each class: {', '.join(map(str, OF_16))} of 16, {', '.join(map(str, OF_83))} of 83, "
        f"{', '.join(map(str, OF_80))} of 80; 16 of these are tested in each fold",
    ]
    common.show("metrics", notes, ["design", *(TITLES[metric] + more for metric, more in KINDS)], rows, False)


def show_unequal(number: int = NULLS) -> None:
    rows = []
    for points, sure, name in CASES:
        for metric in (*METRICS[:1], *PROPER):
            cells = [unequal(design, metric, points, sure, number) for design in UNEQUAL]
            if any(cells):
                rows.append([name, TITLES[metric], *("" if cell is None else percent(*cell) for cell in cells)])
    notes = [
        f"how often the first attempt is called better, which is too sure ({TOO_SURE:g} times calibrated logits) or "
        f"not sure enough ({UNSURE:g} times), and how often the second, which is calibrated, %, of {number:,}",
        "equal accuracy is a true null of accuracy alone, and equal scores of that score alone: both numbers of a "
        "sound test are then 5% together",
        "log loss on one split: the permutation test, which the lab does not make for this reason",
    ]
    common.show("unequal", notes, ["the first attempt", "decides", *(design.name for design in UNEQUAL)], rows, False)


def mcnemar_level(images: int, disagreement: float) -> float:
    """Return how often McNemar's mid-p test calls equal models different that disagree in a share of the images."""
    differ, called = np.arange(images + 1), np.zeros(images + 1)
    for number in differ:
        only = np.arange(number + 1)
        called[number] = stats.binom.pmf(only, number, 0.5) @ (statistics.mcnemar_mid_p(only, number) < ALPHA)
    return float(stats.binom.pmf(differ, images, disagreement) @ called)


def show_mcnemar() -> None:
    rows = [[f"{n}", *(percent(mcnemar_level(n, share)) for share in DISAGREEMENTS)] for n in IMAGES]
    notes = [
        "equal models called different at 0.05 by McNemar's mid-p test, %, counted over all "
        "outcomes: by the share of the images that one of the two alone classifies rightly",
    ]
    heads = ["test images", *(f"disagree in {100 * share:.0f}%" for share in DISAGREEMENTS)]
    common.show("mcnemar", notes, heads, rows, False)


def main(number: int = NULLS) -> None:
    show_mcnemar()
    show_metrics(number)
    show_unequal(number)


if __name__ == "__main__":
    main(common.nulls(__doc__, NULLS, BATCH))
