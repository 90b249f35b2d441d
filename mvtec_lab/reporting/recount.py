"""Recount a run's metrics from its predictions: a result.json that says something else is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.anomaly import PIXEL_METRICS, PixelScores, image_figures
from mvtec_lab.evaluation.metrics import classification_metrics, majority_baseline
from mvtec_lab.evaluation.proper import log_losses
from mvtec_lab.evaluation.specs import METRICS, columns_of, metrics_of
from mvtec_lab.evaluation.tested import Rows
from mvtec_lab.foreign import damaged, file_of
from mvtec_lab.results import GOOD, PIXELS, PREDICTIONS, RESULT, RunResult

EXACT = 1e-6  # both are counted from the same decisions; sums in another order differ in the last digits
ROUNDED = 1e-4  # of the loss: probabilities are written with six digits


def require_own_metrics(run: RunResult, rows: Rows) -> None:
    """Compare the metrics in result.json with those of the rows of predictions.csv, in each split that has rows.

    Intervals and the calibration error depend on draws and on bins, and are not compared.

    Raises:
        LabError: they differ.
        ValueError: a cell is no value that the metrics allow.
    """
    for split in ("test", "val"):
        of_split = [row for row in rows if row["split"] == split]
        stated = run.metrics.get(split)
        if not of_split or not stated:
            continue
        columns = columns_of(run)
        counted = _of_scores(run, of_split) if "score" in columns else {}
        counted |= _of_classes(run, of_split) if "prediction" in columns and not counted else {}
        for metric in (m for m in metrics_of(run.problem) if m.of_images):
            counted[metric.key] = metric.mean_of(of_split)
            if counted[metric.key] is None and stated.get(metric.key) is not None:
                raise ValueError(f"no image has a value of {metric.title}")
        counted |= {m.key: count(of_split) for m in metrics_of(run.problem) if (count := m.inference.of_rows)}
        if split == "test":
            stated = {**stated, "majority_baseline": run.majority_baseline}
            _add(counted, _of_pixels(run))
        if different := _different(stated, counted, split):
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
    del counted["loss"], counted["calibration_error"], counted["aurc"]  # of probabilities
    if counts is not None:
        counted["majority_baseline"] = majority_baseline(np.repeat(np.arange(len(counts)), counts), labels)
    if f"prob_{run.classes[0]}" in rows[0]:
        probabilities = np.array([[float(row[f"prob_{name}"]) for name in run.classes] for row in rows])
        if not ((probabilities >= 0) & (probabilities <= 1 + 1e-5)).all():  # NaN is no probability either
            raise ValueError("a probability lies outside [0, 1]")
        counted["loss"] = float(log_losses(labels, probabilities).mean())
    return counted


def _of_scores(run: RunResult, rows: Rows) -> dict[str, Any]:
    if run.threshold is None:
        raise ValueError(f"it has scores, and {RESULT} no threshold")
    scores = np.array([float(row["score"]) for row in rows], dtype=np.float32)  # the precision of the run
    counted = image_figures(scores, [row["type"] for row in rows], run.threshold["value"])
    good = float(np.mean([row["type"] == GOOD for row in rows]))
    return {**counted, "majority_baseline": good}


def _of_pixels(run: RunResult) -> dict[str, Any]:
    path = file_of(run.run_dir, PIXELS)
    if path is None:
        return {}
    try:
        metrics = PixelScores.load(path).metrics()
    except Exception as error:  # NumPy and zipfile answer damage in a dozen ways
        raise damaged(path, error) from error
    return {key: metrics[key] for key in (*PIXEL_METRICS, "by_type")}


def _add(counted: dict[str, Any], further: Mapping[str, Any]) -> None:
    for kind, values in further.get("by_type", {}).items():
        counted.setdefault("by_type", {}).setdefault(kind, {}).update(values)
    counted.update({key: value for key, value in further.items() if key != "by_type"})


def _different(stated: Any, counted: Any, name: str) -> tuple[str, float, float] | None:
    """Return the name and both values of the first metric that both have with different values; None: all agree."""
    if isinstance(counted, Mapping):
        inner = [(key, value) for key, value in counted.items() if isinstance(stated, Mapping) and key in stated]
        differences = (_different(stated[key], value, f"{name} {key}") for key, value in inner)
        return next((difference for difference in differences if difference), None)
    if stated is None or counted is None:
        return None
    key = name.rpartition(" ")[2]
    within = ROUNDED if key == "loss" else METRICS[key].inference.tolerance if key in METRICS else EXACT
    return None if abs(stated - counted) <= within * max(1.0, abs(counted)) else (name, stated, counted)
