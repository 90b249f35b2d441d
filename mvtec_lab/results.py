"""What a run leaves behind: result.json, samples.csv, predictions.csv, history.csv, and how they are read back.

Everything that compares runs reads these files and nothing else, so runs from other days and machines compare.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

from mvtec_lab.errors import DiskFullError, LabError, disk_full, redacted
from mvtec_lab.foreign import Count, Share, Size, damaged, file_of, misfit, read_json
from mvtec_lab.locks import in_use

RESULT, CONFIG = "result.json", "config.yaml"
SAMPLES, PREDICTIONS, HISTORY = "samples.csv", "predictions.csv", "history.csv"
MISTAKES, EXPLANATIONS = "mistakes.jpg", "explanations.jpg"
PIXELS = "pixels.npz"  # histograms of a one-class run's maps, from which pixel metrics are compared
BEST, LAST = "best.ckpt", "last.ckpt"
# In the order in which a run is cleared: a kill on the way must not leave a checkpoint without the result.json that
# says it failed.
FILES = (LAST, BEST, PREDICTIONS, PIXELS, MISTAKES, EXPLANATIONS, HISTORY, SAMPLES, CONFIG, RESULT)
ROWS = 1_000_000  # of a CSV: more images than any set that the lab is meant for
IN_TABLE = {"in_table": True}  # of a log line that result.warnings holds: the command line says it once, not twice


class OfType(TypedDict, total=False):
    """Hold the metrics of a defect type; None where there is nothing to measure."""

    images: Count
    recall: Share | None
    image_auroc: Share | None
    pixel_auroc: Share | None
    pixel_ap: Share | None
    pixel_aupro: Share | None


class Figures(TypedDict, total=False):
    """Hold the metrics of a split."""

    accuracy: Share | None
    balanced_accuracy: Share | None
    macro_f1: Share | None
    defect_accuracy: Share | None
    calibration_error: Share | None
    image_auroc: Share | None
    image_ap: Share | None
    f1: Share | None
    precision: Share | None
    recall_of_defects: Share | None
    false_alarm_rate: Share | None
    pixel_auroc: Share | None
    pixel_ap: Share | None
    pixel_aupro: Share | None
    loss: Size | None
    images: Count
    recall: dict[str, Share | None]
    group_recall: dict[str, Share | None]
    intervals: dict[str, list[Share] | None]
    by_type: dict[str, OfType]


class Threshold(TypedDict):
    value: float
    rule: str


class Reported(TypedDict):
    accuracy: Share
    split: str


class Explained(TypedDict, total=False):
    images: Count
    peak_in_mask: Count
    mistakes: Count
    mistakes_peak_in_mask: Count
    chance: Share | None


@dataclass
class RunResult:
    """One run: one attempt, one seed, one fold, one directory.

    ``metrics`` maps ``"val"`` and ``"test"`` to accuracy, balanced_accuracy, macro_f1, defect_accuracy, loss (mean
    cross-entropy, nats), recall (by class name) and images; since the long tail also to calibration_error and
    group_recall (by head, middle and tail). Fractions lie in [0, 1].
    """

    attempt: str
    seed: int
    data: str  # sample, mvtec or folder
    category: str
    backbone: str
    run_dir: str
    started: str = ""  # ISO 8601, UTC
    status: str = "failed"  # or "completed"; "running" where it is read while a process works on it
    fold: int | None = None
    weights: str | None = None  # the weights really used: "IMAGENET1K_V1", a file, "random"
    classes: list[str] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    majority_baseline: float | None = None  # test accuracy of always naming training's most frequent class
    # of the test images with a mask: how many, whose class-activation map peaks inside it, and the masks' mean share of
    # the image (chance); the same of the mistakes among them; None: the backbone has no such map
    explained: dict[str, Any] | None = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> class -> images
    parameters: dict[str, int] = field(default_factory=dict)  # total and trained
    features: list[str] = field(default_factory=list)  # splits whose frozen stages were computed once, not each epoch
    val_is_test: bool = False
    reported: dict[str, Any] | None = None  # a published figure of this attempt: accuracy, and the split it is of
    epochs: int = 0  # epochs trained
    best_epoch: int | None = None  # whose weights best.ckpt holds; from 0, as in history.csv: tables count from 1
    resumed: int = 0  # how often it was stopped and gone on with
    seconds: float = 0.0  # training and validation epochs
    luck: bool | None = None  # whether another seed gives another model; None: an older run, which does not say
    problem: str = "classification"
    method: str | None = None
    threshold: dict[str, Any] | None = None  # value, rule, and map: that of a map's pixel
    fit_seconds: float | None = None  # all that learns from the good images
    seconds_per_image: float | None = None  # to score one
    peak_mib: float | None = None  # of the process's memory while it fitted and scored; on a GPU, of the device's
    startup_seconds: float = 0.0  # everything before them
    device: str | None = None
    precision: str | None = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    paths: dict[str, str] = field(default_factory=dict)  # absolute, by the key that config.yaml has as it was typed

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    @property
    def running(self) -> bool:
        return self.status == "running"

    @property
    def interrupted(self) -> bool:
        """Ended from outside: killed, so that nothing was recorded, by Ctrl-C or SIGTERM, or by a full disk."""
        stops = (KeyboardInterrupt.__name__, DiskFullError.__name__)
        return not self.completed and (self.error is None or self.error.startswith(stops))

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Keep result.json true to how a run ends: completed, failed with its first error, or, at first, killed."""
        self.save()
        try:
            yield
            self.status = "completed"
            self.save()
        except BaseException as error:
            full = disk_full(error, Path(self.run_dir))
            self.status, self.error = "failed", one_line(full or error)
            with suppress(OSError, LabError):  # the first error counts, not that it cannot be written down
                self.save()
            if full is not None and full is not error:
                raise full from error
            raise

    def save(self) -> None:
        """Write result.json into ``run_dir``; over itself where a full disk has no room for a new one."""
        path, text = Path(self.run_dir) / RESULT, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        try:
            write_whole(path, text)
        except DiskFullError:
            # The blocks that the file has already: of st_blocks, which Windows lacks, one is 512 bytes.
            room = getattr(path.stat(), "st_blocks", 0) * 512 if path.exists() else 0
            if self.completed or len(data := text.encode()) > room:
                raise
            with path.open("r+b", buffering=0) as file:
                before = file.read()
                file.seek(0)
                if file.write(data) < len(data):  # files may grow no further: back to what it was
                    file.seek(0)
                    file.write(before)
                    raise
                file.truncate()

    @classmethod
    def load(cls, run_dir: str | os.PathLike[str]) -> RunResult:
        """Read a run's result.json; ``run_dir`` becomes where it lies now.

        Raises:
            LabError: the file is missing, not JSON, or lacks a field that every result has.
        """
        path = file_of(run_dir, RESULT)
        if path is None:
            raise LabError(f"{Path(run_dir, RESULT)} is missing or damaged: run that attempt again or remove it")
        raw = read_json(path)
        try:
            known = {f.name for f in fields(cls)}
            run = cls(**{k: v for k, v in raw.items() if k in known} | {"run_dir": str(run_dir)})
            if wrong := misfit(raw, cls) or _impossible(run):
                raise TypeError(wrong)
        except (TypeError, AttributeError) as error:
            raise LabError(f"{path} is missing or damaged ({error}): run that attempt again or remove it") from error
        if not run.completed and in_use(path.parent):
            run.status = "running"
        return run


