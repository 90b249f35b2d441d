"""Runs as they are compared: grouped by attempt, each with its test predictions."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.foreign import damaged, file_of, read_yaml
from mvtec_lab.knobs import changing
from mvtec_lab.locks import fcntl
from mvtec_lab.reporting.recount import require_own_figures
from mvtec_lab.results import CONFIG, PREDICTIONS, RESULT, RunResult, find_runs, flatten, table_of

# Tell runs of one attempt apart, not attempts: which repeat, and where and how it ran.
RUN_KEYS = changing(Config, "run", "nothing")

# One-class methods that draw nothing, for runs older than result.json's ``luck``: the attribute ``draws`` of theirs.
DRAWS_NOTHING = ("patchcore", "spade", "nearest", "gaussian", "ocsvm")

Settings = dict[str, str]  # dotted key -> value as text
TestSet = tuple[str, ...]  # the images of a run's test split, in their order


def load_runs(*directories: str | os.PathLike[str]) -> list[RunResult]:
    """Every run at or below the directories, each once, in the order in which they started.

    Raises:
        LabError: a directory without a run, or a result.json that is missing or damaged.
    """
    runs: dict[Path, RunResult] = {}
    for directory in directories:
        found = find_runs(directory)
        if not found:
            raise LabError(
                f"{directory} holds no run (no {RESULT} at or below it): give the directory of a sweep or a run"
            )
        runs |= {Path(run.run_dir).resolve(): run for run in found}
    return sorted(runs.values(), key=lambda run: (run.started, run.run_dir))


def by_attempt(runs: Iterable[RunResult], settings: Mapping[str, Settings]) -> dict[str, list[RunResult]]:
    """Group runs by their attempt, in first-seen order.

    Runs of one attempt that differ in more than seed, fold and place are no repeats of each other: they are groups of
    their own, named by what differs, ``base optimizer.lr=0.1``. ``settings`` has each run's, by its directory.
    """
    runs = list(runs)
    groups: dict[str, list[RunResult]] = {}
    for run in runs:
        peers = [settings[r.run_dir] for r in runs if r.attempt == run.attempt and settings[r.run_dir]]
        own = settings[run.run_dir]
        varied = [k for k in own if k not in RUN_KEYS and len({peer.get(k) for peer in peers}) > 1]
        groups.setdefault(" ".join([run.attempt, *(f"{k}={own[k]}" for k in varied)]), []).append(run)
    return groups


def settings_of(run: RunResult) -> Settings:
    """A run's config.yaml as dotted keys and texts, with today's defaults for keys younger than the run; empty where it
    has none.

    Raises:
        LabError: it is damaged.
    """
    path = file_of(run.run_dir, CONFIG)
    if path is None:
        return {}
    settings = flatten(asdict(Config())) | flatten(read_yaml(path))
    if run.completed and settings["model.method"] != (run.method or "classifier"):
        raise damaged(path, f"model.method is {settings['model.method']}, in {RESULT} {run.method or 'classifier'}")
    return settings


@dataclass(frozen=True)
class Tested:
    """The test predictions of one run: of N images their names, class indices and predicted ones."""

    run: RunResult
    images: TestSet  # data set, category and path; sorted, as the arrays are
    labels: np.ndarray
    predictions: np.ndarray
    scores: np.ndarray  # of a one-class method; empty of a classifier

    @property
    def right(self) -> np.ndarray:
        return (self.labels == self.predictions).astype(np.float64)


def tested(run: RunResult) -> Tested | None:
    """A run's test predictions; None where it failed or left none.

    Raises:
        LabError: its predictions.csv is damaged, or gives other figures than its result.json says.
    """
    path = Path(run.run_dir) / PREDICTIONS
    all_rows = predictions_of(run)
    if all_rows is None:
        return None
    index = {name: i for i, name in enumerate(run.classes)}
    try:
        rows = sorted((r for r in all_rows if r["split"] == "test"), key=lambda r: r["path"])
        labels, predictions = (np.array([index[row[key]] for row in rows]) for key in ("label", "prediction"))
        images = tuple(f"{run.data}/{run.category}/{row['path']}" for row in rows)
        scores = np.array([float(row["score"]) for row in rows]) if run.method else np.zeros(0)
        for row in rows:
            for key in (key for key in row if key == "score" or (key or "").startswith("prob_")):
                if not np.isfinite(float(row[key])):
                    raise ValueError(f"{key} of {row['path']} is {row[key]}")
    except KeyError as error:
        raise damaged(path, f"no column or class {error}") from error
    except (TypeError, ValueError) as error:
        raise damaged(path, error) from error
    if not rows:
        raise damaged(path, "no test image")
    try:
        require_own_figures(run, all_rows)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from error
    return Tested(run, images, labels, predictions, scores)


def has_luck(run: RunResult) -> bool:
    """Tell whether another seed would have given another model."""
    if run.luck is not None:
        return run.luck
    fixed = run.method in DRAWS_NOTHING if run.method else run.parameters.get("trained") == 0
    return run.weights == "random" or not fixed


def predictions_of(run: RunResult) -> list[dict[str, str]] | None:
    """Return the rows of a completed run's predictions.csv; None where it left none.

    Raises:
        LabError: it is damaged.
    """
    if not run.completed:
        return None
    columns = ("split", "path", "label", "prediction", *(("type", "score") if run.method else ()))
    rows, path = table_of(run.run_dir, PREDICTIONS, *columns), Path(run.run_dir, PREDICTIONS)
    seen: set[tuple[str, str]] = set()
    for line, row in enumerate(rows or (), start=2):
        if row["split"] == "test" and (row["split"], row["path"]) in seen:
            raise damaged(path, f"line {line} names {row['path']} again")
        seen.add((row["split"], row["path"]))
        if run.method and not _finite(row["score"]):
            raise damaged(path, f"line {line} has the score {row['score']!r}")
    return rows


def _finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def failure(run: RunResult) -> str:
    """Why a run failed, on one line."""
    ended = "ended from outside" if fcntl else "ended from outside, or is still running"
    return " ".join((run.error or f"no reason recorded: the process was {ended}").split())
