"""What tables, report, verdict and comparison need to know of a metric."""

from __future__ import annotations

import itertools
import statistics as st
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, TypeAlias

import numpy as np

from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import differences, statistics
from mvtec_lab.evaluation.differences import Difference
from mvtec_lab.evaluation.tested import Rows, Tested, means_of_images
from mvtec_lab.results import RunResult

Runs: TypeAlias = Sequence[Tested]
Bounds: TypeAlias = tuple[float, float]
Values: TypeAlias = Sequence[Mapping[str, Any]]  # the metrics of a split, one mapping per run


class NotComparableError(Exception):
    """Say why two attempts cannot be compared in a metric."""


@dataclass(frozen=True)
class Words:
    """Say how verdict and tables speak of a metric.

    Args:
        implied: sentences do not name it.
        aside: the verdict states it for every attempt, in these words.
        step: how sentences name one image, of which they say what it changes.
        made_up: what its value on validation is of, where that is not the validation images.
        by_type: its key in ``by_type`` of result.json.
        wide: the terminal shows its column only where it has room.
        bounded: its column shows the interval as well.
        aspect: the title of a further table of the report that it stands in.
        about: a sentence below the report's table.
        mistake: the kind of mistake that it counts, which stands in the verdict's first lines; where higher is better,
            the mistakes are what is left to 1.
        chance: what is said where no attempt is better than chance, and where none is shown to be.
    """

    implied: bool = False
    aside: str = ""
    step: str = ""
    made_up: str = ""
    by_type: str = ""
    wide: bool = False
    bounded: bool = False
    aspect: str = ""
    about: str = ""
    mistake: str = ""
    chance: tuple[str, str] = ("Nothing was learnt", "It is not shown that anything was learnt")