_SHAPES: dict[str, Any] = {
    "metrics": dict[str, Figures],
    "counts": dict[str, dict[str, Count]],
    "parameters": dict[str, Count],
    "explained": Explained | None,
    "majority_baseline": Share | None,
    "threshold": Threshold | None,
    "reported": Reported | None,
    "epochs": Count,
    "seconds": Size,
}


def _impossible(run: RunResult) -> str | None:
    """Return what no run can have left although its fields have the right types; None where all is possible."""
    if run.status not in ("completed", "failed", "running"):
        return f"status is {run.status!r}"
    for name, shape in _SHAPES.items():
        if wrong := misfit(getattr(run, name), shape, name):
            return wrong
    if len(set(run.classes)) < len(run.classes):
        return "classes name one twice"
    if not run.completed:
        return None
    # What tables, verdict and report read without asking whether it is there.
    needed: dict[str, tuple[str, ...]] = {"test": ("accuracy", "images"), "val": ("balanced_accuracy", "loss")}
    if run.method is not None:
        needed = {"test": ("accuracy", "images", "by_type", "intervals"), "val": ("image_auroc",)}
    for split in ("test", "val"):
        figures = run.metrics.get(split, {})
        if lacking := [key for key in needed[split] if figures.get(key) is None and (figures or split == "test")]:
            return f"metrics.{split} has no {lacking[0]}"
        if any(len(bounds) != 2 for bounds in figures.get("intervals", {}).values() if bounds is not None):
            return f"metrics.{split} has an interval without two bounds"
    if run.method is not None and run.threshold is None:
        return "threshold is None"
    if run.explained and (unsaid := Explained.__annotations__.keys() - run.explained.keys()):
        return f"explained has no {min(unsaid)}"
    return None


