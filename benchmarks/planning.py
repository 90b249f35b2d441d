"""Simulate what the plan's advice is worth: a difference that it says is shown in 80% of cases is shown how often?

    python -m benchmarks.planning

Each pilot gets its own advice, and the advice is followed: the share is the mean over the pilots. Every generator is
fixed: the table is the same each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import special, stats

from benchmarks import common
from benchmarks.levels import ALPHA, IMAGES, accuracies, percent, scores_of, trained
from mvtec_lab.evaluation import differences
from mvtec_lab.evaluation.planning import Design, Evidence, OnOneTestSet, OverTestSets, ways
from mvtec_lab.evaluation.statistics import corrected_t_test, mcnemar_mid_p

PILOTS = 60
FOLLOWED = 100  # simulations of a design that is followed: over CELLS designs, power is known to within a point
CELLS = 10  # designs, of those that pilots ask for, at which power is simulated; it is interpolated between them


@dataclass
class Study:
    """Hold attempts that are compared in some design.

    Args:
        name: of the pilot.
        change: the true difference that is planned for.
        pilot: draws what a pilot shows.
        p: draws the p of a comparison in another design, [n].
    """

    name: str
    change: float
    pilot: Callable[[np.random.Generator], Evidence]
    p: Callable[[np.random.Generator, Design, int], np.ndarray]


# One test set ---------------------------------------------------------------------------------------------------------


def on_one_set(images: int, seeds: int, scatter: float, change: float, shares: tuple[float, float]) -> Study:
    """Return the study of networks on one test set, as ``levels.trained`` draws them."""
    accuracy = (0.78 + change / 2, 0.78 - change / 2)

    def pilot(rng: np.random.Generator) -> Evidence:
        right = trained(rng, images, seeds, scatter, accuracy, shares)[0]
        seen, figures = accuracies(right), right.mean(axis=(1, 2))
        of_images = differences.accuracy_difference(*right.mean(axis=1))[0].noises if seeds == 1 else seen.noises[:1]
        disagreement = of_images[0].seen * images + seen.value**2 if seeds == 1 else None
        both = float(figures[0]), float(figures[1])
        return OnOneTestSet(images, of_images, seen.noises[1:], seeds, seen.value, both, 1.0, disagreement)

    def p(rng: np.random.Generator, design: Design, n: int) -> np.ndarray:
        drawn = (trained(rng, design.images, design.repeats, scatter, accuracy, shares)[0] for _ in range(n))
        if seeds > 1:
            return np.array([accuracies(right).p for right in drawn])
        only = np.array([[np.sum(a > b), np.sum(a != b)] for a, b in (right[:, 0] for right in drawn)])
        return np.array([float(mcnemar_mid_p(ours, differ)) for ours, differ in only])

    name = f"{images} test images, " + (f"{seeds} seeds, scatter {100 * scatter:.0f} points" if seeds > 1 else "1 seed")
    return Study(name, change, pilot, p)


def of_scores(change: float) -> Study:
    """Return the study of two one-class methods by image AUROC, on 20 good images and 63 defects or as many times."""
    auroc = 0.95

    def draw(rng: np.random.Generator, images: int) -> tuple[differences.Difference, tuple[float, float]]:
        good = round(images * 20 / 83)
        both = (rng.normal(size=images) + rng.normal(size=(2, images))) / np.sqrt(2)
        ours, theirs = (scores_of("normal", d, good, a) for d, a in zip(both, (auroc, auroc - change), strict=True))
        truth = np.arange(images) >= good
        values = [(stats.rankdata(s)[truth].mean() - (len(s) - good + 1) / 2) / good for s in (ours, theirs)]
        return differences.auroc_difference(ours, theirs, truth), (float(values[0]), float(values[1]))

    def pilot(rng: np.random.Generator) -> Evidence:
        seen, figures = draw(rng, 83)
        return OnOneTestSet(83, seen.noises, (), 1, seen.value, figures)

    def p(rng: np.random.Generator, design: Design, n: int) -> np.ndarray:
        return np.array([draw(rng, design.images)[0].p for _ in range(n)])

    return Study("image AUROC, 20 good images and 63 defects", change, pilot, p)


# Folds ----------------------------------------------------------------------------------------------------------------

DIMENSIONS = 4
BASE = 0.25  # the distance of a class from the border, in standard deviations of each of the features


def over_folds(images: int, folds: int, repeats: int, change: float) -> Study:
    """Return the study of two nearest-centroid learners, trained in every fold, on noisy copies of some features."""

    def drawn(rng: np.random.Generator, design: Design) -> np.ndarray:
        """Return the difference of the two accuracies in each fold."""
        labels = np.arange(design.images) % 2
        ahead = np.array([_distance(design, change), BASE])
        x = (rng.normal(size=(design.images, DIMENSIONS)) + rng.normal(size=(2, design.images, DIMENSIONS))) / np.sqrt(
            2
        )
        x += ahead[:, None, None] * (2 * labels - 1)[:, None]
        found = []
        for _ in range(design.repeats):
            fold = rng.permutation(design.images) % design.folds
            right = _by_others(x, labels, fold, design.folds)
            tested = np.bincount(fold, minlength=design.folds)
            share = [np.bincount(fold, weights=each, minlength=design.folds) / tested for each in right]
            found.append(share[0] - share[1])
        return np.concatenate(found)

    def resolution(design: Design) -> float:
        return design.folds / design.images

    def pilot(rng: np.random.Generator) -> Evidence:
        design = Design(images, folds, repeats)
        ratio = 1 / (folds - 1)
        variance = differences.variance_of_test_sets(drawn(rng, design), ratio, resolution(design))
        return OverTestSets(variance, design.runs, images / folds, ratio, folds)

    def p(rng: np.random.Generator, design: Design, n: int) -> np.ndarray:
        ratio = 1 / (design.folds - 1)
        return np.array([corrected_t_test(drawn(rng, design), ratio, resolution(design)) for _ in range(n)])

    return Study(f"{images} images, {folds} folds x {repeats}", change, pilot, p)


def _by_others(x: np.ndarray, labels: np.ndarray, fold: np.ndarray, folds: int) -> np.ndarray:
    """Return whether each image [2, N] is nearer to the centroid of its own class, of the images of other folds."""
    near = []
    for label in (0, 1):
        member = (labels == label)[:, None] & (fold[:, None] == np.arange(folds))  # [N, folds]
        sums, counts = np.einsum("anf,nk->akf", x, member), member.sum(axis=0)
        centre = (sums.sum(axis=1, keepdims=True) - sums) / (counts.sum() - counts)[:, None]
        near.append(((x - centre[:, fold]) ** 2).sum(axis=2))
    return np.where(labels == 0, near[0] < near[1], near[1] < near[0]).astype(float)


@cache
def _distance(design: Design, change: float) -> float:
    """Return the distance of the better learner's classes, with which it is ``change`` more often right than at BASE.

    A centroid of n images is off by the noise of n: the learner's direction has an angle to the true one.
    """
    rng, learnt = np.random.default_rng(2), design.images * (1 - 1 / design.folds)
    error = 2 / np.sqrt(learnt) * rng.normal(size=(20_000, DIMENSIONS))

    def accuracy(distance: float) -> float:
        direction = 2 * distance + error
        return float(special.ndtr(distance * direction.sum(axis=1) / np.linalg.norm(direction, axis=1)).mean())

    distances = np.linspace(BASE, 3, 150)
    values = np.array([accuracy(distance) for distance in distances])
    return float(np.interp(values[0] + change, values, distances))


# Table ----------------------------------------------------------------------------------------------------------------

STUDIES = (
    on_one_set(83, 1, 0.0, 0.10, IMAGES[0]),
    on_one_set(83, 5, 0.03, 0.15, IMAGES[1]),
    on_one_set(83, 5, 0.03, 0.12, IMAGES[1]),
    of_scores(0.05),
    over_folds(60, 5, 1, 0.25),
    over_folds(60, 5, 1, 0.10),
    over_folds(83, 5, 2, 0.10),
)
# What is done with the designs that a pilot is told of, first those with more images, last more trainings alone.
TAKEN: dict[str, Callable[[list[Design]], Design]] = {
    "the first: more images": lambda designs: designs[0],
    "the last: the fewest images": lambda designs: designs[-1],
}


def followed(study: Study, pilots: int = PILOTS, runs: int = FOLLOWED) -> dict[str, tuple[list[Design], float]]:
    """Return the designs that pilots take, by what they do with the advice, and how often these show the difference.

    A pilot that hears that what is there is enough does no more than that.
    """
    rng = np.random.default_rng(0)
    drawn = [study.pilot(rng) for _ in range(pilots)]
    seen, advised = drawn[0].design, [ways(evidence, study.change, ALPHA) for evidence in drawn]
    power = _power(study, {design for designs in advised for design in designs}, seen, runs)
    found = {}
    for how, take in TAKEN.items():
        taken = [take(designs) for designs in advised if designs]
        found[how] = taken, float(np.mean([power[design] for design in taken]))
    return found


def _power(study: Study, designs: set[Design], seen: Design, runs: int) -> dict[Design, float]:
    """Return how often designs show the difference: simulated at CELLS of a kind, and interpolated between them."""
    kinds: dict[tuple[int, int, bool], list[Design]] = {}
    for design in sorted(designs, key=lambda design: (design.images, design.repeats)):
        more = design.images > seen.images and design.folds == seen.folds
        kinds.setdefault((design.folds, design.repeats if more else 0, more), []).append(design)
    power: dict[Design, float] = {}
    for alike in kinds.values():
        rng = np.random.default_rng(1)
        chosen = [alike[place] for place in np.unique(np.linspace(0, len(alike) - 1, CELLS).round().astype(int))]
        shown = [float(np.mean(study.p(rng, design, runs) < ALPHA)) for design in chosen]
        sizes = [design.images * design.repeats for design in chosen]
        power |= {design: float(np.interp(design.images * design.repeats, sizes, shown)) for design in alike}
    return power


def show() -> None:
    rows = []
    for study in STUDIES:
        for how, (designs, power) in followed(study).items():
            low, middle, high = np.percentile([design.images for design in designs], (10, 50, 90)).round().astype(int)
            runs = np.median([design.runs for design in designs])
            images = f"{middle} ({low} to {high})"
            told = percent(len(designs) / PILOTS)
            rows.append([study.name, f"{100 * study.change:.0f}", how, told, images, f"{runs:.0f}", percent(power)])
    notes = [
        "told: the pilots that hear of a design within reach, %; images and runs of each attempt: their median, in "
        "brackets what eight of ten lie between; shown: how often the difference then is, %, their mean",
    ]
    headers = ["pilot", "points", "what is done", "told", "images", "runs", "shown"]
    common.show("planning", notes, headers, rows, False)


def main() -> None:
    show()


if __name__ == "__main__":
    main()
