"""The runs of a sweep as one row per attempt: summary.csv and the table in the terminal."""

from __future__ import annotations

import os
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mvtec_lab.config import SAMPLE_WEIGHTS
from mvtec_lab.evaluation.specs import METRICS, Metric, all_metrics, choosers, choosing
from mvtec_lab.reporting import products_table
from mvtec_lab.reporting.attempts import Attempt, Estimate, mean
from mvtec_lab.reporting.pairs import Comparison
from mvtec_lab.reporting.products import ProductsComparison
from mvtec_lab.reporting.runs import failure
from mvtec_lab.reporting.terminal import LONGEST, print_columns, width_of
from mvtec_lab.reporting.words import distinct, interval, number, span
from mvtec_lab.results import RunResult, write_csv

Row = dict[str, Any]

SUMMARY = "summary.csv"
# Rules of a threshold that the reader should know of, and what is said.
RULES = {
    "best_f1": "threshold chosen on the test images, defects included",
    "synthetic": "threshold chosen with made-up defects",
}


@dataclass(frozen=True)
class Column:
    """Define a column of summary.csv, and of the tables of results where it has a heading.

    Args:
        key: in summary.csv.
        of: its value for an attempt.
        heading: in the terminal; empty: it is not shown there.
        title: in the report; empty: it is not shown there.
        digits: decimals.
        wide: the terminal shows it only where it has room; of several the first ones stay longest.
        bounded: its cell shows the interval, whose bounds are ``<key>_low`` and ``<key>_high``.
        cost: it is of time or memory: where the terminal has no room for all columns, these make a table of their own.
        metric: the metric whose problem it is for; None: any problem.
        unless: the column that takes its place where that one has values.
        aspect: the title of a further table of the report that it stands in.
        about: a sentence below the report's table.
    """

    key: str
    of: Callable[[Attempt], Any]
    heading: str = ""
    title: str = ""
    digits: int = 3
    wide: bool = False
    bounded: bool = False
    cost: bool = False
    metric: Metric | None = None
    unless: str = ""
    aspect: str = ""
    about: str = ""


def columns() -> list[Column]:
    """Return the columns of summary.csv, in its order."""
    of_metrics = [column for metric in all_metrics() for column in _columns_of(metric)]
    return [*_FIRST, *of_metrics, *map(_validated, choosers()), *_LAST]


def _validated(metric: Metric) -> Column:
    """Return the column of the validation metric that chooses the best attempt."""
    return Column(
        f"val_{metric.key}",
        lambda a: a.mean(metric, "val") if choosing(a.problem) == metric else None,
        f"val\n{metric.heading}",
        " of ".join(filter(None, (f"validation {metric.title}", metric.words.made_up))),
        metric=metric,
    )


def _columns_of(metric: Metric) -> list[Column]:
    def bound(part: str) -> Callable[[Attempt], float | None]:
        return lambda attempt: getattr(attempt.estimate(metric.key), part, None)

    key, words = f"test_{metric.key}", metric.words
    title = metric.title if metric.heading or words.aspect else ""
    value = bound("value") if metric.stated else lambda attempt: attempt.mean(metric)
    column = Column(
        key,
        value,
        metric.heading,
        title,
        wide=words.wide,
        bounded=words.bounded,
        metric=metric,
        aspect=words.aspect,
        about=words.about,
    )
    bounds = [Column(f"{key}_{part}", bound(part)) for part in ("low", "high")]
    return [column, *bounds] if metric.stated else [column]


def _count(part: Callable[[RunResult], bool]) -> Callable[[Attempt], int]:
    return lambda attempt: sum(map(part, attempt.runs))


def _mean(field: str) -> Callable[[Attempt], float | None]:
    return lambda attempt: mean(getattr(run, field) for run in attempt.done)


def _measured(part: str) -> Callable[[Attempt], float | None]:
    """Return what was measured here on the split that a published report names."""
    return lambda a: getattr(a.estimate(_ACCURACY.key, a.reported[1]) if a.reported else None, part, None)


