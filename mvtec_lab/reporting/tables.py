"""One row per run: runs.csv beside summary.csv, and the same rows as a frame of pandas or Polars."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from mvtec_lab.errors import LabError, unknown
from mvtec_lab.evaluation.specs import all_metrics
from mvtec_lab.reporting.grouping import OPTIONS, RUN_KEYS, by_attempt, said_options
from mvtec_lab.reporting.runs import Settings, load_runs, settings_known
from mvtec_lab.results import RunResult, write_csv

log = logging.getLogger(__name__)

RUNS = "runs.csv"
FRAMES = ("pandas", "polars", "rows")
Value = str | int | float | bool | datetime | None
Rows = list[dict[str, Value]]


class _Column(NamedTuple):
    """Define a column: its name, the type of its values, and where a run has them."""

    key: str
    kind: type
    of: Callable[[RunResult], Any]


def _images(split: str) -> Callable[[RunResult], int | None]:
    return lambda run: sum(run.counts[split].values()) if split in run.counts else None


def _started(run: RunResult) -> datetime | None:
    with suppress(ValueError):  # a result.json that somebody wrote by hand
        return datetime.fromisoformat(run.started)
    return None


# Every table has these; between them stand the keys that vary, and after them the metrics.
_WHAT = (
    _Column("problem", str, lambda run: run.problem),
    _Column("method", str, lambda run: run.method),
    _Column("data", str, lambda run: run.data),
    _Column("category", str, lambda run: run.category),
    _Column("backbone", str, lambda run: run.backbone),
    _Column("weights", str, lambda run: run.weights),
)
_HOW = (
    _Column("status", str, lambda run: run.status),
    _Column("error", str, lambda run: run.error),
    _Column("train_images", int, _images("train")),
    _Column("val_images", int, _images("val")),
    _Column("test_images", int, _images("test")),
    _Column("parameters", int, lambda run: run.parameters.get("total")),
    _Column("trained_parameters", int, lambda run: run.parameters.get("trained")),
    _Column("epochs", int, lambda run: run.epochs),
    _Column("best_epoch", int, lambda run: run.best_epoch),
    _Column("started", datetime, _started),
    _Column("startup_seconds", float, lambda run: run.startup_seconds),
    _Column("seconds", float, lambda run: run.seconds),
    _Column("fit_seconds", float, lambda run: run.fit_seconds),
    _Column("total_seconds", float, lambda run: run.total_seconds),
    _Column("seconds_per_image", float, lambda run: run.seconds_per_image),
    _Column("peak_mib", float, lambda run: run.peak_mib),
    _Column("machine", str, lambda run: run.machine),
    _Column("device", str, lambda run: run.device),
    _Column("precision", str, lambda run: run.precision),
    _Column("threads", int, lambda run: run.threads),
    _Column("majority_baseline", float, lambda run: run.majority_baseline),
)


def read_results(*directories: str | os.PathLike[str], frame: str = "pandas") -> Any:
    """Return the runs at or below some directories as a frame with one row per run.

    The rows are those of runs.csv, with types: whole numbers, floats, texts, and ``started`` as a time in UTC. They are
    read from the run directories, so that they are up to date while a sweep runs, and several sweeps, or runs without
    a sweep, make one table. ``run_dir`` is the path as it was found. A run of which a file is damaged has the status
    ``damaged``; its ``error``, and a warning, say which.

    Args:
        directories: of sweeps or runs.
        frame: ``pandas``, ``polars``, or ``rows``: a list of dicts, which needs neither.

    Raises:
        LabError: no run, none whose files are sound, or a library that is not installed.
    """
    if frame not in FRAMES:
        raise unknown("frame", frame, FRAMES)
    library = None if frame == "rows" else _library(frame)
    runs = load_runs(*directories)
    for run in runs:
        if run.damaged:
            log.warning("%s", run.error)
    columns, rows = table(runs, {run.run_dir: settings_known(run) for run in runs})
    if library is None:
        return rows
    return _pandas(library, columns, rows) if frame == "pandas" else _polars(library, columns, rows)


def write_runs(runs: Sequence[RunResult], settings: Mapping[str, Settings], directory: Path) -> None:
    """Write runs.csv into a directory; ``run_dir`` is relative to it where the run lies below it.

    Args:
        runs: the runs.
        settings: as ``settings_of`` gives them, by the runs' directories.
        directory: where the file goes.
    """
    columns, rows = table(runs, settings)
    home = directory.resolve()
    for row in rows:
        place = Path(str(row["run_dir"])).resolve()
        row["run_dir"] = place.relative_to(home).as_posix() if place.is_relative_to(home) else place.as_posix()
        row |= {key: value.isoformat() for key, value in row.items() if isinstance(value, datetime)}
        row["error"] = None if row["error"] is None else " ".join(str(row["error"]).split())
    write_csv(directory / RUNS, rows, list(columns))


def table(runs: Sequence[RunResult], settings: Mapping[str, Settings]) -> tuple[dict[str, type], Rows]:
    """Return the columns, each with the type of its values, and a row per run, attempt after attempt.

    ``attempt`` is the attempt's name in summary.csv and in the verdict. Where one file makes several of them, by what
    was typed, ``attempt_file`` names it, and each key that makes the difference is a column. ``repeat`` counts the
    repeats of a cross-validation from 0, in the order of ``split.seed``. A metric is a column where a run has it:
    ``test_<key>``, ``val_<key>``, and ``test_recall_<class>`` of each class.
    """
    groups = by_attempt(runs, settings)
    varied = {key: _kind([settings[run.run_dir].get(key) for run in runs]) for key in _varied(groups, settings)}
    draws = {run.run_dir: _as(int, settings[run.run_dir].get("split.seed")) for run in runs}
    repeats = sorted({draw for run in runs if run.fold is not None and (draw := draws[run.run_dir]) is not None})
    rows: Rows = []
    for name, group in groups.items():
        for run in group:
            draw = draws[run.run_dir]
            part = {"seed": run.seed, "split.seed": draw, "fold": run.fold}
            part["repeat"] = None if run.fold is None or draw is None else repeats.index(draw)
            keys = {key: _as(kind, settings[run.run_dir].get(key)) for key, kind in varied.items()}
            known = {column.key: column.of(run) for column in (*_WHAT, *_HOW)}
            names = {"attempt": name, "attempt_file": run.attempt, "run_dir": run.run_dir}
            rows.append({**known, **keys, **part, **names, **_metrics(run)})
    columns: dict[str, type] = {"attempt": str}
    columns |= {"attempt_file": str} if varied else {}
    columns |= {column.key: column.kind for column in _WHAT} | varied
    columns |= dict.fromkeys(("seed", "split.seed", "fold", "repeat"), int)
    columns |= {column.key: column.kind for column in _HOW}
    columns |= dict.fromkeys(_in_order({key for run in runs for key in _metrics(run)}), float) | {"run_dir": str}
    return columns, [{key: row.get(key) for key in columns} for row in rows]


def _varied(groups: Mapping[str, Sequence[RunResult]], settings: Mapping[str, Settings]) -> list[str]:
    """Return the keys that make several attempts of one file: equal within each of them, and not between them."""
    of_file: dict[str, list[list[Settings]]] = {}
    for group in groups.values():
        if own := [settings[run.run_dir] for run in group if settings[run.run_dir]]:
            of_file.setdefault(group[0].attempt, []).append(own)
    keys: dict[str, None] = {}
    said = said_options([run for group in groups.values() for run in group], settings)
    for attempts in of_file.values():
        for key in (key for key in attempts[0][0] if key not in RUN_KEYS):
            values = [{own.get(key) for own in group} for group in attempts]
            of_another = {None} if key.startswith(OPTIONS) and key not in said else set()
            if all(len(of) == 1 for of in values) and len(set.union(*values) - of_another) > 1:
                keys[key] = None
    return list(keys)


def _metrics(run: RunResult) -> dict[str, float]:
    """Return the metrics of a run, test before validation; a loss, recalls and further numbers are among them."""
    values: dict[str, float] = {}
    for split, of_split in run.metrics.items():
        known = {metric.key: metric.of(of_split) for metric in all_metrics() if metric.judges(run.problem)}
        known |= {f"recall_{name}": value for name, value in of_split.get("recall", {}).items()}
        known = {key: value for key, value in of_split.items() if key != "images"} | known
        values |= {
            f"{split}_{key}": float(value)
            for key, value in known.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
    return values


def _in_order(keys: set[str]) -> list[str]:
    """Return the columns of metrics: test first, each split's in the order of summary.csv, then others by name."""
    stated = [f"{split}_{metric.key}" for split in ("test", "val") for metric in all_metrics()]
    return [*(key for key in stated if key in keys), *sorted(keys - set(stated))]


