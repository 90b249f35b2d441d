"""Simulate which attempt validation names, by the lab's rule and by others, and how much worse it is than the best one.

    python -m benchmarks.ranking

The attempts of a sweep are about equally good, or those with few validation images are truly better or worse. Each is
validated on images of four classes that no other attempt has, or that all share; in the third scenario these images
choose the checkpoint as well. The generator is fixed: the tables are the same each time, and tests/test_ranking.py
holds the lab to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import special

from benchmarks import common
from mvtec_lab.evaluation.statistics import balanced_interval
from mvtec_lab.reporting.ranking import choose

REPEATS = 2_000  # sweeps of a cell: what a rule loses more than another one is then known to within 0.25 points
BATCH = 250  # sweeps at once
ATTEMPTS = (2, 4, 8)
CLASSES = 4  # each has as many validation images as the others
LEVEL = (0.65, 0.9)  # of a sweep's attempts, mean true balanced accuracy: drawn between them
SPREAD = 0.06  # a standard deviation between the attempts of a sweep
AHEAD = (0.0, 0.05, -0.05)  # by how much attempts with few images are truly better, on average
OFFSETS = np.linspace(0.5, -0.5, CLASSES)  # of the classes, in standard deviations of an image's difficulty
SCATTER = 0.03  # of the true balanced accuracy between the checkpoints of an attempt
LIMITS = 0.05, 0.995  # of it
ALIKE = ((12,), (44,), (100,))  # validation images of the attempts, in turn
APART = ((12, 44), (12, 200), (44, *(12,) * 7))  # the last: one attempt with 44 beside others with 12
# What the second table varies: level, and spread.
CASES = ((LEVEL, 0.03), (LEVEL, SPREAD), (LEVEL, 0.1), ((0.2, 0.5), SPREAD), ((0.9, 0.98), SPREAD))
FURTHER = (*AHEAD, 0.1, -0.1)


@dataclass(frozen=True)
class Scenario:
    """Hold how attempts are validated.

    Args:
        shared: the share of an image's difficulty that is common to all attempts; 0: each has images of its own.
        alone: the share that is common to all checkpoints of an attempt.
        checkpoints: of which validation keeps the best.
    """

    shared: float = 0.0
    alone: float = 0.0
    checkpoints: int = 1


SCENARIOS = (Scenario(), Scenario(shared=0.5), Scenario(shared=0.5, alone=0.3, checkpoints=5))


class Sweeps(NamedTuple):
    """Hold R sweeps of A attempts.

    Args:
        images: validation images of each class, [A].
        right: those that are classified rightly, [R, A, C].
        truth: the true balanced accuracy, [R, A].
        luck: stands for the validation loss, which decides between equal figures, [R, A].
    """

    images: np.ndarray
    right: np.ndarray
    truth: np.ndarray
    luck: np.ndarray


def draw(
    scenario: Scenario,
    images: Sequence[int],
    ahead: float = 0.0,
    level: tuple[float, float] = LEVEL,
    spread: float = SPREAD,
    repeats: int = REPEATS,
) -> Sweeps:
    """Return sweeps of as many attempts as the largest has; smaller ones are their first attempts."""
    rng, most = np.random.default_rng(1), max(ATTEMPTS)
    numbers = np.resize(images, most) // CLASSES
    better = np.where(numbers == min(numbers), ahead / 2, -ahead / 2)
    parts = []
    for _ in range(-(-repeats // BATCH)):
        mean = rng.uniform(*level, (BATCH, 1, 1)) + better[:, None] + spread * rng.normal(size=(BATCH, most, 1))
        parts.append(_validated(rng, scenario, numbers, mean))
    return Sweeps(numbers, *(np.concatenate(each) for each in zip(*parts, strict=True)))


def _validated(
    rng: np.random.Generator, scenario: Scenario, numbers: np.ndarray, accuracy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return right images, truth and luck of attempts with some mean accuracies [R, A, 1].

    Where images are shared, those of an attempt with few are among those of one with many.
    """
    if scenario.checkpoints > 1:
        accuracy = accuracy + SCATTER * rng.normal(size=(*accuracy.shape[:2], scenario.checkpoints))
    limits = special.ndtri(np.clip(accuracy, *LIMITS))[..., None] + OFFSETS  # [R, A, checkpoints, C]
    (repeats, attempts), images = limits.shape[:2], int(numbers.max())
    hard = np.sqrt(1 - scenario.shared - scenario.alone) * rng.normal(size=(*limits.shape, images))
    hard += np.sqrt(scenario.shared) * rng.normal(size=(repeats, 1, 1, CLASSES, images))
    hard += np.sqrt(scenario.alone) * rng.normal(size=(repeats, attempts, 1, CLASSES, images))
    validating = np.arange(images) < numbers[:, None, None, None]
    right = ((hard < limits[..., None]) & validating).sum(axis=-1)
    best = (right.mean(axis=-1) + 1e-6 * rng.random(right.shape[:-1])).argmax(axis=-1)[..., None]  # of the checkpoints
    right = np.take_along_axis(right, best[..., None], axis=2)[:, :, 0]
    truth = np.take_along_axis(special.ndtr(limits).mean(axis=-1), best, axis=2)[..., 0]
    return right, truth, rng.random(truth.shape)


