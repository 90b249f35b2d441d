"""The runs of a sweep as one row an attempt: summary.csv and the table in the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvtec_lab.config import METRICS
from mvtec_lab.evaluation.metrics import GROUPS
from mvtec_lab.reporting.attempts import STATED, Attempt
from mvtec_lab.reporting.comparison import Comparison
from mvtec_lab.reporting.runs import failure
from mvtec_lab.reporting.verdict import NAMES
from mvtec_lab.results import write_csv

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]

SUMMARY = "summary.csv"
DECIDED = ("recall_of_defects", "false_alarm_rate")  # at a one-class method's threshold
COSTS = ("fit_seconds", "seconds_per_image", "peak_mib")
# The columns of every table after the verdict's metric, in this order, without that metric, and their headings.
FIGURES = {
    "test_accuracy": "acc.",
    "test_balanced_accuracy": "bal.\nacc.",
    "test_macro_f1": "macro\nF1",
    "test_defect_accuracy": "defect\nonly",
    "test_tail_recall": "tail",
    "val_accuracy": "val\nacc.",
    "majority_baseline": "major-\nity",
}
SCORES = {  # the same of one-class methods
    "test_image_auroc": "image\nAUROC",
    "test_pixel_auroc": "pixel\nAUROC",
    "test_pixel_aupro": "AUPRO",
    "test_f1": "F1",
    "test_recall_of_defects": "defects\nfound",
    "test_false_alarm_rate": "false\nalarms",
    "fit_seconds": "fit,\ns",
    "seconds_per_image": "s an\nimage",
}
ROOM = 90  # columns of a terminal in which all figures fit beside a name of twelve letters and 10,000 seconds
COLUMNS = (
    "attempt",
    "runs",
    "completed",
    "failed",
    "running",
    "test_accuracy",
    "test_accuracy_low",
    "test_accuracy_high",
    "test_accuracy_sd",
    "test_balanced_accuracy",
    "test_balanced_accuracy_low",
    "test_balanced_accuracy_high",
    "test_macro_f1",
    "test_macro_f1_low",
    "test_macro_f1_high",
    "test_defect_accuracy",
    "test_head_recall",
    "test_middle_recall",
    "test_tail_recall",
    "test_calibration_error",
    "val_accuracy",
    "majority_baseline",
    "method",
    *(f"test_{metric}{bound}" for metric in STATED for bound in ("", "_low", "_high")),
    "test_f1",
    "test_precision",
    "test_recall_of_defects",
    "test_false_alarm_rate",
    "threshold_rule",
    "fit_seconds",
    "seconds_per_image",
    "peak_mib",
    "reported_accuracy",
    "reported_split",
    "reported_measured",
    "reported_measured_low",
    "reported_measured_high",
    "test_images",
    "epochs",
    "seconds",
    "weights",
    "data",
    "marks",
    "warnings",
    "error",
)


def summarise(comparison: Comparison) -> list[Row]:
    """One row an attempt, in first-seen order, with the keys ``COLUMNS``, ``detects`` (a one-class method), and of the
    verdict's metric ``metric`` (its name), ``test_values`` (one a test set) and ``baseline``.

    Metrics, test_images and epochs are means over the completed runs, None where there are none; seconds is the sum
    over all runs, failed ones included: what the attempt cost. _low and _high are 95% intervals, test_accuracy_sd the
    standard deviation over several runs. reported_* is what a published report states for the attempt, and what was
    measured here on the split that it names. ``marks`` and ``warnings`` are lists.
    """
    return [_row(attempt) for attempt in comparison.attempts]


def parts(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of classifiers and those of one-class methods, each a table of its own."""
    found = [[row for row in rows if row["detects"] == detects] for detects in (False, True)]
    return [part for part in found if part]


