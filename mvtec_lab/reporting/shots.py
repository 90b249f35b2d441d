"""Show what labelled images bring: an attempt's figure over its training images a class (``data.per_class=2,5,10``)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from mvtec_lab.evaluation.learning_curve import LEAST_ERROR, Forecast, forecast
from mvtec_lab.evaluation.specs import METRICS, Metric
from mvtec_lab.reporting.attempts import Attempt, Estimate, mean
from mvtec_lab.reporting.pairs import Comparison

KEY = "data.per_class"
NORMAL = 1.96  # standard errors from a value to a bound of its 95% interval
TWICE = 2  # times the largest number of images, which is as far as the forecast goes


@dataclass
class Curve:
    """Hold the figure of one attempt over its training images a class.

    Args:
        name: the attempt.
        points: training images a class (the mean over classes and runs) and the metric, in ascending order.
    """

    name: str
    metric: Metric
    points: list[tuple[float, Estimate]]

    @property
    def sentence(self) -> str:
        """Say what the images brought, and what twice as many may bring."""
        (few, first), (many, last) = self.points[0], self.points[-1]
        text = f"{self.name}: {self.metric.title} {first.value:.3f} with {few:.3g} training images of each class"
        text += f", {last.value:.3f} with {many:.3g}"
        expected = self.forecast
        if expected is None:
            none = "; no trend is shown in these figures that would go on from there" if self.trendless else ""
            return f"{text}{none}."
        more = expected.images - many
        low, high = (self._value(bound) for bound in (expected.high, expected.low))
        value = self._value(expected.value)
        bounds = f"{min(low, high):.2f} to {max(low, high):.2f}"
        hope = f"{more:.3g} more of each may bring it to {value:.3f} ({bounds})"
        return f"{text}; {hope}, if errors go on falling as so far."

    @property
    def forecast(self) -> Forecast | None:
        """Return the error with twice the images; None where a power law is not known or promises no less than now."""
        fitted = self._fitted
        return fitted if fitted is not None and fitted.value < self._last else None

    @property
    def trendless(self) -> bool:
        """Tell whether errors that are left with the largest number of images are not seen to go on falling."""
        return self._fitted is not None and self.forecast is None and self._last > LEAST_ERROR

    @property
    def _last(self) -> float:
        return self._error(self.points[-1][1].value)

    @property
    def _fitted(self) -> Forecast | None:
        known = [(images, e) for images, e in self.points if e.low is not None and e.high is not None]
        if not self.metric.share and self.metric.sign > 0:
            return None  # it has no best value from which an error is counted
        errors = [self._error(e.value) for _, e in known]
        spreads = [(e.high - e.low) / (2 * NORMAL) for _, e in known if e.high is not None and e.low is not None]
        return forecast([images for images, _ in known], errors, spreads, TWICE * known[-1][0]) if known else None

    def _error(self, value: float) -> float:
        return 1 - value if self.metric.sign > 0 else value

    def _value(self, error: float) -> float:
        return max(0.0, 1 - error) if self.metric.sign > 0 else error


def curves_of(comparison: Comparison) -> list[Curve]:
    """Return a curve for each attempt that was trained on several numbers of images of each class."""
    varied = [attempt for attempt in comparison.done if KEY in attempt.thinned]
    curves = []
    for name, group in groupby(sorted(varied, key=_base), key=_base):
        for key in comparison.metrics:
            mine = [attempt for attempt in [*group] if attempt.metric.key == key]
            points = {images: e for attempt in mine if (images := _images(attempt)) and (e := attempt.estimate())}
            if len(points) > 1:
                curves.append(Curve(name, METRICS[key], sorted(points.items(), key=lambda point: point[0])))
    return curves


def _base(attempt: Attempt) -> str:
    """Return an attempt's name without its number of images."""
    return re.sub(rf" {re.escape(KEY)}=\S+", "", attempt.name)


def _images(attempt: Attempt) -> float | None:
    """Return the training images of a class, the mean over the classes and runs: some classes may have too few."""
    counts = [[*train.values()] for run in attempt.done if (train := run.counts.get("train"))]
    return mean(mean(of_run) for of_run in counts)
