"""The test predictions of one run, as arrays that metrics are computed from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mvtec_lab.evaluation.anomaly import PixelScores
from mvtec_lab.foreign import file_of
from mvtec_lab.results import PIXELS, RunResult

Rows = Sequence[Mapping[str, str]]
TestSet = tuple[str, ...]  # the names of a run's test images, sorted


@dataclass(frozen=True, eq=False)
class Tested:
    """Hold the test predictions of one run.

    Args:
        run: the run.
        images: data set, category and path of its N test images, sorted.
        rows: the rows of predictions.csv of these images, in that order.
        classes: the classes that label and prediction name; empty where they are none.
    """

    run: RunResult
    images: TestSet
    rows: Rows
    classes: Sequence[str] = ()

    @cached_property
    def labels(self) -> np.ndarray:
        """Return the class indices of the images, [N]."""
        return self._indices("label")

    @cached_property
    def predictions(self) -> np.ndarray:
        """Return the predicted class indices, [N]."""
        return self._indices("prediction")

    @cached_property
    def scores(self) -> np.ndarray:
        """Return the anomaly scores, [N]."""
        return np.array([float(row["score"]) for row in self.rows])

    @cached_property
    def right(self) -> np.ndarray:
        """Return 1 for each image whose class was predicted, 0 for the others, [N]."""
        return (self.labels == self.predictions).astype(np.float64)

    @cached_property
    def contributions(self) -> tuple[list[str], np.ndarray, np.ndarray] | None:
        """Return the names of the images in pixels.npz, and their ``PixelScores.contributions``; None without it."""
        path = file_of(self.run.run_dir, PIXELS)
        if path is None:
            return None
        scores = PixelScores.load(path)  # which was found to be whole when the run's metrics were recounted
        return sorted(scores.names), *scores.contributions()

    def _indices(self, column: str) -> np.ndarray:
        index = {name: i for i, name in enumerate(self.classes)}
        return np.array([index[row[column]] for row in self.rows])


def means_of_images(runs: Collection[Tested], values: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the mean over the runs of the values of each image that counts; NaN says that it does not."""
    of_image: dict[str, list[float]] = {}
    for tested, of_run in zip(runs, values, strict=True):
        for image, value in zip(tested.images, of_run, strict=True):
            if np.isnan(value):
                continue
            of_image.setdefault(image, []).append(value)
    return {image: float(np.mean(each)) for image, each in of_image.items()}


def confusions(runs: Collection[Tested]) -> np.ndarray | None:
    """Return the predictions of each image, over all runs: counts [N, C, C], rows truth.

    None without classes or images, or where the runs differ in their classes.
    """
    classes = next((tested.classes for tested in runs), ())
    if not classes or any(tested.classes != classes for tested in runs):
        return None
    place: dict[str, int] = {}
    for image in (image for tested in runs for image in tested.images):
        place.setdefault(image, len(place))
    counts = np.zeros((len(place), len(classes), len(classes)))
    for tested in runs:
        images = np.array([place[image] for image in tested.images])
        np.add.at(counts, (images, tested.labels, tested.predictions), 1)
    return counts
