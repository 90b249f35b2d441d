"""Write and read the files of a run: result.json, samples.csv, predictions.csv, history.csv.

Comparisons read these files and nothing else, so that runs from other days and machines can be compared.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypedDict

from mvtec_lab.errors import DiskFullError, LabError, disk_full, redacted
from mvtec_lab.foreign import Count, Share, Size, damaged, file_of, misfit, read_json
from mvtec_lab.locks import in_use

RESULT, CONFIG = "result.json", "config.yaml"
SAMPLES, PREDICTIONS, HISTORY = "samples.csv", "predictions.csv", "history.csv"
PREDICTED = "predicted.json"  # beside predictions.csv of task=predict: the model, and where the images lie
MISTAKES, EXPLANATIONS = "mistakes.jpg", "explanations.jpg"
OPERATING = "operating.json"  # of task=threshold; a directory with one holds a checkpoint, and is no run of its own
MONITORED = "monitor.json"  # of task=monitor
VERSION = "version.json"  # of a version of a data set that a review wrote, beside its images
PIXELS = "pixels.npz"  # histograms of anomaly maps, from which pixel metrics are compared
BEST, LAST = "best.ckpt", "last.ckpt"
# In the order in which a run is cleared: a kill in between must not leave a checkpoint without the result.json that
# says that it failed.
FILES = (LAST, BEST, PREDICTIONS, PIXELS, MISTAKES, EXPLANATIONS, HISTORY, SAMPLES, CONFIG, RESULT)
GOOD = "good"  # the class without a defect, and the type of its images
DEFECT = "defect"  # the class of all others, where their types are not told apart
SYNTHETIC = "synthetic"  # in place of the type of a defect that was made up, and of its split
CERTAINTY, SURE, UNSURE = "certainty", "sure", "unsure"  # a column of predictions.csv, and its values
ROWS = 1_000_000  # of a CSV: more images than the lab is made for
IN_TABLE = {"in_table": True}  # marks a log line that result.warnings has too: the command line shows it once


class Values(TypedDict, total=False):
    """Hold the metrics of a split beside those that ``evaluation.specs`` names; shares and sizes, None: none."""

    loss: Size | None
    images: Count
    recall: dict[str, Share | None]
    group_recall: dict[str, Share | None]
    intervals: dict[str, list[float] | None]
    by_type: dict[str, dict[str, Any]]
    set_coverage: dict[str, Share | None]


class Threshold(TypedDict):
    value: float
    rule: str


class Reported(TypedDict):
    accuracy: Share
    split: str


class Dropped(TypedDict):
    """Say why a race left a run out: ``after`` so many of all ``folds`` its attempt was shown to be worse.

    ``than`` is the attempt that led by ``lead`` in the metric; ``p`` counts all looks of the race, and all pairs.
    ``errors`` are the standard errors of the difference to each other attempt at that look, with ``freedom`` degrees.
    """

    than: str
    metric: str
    lead: Size
    p: Share
    after: Count
    folds: Count
    freedom: Count
    errors: dict[str, Size]


class Explained(TypedDict, total=False):
    images: Count
    peak_in_mask: Count
    mistakes: Count
    mistakes_peak_in_mask: Count
    chance: Share | None


@dataclass
class RunResult:
    """Describe one run: one attempt, one seed, one fold, one directory.

    ``metrics`` maps ``"val"`` and ``"test"`` to the metrics of ``evaluation.specs`` by their keys, to images (their
    number), loss, and where they apply to recall (by class), group_recall (of head, middle and tail), intervals (95%,
    by metric), by_type (metrics by defect type) and set_coverage (by class, the share of its images with it in their
    set).
    """

    attempt: str  #: its name
    seed: int
    data: str  #: sample, mvtec or folder
    category: str  #: the product
    backbone: str  #: as in ``model.backbone``
    run_dir: str  #: where its files lie
    started: str = ""  #: ISO 8601, UTC
    #: or "completed"; "dropped" by a race; "running" where it is read while a process works on it; "damaged" where a
    #: comparison cannot use a file of it
    status: str = "failed"
    fold: int | None = None  #: of its cross-validation; None: it is part of none
    weights: str | None = None  #: the weights really used: "IMAGENET1K_V1", a file, "random"
    classes: list[str] = field(default_factory=list)  #: in the order of their indices
    #: split -> key -> value, as said above
    metrics: Annotated[dict[str, dict[str, Any]], dict[str, Values]] = field(default_factory=dict)
    #: test accuracy of always naming training's most frequent class
    majority_baseline: Annotated[float | None, Share | None] = None
    #: of the test images with a mask: their number, the number of class-activation maps with their peak inside it, and
    #: the masks' mean share of the image (chance); both numbers of the mistakes; None: the backbone has no such map
    explained: Annotated[dict[str, Any] | None, Explained | None] = field(default_factory=dict)
    #: a picture's file -> what the report says of it: a title and a sentence; without a title: why it cannot be drawn
    captions: Annotated[dict[str, list[str]], dict[str, list[str]]] = field(default_factory=dict)
    #: split -> class -> images
    counts: Annotated[dict[str, dict[str, int]], dict[str, dict[str, Count]]] = field(default_factory=dict)
    parameters: Annotated[dict[str, int], dict[str, Count]] = field(default_factory=dict)  #: total and trained
    features: list[str] = field(default_factory=list)  #: splits whose frozen stages were computed once, not each epoch
    val_is_test: bool = False  #: validation is the test images: its figures are too good
    #: what judged the images that validate where learnt ones do: "inner folds", or "the model itself and inner folds"
    #: where images of val are not learnt; empty: the model itself judged those of val, or of test
    validates_by: str = ""
    drawn_from_all: bool = False  #: a holdout or folds are of all images, not of those for testing alone
    #: a published figure of this attempt: accuracy, and the split it is of
    reported: Annotated[dict[str, Any] | None, Reported | None] = None
    epochs: Annotated[int, Count] = 0  #: epochs trained
    best_epoch: Annotated[int | None, Count | None] = None  #: whose weights best.ckpt holds, counted from 1
    first_epoch: Annotated[int, Count] = 1  #: that ``best_epoch`` and history.csv count from; older files lack it: 0
    resumed: int = 0  #: how often it was interrupted and resumed
    seconds: Annotated[float, Size] = 0.0  #: training and validation epochs
    luck: bool = True  #: whether another seed gives another model
    idle: list[str] | None = None  #: keys of config.yaml that have no effect on it; None: an older file
    by_default: list[str] = field(default_factory=list)  #: options of the method that nobody gave: config.yaml has them
    problem: str = ""  #: what was learnt
    method: str = ""  #: how
    #: of anomaly scores: value, rule, and map, the threshold of a map's pixel; of a one-class run also images and folds
    #: (how many chose it), asked (a rate of false rejects) and kept (whether the interval of the test's rate holds it)
    threshold: Annotated[dict[str, Any] | None, Threshold | None] = None
    #: of a classifier's sets: least, alpha and held_out, as in ``Model.sets``, by class
    sets: Annotated[dict[str, Any] | None, dict[str, dict[str, Size]] | None] = None
    fit_seconds: float | None = None  #: training, or whatever else learns; not of classifiers
    seconds_per_image: float | None = None  #: to score one image
    peak_mib: float | None = None  #: memory of the process while it fitted and scored; on a GPU, of the device
    decided: dict[str, str] = field(default_factory=dict)  #: what the method decided by itself, in words, by name
    startup_seconds: float = 0.0  #: everything before training or fitting
    total_seconds: float | None = None  #: from its start to its end, judging included; of a resumed run its last part
    machine: str | None = None  #: the processor, the cores that it might use, and the GPU
    device: str | None = None
    precision: str | None = None
    threads: Annotated[int | None, Count | None] = None  #: of the processor: with others, sums round differently
    #: why a race left it out: than (the attempt that it is worse than), metric, lead, p, after (how many of) folds ...
    dropped: Annotated[dict[str, Any] | None, Dropped | None] = None
    error: str | None = None  #: of a failed run
    exit_status: int = 0  #: of a failed run: 1, or 2 for a user's mistake; a killed one could not record it
    warnings: list[str] = field(default_factory=list)
    typed: list[str] = field(default_factory=list)  #: key=value as the command line had them; older files lack it
    versions: dict[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    paths: dict[str, str] = field(default_factory=dict)  #: absolute, by the key that config.yaml has as it was typed
    digests: dict[str, str] = field(default_factory=dict)  #: of those files that the model begins with

    @property
    def completed(self) -> bool:
        """Tell whether the run ended well."""
        return self.status == "completed"

    @property
    def untested(self) -> bool:
        """Tell whether it has no test images, as its model is to be kept."""
        return not sum(self.counts.get("test", {"": 1}).values())

    @property
    def running(self) -> bool:
        """Tell whether a process works on it."""
        return self.status == "running"

    @property
    def left_out(self) -> bool:
        """Tell whether a race dropped its attempt before it began."""
        return self.status == "dropped"

    @property
    def damaged(self) -> bool:
        """Tell whether a comparison set it aside, as ``error`` says of which file; no result.json says so itself."""
        return self.status == "damaged"

    def set_aside(self, error: object) -> RunResult:
        """Return a copy of the status ``damaged``, of which no figure counts; ``error`` says of which file."""
        return replace(self, status="damaged", error=str(error), metrics={})

    @property
    def failed(self) -> bool:
        """Tell whether it was begun, and neither completed nor still goes on; one that is damaged has failed."""
        return not (self.completed or self.running or self.left_out)

    @property
    def interrupted(self) -> bool:
        """Tell whether it was ended from outside: killed (nothing was recorded), Ctrl-C, SIGTERM, or a full disk."""
        stops = (KeyboardInterrupt.__name__, DiskFullError.__name__)
        ended = not (self.completed or self.left_out)
        return ended and (self.error is None or self.error.startswith(stops))

    @property
    def stopped(self) -> bool:
        """Tell whether it was interrupted and no process works on it."""
        return self.interrupted and not self.running

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Write into result.json how the run ends: completed, or failed with its first error."""
        self.save()
        try:
            yield
            self.status, self.exit_status = "completed", 0
            self.save()
        except BaseException as error:
            full = disk_full(error, Path(self.run_dir))
            self.status, self.error = "failed", one_line(full or error)
            self.exit_status = getattr(full or error, "status", 1)
            with suppress(OSError, LabError):  # the first error counts, not that it cannot be written down
                self.save()
            if full is not None and full is not error:
                raise full from error
            raise

    def save(self) -> None:
        """Write result.json into ``run_dir``; into the file itself where a full disk has no room for a new one."""
        path, text = Path(self.run_dir) / RESULT, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        try:
            write_whole(path, text)
        except DiskFullError:
            # The blocks that the file has already: one of st_blocks, which Windows lacks, is 512 bytes.
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
        """Return the run of a result.json; ``run_dir`` becomes the directory where it lies now.

        Raises:
            LabError: the file is missing, not JSON, or lacks a field that every result has.
        """
        path = file_of(run_dir, RESULT)
        if path is None:
            raise LabError(f"{Path(run_dir, RESULT)} is missing or damaged: run that attempt again or remove it")
        used = in_use(path.parent)  # before it is read as well: the run may end in between
        raw = read_json(path)
        try:
            known = {f.name for f in fields(cls)}
            run = cls(**{k: v for k, v in raw.items() if k in known} | {"run_dir": str(run_dir), "first_epoch": 1})
            if wrong := misfit(raw, cls) or _impossible(run):
                raise TypeError(wrong)
        except (TypeError, AttributeError) as error:
            raise LabError(f"{path} is missing or damaged ({error}): run that attempt again or remove it") from error
        if run.best_epoch is not None:  # older files count from 0
            run.best_epoch += 1 - raw.get("first_epoch", 0)
        if not run.completed and (used or in_use(path.parent)):
            run.status = "running"
        return run


