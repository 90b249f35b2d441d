"""Compare the attempts of some runs pair by pair, and draw a verdict.

Every pair is compared, or each attempt with the one that ``verdict.reference`` names, in the default metric of the
problem or in ``verdict.metric``. Attempts of several problems are compared where one metric judges them all. Holm's
correction is over pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from mvtec_lab.config import VerdictConfig
from mvtec_lab.evaluation import statistics
from mvtec_lab.evaluation.specs import METRICS, Metric, require_deciding
from mvtec_lab.reporting.attempts import Attempt
from mvtec_lab.reporting.headline import headline_of
from mvtec_lab.reporting.pairs import ALPHA, Comparison, Pair, pair_of
from mvtec_lab.reporting.runs import Settings, by_attempt, require_metrics, settings_of
from mvtec_lab.reporting.shots import curves_of
from mvtec_lab.reporting.spread import spreads
from mvtec_lab.reporting.verdict import sentences
from mvtec_lab.results import RunResult


def compare(runs: Sequence[RunResult], verdict: VerdictConfig | None = None) -> Comparison:
    """Compare the attempts of some runs pair by pair.

    Args:
        runs: completed, failed and running ones.
        verdict: metric and reference; where it names none, those that the runs' own config.yaml agree on.

    Raises:
        LabError: a predictions.csv or config.yaml is damaged, a completed run lacks a metric that it needs, or
            ``verdict.metric`` is no metric that decides.
    """
    for run in runs:  # load_runs looks as well, but a script may hand on runs that it made
        require_metrics(run)
    settings = {run.run_dir: settings_of(run) for run in runs}
    asked = verdict or VerdictConfig()
    key, metric_note = _agreed("verdict.metric", asked.metric, settings.values())
    reference, note = _agreed("verdict.reference", asked.reference, settings.values())
    if key is not None:
        require_deciding(key)
    groups = by_attempt(runs, settings)
    lacking = set() if key is None else _lacking(METRICS[key], groups.values())
    judged = {name: None if group[0].problem in lacking else key for name, group in groups.items()}
    result = Comparison([Attempt(name, group, settings, judged[name]) for name, group in groups.items()], settings)
    if key is not None and key not in result.metrics:
        titles = " and ".join(METRICS[other].title for other in result.metrics)
        metric_note = f"verdict.metric={key} is not what these attempts are judged by: {titles} instead."
    done = [attempt.name for attempt in result.done]
    if reference in done:
        result.reference = reference
    elif reference is not None and len(done) > 1:
        note = f"verdict.reference={reference} is none of the completed attempts in the table: all pairs are compared."
    result.pairs = _pairs(result.done, result.reference)
    running = [attempt for attempt in result.attempts if any(run.running for run in attempt.runs)]
    names = ", ".join(f"a run of {attempt.name}" if attempt.done else attempt.name for attempt in running)
    still = f"Still running, and not part of this: {names}." if running else None
    result.verdict = [*sentences(result), *filter(None, (still, metric_note, note))]
    result.verdict += [curve.sentence for curve in curves_of(result)]
    result.verdict += [spread.sentence for spread in spreads(result)]
    result.headline = headline_of(result).lines
    return result


def _lacking(metric: Metric, groups: Iterable[Sequence[RunResult]]) -> set[str]:
    """Return the problems of ``metric.partly`` that have an attempt, a group of runs, without the metric."""
    lacking = set()
    for group in groups:
        values = [metric.of(run.metrics.get("test", {})) for run in group if run.completed]
        if values and group[0].problem in metric.partly and not any(value is not None for value in values):
            lacking.add(group[0].problem)
    return lacking


def _pairs(attempts: Sequence[Attempt], reference: str | None) -> list[Pair]:
    """Return all pairs of attempts, or those with the reference, with Holm's correction for their number.

    Those that another metric judges than the reference are compared with each other.
    """
    metric = next((attempt.metric for attempt in attempts if attempt.name == reference), None)
    tested = [
        # The reference stands second: the question is how much better the others are.
        pair_of(*((second, first) if first.name == reference else (first, second)))
        for first, second in combinations(attempts, 2)
        if reference in (None, first.name, second.name) or metric not in (first.metric, second.metric)
    ]
    judged = [(pair, finds) for pair, finds in tested if pair.p is not None]
    adjusted = statistics.holm([pair.p for pair, _ in judged if pair.p is not None])
    for (pair, finds), p in zip(judged, adjusted, strict=True):
        pair.p_holm, pair.found = p, finds(ALPHA / len(judged)) if finds else None  # Holm's first and hardest step
    return [pair for pair, _ in tested]


def _agreed(key: str, asked: str | None, settings: Iterable[Settings]) -> tuple[str | None, str | None]:
    """Return the value that is asked for, or else the runs' own; and a remark where they do not agree."""
    if asked is not None:
        return asked, None
    named = list(dict.fromkeys(value for of_run in settings if (value := of_run.get(key, "null")) != "null"))
    if len(named) > 1:
        return None, f"The runs do not agree on {key} ({', '.join(named)}): task=compare with {key}=NAME decides."
    return (named[0] if named else None), None