def _deviation(attempt: Attempt) -> float | None:
    values = [value for run in attempt.done if (value := _ACCURACY.of(run.metrics.get("test", {}))) is not None]
    return statistics.stdev(values) if len(values) > 1 else None


_ACCURACY = METRICS["accuracy"]
_FIRST = (
    Column("attempt", lambda attempt: attempt.name),
    Column("category", lambda attempt: attempt.category),
    Column("runs", lambda attempt: len(attempt.runs)),
    Column("completed", lambda attempt: len(attempt.done)),
    Column("failed", _count(lambda run: run.failed)),
    Column("running", _count(lambda run: run.running)),
    Column("dropped", _count(lambda run: run.left_out)),  # by a race
)
_FIT = (
    "Times: the seconds of the fit, or of a network's training, leave out the decoding of images, and features that "
    "the cache keeps."
)
_JUDGED = "Seconds per image leave out decoding."
_PEAK = "Peak: the memory of the whole process."
_LAST = (
    Column("test_accuracy_sd", _deviation),  # over several runs
    Column("val_accuracy", lambda attempt: attempt.mean(_ACCURACY, "val"), metric=_ACCURACY),
    Column("majority_baseline", _mean("majority_baseline")),  # in accuracy
    Column("baseline", lambda a: a.baseline, "base-\nline", "baseline", metric=_ACCURACY),
    Column("method", lambda attempt: attempt.runs[0].method),
    Column("threshold_rule", lambda attempt: ", ".join(_rules(attempt)) or None),
    Column("fit_seconds", _mean("fit_seconds"), "fit,\ns", "fit, seconds", 1, cost=True, about=_FIT),
    Column(
        "seconds_per_image", _mean("seconds_per_image"), "s per\nimage", "seconds per image", cost=True, about=_JUDGED
    ),
    Column("peak_mib", _mean("peak_mib"), "peak\nMiB", "peak MiB", 0, cost=True, about=_PEAK),
    Column("reported_accuracy", lambda attempt: attempt.reported and attempt.reported[0]),
    Column("reported_split", lambda attempt: attempt.reported and attempt.reported[1]),
    Column("reported_measured", _measured("value")),
    Column("reported_measured_low", _measured("low")),
    Column("reported_measured_high", _measured("high")),
    Column("test_images", lambda attempt: mean(run.metrics.get("test", {}).get("images") for run in attempt.done)),
    Column("epochs", _mean("epochs"), "epochs", "epochs", 0, cost=True, unless="fit_seconds"),
    # The seconds of failed runs count as well.
    Column(
        "seconds",
        lambda attempt: sum(run.seconds for run in attempt.runs),
        "sec-\nonds",
        "seconds",
        0,
        cost=True,
        unless="fit_seconds",
    ),
    Column("weights", lambda attempt: ", ".join(distinct(run.weights for run in attempt.runs if run.weights))),
    Column("data", lambda attempt: ", ".join(distinct(f"{run.data}/{run.category}" for run in attempt.runs))),
    Column("marks", lambda attempt: _marks(attempt)),
    Column("warnings", lambda a: distinct(" ".join(text.split()) for run in a.runs for text in run.warnings)),
    Column("error", lambda attempt: "; ".join(distinct(failure(r) for r in attempt.runs if r.failed)) or None),
)