def ends(sweeps: Sweeps) -> np.ndarray:
    """Return the ends of the 95% interval that the lab takes, [2, R, A]."""
    numbers = np.broadcast_to(sweeps.images[:, None], (*sweeps.truth.shape, 1))
    rows = np.concatenate([np.sort(sweeps.right), numbers], axis=-1)  # classes are alike, and the order says nothing
    kinds, place = np.unique(rows.reshape(-1, CLASSES + 1), axis=0, return_inverse=True)
    return np.array([_interval(*kind) for kind in kinds.tolist()]).T[:, place.ravel()].reshape(2, *sweeps.truth.shape)


@cache
def _interval(*counts: int) -> tuple[float, float]:
    *right, images = counts
    return balanced_interval(right, [images] * CLASSES)


LAB, LOWER = "the lab's", "lower end"
RULES = ("value", LOWER, LAB, "posterior mean", "middle of both ends")
Outcomes = dict[tuple[str, int], tuple[float, float]]


def outcomes(sweeps: Sweeps, rules: Sequence[str] = RULES) -> Outcomes:
    """Return what each rule loses against the best attempt on average, and how often it names that, by attempts."""
    value = (sweeps.right / sweeps.images[:, None]).mean(axis=-1)
    low, high = ends(sweeps)
    worth = {
        "value": value,
        LOWER: low,
        "posterior mean": ((sweeps.right + 1) / (sweeps.images[:, None] + 2)).mean(axis=-1),  # each recall: Beta(1, 1)
        "middle of both ends": (low + high) / 2,
    }
    found = {}
    for rule, attempts in product(rules, ATTEMPTS):
        luck, truth = sweeps.luck[:, :attempts], sweeps.truth[:, :attempts]
        if rule == LAB:
            differ = len({*sweeps.images[:attempts].tolist()}) > 1
            named = _by_lab(value[:, :attempts], low[:, :attempts] if differ else None, luck)
        else:
            named = (worth[rule][:, :attempts].round(9) + 1e-9 * luck).argmax(axis=1)
        lost = truth.max(axis=1) - truth[np.arange(len(truth)), named]
        found[rule, attempts] = float(lost.mean()), float((lost == 0).mean())
    return found


def _by_lab(value: np.ndarray, low: np.ndarray | None, luck: np.ndarray) -> np.ndarray:
    """Return the attempt that the lab names in each sweep, [R]."""
    named = []
    for r in range(len(value)):
        scores = {f"{a}": (True, round(value[r, a], 9), luck[r, a]) for a in range(value.shape[1])}
        named.append(choose(scores, None if low is None else {name: low[r, int(name)] for name in scores}))
    return np.array(named, dtype=int)


# Tables ---------------------------------------------------------------------------------------------------------------


def _points(*lost: float) -> str:
    return " / ".join(f"{100 * each:.1f}" for each in lost)


def _beside(images: Sequence[int]) -> str:
    return f"one {images[0]} beside {images[1]}" if len(images) > 2 else " beside ".join(map(str, images))


def _few(ahead: float) -> str:
    return "alike" if not ahead else f"{100 * abs(ahead):.0f} points {'better' if ahead > 0 else 'worse'}"


def show_ranking() -> None:
    rules, rows = RULES[:-1], []
    for images, ahead in (*((images, 0.0) for images in ALIKE), *product(APART, AHEAD)):
        of = [outcomes(draw(scenario, images, ahead), rules) for scenario in SCENARIOS]
        few = _few(ahead) if len(images) > 1 else ""
        for attempts in ATTEMPTS:
            cells = [[each[rule, attempts] for each in of] for rule in rules]
            texts = [f"{_points(*(c[0] for c in cell))} ({100 * np.mean([c[1] for c in cell]):.0f})" for cell in cells]
            rows.append([_beside(images), few, f"{attempts}", *texts])
    notes = [
        "points of true balanced accuracy that the attempt which is named has less than the best one, on average: "
        "images of their own / shared images / shared images that choose the best of five checkpoints as well; in "
        f"brackets how often the best one is named, %, the mean over the three; {REPEATS:,} sweeps each",
        f"true balanced accuracies scatter by {100 * SPREAD:.0f} points around {100 * LEVEL[0]:.0f} to "
        f"{100 * LEVEL[1]:.0f}%; half of the attempts have few images, or all but one",
        "the lab's: the value where all have as many images, otherwise the middle between the value and the lower end "
        "of its 95% interval; posterior mean: of the recalls, from Beta(1, 1)",
    ]
    common.show("ranking", notes, ["validation images", "those with few", "attempts", *rules], rows, False)


def show_further() -> None:
    rows = []
    for (level, spread), ahead in product(CASES, FURTHER):
        of = [
            outcomes(draw(scenario, images, ahead, level, spread, repeats=2 * BATCH))
            for images, scenario in product(APART, SCENARIOS)
        ]
        lost = {rule: [found[rule, attempts][0] for found in of for attempts in ATTEMPTS] for rule in RULES}
        texts = [_mean_and_most(lost[rule]) for rule in RULES]
        rows.append([f"{100 * level[0]:.0f} to {100 * level[1]:.0f}", f"{100 * spread:.0f}", _few(ahead), *texts])
    notes = [
        f"points lost as above, {2 * BATCH} sweeps each: the mean over the designs with different numbers of images, "
        "in brackets the most of any",
    ]
    common.show("ranking_further", notes, ["accuracies, %", "scatter", "those with few", *RULES], rows, False)


def _mean_and_most(lost: Iterable[float]) -> str:
    each = list(lost)
    return f"{100 * np.mean(each):.1f} ({100 * max(each):.1f})"


def main() -> None:
    show_ranking()
    show_further()


if __name__ == "__main__":
    main()
