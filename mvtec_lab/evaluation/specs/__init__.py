"""One table of all metrics: every table, report, verdict and comparison reads it.

A problem of your own gives four things, and is compared, ranked and reported from its run directories alone:
1. ``register_metric(Metric(key, problem, title, ...))`` per metric; the first with ``decides=True`` is the default;
2. ``better="lower"`` for errors, ``unit`` for values that are no share of 1;
3. ``of_images``: the values per image, from rows of predictions.csv (columns split, path and your own, as text); their
   mean over the test images is the metric in result.json, and interval and paired test follow from them;
4. result.json with ``problem``, ``counts`` of train, val and test, and ``metrics.test`` and ``metrics.val`` with the
   keys and ``images``; validation chooses by the first metric that decides, or by the one with ``chooses=True``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mvtec_lab.errors import LabError, unknown
from mvtec_lab.evaluation.specs import anomaly, classification, detection, segmentation
from mvtec_lab.evaluation.specs.metric import Inference, Metric, NotComparableError, Words
from mvtec_lab.evaluation.tested import Tested
from mvtec_lab.registry import Registry
from mvtec_lab.results import RunResult

__all__ = ["METRICS", "Inference", "Metric", "NotComparableError", "Words"]

_BUILT_IN = (*classification.METRICS, *detection.METRICS, *segmentation.METRICS, *anomaly.METRICS)
METRICS: Registry[Metric] = Registry("metric", {m.key: m for m in _BUILT_IN}, ("key", "problem", "title"))


def register_metric(metric: Metric) -> Metric:
    """Add a metric to the table and return it; an installed package gives it as an entry point of mvtec_lab.metrics.

    Raises:
        LabError: the key is taken by another metric.
    """
    return METRICS.register(metric.key, metric)


def all_metrics() -> list[Metric]:
    """Return every metric: the lab's own as they stand above, then others in the order in which they were made."""
    others = {*METRICS.names()} - {metric.key for metric in _BUILT_IN}
    return [*_BUILT_IN, *sorted((METRICS[key] for key in others), key=lambda metric: metric.order)]


def metrics_of(problem: str) -> list[Metric]:
    """Return the metrics of a problem; the first one that decides is its default.

    Raises:
        LabError: there is none, or none of them decides.
    """
    metrics = [metric for metric in all_metrics() if metric.judges(problem)]
    metrics.sort(key=lambda metric: metric.problem != problem)  # its own first
    if not any(metric.decides for metric in metrics):
        known = {metric.problem for metric in all_metrics() if metric.decides}
        raise LabError(f"{unknown('problem', problem, known)}; a new one registers a metric that decides")
    return metrics


def add_means(problem: str, metrics: Mapping[str, dict[str, Any]], rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the metrics of a problem that are means over images, where the problem did not compute them itself.

    Args:
        metrics: of each split, which are added to.
        rows: of predictions.csv.
    """
    for metric in (m for m in all_metrics() if m.judges(problem) and m.of_images):
        for split, values in metrics.items():
            of_split = [{key: str(value) for key, value in row.items()} for row in rows if row["split"] == split]
            if metric.of(values) is None and of_split and (mean := metric.mean_of(of_split)) is not None:
                values[metric.key] = mean


def intervals(problem: str, metrics: Mapping[str, Any], predicted: Tested) -> dict[str, tuple[float, float]]:
    """Return the 95% intervals of the metrics of one run's test images, by key, as far as they have one.

    Args:
        metrics: of test.
        predicted: what was predicted of these images.
    """
    stated = [metric for metric in metrics_of(problem) if metric.stated and metric.of(metrics) is not None]
    bounds = {metric.key: metric.interval_of([metrics], [predicted]) for metric in stated}
    return {key: of_metric for key, of_metric in bounds.items() if of_metric}


def deciding(problem: str) -> list[Metric]:
    """Return the metrics that attempts of a problem can be compared by, the default first."""
    return [metric for metric in metrics_of(problem) if metric.decides]


def require_deciding(key: str) -> None:
    """Check a value of ``verdict.metric``.

    Raises:
        LabError: no metric of any problem that decides has this key.
    """
    known = [metric.key for metric in all_metrics() if metric.decides]
    if key not in known:
        raise unknown("verdict.metric", key, known)


def choosing(problem: str) -> Metric:
    """Return the metric whose value on validation chooses the best attempt."""
    return next((metric for metric in metrics_of(problem) if metric.chooses), deciding(problem)[0])


def choosers() -> list[Metric]:
    """Return the metrics that choose the best attempt of any problem, each once."""
    problems = dict.fromkeys(metric.problem for metric in all_metrics() if metric.decides)
    return list({(metric := choosing(problem)).key: metric for problem in problems}.values())


def columns_of(run: RunResult) -> list[str]:
    """Return the columns that predictions.csv of a run has: split, path, and those of its metrics.

    These are its problem's own metrics, and of the others those that it states: not every one-class method localises.
    """
    stated = [metrics for metrics in run.metrics.values() if metrics]
    metrics = [
        metric
        for metric in metrics_of(run.problem)
        if metric.problem == run.problem or any(metric.of(values) is not None for values in stated)
    ]
    columns = [column for metric in metrics for column in metric.inference.columns]
    return list(dict.fromkeys(["split", "path", *columns]))