def summarise(comparison: Comparison) -> list[Row]:
    """Return one row per attempt, in first-seen order.

    A row has the keys of ``columns`` (means over the completed runs, None where there are none; _low and _high are 95%
    intervals; marks and warnings are lists), and ``problem``, ``metric`` (which the attempt is judged by),
    ``estimate`` (of that metric), ``test_values`` (one per test set) and ``product`` (where there are several).
    """
    if isinstance(comparison, ProductsComparison):
        return [row | {"product": name} for name, part in comparison.products.items() for row in summarise(part)]
    known = columns()
    rows: list[Row] = [
        {
            **{column.key: column.of(attempt) for column in known},
            "problem": attempt.problem,
            "metric": attempt.metric,
            "estimate": attempt.estimate(),
            "test_values": attempt.values(list(attempt.tests), attempt.metric).tolist(),
            "product": "",
        }
        for attempt in comparison.attempts
    ]
    if any(row["fit_seconds"] is not None for row in rows):  # a network beside methods that are fitted: its training
        for row, attempt in zip(rows, comparison.attempts, strict=True):
            row["fit_seconds"] = mean(r.seconds if r.fit_seconds is None else r.fit_seconds for r in attempt.done)
    return rows


def parts(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows that one metric judges, a table for each."""
    metrics = dict.fromkeys(row["metric"].key for row in rows)
    return [[row for row in rows if row["metric"].key == key] for key in metrics]


def _rules(attempt: Attempt) -> list[str]:
    return distinct(run.threshold["rule"] for run in attempt.done if run.threshold)


def _marks(attempt: Attempt) -> list[str]:
    runs = attempt.runs
    marks = {
        "sample data: procedural, not MVTec": any(run.data == "sample" for run in runs),
        "random weights": any(run.weights == "random" and run.backbone != "none" for run in runs),
        "pretrained on drawn images": any(run.weights == SAMPLE_WEIGHTS for run in runs),
        "validation = test": any(run.val_is_test for run in runs),
        **dict.fromkeys(_by_folds(attempt.done), True),
        **{text: rule in _rules(attempt) for rule, text in RULES.items()},
        # A fallback in some of them: everything else that differs makes a row of its own.
        "runs of one attempt differ in their weights": len({run.weights for run in runs if run.weights}) > 1,
    }
    return [text for text, applies in marks.items() if applies]


def neutral(mark: str) -> bool:
    """Tell whether a mark says how something was done, and takes nothing from the worth of the figures."""
    return mark.startswith("validation by ")


def _by_folds(runs: Sequence[RunResult]) -> list[str]:
    """Return ``validation by inner folds, 65–66 images``, if so, for each way in which learnt images were judged."""
    sizes: dict[str, set[int]] = {}
    for run in runs:
        if run.validates_by and (images := run.metrics.get("val", {}).get("images")):
            sizes.setdefault(run.validates_by, set()).add(images)
    return [f"validation by {how}, {span(counts)} images" for how, counts in sizes.items()]


def write_summary(rows: Sequence[Row], directory: Path) -> None:
    """Write the rows of ``summarise`` into summary.csv, without columns in which no attempt has a value.

    Those that say how the runs went, and those of the metrics that the attempts are judged by, always stand there.
    """
    judged = {f"test_{row['metric'].key}{part}" for row in rows for part in ("", "_low", "_high")}
    always = {"marks", "warnings", "error", *judged, *(column.key for column in _FIRST)}
    keys = [key for key in (c.key for c in columns()) if key in always or any(_said(row[key]) for row in rows)]
    cells = ({key: "; ".join(c) if isinstance(c := row[key], list) else c for key in keys} for row in rows)
    write_csv(directory / SUMMARY, cells, keys)


def _said(value: Any) -> bool:
    """Tell whether a cell of summary.csv is not empty."""
    return value is not None and value not in ("", [])


def remarks(rows: Sequence[Row], key: str) -> list[str]:
    """Return the distinct texts of ``marks`` or ``warnings``, each with the attempts that it applies to.

    Of several products the product is named, and not the attempt.
    """
    names_of: dict[str, list[str]] = {}
    what = "product" if any(row["product"] for row in rows) else "attempt"
    for row in rows:
        for text in row[key]:
            names_of.setdefault(text, []).append(row[what])
    if len(rows) == 1:
        return list(names_of)
    done, known = (distinct(row[what] for row in rows if row["completed"] or every) for every in (False, True))
    every = {tuple(done): f"every completed {what}", tuple(known): f"every {what}"}
    named = {text: distinct(names) for text, names in names_of.items()}
    return [f"{text} ({every.get(tuple(names)) or ', '.join(names)})" for text, names in named.items()]


def cell(row: Row, column: Column) -> str:
    """Return a cell of a table of results, ``0.050 [0.01, 0.24]`` where its column is bounded."""
    value = row[column.key]
    if not column.bounded or value is None:
        return number(value, column.digits)
    return str(Estimate(value, row[f"{column.key}_low"], row[f"{column.key}_high"]))


def judged(row: Row) -> str:
    """Return the cell of the metric that an attempt is judged by."""
    return "still running" if row["running"] and not row["completed"] else interval(row["estimate"])


def shown(rows: Sequence[Row], aspect: str = "") -> list[Column]:
    """Return the columns beside the verdict's metric that have values in rows which one metric judges.

    Args:
        rows: one of ``parts``.
        aspect: the report's further table that is asked for; empty: the table of results.
    """
    judge, problems = rows[0]["metric"], {row["problem"] for row in rows}

    def known(key: str) -> bool:
        return any(row[key] is not None for row in rows)

    return [
        column
        for column in columns()
        if (column.aspect == aspect if aspect else column.heading or (column.title and not column.aspect))
        and (column.metric is None or any(map(column.metric.judges, problems)))
        and not (column.metric == judge and column.key == f"test_{judge.key}" and not aspect)
        and not (column.unless and known(column.unless))
        and known(column.key)
    ]


def measured(row: Row) -> str:
    """Return what was measured where a report states an accuracy."""
    value, low, high = (row[f"reported_measured{bound}"] for bound in ("", "_low", "_high"))
    return interval(None if value is None else Estimate(value, low, high))


def reproduced(row: Row) -> str:
    """Tell whether a reported accuracy lies within the interval of the one measured here, above or below."""
    low, high = row["reported_measured_low"], row["reported_measured_high"]
    if low is None or high is None:
        return "–"
    value = row["reported_accuracy"]
    return "within" if low <= value <= high else "above" if value > high else "below"


def counted(row: Row) -> str:
    """Return the number of runs, and of the completed ones where not all were completed."""
    return str(row["runs"]) if row["completed"] == row["runs"] else f"{row['completed']}/{row['runs']}"


def print_table(
    rows: Sequence[Row],
    verdict: Sequence[str],
    console: Console | None = None,
    said: Collection[str] = (),
    headline: Sequence[str] = (),
) -> None:
    """Print the rows of ``summarise`` as a table, and below it the verdict, marks, warnings and failures.

    Args:
        rows: of all attempts.
        verdict: its sentences.
        console: where to print; None: the terminal.
        said: warnings that were printed before and are left out.
        headline: its lines, which stand above the table.
    """
    console = console or Console()
    for place, line in enumerate(headline):
        console.print(Text(line, style="" if place else "bold"))
    if headline:
        console.print()
    by_product = products_table.by_product(rows)
    for product, of_product in by_product.items():
        if products_table.failed(of_product):
            console.print(Text(f"{product}: no result\n", style="red"))
            continue
        if product:
            console.print(Text(product, style="bold"))
        for part in parts(of_product):
            _print_results(console, part)
    if len(by_product) > 1:
        console.print(Text("all products", style="bold"))
        print_columns(console, *products_table.table(rows))
    if stated := [row for row in rows if row["reported_accuracy"] is not None]:
        _print_reported(console, stated)
    for line in verdict:
        console.print(Text(line))
    before = {" ".join(text.split()) for text in said}
    warned = [line for line in remarks(rows, "warnings") if line not in before]
    for line in remarks(rows, "marks"):
        if not any(warning.startswith(line.split(":")[0].split(" (")[0]) for warning in warned):  # it says more
            console.print(Text(line, style="" if neutral(line) else "yellow"))
    for line in warned:
        console.print(Text(f"warning: {line}", style="yellow"))
    for row in rows:
        if row["failed"] and not products_table.failed(by_product[row["product"]]):
            where = f" on {row['product']}" if row["product"] else ""
            console.print(Text(f"failed: {row['attempt']}{where}: {row['error']}", style="red"))


def _print_results(console: Console, rows: Sequence[Row]) -> None:
    """Print the rows that one metric judges, and what there was no room for."""
    folder, metric = _folder([row["attempt"] for row in rows]), rows[0]["metric"].title.replace(" ", "\n")
    begin = [[row["attempt"].removeprefix(folder), counted(row), judged(row)] for row in rows]
    headers = ["attempt" + (f"\n{folder}..." if folder else ""), "runs", f"test {metric}"]
    room = console.width - min(width_of([headers[0], *(cells[0] for cells in begin)]), LONGEST)
    beside_runs = room - sum(width_of([headers[i], *(cells[i] for cells in begin)]) for i in (1, 2))
    further = [column for column in shown(rows) if column.heading]
    apart = [] if _needed(further, rows) <= beside_runs else [column for column in further if column.cost]
    beside = _fitting([column for column in further if column not in apart], rows, beside_runs)
    if apart:  # which may have room for what has none beside the metric
        apart = _fitting([column for column in further if column not in beside], rows, room)
    bad = [bool(row["failed"]) and not row["completed"] for row in rows]
    for first, columns in ((3, beside), (1, apart)):
        cells = [
            [*texts[:first], *(cell(row, column) for column in columns)] for texts, row in zip(begin, rows, strict=True)
        ]
        if columns or first == 3:
            print_columns(console, [*headers[:first], *(column.heading for column in columns)], cells, bad)
    if left_out := [column.title for column in further if column not in (*beside, *apart)]:
        console.print(Text(f"Left out for lack of room: {', '.join(left_out)}. {SUMMARY} has every column."))
        console.print()


def _needed(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    """Return the letters that columns take."""
    return sum(width_of([c.heading, *(cell(row, c) for row in rows)]) for c in columns)


def _fitting(columns: Sequence[Column], rows: Sequence[Row], room: int) -> list[Column]:
    """Return the columns that fit into ``room`` letters; of those that are wide the last one is left out first."""
    left = list(columns)
    while _needed(left, rows) > room and (wide := [column for column in left if column.wide]):
        left.remove(wide[-1])
    return left


def _print_reported(console: Console, rows: Sequence[Row]) -> None:
    """Print published figures beside what was measured here."""
    cells = [
        [row["attempt"], number(row["reported_accuracy"]), row["reported_split"], measured(row), reproduced(row)]
        for row in rows
    ]
    print_columns(console, ["attempt", "reported", "on", "measured there", "the report's\nvalue lies"], cells)


def _folder(attempts: Sequence[str]) -> str:
    """Return the beginning of all names, up to a slash, where there are several: the heading says it once."""
    folders = {name.rpartition("/")[0] for name in attempts}
    return f"{folders.pop()}/" if len(attempts) > 1 and len(folders) == 1 and "" not in folders else ""


def curves(logdir: str | os.PathLike[str]) -> str:
    """Return the command that shows TensorBoard's curves of a directory, as it works in the shell of this command."""
    return f"{program('tensorboard')} --logdir {shlex.quote(os.fspath(logdir))}"


def program(name: str) -> str:
    """Return how the shell of this command calls a program that lies beside its Python, quoted.

    Beside a Python that was called by its path, ``.venv/bin/python``, lies a tensorboard that the shell does not know.
    """
    path, found = Path(sys.executable).with_name(name), shutil.which(name)
    if shutil.which(path) is None or (found is not None and Path(found).parent == path.parent):
        return name
    return shlex.quote(os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path))
