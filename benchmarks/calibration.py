"""Measure which calibration of class probabilities helps, on the cross-validated runs of a sweep.

    python -m benchmarks.calibration DIRECTORY ...

A fold's test images are calibrated by the test predictions of the other folds of the same repeat: like the predictions
of inner folds, they are of models that were trained on other images. With ``--val`` a fold is calibrated by its own
validation images, which are fewer, and chose the epoch.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

from mvtec_lab.evaluation.confidence import aurc, calibrate, fit_dirichlet, fit_temperature
from mvtec_lab.evaluation.metrics import classification_metrics
from mvtec_lab.reporting.runs import load_runs, predictions_of, settings_of
from mvtec_lab.results import RunResult

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # of Dirichlet calibration's regularisation, chosen by inner folds
INNER = 4
LEAST = 1e-7  # a probability; predictions.csv has six digits

Part = tuple[np.ndarray, np.ndarray]  # labels [N], log-probabilities [N, C]


def dirichlet(labels: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the calibration whose strength has the best likelihood in inner folds, drawn by class with seed 0."""
    rng, fold = np.random.default_rng(0), np.zeros(len(labels), dtype=int)
    for index in np.unique(labels):
        of_class = rng.permutation(np.flatnonzero(labels == index))
        fold[of_class] = np.arange(len(of_class)) % INNER

    def loss(strength: float) -> float:
        losses = []
        for inner in range(INNER):
            learnt = fit_dirichlet(labels[fold != inner], values[fold != inner], strength)
            tested = calibrate(values[fold == inner], *learnt)
            losses += list(-np.log(tested[np.arange(len(tested)), labels[fold == inner]].clip(LEAST)))
        return float(np.mean(losses))

    return fit_dirichlet(labels, values, min(STRENGTHS, key=loss))


CALIBRATIONS = {
    "none": lambda labels, values: (1.0,),
    "temperature": lambda labels, values: (1 / fit_temperature(labels, values),),
    "Dirichlet": dirichlet,
}


def folds_of(directories: list[str]) -> Iterator[tuple[str, list[dict[str, Part]]]]:
    """Yield an attempt and the predictions of its folds, ``val`` and ``test``, for each repeat."""
    repeats: dict[tuple[str, str], list[dict[str, Part]]] = defaultdict(list)
    for run in load_runs(*directories):
        if run.problem == "classification" and run.fold is not None and (rows := predictions_of(run)):
            parts = {split: _part([row for row in rows if row["split"] == split], run) for split in ("val", "test")}
            repeats[run.attempt, settings_of(run)["split.seed"]].append(parts)
    for (attempt, _), folds in repeats.items():
        if len(folds) > 2:
            yield attempt, folds


def _part(rows: list[dict[str, str]], run: RunResult) -> Part:
    labels = np.array([run.classes.index(row["label"]) for row in rows], dtype=int)
    values = np.array([[float(row[f"prob_{name}"]) for name in run.classes] for row in rows])
    return labels, np.log(values.clip(LEAST))


def measure(directories: list[str], val: bool = False) -> dict[tuple[str, str], list[float]]:
    """Return loss, Brier score, calibration error, AURC and accuracy by attempt and calibration.

    The calibration error and AURC are those of all folds together: of a dozen images they would be luck.
    """
    parts: dict[tuple[str, str], list[Part]] = defaultdict(list)
    for attempt, folds in folds_of(directories):
        for index, fold in enumerate(folds):
            labels, values = fold["test"]
            others = [other["test"] for place, other in enumerate(folds) if place != index]
            known = tuple(map(np.concatenate, zip(*([fold["val"]] if val else others), strict=True)))
            for name, fit in CALIBRATIONS.items():
                parts[attempt, name].append((labels, calibrate(values, *fit(*known))))
    rows = {}
    for key, of_folds in parts.items():
        labels, values = (np.concatenate(part) for part in zip(*of_folds, strict=True))
        metrics = classification_metrics(labels, values, [str(i) for i in range(values.shape[1])])
        brier = float(((values - np.eye(values.shape[1])[labels]) ** 2).sum(axis=1).mean())
        area = aurc(values.max(axis=1), values.argmax(axis=1) == labels)
        rows[key] = [metrics["loss"], brier, metrics["calibration_error"], area, metrics["accuracy"]]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", help="of sweeps with cv.folds")
    parser.add_argument("--val", action="store_true", help="calibrate a fold by its own validation images")
    given = parser.parse_args()
    table = Table("attempt", "calibration", "loss", "Brier", "calibration error", "AURC", "accuracy")
    for (attempt, name), figures in measure(given.directories, given.val).items():
        table.add_row(attempt, name, *(f"{figure:.3f}" for figure in figures))
    Console().print(table)


if __name__ == "__main__":
    main()
