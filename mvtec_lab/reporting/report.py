"""Write report.html: one self-contained page on the runs of a sweep, without scripts or addresses outside the page."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mvtec_lab.config import VerdictConfig
from mvtec_lab.evaluation.specs import METRICS, Metric
from mvtec_lab.locks import held
from mvtec_lab.reporting import figures, products_report, summary
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.curves import coverage, shots_figure, training_curves
from mvtec_lab.reporting.dataset import PAGE
from mvtec_lab.reporting.details import detail_of
from mvtec_lab.reporting.headline import headline_of, mistake_of, unsaid
from mvtec_lab.reporting.origin import common_folder, data_pages, differences, origin_of
from mvtec_lab.reporting.pages import write_page
from mvtec_lab.reporting.pairs import COMPARISON, Comparison
from mvtec_lab.reporting.products import ProductsComparison
from mvtec_lab.reporting.runs import failure, load_runs
from mvtec_lab.reporting.shots import curves_of
from mvtec_lab.reporting.spread import spreads
from mvtec_lab.reporting.tables import RUNS, write_runs
from mvtec_lab.reporting.verdict import FEW
from mvtec_lab.reporting.words import distinct
from mvtec_lab.results import remove_leftovers

REPORT = "report.html"


def sum_up(
    directory: Path,
    *sources: str | os.PathLike[str],
    verdict: VerdictConfig | None = None,
    show: Callable[[Sequence[summary.Row], Comparison], None] | None = None,
    notes: Sequence[str] = (),
) -> tuple[list[summary.Row], Comparison]:
    """Compare runs and write summary.csv, runs.csv, comparison.json and report.html into a directory.

    Args:
        directory: where the files go.
        sources: every run below them is compared; none: below the directory itself.
        verdict: metric and reference, which go before those of the runs.
        show: takes rows and comparison before anything is written, so that a full disk does not lose them.
        notes: sentences that follow the verdict.

    Raises:
        LabError: a source without a run, or none whose files are sound.
    """
    comparison = compare(load_runs(*(sources or [directory])), verdict)
    comparison.add(notes)
    rows = summary.summarise(comparison)
    if show is not None:
        show(rows, comparison)
    with held(directory, wait=True):
        remove_leftovers(directory, (summary.SUMMARY, RUNS, COMPARISON, REPORT))
        summary.write_summary(rows, directory)
        write_runs([run for attempt in comparison.attempts for run in attempt.runs], comparison.settings, directory)
        comparison.save(directory)
        if isinstance(comparison, ProductsComparison):
            pages = products_report.pages(comparison, REPORT)
            for product, page in pages.items():
                part = comparison.products[product]
                write_report(part, summary.summarise(part), directory, page)
            products_report.write_products_report(comparison, rows, directory / REPORT, pages)
        else:
            write_report(comparison, rows, directory)
    return rows, comparison


def show_results(rows: Sequence[summary.Row], comparison: Comparison) -> None:
    """Print headline, table and verdict, and that the report, which takes seconds, is next."""
    summary.print_table(rows, unsaid(comparison.verdict, comparison.headline), headline=comparison.headline)
    print(f"drawing {REPORT} ...", flush=True)


def write_report(comparison: Comparison, rows: Sequence[summary.Row], directory: Path, name: str = REPORT) -> Path:
    """Write report.html, or the page of one of several products, complete or not at all, and return its path.

    The page leaves out what a run has not (a history, predictions, a picture sheet), and says so.
    """
    runs = [run for attempt in comparison.attempts for run in attempt.runs]
    path, shots, headline = directory / name, curves_of(comparison), headline_of(comparison)
    write_page(
        path,
        "report.html.j2",
        **origin_of(comparison, runs),
        **training_curves(comparison.attempts),
        rows=rows,
        tables=[_table(part) for part in summary.parts(rows)],
        titles=distinct(row["data"] for row in rows),
        marks=sorted(summary.remarks(rows, "marks"), key=summary.neutral),
        neutral=summary.neutral,
        warnings=summary.remarks(rows, "warnings"),
        headline=headline,
        mistake_of=mistake_of,
        verdict=unsaid(comparison.verdict, headline.lines),
        shots=shots,
        shots_figure=figures.to_data_uri(shots_figure(shots)) if shots else None,
        spreads=[(spread, figures.to_data_uri(figures.spread_figure(spread))) for spread in spreads(comparison)],
        coverage=coverage(comparison.done),
        corrected=sum(pair.p is not None for pair in comparison.pairs),
        compared=[part for metric in comparison.metrics if (part := _compared(comparison, METRICS[metric]))],
        reported=[row for row in rows if row["reported_accuracy"] is not None],
        measured=summary.measured,
        reproduced=summary.reproduced,
        judged=summary.judged,
        cell=summary.cell,
        counted=summary.counted,
        attempts=[attempt.name for attempt in comparison.attempts],
        differences=differences(comparison),
        details=[detail_of(attempt) for attempt in comparison.done],
        failures=[(run, failure(run)) for run in runs if run.failed],
        data_page=PAGE,
        **data_pages(comparison, runs, directory),
        logdir=shlex.quote(common_folder(directory, runs)),
    )
    return path


def _table(rows: Sequence[summary.Row]) -> dict[str, Any]:
    """Return a table of results that one metric judges, the further tables of its aspects, and the metric's figure."""
    further = summary.shown(rows)
    aspects = dict.fromkeys(column.aspect for column in summary.columns() if column.aspect)
    tables = {aspect: summary.shown(rows, aspect=aspect) for aspect in aspects}
    judge: Metric = rows[0]["metric"]  # its column is none of ``further``
    about = dict.fromkeys(filter(None, [judge.words.about, *(column.about for column in further if not column.aspect)]))
    if judge.chance and any(column.key == "baseline" for column in further):
        about[f"Baseline: what {judge.chance[1]} gives in {judge.title}."] = None
    return {
        "rows": rows,
        "metric": judge.title,
        "shown": further,
        "about": " ".join(about),
        "aspects": {aspect: columns for aspect, columns in tables.items() if columns},
        "figure": figures.to_data_uri(figures.verdict_figure(rows)) if any(row["completed"] for row in rows) else None,
    }


def _compared(comparison: Comparison, metric: Metric) -> dict[str, Any] | None:
    """Return the table of the pairs that a metric judges; None without any.

    ``further`` are those to show on demand: with many attempts, all pairs without the best.
    """
    names = [attempt.name for attempt in comparison.done if attempt.metric == metric]
    pairs = [pair for pair in comparison.pairs if pair.first in names and pair.second in names]
    if not pairs:
        return None
    reference, best = comparison.reference if comparison.reference in names else None, comparison.best
    many = len(names) > FEW + 1 and reference is None and best is not None
    mine = [pair for pair in pairs if best in (pair.first, pair.second)] if many else pairs
    further = [pair for pair in pairs if pair not in mine]
    return {"metric": metric, "reference": reference, "all": pairs, "pairs": mine, "further": further}