def _impossible(run: RunResult) -> str | None:
    """Return what cannot be true of a run although its fields have the right types; None: everything can."""
    if run.status not in ("completed", "failed", "running", "dropped"):
        return f"status is {run.status!r}"
    if run.left_out and (run.dropped is None or not 0 < run.dropped["after"] < run.dropped["folds"]):
        return "it was dropped, and does not say by what"
    if not (run.problem and run.method):
        return "it has no problem" if run.method else "it has no method"
    if len(set(run.classes)) < len(run.classes):
        return "classes name one twice"
    if not run.completed:
        return None
    for split, metrics in run.metrics.items():
        if any(len(bounds) != 2 for bounds in metrics.get("intervals", {}).values() if bounds is not None):
            return f"metrics.{split} has an interval without two bounds"
    if run.metrics.get("test", {}).get("images") is None and not run.untested:
        return "metrics.test has no images"
    if any(len(caption) != 2 for caption in run.captions.values()):
        return "captions has one that is not a title and a sentence"
    if run.explained and (unsaid := Explained.__annotations__.keys() - run.explained.keys()):
        return f"explained has no {min(unsaid)}"
    return None


def from_one(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a history.csv with epochs counted from 1; older files count from 0."""
    late = int(bool(history) and int(history[0]["epoch"]) == 0)
    return [{**row, "epoch": int(row["epoch"]) + late} for row in history]


def one_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message, and of the one while which it was raised."""
    line = f"{type(error).__name__}: {error}".split("\n")[0].rstrip(": ")
    first = error.__context__
    if not isinstance(error, Exception) or isinstance(error, LabError) or first is None or error.__suppress_context__:
        return line
    return f"{line} (after {one_line(first)})"  # a library that cleans up after an error can fail in turn, and hide it


def find_runs(directory: str | os.PathLike[str]) -> list[RunResult]:
    """Return every run at or below a directory, in the order in which they started.

    Raises:
        LabError: a run's result.json is missing or damaged.
    """
    runs = [RunResult.load(folder) for folder in run_folders(directory)]
    return sorted(runs, key=lambda run: (run.started, run.run_dir))


def stopped_run(run_dir: str | os.PathLike[str], ours: bool = False) -> RunResult | None:
    """Return the run of a directory if it was stopped, so that ``resume=true`` goes on with it; else None.

    Args:
        ours: this process is the one that works in the directory.
    """
    with suppress(LabError):  # a damaged one goes on with nothing
        run = RunResult.load(run_dir)
        return run if run.stopped or (ours and run.interrupted) else None
    return None


def run_folders(directory: str | os.PathLike[str]) -> set[Path]:
    """Return the directories of every run at or below a directory."""
    folders = {path.parent for name in (RESULT, SAMPLES) for path in Path(directory).rglob(name)}
    return {folder for folder in folders if not (folder / OPERATING).exists()}


def category_of(data: Any) -> str:
    """Return the name of a product whose images nobody has read: the settings' category, or else their folder's name.

    Args:
        data: a section of settings with ``category`` and ``root``.
    """
    return str(data.category or Path(str(data.root)).name)


def path_of_run(run_dir: Path, key: str, typed: str) -> str:
    """Return a path among a run's settings: the absolute one that it recorded, if it still exists, else as typed."""
    absolute = RunResult.load(run_dir).paths.get(key) if file_of(run_dir, RESULT) else None
    return absolute if absolute is not None and Path(absolute).exists() else typed


def flatten(values: Mapping[str, Any], prefix: str = "", depth: int = 3) -> dict[str, str]:
    """Return a configuration as dotted keys and texts.

    Values below section, key and name (the arguments of a transform) stay together in one text.
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
    if isinstance(value, list | tuple):  # as it is typed
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else redacted(str(value))


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file, text as UTF-8: complete or not at all, even if the process is killed.

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
    """Remove the unfinished files that killed processes left in a folder; this process holds its lock."""
    for name in names:
        for path in folder.glob(f"{name}*.tmp"):
            path.unlink(missing_ok=True)


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as UTF-8 CSV with a header; None becomes an empty cell.

    A text that a spreadsheet would take for a formula gets an apostrophe in front, which ``read_csv`` removes.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(columns))
    writer.writeheader()
    writer.writerows({key: _as_text(value) for key, value in row.items()} for row in rows)
    write_whole(path, text.getvalue())


def append_csv(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a CSV, which begins with its columns: whole, and on the disk when this returns.

    Raises:
        DiskFullError: there is no room for it; the file is as it was.
    """
    text, before = io.StringIO(), path.stat().st_size if path.exists() else 0
    writer = csv.DictWriter(text, fieldnames=list(row))
    if not before:
        writer.writeheader()
    writer.writerow({key: _as_text(value) for key, value in row.items()})
    data = text.getvalue().encode()
    with path.open("ab", buffering=0) as file:
        try:
            if file.write(data) < len(data):  # files may grow no further
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(before)
            raise disk_full(error, path, len(data)) or error from error


def read_csv(path: str | os.PathLike[str], delimiter: str = ",") -> list[dict[str, str]]:
    """Return the rows of a CSV with a header, one dict per row; an Excel byte-order mark is ignored.

    Args:
        delimiter: what parts the values of a row.

    Raises:
        ValueError: it is no UTF-8, or has more than ROWS rows.
        csv.Error: it is no CSV.
    """
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        rows = [
            {k: v[1:] if isinstance(v, str) and _QUOTED.match(v) else v for k, v in row.items()}
            for row in islice(csv.DictReader(file, delimiter=delimiter), ROWS + 1)
        ]
    if len(rows) > ROWS:
        raise ValueError(f"it has more than {ROWS:,} rows")
    return rows


def table_of(run_dir: str | os.PathLike[str], name: str, *columns: str) -> list[dict[str, str]] | None:
    """Return the rows of a CSV in a run's directory; None where there is none.

    Raises:
        LabError: it is damaged: no CSV, no rows, or a row without one of the ``columns``.
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
