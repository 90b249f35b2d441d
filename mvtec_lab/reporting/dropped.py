"""Say in the verdict what a race left out, and how much time that saved."""

from __future__ import annotations

from mvtec_lab.evaluation import racing
from mvtec_lab.evaluation.specs import all_metrics
from mvtec_lab.reporting.attempts import Attempt
from mvtec_lab.reporting.pairs import Comparison
from mvtec_lab.results import RunResult

# Why a race may drop what the verdict would not call worse: said once, as it holds for all that were dropped.
_TEST = (
    "The race's test takes the spread over folds from all attempts together, the verdict's from one pair alone: on so "
    "few folds the verdict's would show less, and over all folds it might not have shown every drop."
)


def sentences(comparison: Comparison) -> list[str]:
    """Return which attempts a race dropped and why, and the runs and time that it left out; nothing without a race."""
    dropped = [attempt for attempt in comparison.attempts if attempt.dropped]
    if not dropped:
        return ["The race left out no run."] if _raced(comparison) else []
    lines = [_of_attempt(attempt) for attempt in dropped]
    runs = [run for attempt in comparison.attempts for run in attempt.runs]
    taken = sum(map(seconds_of, runs))
    spared = sum(
        racing.spared([seconds_of(run) for run in attempt.runs if run.completed], _left_out(attempt))
        for attempt in dropped
    )
    left_out = sum(map(_left_out, dropped))
    unit, length = ("minutes", 60) if taken + spared >= 120 else ("seconds", 1)
    time = f", about {spared / length:.0f} of {(taken + spared) / length:.0f} {unit}" if spared else ""
    return [*lines, _TEST, f"The race left out {left_out} of {len(runs)} runs{time}."]


def _of_attempt(attempt: Attempt) -> str:
    d = attempt.dropped
    assert d is not None
    metric = next((metric for metric in all_metrics() if metric.key == d["metric"]), None)
    lead = f"{metric.difference_of(d['lead'])}{metric.phrase}" if metric else f"{d['lead']:.3g} in {d['metric']}"
    p = "< 0.001" if d["p"] < 0.001 else f"= {d['p']:.3f}"
    return (
        f"The race dropped {attempt.name} after {d['after']} of {d['folds']} folds: shown to be worse than {d['than']} "
        f"by the race's own test ({lead} there, p {p} for all looks and pairs). Its figures are of these folds."
    )


def _raced(comparison: Comparison) -> bool:
    """Tell whether all runs are those of races that have ended: a sweep may be resumed without its race."""
    runs = [run for attempt in comparison.attempts for run in attempt.runs]
    return all(comparison.settings.get(run.run_dir, {}).get("race") == "true" and not run.running for run in runs)


def _left_out(attempt: Attempt) -> int:
    return sum(run.left_out for run in attempt.runs)


def seconds_of(run: RunResult) -> float:
    """Return the seconds that a run took; without what came after its training where it was resumed, or is older."""
    return max(run.total_seconds or 0.0, run.startup_seconds + max(run.seconds, run.fit_seconds or 0.0))
