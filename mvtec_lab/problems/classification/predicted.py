"""Write a run's directory from predictions that something else than the lab made, so that they can be compared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.metrics import classification_metrics, majority_baseline
from mvtec_lab.evaluation.specs import add_means
from mvtec_lab.results import FILES, PREDICTIONS, RunResult, write_csv

PROBLEM, METHOD = "classification", "own"
ROUNDED = 1e-3  # how far the probabilities of an image may sum to something else than 1: half precision does


def write_run(
    directory: str | os.PathLike[str],
    attempt: str,
    data: MVTecDataModule,
    probabilities: Mapping[str, npt.ArrayLike],
    *,
    name: str = "folder",
    seed: int = 0,
) -> RunResult:
    """Write predictions of your own as the directory of a run, and return the run, as ``compare`` takes it.

    It has result.json and predictions.csv alone: no configuration, no checkpoint.

    Args:
        directory: of the run: a new one.
        attempt: the name in tables and verdict; several seeds or folds of one attempt share it.
        data: after ``setup``: what the predictions are of.
        probabilities: by split, ``test`` and perhaps ``val``, of each class [N, C], in the order of ``data.classes``
            and of ``data.of_split(split)``, which is that of its loaders. Without ``val`` nothing can be chosen by
            validation. If validation is the test images, ``test`` counts as both.
        name: ``data.name`` of the lab's runs that these are compared with: mvtec, sample, folder ...
        seed: of the training.

    Raises:
        LabError: the directory holds a run, ``test`` is missing, a split has no images, or what is given are no
            probabilities of its images.
    """
    folder = Path(directory)
    if present := next((file for file in FILES if (folder / file).exists()), None):
        raise LabError(f"{folder} holds a run, its {present}: give another directory")
    if data.frame.tile is not None:
        raise LabError(f"data.tile={data.frame.tile}: predictions are of whole images: leave the tiles out")
    if "test" not in probabilities:
        raise LabError("probabilities has no test: an attempt is judged by its predictions of the test images")
    given = {**probabilities, "val": probabilities["test"]} if data.val_is_test else probabilities
    values = {split: _checked(split, array, data) for split, array in given.items()}
    trained = data.counts()["train"]
    rows: list[dict[str, Any]] = []
    metrics: dict[str, dict[str, Any]] = {}
    for split in sorted(values, reverse=True):  # val before test, as in the lab's own runs
        samples, shares = data.of_split(split), values[split]
        labels = np.array([data.classes.index(sample.label) for sample in samples])
        metrics[split] = classification_metrics(labels, shares, data.classes, list(trained.values()))
        rows += [
            {
                "split": split,
                "path": sample.path,
                "label": sample.label,
                "prediction": data.classes[share.argmax()],
                **{f"prob_{kind}": f"{p:.6g}" for kind, p in zip(data.classes, share, strict=True)},
            }
            for sample, share in zip(samples, shares, strict=True)
        ]
    add_means(PROBLEM, metrics, rows)
    tested = [data.classes.index(sample.label) for sample in data.of_split("test")]
    learnt = np.repeat(np.arange(len(data.classes)), list(trained.values()))
    run = RunResult(
        attempt=attempt,
        seed=seed,
        fold=data.split.fold if data.split.protocol == "kfold" else None,
        data=name,
        category=data.folder.name,
        problem=PROBLEM,
        method=METHOD,
        backbone="none",
        classes=list(data.classes),
        metrics=metrics,
        majority_baseline=majority_baseline(learnt, tested) if len(learnt) else None,
        counts=data.counts(),
        val_is_test=data.val_is_test,
        drawn_from_all=data.drawn_from_all,
        warnings=list(data.warnings),
        status="completed",
        run_dir=str(folder),
        started=datetime.now(timezone.utc).isoformat(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / PREDICTIONS, rows, list(rows[0]))
    run.save()
    return run


def _checked(split: str, given: npt.ArrayLike, data: MVTecDataModule) -> np.ndarray:
    """Return the probabilities of a split's images, summing to 1."""
    if split not in ("val", "test"):
        raise LabError(f"probabilities has {split!r}: give those of test, and of val")
    values, wanted = np.asarray(given, dtype=np.float64), (len(data.of_split(split)), len(data.classes))
    if not wanted[0]:
        raise LabError(f"probabilities has {split!r}, which has no images: leave it out")
    if values.shape != wanted:
        raise LabError(
            f"probabilities of {split} are {list(values.shape)}, expected {list(wanted)}: one row per image of "
            f"data.of_split({split!r}), one column per class of data.classes"
        )
    sums = values.sum(axis=1, keepdims=True)
    if not (np.isfinite(values).all() and (values >= 0).all() and (abs(sums - 1) <= ROUNDED).all()):
        raise LabError(f"probabilities of {split} are none: give the softmax of the logits, rows that sum to 1")
    return values / sums
