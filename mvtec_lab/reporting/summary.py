"""The runs of a sweep as one row an attempt: summary.csv and the table in the terminal."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.metrics import wilson_interval
from mvtec_lab.results import CONFIG, RESULT, RunResult, find_runs, write_csv

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]

SUMMARY = "summary.csv"
# Tell runs of one attempt apart, not attempts: which repeat, and where it ran.
RUN_KEYS = (
    "seed",
    "split.seed",
    "split.fold",
    "data.root",
    "data.archive",
    "data.num_workers",
    "trainer.accelerator",
    "audit",
)
# The columns of every table after the accuracy itself, in this order.
FIGURES = ("test_balanced_accuracy", "test_macro_f1", "test_defect_accuracy", "val_accuracy", "majority_baseline")
COLUMNS = (
    "attempt",
    "runs",
    "completed",
    "failed",
    "test_accuracy",
    "test_accuracy_low",
    "test_accuracy_high",
    "test_accuracy_sd",
    *FIGURES,
    "test_images",
    "epochs",
    "seconds",
    "weights",
    "data",
    "marks",
    "warnings",
    "error",
)


def load_runs(directory: Path) -> list[RunResult]:
    """Every run at or below ``directory``; LabError where there is none."""
    runs = find_runs(directory)
    if not runs:
        raise LabError(f"{directory} holds no run (no {RESULT} at or below it): give the directory of a sweep or a run")
    return runs


def by_attempt(runs: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Group runs by their attempt, in first-seen order.

    Runs of one attempt that differ in more than seed, fold and place are no repeats of each other: they are groups of
    their own, named by what differs, ``base optimizer.lr=0.1``.
    """
    runs = list(runs)
    settings = {id(run): settings_of(run) for run in runs}
    groups: dict[str, list[RunResult]] = {}
    for run in runs:
        peers = [settings[id(r)] for r in runs if r.attempt == run.attempt and settings[id(r)]]
        own = settings[id(run)]
        varied = [k for k in own if k not in RUN_KEYS and len({peer.get(k) for peer in peers}) > 1]
        groups.setdefault(" ".join([run.attempt, *(f"{k}={own[k]}" for k in varied)]), []).append(run)
    return groups


def settings_of(run: RunResult) -> dict[str, str]:
    """A run's config.yaml as dotted keys and texts; empty where it has none."""
    path = Path(run.run_dir) / CONFIG
    try:
        return _flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except FileNotFoundError:
        return {}