def _row(attempt: Attempt) -> Row:
    metric, runs, done = attempt.metric, attempt.runs, attempt.done
    failed = [run for run in runs if not (run.completed or run.running)]

    def values(split: str, key: str) -> list[float]:
        found = (run.metrics.get(split, {}).get(key) for run in done)
        return [value for value in found if value is not None]

    def recalls(group: str) -> list[float]:
        found = (run.metrics.get("test", {}).get("group_recall", {}).get(group) for run in done)
        return [value for value in found if value is not None]

    accuracies, reported = values("test", "accuracy"), attempt.reported
    same = attempt.estimate(split=reported[1]) if reported else None
    estimates: Row = {}
    for name in (*METRICS, *STATED):
        e = attempt.estimate(name)
        found = (e.value, e.low, e.high) if e else (None, None, None)
        estimates |= dict(zip((f"test_{name}", f"test_{name}_low", f"test_{name}_high"), found, strict=True))
    weights = _distinct(run.weights for run in runs if run.weights)
    data = _distinct(f"{run.data}/{run.category}" for run in runs)
    marks = []
    if any(run.data == "sample" for run in runs):
        marks.append("sample data: procedural, not MVTec")
    if any(run.weights == "random" and run.backbone != "none" for run in runs):
        marks.append("random weights")
    if any(run.val_is_test for run in runs):
        marks.append("validation = test")
    rules = _distinct(run.threshold["rule"] for run in done if run.threshold)
    if "best_f1" in rules:
        marks.append("threshold chosen on the test images, defects included")
    if "synthetic" in rules:
        marks.append("threshold chosen with made-up defects")
    if len(weights) > 1:  # a fallback in some of them: everything else that differs makes a row of its own
        marks.append("runs of one attempt differ in their weights")
    return {
        "attempt": attempt.name,
        "runs": len(runs),
        "completed": len(done),
        "failed": len(failed),
        "running": sum(run.running for run in runs),
        "detects": attempt.detects,
        "metric": metric,
        **estimates,
        "method": next((run.method for run in runs if run.method), None),
        **{f"test_{key}": mean(values("test", key)) for key in ("f1", "precision", *DECIDED)},
        "threshold_rule": ", ".join(rules) or None,
        **{key: mean(getattr(run, key) for run in done) for key in COSTS},
        "test_values": attempt.values(list(attempt.tests), metric).tolist(),
        "baseline": attempt.baseline(metric),
        "test_accuracy_sd": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        **{f"test_{group}_recall": mean(recalls(group)) for group in GROUPS},
        "test_calibration_error": mean(values("test", "calibration_error")),
        "test_defect_accuracy": mean(values("test", "defect_accuracy")),
        "val_accuracy": mean(values("val", "accuracy")),
        "majority_baseline": mean(run.majority_baseline for run in done),
        "reported_accuracy": reported[0] if reported else None,
        "reported_split": reported[1] if reported else None,
        "reported_measured": same.value if same else None,
        "reported_measured_low": same.low if same else None,
        "reported_measured_high": same.high if same else None,
        "test_images": mean(values("test", "images")),
        "epochs": mean([run.epochs for run in done]),
        "seconds": sum(run.seconds for run in runs),
        "weights": ", ".join(weights),
        "data": ", ".join(data),
        "marks": marks,
        "warnings": _distinct(" ".join(text.split()) for run in runs for text in run.warnings),
        "error": "; ".join(_distinct(failure(run) for run in failed)) or None,
    }


def write_summary(rows: Sequence[Row], directory: Path) -> None:
    """Write the rows of ``summarise`` into summary.csv."""
    write_csv(directory / SUMMARY, ({key: _cell(row[key]) for key in COLUMNS} for row in rows), COLUMNS)


def remarks(rows: Sequence[Row], key: str) -> list[str]:
    """The distinct texts of ``marks`` or ``warnings``, each with the attempts that it applies to."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for text in row[key]:
            found.setdefault(text, []).append(row["attempt"])
    if len(rows) == 1:
        return list(found)
    done = [row["attempt"] for row in rows if row["completed"]]
    every = {tuple(done): "every completed attempt", tuple(row["attempt"] for row in rows): "every attempt"}
    return [f"{text} ({every.get(tuple(who)) or ', '.join(who)})" for text, who in found.items()]


def number(value: float | None, digits: int = 3) -> str:
    """A figure for a table; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A figure with its interval, ``0.698 [0.55, 0.81]``, as far as they are known."""
    return number(value) + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")


def judged(row: Row) -> str:
    """The verdict's metric."""
    if row["running"] and not row["completed"]:
        return "still running"
    return interval(*(row[f"test_{row['metric']}{bound}"] for bound in ("", "_low", "_high")))