def _kind(texts: Sequence[str | None]) -> type:
    """Return the type that all values of a key have: bool, int, float or str."""
    known = [text for text in texts if text not in (None, "null")]
    for kind in (bool, int, float):
        if known and all(_as(kind, text) is not None for text in known):
            return kind
    return str


def _as(kind: type, text: str | None) -> Any:
    """Return a text of the settings as a value; None for null, and for what is no such value."""
    if text is None or text == "null":
        return None
    if kind is bool:
        return {"true": True, "false": False}.get(text)
    try:
        return kind(text)
    except ValueError:
        return None


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LabError(
            f"frame={name!r} needs {name}: pip install {name}, or frame='rows' for a list of dicts"
        ) from error


def _pandas(pandas: Any, columns: Mapping[str, type], rows: Rows) -> Any:
    """Return a pandas frame: Int64, boolean where a value is missing, float64 with NaN, and times in UTC."""
    types = {int: "Int64", float: "float64", bool: "boolean", str: "object"}
    series = {}
    for key, kind in columns.items():
        values = [row[key] for row in rows]
        if kind is datetime:
            series[key] = pandas.to_datetime(pandas.Series(values, dtype="object"), utc=True)
        else:
            series[key] = pandas.Series(values, dtype=types[kind])
    return pandas.DataFrame(series)


def _polars(polars: Any, columns: Mapping[str, type], rows: Rows) -> Any:
    types = {int: polars.Int64, float: polars.Float64, bool: polars.Boolean, str: polars.String}
    types[datetime] = polars.Datetime("us", "UTC")
    return polars.DataFrame(rows, schema={key: types[kind] for key, kind in columns.items()})
