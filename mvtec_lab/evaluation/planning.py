"""Say which designs show a difference of a given size: how many images, folds, repeats and seeds.

What two attempts showed on some images is the evidence. Its noises are scaled to another design, and ``power_of`` says
how often the verdict's own test finds the difference there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log10
from typing import Protocol

from mvtec_lab.evaluation.differences import (
    POWER,
    Noise,
    found_by_mcnemar,
    found_difference,
    noise_over_sets,
    power_of,
    power_of_mcnemar,
)

Power = Callable[[float], float]  # the probability that a difference of some size is found

MOST_IMAGES = 10_000  # more than anybody labels to compare two attempts; the largest product of MVTec AD has 480
REPEATS = 10  # of folds, or seeds, that go with more images: the luck of training is a small part then
MOST_REPEATS = 20  # of folds, or seeds on one test set: 5 folds x 20 are 100 trainings of each attempt
FOLDS = (5, 10)  # the usual numbers; with more of them each test set is smaller, and more trainings are needed
LEAST_TESTED = 5  # images in the test set of a fold: with fewer, one image is more than 20 points


@dataclass(frozen=True)
class Design:
    """Say on what two attempts are compared.

    Args:
        images: that are tested, each counted once; over folds these are all labelled images.
        folds: of the cross-validation; 1: one test set.
        repeats: of the folds; on one test set: seeds of each attempt.
    """

    images: int
    folds: int = 1
    repeats: int = 1

    @property
    def runs(self) -> int:
        """Return the trainings of each attempt."""
        return self.folds * self.repeats


class Evidence(Protocol):
    """Hold what two attempts showed, from which the power of other designs is computed."""

    @property
    def design(self) -> Design:
        """Return the design that was seen, with the nearest whole number of folds and repeats."""

    def found(self, alpha: float) -> float | None:
        """Return the difference that the test finds on the same images with a probability of POWER; None: none."""

    def power(self, design: Design, alpha: float) -> Power:
        """Return how often the test at level ``alpha`` finds a difference in another design."""

    @property
    def alike(self) -> bool:
        """Tell whether the two did not differ anywhere, so that nothing says how large noise is."""

    @property
    def repeats(self) -> Sequence[int]:
        """Return the numbers of repeats, ascending, that may go with more images."""

    def designs(self) -> Iterator[Design]:
        """Yield designs on the same images that may be repeated more often, with the least number of repeats."""


@dataclass(frozen=True)
class OverTestSets:
    """Hold what attempts showed over folds, or over splits that were drawn at random.

    Args:
        variance: of the difference on one test set, as ``noise_of_test_sets`` takes it.
        sets: the number of test sets.
        tested: images in a test set, the mean.
        ratio: images in a test set over those that the learner had.
        folds: of a repeat.
        most: the largest difference that there can be.
        alike: no test set told the two apart; ``variance`` is then what a single image would make.
        once: see ``statistics.of_mean``.
    """

    variance: float
    sets: int
    tested: float
    ratio: float
    folds: int
    most: float = 1.0
    alike: bool = False
    once: bool = False

    @property
    def design(self) -> Design:
        return Design(round(self.tested * self.folds), self.folds, max(1, round(self.sets / self.folds)))

    def found(self, alpha: float) -> float | None:
        noise = noise_over_sets(self.variance, self.sets, self.ratio, one_round=self.folds if self.once else 0)
        return found_difference([noise], NO_GROWTH, alpha, self.most)

    def power(self, design: Design, alpha: float) -> Power:
        # Of bottle's methods, the spread over folds is 1.2 times that of as many images drawn at random (the median of
        # 28 pairs): images are most of it, and the luck of training shrinks with more of them as well.
        variance = self.variance * self.tested * design.folds / design.images
        ratio, known = self.ratio * (self.folds - 1) / (design.folds - 1), self.sets - 1
        if design == self.design:  # as ``found`` has it
            return power_of(
                [noise_over_sets(self.variance, self.sets, self.ratio, one_round=self.folds if self.once else 0)],
                NO_GROWTH,
                alpha,
            )
        return power_of(
            [noise_over_sets(variance, design.runs, ratio, known, one_round=design.folds if self.once else 0)],
            NO_GROWTH,
            alpha,
        )

    @property
    def repeats(self) -> Sequence[int]:
        return sorted({self.design.repeats, max(self.design.repeats, REPEATS)})

    def designs(self) -> Iterator[Design]:
        seen = self.design
        yield seen
        yield from (Design(seen.images, folds) for folds in _folds(seen.images) if folds != seen.folds)


@dataclass(frozen=True)
class OnOneTestSet:
    """Hold what attempts showed on one test set.

    Args:
        images: their number.
        of_images: the noises of the images.
        of_seeds: those of the seeds; empty: the models that were trained are compared, and not the attempts.
        seeds: trainings of each attempt.
        difference: as it was seen.
        figures: the values of both.
        most: the largest difference that there can be.
        disagreement: where McNemar's test compares the two: the share of images that only one of them gets right.
        labelled: the images for training, validation and test, from which folds could be drawn; 0: none can.
        once: of these folds, see ``statistics.of_mean``.
    """

    images: int
    of_images: tuple[Noise, ...]
    of_seeds: tuple[Noise, ...]
    seeds: int
    difference: float
    figures: tuple[float, float]
    most: float = 1.0
    disagreement: float | None = None
    labelled: int = 0
    once: bool = False

    @property
    def design(self) -> Design:
        return Design(self.images, 1, self.seeds)

    def found(self, alpha: float) -> float | None:
        if self.disagreement is not None:
            return found_by_mcnemar(self.images, self.disagreement, self.difference, alpha)
        return found_difference([*self.of_images, *self.of_seeds], self.figures, alpha, self.most)

    def power(self, design: Design, alpha: float) -> Power:
        if design.folds > 1:
            return power_of([self._of_folds(design)], NO_GROWTH, alpha)
        if self.disagreement is not None:
            return power_of_mcnemar(design.images, self.disagreement, self.difference, alpha)
        if design == self.design:  # as ``found`` has it
            return power_of([*self.of_images, *self.of_seeds], self.figures, alpha)
        times = design.images / self.images
        noises = [_of_more_images(noise, times) for noise in self._of_images_alone(design.repeats)]
        noises += [_of_more_seeds(noise, times, self.seeds, design.repeats) for noise in self.of_seeds]
        return power_of(noises, self.figures, alpha)

    def _of_images_alone(self, repeats: int) -> list[Noise]:
        """Return the noises of the images in means over ``repeats`` seeds in place of ``seeds``.

        The chance of a model in a single image is in them as well, and shrinks with more seeds. Half of what the noises
        of images and of seeds may have in common is it, as ``with_seeds`` takes it.
        """
        whole = sum(noise.seen for noise in self.of_images)
        common = min(sum(noise.variance - noise.seen for noise in self.of_seeds), whole / 2)
        kept = 1 - common * (1 - self.seeds / repeats) / whole if whole else 1.0
        return [n._replace(variance=n.variance - (1 - kept) * n.seen, seen=kept * n.seen) for n in self.of_images]

    @property
    def alike(self) -> bool:
        return not any(noise.seen for noise in (*self.of_images, *self.of_seeds))

    @property
    def repeats(self) -> Sequence[int]:
        return sorted({max(self.seeds, REPEATS), max(self.seeds, MOST_REPEATS)}) if self.of_seeds else [self.seeds]

    def designs(self) -> Iterator[Design]:
        if self.of_seeds:
            yield self.design
        if self.labelled > self.images:
            yield from (Design(self.labelled, folds) for folds in _folds(self.labelled))

    def _of_folds(self, design: Design) -> Noise:
        """Return the noise of folds, whose models have as much luck as those of the seeds; none, where it is unknown.

        The images' share has more degrees of freedom than that of the seeds: the noise is taken to be as well known.
        """
        tested = design.images / design.folds
        variance = sum(noise.seen for noise in self.of_images) * self.images / tested
        variance += sum(noise.variance for noise in self.of_seeds) * self.seeds
        return noise_over_sets(
            variance, design.runs, 1 / (design.folds - 1), self.images - 1, one_round=design.folds if self.once else 0
        )


def ways(evidence: Evidence, difference: float, alpha: float) -> list[Design]:
    """Return designs that show a difference with a probability of POWER, with more images or more trainings.

    Args:
        evidence: of two attempts.
        difference: which is to be shown, above 0.
        alpha: the level of the test, corrected for the number of tests.

    Returns:
        The design that was seen alone where it is enough; empty where neither MOST_IMAGES nor MOST_REPEATS are. First
        those with more images, and as many or more repeats; last the one with the fewest trainings on the same images.
    """

    def shows(design: Design) -> bool:
        return evidence.power(design, alpha)(difference) >= POWER

    seen = evidence.design
    if shows(seen):
        return [seen]
    found = []
    for repeats in evidence.repeats:
        if shows(replace(seen, repeats=repeats)):  # without one more image: that is a matter of repeats alone
            break
        images = least(lambda n, r=repeats: shows(replace(seen, images=n, repeats=r)), seen.images + 1, MOST_IMAGES)  # type: ignore[misc]
        if images:
            found.append(replace(seen, images=images, repeats=repeats))
    repeated = []
    for start in evidence.designs():
        enough = least(lambda n, d=start: shows(replace(d, repeats=n)), start.repeats, MOST_REPEATS)  # type: ignore[misc]
        if enough:
            repeated.append(replace(start, repeats=enough))
    return found + sorted(repeated, key=lambda design: design.runs)[:1]


def rounded(number: int) -> int:
    """Return a number rounded up to two digits: a plan knows no more."""
    step = int(10 ** max(0, floor(log10(max(number, 1))) - 1))
    return ceil(number / step) * step


NO_GROWTH = (0.5, 0.5)  # figures between which no noise grows


def _folds(images: int) -> Sequence[int]:
    return [folds for folds in FOLDS if images >= LEAST_TESTED * folds]


def least(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the least number from ``low`` to ``high`` that is enough, if any; a larger number is enough as well."""
    if low > high or not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return high


def _of_more_images(noise: Noise, times: float) -> Noise:
    """Return the noise of images on ``times`` as many.

    What a careful test adds to the variance that was seen is that of a few further images: it shrinks by the square.
    """
    seen, freedom = noise.seen / times, times * (noise.freedom + 1) - 1
    variance = seen + (noise.variance - noise.seen) / times**2
    return noise._replace(variance=variance, seen=seen, freedom=freedom, known=noise.freedom)


def _of_more_seeds(noise: Noise, times: float, seeds: int, repeats: int) -> Noise:
    """Return the noise of ``repeats`` seeds in place of ``seeds``, on ``times`` as many images.

    What the seeds' variance may have in common with that of images shrinks as that does.
    """
    fewer, common = seeds / repeats, (noise.variance - noise.seen) / times
    return noise._replace(
        variance=(noise.seen + common) * fewer, seen=noise.seen * fewer, freedom=repeats - 1, known=noise.freedom
    )