def one_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {error}".split("\n")[0].rstrip(": ")


def find_runs(directory: str | os.PathLike[str]) -> list[RunResult]:
    """Every run at or below ``directory``, in the order in which they started.

    Raises:
        LabError: a run's result.json is missing or damaged.
    """
    folders = {path.parent for name in (RESULT, SAMPLES) for path in Path(directory).rglob(name)}
    runs = [RunResult.load(folder) for folder in folders]
    return sorted(runs, key=lambda run: (run.started, run.run_dir))


def path_of_run(run_dir: Path, key: str, typed: str) -> str:
    """Return a path among a run's settings as an absolute one, where the run recorded it and it still exists; else as
    it was typed."""
    absolute = RunResult.load(run_dir).paths.get(key) if file_of(run_dir, RESULT) else None  # older runs have none
    return absolute if absolute is not None and Path(absolute).exists() else typed


def flatten(values: Mapping[str, Any], prefix: str = "", depth: int = 3) -> dict[str, str]:
    """A configuration as dotted keys and texts.

    What lies deeper than section, key and name (a transform's arguments) stays together in one text.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and depth > 1:
            flat |= flatten(value, f"{prefix}{key}.", depth - 1)
        elif isinstance(value, Mapping):
            flat[f"{prefix}{key}"] = ", ".join(f"{name}={_text(inner)}" for name, inner in value.items()) or "default"
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else redacted(str(value))


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file, text as UTF-8: whole or not at all, whenever the process is killed and whatever goes wrong.

    Raises:
        DiskFullError: there is no room for it.
    """
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # two processes may write at once
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if full := disk_full(error, path, len(data)):
            raise full from error
        raise


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what killed processes left of the files that they were writing; the folder is held by this one."""
    for name in names:
        for path in folder.glob(f"{name}*.tmp"):
            path.unlink(missing_ok=True)


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as UTF-8 CSV with a header; None becomes an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe in front, which ``read_csv`` takes off.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(columns))
    writer.writeheader()
    writer.writerows({key: _as_text(value) for key, value in row.items()} for row in rows)
    write_whole(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV with a header into one dict a row; an Excel byte-order mark is ignored.

    Raises:
        ValueError: it is no UTF-8, or has more than ROWS rows.
        csv.Error: it is no CSV.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [
            {k: v[1:] if isinstance(v, str) and _QUOTED.match(v) else v for k, v in row.items()}
            for row in islice(csv.DictReader(file), ROWS + 1)
        ]
    if len(rows) > ROWS:
        raise ValueError(f"it has more than {ROWS:,} rows")
    return rows


def table_of(run_dir: str | os.PathLike[str], name: str, *columns: str) -> list[dict[str, str]] | None:
    """Read a CSV of a run's directory; None where there is none.

    Raises:
        LabError: it is damaged: not even a CSV, without rows, or with a row that lacks one of the ``columns``.
    """
    path = file_of(run_dir, name)
    if path is None:
        return None
    try:
        rows = read_csv(path)
    except (OSError, ValueError, csv.Error) as error:
        raise damaged(path, error) from error
    for line, row in enumerate(rows, start=2):
        if lacking := [column for column in columns if row.get(column) is None]:
            raise damaged(path, f"line {line} has no {lacking[0]!r}")
    if not rows:
        raise damaged(path, "no rows")
    return rows


# What begins a formula, with apostrophes of the text's own in front, so that every text is read back as it was.
_FORMULA, _QUOTED = re.compile(r"'*[=+\-@\t\r\n]"), re.compile(r"'+[=+\-@\t\r\n]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.IGNORECASE)


def _as_text(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value) else value
