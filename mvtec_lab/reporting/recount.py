"""A run's figures counted again from its predictions: a result.json that says something else is not believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.anomaly import PIXEL_METRICS, PixelScores, image_figures
from mvtec_lab.evaluation.metrics import classification_metrics, majority_baseline
from mvtec_lab.foreign import damaged, file_of
from mvtec_lab.results import PIXELS, PREDICTIONS, RESULT, RunResult

Rows = Sequence[Mapping[str, str]]

EXACT = 1e-6  # both are counted from the same decisions; sums in another order differ in the last digits
# Probabilities are written with six digits, and pixels are summed in single precision.
TOLERANCE = {"loss": 1e-4, **dict.fromkeys(PIXEL_METRICS, 1e-3)}


def require_own_figures(run: RunResult, rows: Rows) -> None:
    """Compare what result.json says with what the rows of predictions.csv give, split by split where there are rows.

    Intervals and the calibration error, which hang on draws and on bins, are left out, as is what only one of them has.

    Raises:
        LabError: they differ.
    """
    for split in ("test", "val"):
        of_split = [row for row in rows if row["split"] == split]
        said = run.metrics.get(split)
        if not of_split or not said:
            continue
        counted = _of_scores(run, of_split) if run.method else _of_classes(run, of_split)
        if split == "test":
            said = {**said, "majority_baseline": run.majority_baseline}
            if run.method:
                _add(counted, _of_pixels(run))
        if different := _different(said, counted, split):
            name, value, again = different
            source = PIXELS if "pixel" in name else PREDICTIONS
            raise LabError(
                f"{Path(run.run_dir, RESULT)} says {name} {value:g}, its {source} gives {again:g}: one of them was "
                "changed: get that run again, or leave it out"
            )


def _of_classes(run: RunResult, rows: Rows) -> dict[str, Any]:
    index = {name: i for i, name in enumerate(run.classes)}
    labels, predictions = (np.array([index[row[key]] for row in rows]) for key in ("label", "prediction"))
    train = run.counts.get("train", {})
    counts = list(train.values()) if list(train) == run.classes else None
    counted = classification_metrics(labels, np.eye(len(index))[predictions], run.classes, counts)
    del counted["loss"], counted["calibration_error"]  # of probabilities
    if counts is not None:
        counted["majority_baseline"] = majority_baseline(np.repeat(np.arange(len(counts)), counts), labels)
    if f"prob_{run.classes[0]}" in rows[0]:
        truth = np.array([float(row[f"prob_{row['label']}"]) for row in rows])
        if not ((truth >= 0) & (truth <= 1 + 1e-5)).all():  # NaN is no probability either
            raise ValueError("a probability is none")
        counted["loss"] = float(-np.log(truth.clip(np.finfo(np.float64).eps)).mean())
    return counted


def _of_scores(run: RunResult, rows: Rows) -> dict[str, Any]:
    assert run.threshold is not None
    scores = np.array([float(row["score"]) for row in rows], dtype=np.float32)  # which they were when they were judged
    counted = image_figures(scores, [row["type"] for row in rows], run.threshold["value"])
    good = float(np.mean([row["type"] == "good" for row in rows]))
    return {**counted, "majority_baseline": good}


def _of_pixels(run: RunResult) -> dict[str, Any]:
    path = file_of(run.run_dir, PIXELS)
    if path is None:
        return {}
    try:
        found = PixelScores.load(path).metrics()
    except Exception as error:  # NumPy and zipfile answer damage in a dozen ways
        raise damaged(path, error) from error
    return {key: found[key] for key in (*PIXEL_METRICS, "by_type")}


def _add(counted: dict[str, Any], further: Mapping[str, Any]) -> None:
    for key, value in further.items():
        if key == "by_type":
            for kind, values in value.items():
                counted["by_type"].setdefault(kind, {}).update(values)
        else:
            counted[key] = value


def _different(said: Any, counted: Any, name: str) -> tuple[str, float, float] | None:
    """Return the first figure of which both say something, and not the same: its name and both values."""
    if isinstance(counted, Mapping):
        inner = [(key, value) for key, value in counted.items() if isinstance(said, Mapping) and key in said]
        found = (_different(said[key], value, f"{name} {key}") for key, value in inner)
        return next((each for each in found if each), None)
    if said is None or counted is None:
        return None
    within = TOLERANCE.get(name.rpartition(" ")[2], EXACT)
    return None if abs(said - counted) <= within * max(1.0, abs(counted)) else (name, said, counted)
