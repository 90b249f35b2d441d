"""Say where the spread of a run's figure comes from: the choice of test images, the split, or the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mvtec_lab.evaluation.components import Component, Components, components, of_images
from mvtec_lab.evaluation.specs import METRICS, Metric
from mvtec_lab.reporting.attempts import Attempt
from mvtec_lab.reporting.pairs import Comparison

NORMAL = 1.96  # standard errors from a value to a bound of its 95% interval
MOST = 0.5  # of the variance: the part that the sentence names as most of it
# What a part is called, and what makes it smaller.
PARTS = {
    "images": ("test images", "more seeds will not help, more test images will"),
    "split": ("split", "more folds or repeats (cv.repeats) average it out, and more training images make it smaller"),
    "seed": ("seed", "more seeds (seed=0,1,2,3,4) average it out"),
}
# Where no test set has several seeds, what a model does in a single image by chance is among the test images.
ONE_SEED = "more test images make it smaller; how much of it is the luck of a training, several seeds would show"
TRAINING = "split and training"  # what the split is called where each of its folds has a training of its own


@dataclass
class Spread:
    """Hold the parts of the spread of one run's metric, in the metric's unit."""

    metric: Metric
    parts: Components

    @property
    def named(self) -> dict[str, Component]:
        """Return the parts that are known by the words that name them."""
        known = {key: part for key, part in self.parts._asdict().items() if part is not None}
        return {self.name(key): part for key, part in known.items()}

    def name(self, key: str) -> str:
        """Return what a part is called."""
        return TRAINING if key == "split" and self.parts.seed is None else PARTS[key][0]

    @property
    def most(self) -> float:
        """Return the largest standard deviation that there can be: half of the range."""
        return self.metric.limit / 2

    @property
    def sentence(self) -> str:
        """Return the parts, and what makes the largest one smaller."""
        total, known = self.parts.variance, {k: p for k, p in self.parts._asdict().items() if p is not None}
        if total == 0:
            return ""
        listed = ", ".join(
            f"{self.metric.difference_of(part.variance**0.5)} by {'the ' * (key != 'images')}{self.name(key)}"
            for key, part in known.items()
        )
        text = f"A single run's {self.metric.title} scatters by {self.metric.difference_of(total**0.5)}: {listed}."
        largest = max(known, key=lambda key: known[key].variance)
        if known[largest].variance < MOST * total:
            return text
        what = "the choice of test images" if largest == "images" else f"the {self.name(largest)}"
        remedy = ONE_SEED if largest == "images" and self.parts.seed is None else PARTS[largest][1]
        return f"{text} Most of it is {what}: {remedy}."


def spreads(comparison: Comparison) -> list[Spread]:
    """Return the spread in each metric that attempts are judged by; none where no runs repeat each other."""
    found = [(METRICS[key], _spread(comparison.done, METRICS[key])) for key in comparison.metrics]
    return [Spread(metric, parts) for metric, parts in found if parts is not None and parts.variance > 0]


def _spread(attempts: Sequence[Attempt], metric: Metric) -> Components | None:
    mine = [attempt for attempt in attempts if attempt.metric == metric and attempt.tests]
    values = [[_values(attempt, images, metric) for images in attempt.tests] for attempt in mine]
    by_images = [variance for attempt in mine if (variance := _of_images(attempt, metric)) is not None]
    if not by_images or any(len(of_set) == 0 for attempt in values for of_set in attempt):
        return None
    tested = len({image for attempt in mine for test_set in attempt.tests for image in test_set})
    return components(values, by_images, tested)


def _values(attempt: Attempt, images: tuple[str, ...], metric: Metric) -> np.ndarray:
    values = [metric.of(tested.run.metrics.get("test", {})) for tested in attempt.tests[images]]
    return np.array([value for value in values if value is not None])


def _of_images(attempt: Attempt, metric: Metric) -> float | None:
    """Return the variance of a run's metric by the choice of its test images, the mean over the test sets.

    Of a metric that is a mean over images it is counted from these, of another one it follows from its interval.
    """
    variances = []
    for runs in attempt.tests.values():
        if metric.of_images:
            values = np.array([metric.of_images(tested.rows) for tested in runs])
            counted = ~np.isnan(values).any(axis=0)
            if counted.sum() > 1:
                strata = np.array([row.get("label", "") for row in runs[0].rows])
                variances.append(of_images(values[:, counted], strata[counted]))
            continue
        for tested in runs:
            bounds = metric.interval_of([tested.run.metrics["test"]], [tested])
            if bounds is not None:
                variances.append(((bounds[1] - bounds[0]) / (2 * NORMAL)) ** 2)
    return float(np.mean(variances)) if variances else None
