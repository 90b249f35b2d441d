"""The predictions of a classifier on the images of one split, with their rows and picture sheets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.engine.pictures import SHOWN, sheet
from mvtec_lab.problems.classification.sets import set_columns


@dataclass
class Outcome:
    """Hold the predictions of one split: ``labels`` [N], ``probabilities`` [N, C], in the order of ``dataset``.

    ``sets`` is the model's, of the test images; validation's have chosen them.
    """

    split: str
    dataset: MVTecDataset
    labels: np.ndarray
    probabilities: np.ndarray
    metrics: dict[str, Any]
    sets: Mapping[str, Sequence[float]] | None = None

    @property
    def predictions(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of predictions.csv."""
        classes = self.dataset.classes
        return [
            {
                "split": self.split,
                "path": sample.path,
                "label": sample.label,
                "prediction": classes[prediction],
                **{f"prob_{name}": f"{p:.6g}" for name, p in zip(classes, probabilities, strict=True)},
                **of_set,
            }
            for sample, prediction, probabilities, of_set in zip(
                self.dataset.samples,
                self.predictions,
                self.probabilities,
                set_columns(self.sets, classes, self.probabilities),
                strict=True,
            )
        ]

    def order(self) -> np.ndarray:
        """Return the indices of the images, the worst mistakes first: by the probability of the true class."""
        of_truth = self.probabilities[np.arange(len(self.labels)), self.labels]
        return np.lexsort((of_truth, self.predictions == self.labels))

    def caption(self, place: int) -> str:
        """Say what an image is, and what it was taken for."""
        classes, label, prediction = self.dataset.classes, self.labels[place], self.predictions[place]
        if prediction == label:
            return classes[label]
        return f"{classes[label]}, taken for {classes[prediction]} ({self.probabilities[place].max():.2f})"

    @cached_property
    def page(self) -> np.ndarray:
        """Draw the first images of that order on a sheet, [H, W, 3] uint8."""
        shown, right = self.order()[:SHOWN], self.predictions == self.labels
        pictures = [self.dataset.shown(i) for i in shown]
        files = [self.dataset.samples[i].path for i in shown]
        return sheet(pictures, [self.caption(i) for i in shown], [bool(right[i]) for i in shown], files=files)