@dataclass(frozen=True)
class Inference:
    """Say how certain a metric is, and how two attempts are compared by it.

    Args:
        columns: of predictions.csv that it is computed from; label and prediction are names of classes.
        interval: the 95% interval over the images of one test set, from the runs' metrics and predictions.
        together: value and interval of all tested images together, from their confusions [N, C, C].
        paired: the difference of two attempts on the same images, and the name of the test.
        extra: of ``differences.careful_difference``, the test of ``of_images``; 0: a permutation test.
        pooled: ``paired`` may take the images of several test sets together.
        once: over folds further rounds do not make a mean more certain: see ``statistics.of_mean``.
        single: the remedy where no paired test on a single test set is sound.
        resolution: what one image changes, from the number of images and one run per test set.
        of_rows: the metric from the rows of predictions.csv of a split, where it is no mean over images.
        tolerance: how far the value in result.json may be from the one in predictions.csv.
    """

    columns: tuple[str, ...] = ()
    interval: Callable[[str, Values, Runs], Bounds | None] | None = None
    together: Callable[[np.ndarray], tuple[float, Bounds | None, str]] | None = None
    paired: Callable[[Runs, Runs], tuple[Difference, str]] | None = None
    extra: float = 0.0
    pooled: bool = True
    once: bool = False
    single: str = ""
    resolution: Callable[[float, Runs], float] | None = None
    of_rows: Callable[[Rows], float | None] | None = None
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Metric:
    """Say all that tables, verdict and report need to know of a metric.

    Args:
        key: in ``metrics`` of result.json; the column of summary.csv is ``test_<key>``.
        problem: the problem whose runs are judged by it.
        title: in sentences and in the report.
        heading: of its column in the terminal; empty: no column in the tables of results.
        better: which values are better.
        unit: of its values; None: a share of 1, whose differences are given in points.
        span: the least and the largest value of one that is no share.
        decides: attempts can be compared by it.
        chooses: its value on validation chooses the best attempt; the default is the first metric that decides.
        needed: every completed run has it.
        of_images: the values of the images, [N], from rows of predictions.csv, whose mean is the metric; NaN of an
            image that does not count, such as a good one where a defect's mask is judged.
        value: how it is found in the metrics of a split; None: by its key.
        chance: the value of a run that learnt nothing, and what reaches it; None: not known.
        inference: interval and test; the default takes ``of_images``.
        words: how it is spoken of.
        also: further problems whose runs are judged by it.
        partly: those of ``also`` whose methods have it in part: attempts are judged by it where all of a problem have
            it, so that one attempt that has it is not taken out of the comparison with the others.
    """

    key: str
    problem: str
    title: str
    heading: str = ""
    better: Literal["higher", "lower"] = "higher"
    unit: str | None = None
    span: Bounds = (-inf, inf)
    decides: bool = False
    chooses: bool = False
    needed: bool = False
    of_images: Callable[[Rows], np.ndarray] | None = None
    value: Callable[[Mapping[str, Any]], float | None] | None = None
    chance: tuple[Callable[[RunResult], float | None], str] | None = None
    inference: Inference = Inference()
    words: Words = Words()
    also: tuple[str, ...] = ()
    partly: tuple[str, ...] = ()
    order: int = field(default_factory=itertools.count().__next__, init=False, compare=False)

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise LabError(f"better of the metric {self.key!r} is {self.better!r}: give higher or lower")
        if self.decides and not (self.inference.paired or self.of_images):
            raise LabError(f"the metric {self.key!r} cannot decide without a paired test: give of_images or paired")

    def judges(self, problem: str) -> bool:
        """Tell whether runs of a problem are judged by it."""
        return problem == self.problem or problem in self.also

    @property
    def share(self) -> bool:
        """Return whether the metric lies in [0, 1]."""
        return self.unit is None

    @property
    def sign(self) -> int:
        """Return 1 where higher values are better, -1 where lower ones are."""
        return 1 if self.better == "higher" else -1

    @property
    def range(self) -> Bounds:
        """Return the least and the largest value that there can be."""
        return (0.0, 1.0) if self.share else self.span

    @property
    def limit(self) -> float:
        """Return the largest difference that there can be."""
        return self.range[1] - self.range[0]

    @property
    def stated(self) -> bool:
        """Tell whether it is given with an interval."""
        return self.decides or self.inference.interval is not None or self.of_images is not None

    @property
    def phrase(self) -> str:
        """Return " in <title>", to stand in a sentence."""
        return "" if self.words.implied else f" in {self.title}"

    def of(self, metrics: Mapping[str, Any]) -> float | None:
        """Return its value among the metrics of a split."""
        return self.value(metrics) if self.value else metrics.get(self.key)

    def mean_of(self, rows: Rows) -> float | None:
        """Return its value from rows of predictions.csv; None where no image counts, or without ``of_images``."""
        values = _counted(self.of_images(rows)) if self.of_images else np.zeros(0)
        return float(np.mean(values)) if len(values) else None

    def clip(self, low: float, high: float, change: bool = False) -> Bounds:
        """Return an interval within the range of the metric, or of a ``change`` of it."""
        least, most = (-self.limit, self.limit) if change else self.range
        return max(least, low), min(most, high)

    def step_of(self, difference: float, sign: bool = False) -> str:
        """Return a difference as text: ``12.5`` (points) of a share, else the value with the unit."""
        value = (
            f"{100 * difference:{'+' if sign else ''}.1f}" if self.share else f"{difference:{'+' if sign else ''}.3g}"
        )
        return value if self.share or not self.unit else f"{value} {self.unit}"

    def difference_of(self, difference: float, sign: bool = False) -> str:
        """Return a difference as text with its unit, ``12.5 points``."""
        return self.step_of(difference, sign) + (" points" if self.share else "")

    def interval_of(self, metrics: Values, runs: Runs) -> Bounds | None:
        """Return the 95% interval over the images of one test set, of the mean over the runs."""
        if self.inference.interval:
            return self.inference.interval(self.key, metrics, runs)
        if self.of_images is None or not runs:
            return None
        means = list(self._means(runs).values())
        return self.clip(*statistics.corrected_interval(means, 0.0)) if len(means) > 1 else None

    def resolution_of(self, images: float, runs: Runs) -> float:
        """Return what one image changes in the metric; ``runs``: one run per test set, of ``images`` on average."""
        if self.inference.resolution:
            return self.inference.resolution(images, runs)
        if self.of_images:
            values = [_counted(self.of_images(tested.rows)) for tested in runs]
            return float(np.mean([np.ptp(of_run) / len(of_run) for of_run in values if len(of_run)] or [1.0]))
        return 1 / images if self.share else 0.0

    def compare(self, first: Runs, second: Runs) -> tuple[Difference, str]:
        """Return the difference of two attempts on the same images, and the name of the test.

        Raises:
            NotComparableError: the images or the files of the runs do not allow it.
        """
        if self.inference.paired:
            return self.inference.paired(first, second)
        ours, theirs = self._means(first), self._means(second)
        pairs = np.array([(ours[image], theirs[image]) for image in ours if image in theirs])
        if len(pairs) < 2:
            raise NotComparableError(f"a test of {self.title} needs two images that both attempts have it for")
        if self.inference.extra:
            return differences.careful_difference(pairs[:, 0], pairs[:, 1], self.inference.extra, self.limit)
        return differences.mean_difference(pairs[:, 0], pairs[:, 1], self.limit)

    def _means(self, runs: Runs) -> dict[str, float]:
        assert self.of_images is not None
        return means_of_images(runs, [self.of_images(tested.rows) for tested in runs])


def _counted(values: np.ndarray) -> np.ndarray:
    """Return the values of those images that count."""
    return values[~np.isnan(values)]


def interval_of_runs(key: str, metrics: Values, runs: Runs) -> Bounds | None:
    """Return the mean of the intervals that the runs found themselves."""
    bounds = [interval for m in metrics if (interval := m.get("intervals", {}).get(key))]
    return (st.fmean(b[0] for b in bounds), st.fmean(b[1] for b in bounds)) if bounds else None


def rarest(images: float, runs: Runs, times: int = 1) -> float:
    """Return what one image of the rarest class changes, which changes most.

    In balanced accuracy an image counts the more the rarer its class is. Luck has most room in the rarest class, and
    smaller steps would make splits that agree by chance look more certain than they are. Macro F1 takes about such a
    step. In AUROC, which compares pairs, an image of the rarer kind is its share of that kind: ``times=2``.
    """
    return times * float(np.mean([statistics.image_weights(tested.labels).max() for tested in runs]))
