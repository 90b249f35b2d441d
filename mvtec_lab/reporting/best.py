"""Choose the best run of a sweep by its validation images, as the sweep's verdict chooses its best attempt."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.specs import choosing
from mvtec_lab.reporting.attempts import Attempt
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.products import ProductsComparison
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import BEST, RunResult

log = logging.getLogger(__name__)


def best_run(directory: str | os.PathLike[str]) -> tuple[RunResult, str]:
    """Return the best run below a directory, and what chose it, in words.

    The best attempt is the verdict's; of its seeds and folds the run with the best validation metric is taken, then the
    lower validation loss, then the earlier one. Runs of which a file is damaged are left out, with a warning each.

    Raises:
        LabError: no run below the directory was completed and has its best.ckpt, or its attempts do not compare; all
            runs are damaged.
    """
    found = load_runs(directory)
    runs = [run for run in found if run.completed and Path(run.run_dir, BEST).is_file()]
    damaged = [str(run.error) for run in found if run.damaged]
    _warn(damaged)
    if not runs:
        raise LabError(f"{directory} holds no completed run with a {BEST}: give the directory of one that has it")
    if len(runs) == 1:
        return runs[0], "its only sound run" if damaged else "its only run"
    comparison = compare(runs)
    _warn(comparison.damaged)  # their predictions, which a comparison reads
    if isinstance(comparison, ProductsComparison):
        names = ", ".join(comparison.products)
        raise LabError(f"{directory} holds runs of several products ({names}): give the directory of one run")
    attempt = next((attempt for attempt in comparison.attempts if attempt.name == comparison.best), None)
    if attempt is None:
        raise LabError(f"validation cannot choose among the runs of {directory}: {_remedy(comparison.done)}")
    metric = choosing(attempt.problem)

    def score(run: RunResult) -> tuple[float, float]:
        values = run.metrics.get("val", {})
        value = metric.of(values)
        return float("-inf") if value is None else metric.sign * value, -(values.get("loss") or 0.0)

    best = max(attempt.done, key=score)
    value = metric.of(best.metrics.get("val", {}))
    said = "" if value is None else f" ({metric.title} {value:.3f})"
    how = next((ranking for ranking in comparison.rankings if ranking.best == attempt.name), None)
    said += f". {how.sentence.removesuffix('.')}" if how and how.sentence else ""
    fold = "" if best.fold is None else "; it is the model of one fold: split.test=0 trains one with all images"
    number = len(runs) - len(comparison.damaged)
    of = f"the best of {number} {'sound ' if damaged or comparison.damaged else ''}runs on validation"
    return best, f"{of if number > 1 else 'its only sound run'}{said}{fold}"


def _warn(damaged: Sequence[str]) -> None:
    for reason in damaged:
        log.warning("%s; the best run is chosen without it", reason)


def _remedy(attempts: Sequence[Attempt]) -> str:
    """Return which runs to give: the best on the test images first, where one metric judges them all."""
    known = {attempt.name: estimate for attempt in attempts if (estimate := attempt.estimate()) is not None}
    first = {attempt.name: attempt.done[0].run_dir for attempt in attempts}
    if not known or len({attempt.metric.key for attempt in attempts}) > 1:
        return f"give one of them, {', '.join(list(first.values())[:5])} ..."
    metric = attempts[0].metric
    best = max(known, key=lambda name: metric.sign * known[name].value)
    others = [place for name, place in first.items() if name != best][:4]
    return (
        f"give ckpt={first[best]}, the best on test ({metric.title} {known[best]}), whose figure is "
        f"flattered by that choice; or another one, {', '.join(others)} ..."
    )
