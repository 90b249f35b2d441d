"""Run task=compare: runs of several sweeps, days or machines in one table, verdict and report."""

from __future__ import annotations

from pathlib import Path

from mvtec_lab.config import Config
from mvtec_lab.errors import IncompleteError, LabError, disk_full
from mvtec_lab.reporting.origin import common_folder
from mvtec_lab.reporting.pairs import Comparison
from mvtec_lab.reporting.report import REPORT, show_results, sum_up
from mvtec_lab.reporting.summary import SUMMARY, curves
from mvtec_lab.reporting.tables import RUNS


def compare_runs(config: Config, run_dir: str | Path) -> Comparison:
    """Compare every run below ``config.dirs``; summary.csv, comparison.json and report.html go into ``run_dir``.

    Raises:
        LabError: no directories, one without a run, or none whose files are sound.
        IncompleteError: a file of a run is damaged; the others are compared.
    """
    if not config.dirs:
        raise LabError("task=compare needs dirs=[SWEEP,SWEEP,...]: directories of sweeps or runs")
    run_dir = Path(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        _, comparison = sum_up(run_dir, *config.dirs, verdict=config.verdict, show=show_results)
    except OSError as error:
        reason = f"{run_dir} cannot be written ({error.strerror}): give hydra.run.dir=FOLDER"
        raise disk_full(error, run_dir) or LabError(reason) from error
    logdir = common_folder(run_dir, [run for attempt in comparison.attempts for run in attempt.runs])
    print(f"report: {run_dir / REPORT}   tables: {run_dir / SUMMARY}, {RUNS}   TensorBoard: {curves(logdir)}")
    if comparison.damaged:
        raise IncompleteError("; ".join(comparison.damaged))
    return comparison