def figures_of(rows: Sequence[Row], narrow: bool = False) -> dict[str, str]:
    """FIGURES or SCORES as they apply to the rows of one of ``parts``; ``narrow``: without the tail's, or F1, which a
    usual terminal has no room for."""
    if rows[0]["detects"]:
        left_out = {f"test_{rows[0]['metric']}", *(("test_f1",) if narrow else ())}
        known = {key for key in SCORES if any(row[key] is not None for row in rows)}
        return {key: heading for key, heading in SCORES.items() if key in known - left_out}
    tail = not narrow and any(row["test_tail_recall"] is not None for row in rows)
    left_out = {f"test_{rows[0]['metric']}", *(() if tail else ("test_tail_recall",))}
    return {key: heading for key, heading in FIGURES.items() if key not in left_out}


def digits(key: str) -> int:
    """Decimals of a column."""
    return 1 if key == "fit_seconds" else 3


def measured(row: Row) -> str:
    """What was measured where a report states a figure."""
    return interval(*(row[f"reported_measured{bound}"] for bound in ("", "_low", "_high")))


def reproduced(row: Row) -> str:
    """Whether a reported figure lies within the interval of the one measured here."""
    low, high = row["reported_measured_low"], row["reported_measured_high"]
    if low is None or high is None:
        return "–"
    value = row["reported_accuracy"]
    return "within" if low <= value <= high else "above" if value > high else "below"


def counted(row: Row) -> str:
    """How many runs, and how many of them were completed where not all were."""
    return str(row["runs"]) if row["completed"] == row["runs"] else f"{row['completed']}/{row['runs']}"


def print_table(
    rows: Sequence[Row], verdict: Sequence[str], console: Console | None = None, said: Collection[str] = ()
) -> None:
    """Print the rows of ``summarise`` as a table, and below it the verdict, marks, warnings and failures, but for the
    warnings that were ``said`` before."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    for part in parts(rows):
        shown = figures_of(part, narrow=console.width < ROOM)
        metric, detects = NAMES[part[0]["metric"]].replace(" ", "\n"), part[0]["detects"]
        costs = () if detects else ("epochs", "sec-\nonds")
        folder = _folder([row["attempt"] for row in part])
        cells = [
            [
                row["attempt"].removeprefix(folder),
                counted(row),
                judged(row),
                *(number(row[key], digits(key)) for key in shown),
                *(() if detects else (number(row["epochs"], 0), number(row["seconds"], 0))),
            ]
            for row in part
        ]
        headers = "|".join(("runs", f"test {metric}", *shown.values(), *costs))
        _print(console, headers, cells, [bool(row["failed"]) and not row["completed"] for row in part], folder)
    stated = [row for row in rows if row["reported_accuracy"] is not None]
    if stated:
        headers = "reported|on|measured there|the report's\nfigure lies"
        cells = [
            [
                row["attempt"],
                number(row["reported_accuracy"]),
                row["reported_split"],
                measured(row),
                reproduced(row),
            ]
            for row in stated
        ]
        _print(console, headers, cells, [False] * len(stated))
    for line in verdict:
        console.print(Text(line))
    told = {" ".join(text.split()) for text in said}
    warned = [line for line in remarks(rows, "warnings") if line not in told]
    for line in remarks(rows, "marks"):
        if not any(warning.startswith(line.split(":")[0].split(" (")[0]) for warning in warned):  # it says more
            console.print(Text(line, style="yellow"))
    for line in warned:
        console.print(Text(f"warning: {line}", style="yellow"))
    for row in rows:
        if row["failed"]:
            console.print(Text(f"failed: {row['attempt']}: {row['error']}", style="red"))


def _folder(attempts: Sequence[str]) -> str:
    """What all of several attempts' names begin with, up to a slash: the heading says it once."""
    folders = {name.rpartition("/")[0] for name in attempts}
    return f"{folders.pop()}/" if len(attempts) > 1 and len(folders) == 1 and "" not in folders else ""


def _print(
    console: Console, headers: str, rows: Sequence[Sequence[str]], bad: Sequence[bool], folder: str = ""
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("attempt" + (f"\n{folder}..." if folder else ""), overflow="fold", min_width=8)
    for header in headers.split("|"):
        left = header.startswith(("test ", "measured "))
        table.add_column(header, justify="left" if left else "right", no_wrap=True)
    for cells, red in zip(rows, bad, strict=True):
        table.add_row(*map(Text, cells), style="red" if red else None)  # Text: names are no markup
    console.print(table)
    console.print()


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _cell(value: Any) -> Any:
    return "; ".join(value) if isinstance(value, list) else value