def _flatten(values: Mapping[str, Any], prefix: str = "", depth: int = 3) -> dict[str, str]:
    """Dotted keys; what lies deeper than section, key and name (a transform's arguments) stays together in one text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and depth > 1:
            flat |= _flatten(value, f"{prefix}{key}.", depth - 1)
        elif isinstance(value, Mapping):
            flat[f"{prefix}{key}"] = ", ".join(f"{name}={_text(inner)}" for name, inner in value.items()) or "default"
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def summarise(runs: Sequence[RunResult]) -> list[Row]:
    """One row an attempt, in first-seen order, with the keys ``COLUMNS`` and ``test_accuracies`` (one a completed run).

    Metrics, test_images and epochs are means over the completed runs, None where there are none; seconds is the sum
    over all runs, failed ones included: what the attempt cost. test_accuracy_low and _high are Wilson's 95% interval of
    a single completed run, test_accuracy_sd the standard deviation over several. ``marks`` and ``warnings`` are lists.
    """
    return [_row(attempt, group) for attempt, group in by_attempt(runs).items()]


def _row(attempt: str, runs: Sequence[RunResult]) -> Row:
    done = [run for run in runs if run.completed]
    failed = [run for run in runs if not run.completed]

    def values(split: str, key: str) -> list[float]:
        found = (run.metrics.get(split, {}).get(key) for run in done)
        return [value for value in found if value is not None]

    accuracies, images = values("test", "accuracy"), values("test", "images")
    low, high = None, None
    if len(accuracies) == len(images) == 1:
        low, high = wilson_interval(round(accuracies[0] * images[0]), int(images[0]))

    weights = _distinct(run.weights for run in runs if run.weights)
    data = _distinct(f"{run.data}/{run.category}" for run in runs)
    marks = []
    if any(run.data == "sample" for run in runs):
        marks.append("sample data: procedural, not MVTec")
    if "random" in weights:
        marks.append("random weights")
    if any(run.val_is_test for run in runs):
        marks.append("validation = test")
    if len(weights) > 1:  # a fallback in some of them: everything else that differs makes a row of its own
        marks.append("runs of one attempt differ in their weights")
    return {
        "attempt": attempt,
        "runs": len(runs),
        "completed": len(done),
        "failed": len(failed),
        "test_accuracy": _mean(accuracies),
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "test_accuracy_sd": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "test_accuracies": accuracies,
        "test_balanced_accuracy": _mean(values("test", "balanced_accuracy")),
        "test_macro_f1": _mean(values("test", "macro_f1")),
        "test_defect_accuracy": _mean(values("test", "defect_accuracy")),
        "val_accuracy": _mean(values("val", "accuracy")),
        "majority_baseline": _mean([run.majority_baseline for run in done if run.majority_baseline is not None]),
        "test_images": _mean(images),
        "epochs": _mean([run.epochs for run in done]),
        "seconds": sum(run.seconds for run in runs),
        "weights": ", ".join(weights),
        "data": ", ".join(data),
        "marks": marks,
        "warnings": _distinct(" ".join(text.split()) for run in runs for text in run.warnings),
        "error": "; ".join(_distinct(failure(run) for run in failed)) or None,
    }


def write_summary(directory: Path) -> list[Row]:
    """Summarise every run at or below ``directory`` into its summary.csv, whole or not at all, and return the rows.

    Raises:
        LabError: there is no run, or a result.json is damaged.
    """
    rows = summarise(load_runs(directory))
    path = Path(directory) / SUMMARY
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write at once
    write_csv(partial, ({key: _cell(row[key]) for key in COLUMNS} for row in rows), COLUMNS)
    partial.replace(path)
    return rows


def reading(rows: Sequence[Row]) -> list[str]:
    """What these figures allow one to say, in sentences. Overlapping intervals make no winner."""
    done = [row for row in rows if row["test_accuracy"] is not None]
    single = [row for row in done if row["test_accuracy_low"] is not None]
    if not done:
        return ["No run was completed: there is nothing to compare."]
    lines = []
    if single:
        sizes = sorted({round(row["test_images"]) for row in single})
        one = f" (one image is {100 / sizes[0]:.1f} points)" if len(sizes) == 1 else ""
        lines.append(
            f"{' or '.join(map(str, sizes))} test images{one}: 95% Wilson intervals; attempts whose intervals overlap "
            "widely cannot be told apart."
        )
    if len(single) < len(done):
        lines.append("±: standard deviation over an attempt's runs, their spread; no interval for new images.")
    if len({row["data"] for row in done}) > 1:
        return [*lines, "The attempts ran on different data: their rows do not compare."]
    if len(single) > 1:
        best = max(single, key=lambda row: row["test_accuracy"])
        below = [row["attempt"] for row in single if row["test_accuracy_high"] < best["test_accuracy_low"]]
        if below:
            lines.append(f"The interval of {best['attempt']} lies clear above that of {', '.join(below)}.")
        else:
            lines.append("All intervals overlap with the highest one: no attempt is shown to be better than another.")
    chance = [
        row["attempt"]
        for row in single
        if row["majority_baseline"] is not None and row["test_accuracy_low"] <= row["majority_baseline"]
    ]
    if chance:
        lines.append(f"Not shown to be better than always naming the most frequent class: {', '.join(chance)}.")
    return lines


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


def failure(run: RunResult) -> str:
    """Why a run failed, on one line."""
    return " ".join((run.error or "no reason recorded: the process was ended from outside").split())


def number(value: float | None, digits: int = 3) -> str:
    """A figure for a table; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def accuracy(row: Row) -> str:
    """Test accuracy with what is known of its uncertainty: ``0.698 [0.55, 0.81]`` or ``0.698 ± 0.031``."""
    text = number(row["test_accuracy"])
    if row["test_accuracy_low"] is not None:
        return f"{text} [{row['test_accuracy_low']:.2f}, {row['test_accuracy_high']:.2f}]"
    return text if row["test_accuracy_sd"] is None else f"{text} ± {row['test_accuracy_sd']:.3f}"


def counted(row: Row) -> str:
    """How many runs, and how many of them were completed where not all were."""
    return f"{row['completed']}/{row['runs']}" if row["failed"] else str(row["runs"])


def print_table(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the rows of ``summarise`` as a table, and below it how to read it, its marks, warnings and failures."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("attempt", overflow="fold", min_width=8)
    headers = "runs|test accuracy|bal.\nacc.|macro\nF1|defect\nonly|val\nacc.|major-\nity|epochs|sec-\nonds"
    for header in headers.split("|"):
        table.add_column(header, justify="left" if header == "test accuracy" else "right", no_wrap=True)
    for row in rows:
        cells = [row["attempt"], counted(row), accuracy(row)]
        cells += [number(row[key]) for key in FIGURES]
        cells += [number(row["epochs"], 0), number(row["seconds"], 0)]
        table.add_row(*map(Text, cells), style="red" if not row["completed"] else None)  # Text: names are no markup
    console.print(table)
    console.print()
    for line in reading(rows):
        console.print(Text(line))
    warned = remarks(rows, "warnings")
    for line in remarks(rows, "marks"):
        if not any(warning.startswith(line.split(":")[0].split(" (")[0]) for warning in warned):  # it says more
            console.print(Text(line, style="yellow"))
    for line in warned:
        console.print(Text(f"warning: {line}", style="yellow"))
    for row in rows:
        if row["failed"]:
            console.print(Text(f"failed: {row['attempt']}: {row['error']}", style="red"))


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _cell(value: Any) -> Any:
    return "; ".join(value) if isinstance(value, list) else value
