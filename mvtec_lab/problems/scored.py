"""Turn scores and maps of images into metrics and rows of predictions, for problems that tell good from defect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.images import image_size
from mvtec_lab.engine.run import Run
from mvtec_lab.evaluation import segmentation
from mvtec_lab.evaluation.anomaly import PIXEL_METRICS, PixelScores, decision_intervals, image_figures, image_intervals
from mvtec_lab.results import DEFECT, GOOD, PIXELS

CLASSES = (GOOD, DEFECT)  # an image above the threshold is a defect; its type stands beside it


def two_classes(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Return the numbers of images of each split as good and defect, from those by class."""
    return {
        split: {GOOD: by_class.get(GOOD, 0), DEFECT: sum(n for name, n in by_class.items() if name != GOOD)}
        for split, by_class in counts.items()
    }


def called(rows: Sequence[Mapping[str, Any]], threshold: float | None) -> str:
    """Return how many of the predictions of new images call a defect, in a line."""
    defects = sum(row["prediction"] == DEFECT for row in rows)
    return f"{defects} of {len(rows)} called a {DEFECT}: score above the threshold {threshold:.4g}"


@dataclass
class Scored:
    """Hold images with their raw scores [N], and maps as the method gives them."""

    dataset: MVTecDataset
    scores: np.ndarray
    maps: list[np.ndarray] | None

    @property
    def kinds(self) -> list[str]:
        return [sample.label for sample in self.dataset.samples]

    @property
    def defect(self) -> np.ndarray:
        return np.array([kind != GOOD for kind in self.kinds], dtype=bool)

    def worst_first(self, value: float) -> np.ndarray:
        """Return the indices of the images: mistakes first, the farthest from the threshold first."""
        beyond = np.where(self.defect, self.scores - value, value - self.scores)
        return np.lexsort((beyond, (self.scores > value) == self.defect))


def figures(test: Scored, run: Run, value: float, rows: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return the metrics of images, pixels and masks at a threshold, with their intervals.

    Args:
        rows: of ``prediction_rows``, with the overlap of each mask; none: without the metrics of masks.
    """
    metrics = image_figures(test.scores, test.kinds, value)
    intervals: dict[str, Any] = image_intervals(test.scores, test.kinds)
    intervals |= decision_intervals(test.scores, test.kinds, value)
    if test.maps is not None and test.defect.any():
        of_pixels = _pixel_figures(test, run, intervals)
        for kind, values in of_pixels.pop("by_type", {}).items():
            metrics["by_type"][kind] |= values
        metrics |= of_pixels
    if not np.isnan(segmentation.ious(rows)).all():
        of_masks = segmentation.mask_figures(rows)
        for kind, values in of_masks.pop("by_type").items():
            metrics["by_type"][kind] |= values
        metrics |= of_masks
        intervals |= segmentation.mask_intervals(rows)
    metrics["intervals"] = intervals
    return metrics


def _pixel_figures(test: Scored, run: Run, intervals: dict[str, Any]) -> dict[str, Any]:
    """Return pixel metrics at the masks' resolution, and by_type; nothing, and a warning, without any mask."""
    assert test.maps is not None
    pixels = PixelScores(test.maps)
    for i, (sample, score_map) in enumerate(zip(test.dataset.samples, test.maps, strict=True)):
        width, height, _ = image_size(test.dataset.folder / sample.path)
        size = (height, width) if sample.label == GOOD else None
        pixels.add(sample.path, score_map, test.dataset.mask(i), sample.label, size)
    if len(pixels.missing) == test.defect.sum():
        run.warn("no defect has a mask: pixel metrics are left out")
        return {}
    pixels.save(run.run_dir / PIXELS)
    metrics = pixels.metrics()
    intervals |= pixels.intervals()
    if metrics["missing_masks"]:
        run.warn(f"{metrics['missing_masks']} defect image(s) without a mask count in no pixel metric")
    return {key: metrics[key] for key in (*PIXEL_METRICS, "by_type")}


def prediction_rows(name: str, of: Scored, value: float, map_threshold: float | None = None) -> list[dict[str, Any]]:
    """Return the rows of predictions.csv; with maps also where they exceed ``map_threshold``, against the true masks.

    Overlap and union are pixels of the mask's file, or of a good image's, whose true mask is empty. They are empty for
    a defect without a mask.
    """
    rows = []
    for place, (sample, score) in enumerate(zip(of.dataset.samples, of.scores, strict=True)):
        row = {
            "split": "test" if name == "test" else "val",
            "path": sample.path,
            "label": CLASSES[int(sample.label != GOOD)],
            "prediction": CLASSES[int(score > value)],
            "type": sample.label,
            "score": f"{score:.9g}",  # float32 to the bit
        }
        if of.maps is not None and map_threshold is not None:
            row |= overlap_row(of.dataset, place, of.maps[place], map_threshold)
        rows.append(row)
    return rows


def overlap_row(dataset: MVTecDataset, place: int, score_map: np.ndarray, map_threshold: float) -> dict[str, Any]:
    """Return iou, overlap and union of an image's mask and where its map [h, w] exceeds a threshold; empty without one.

    Overlap and union are pixels of the mask's file, or of a good image's.
    """
    sample, mask = dataset.samples[place], dataset.mask(place)
    if mask is None and sample.label != GOOD:
        return dict.fromkeys(("iou", "overlap", "union"), "")
    if mask is None:
        width, height, _ = image_size(dataset.folder / sample.path)
        mask = np.zeros((height, width), dtype=bool)
    both, either = segmentation.overlap(segmentation.spread(score_map, mask.shape) > map_threshold, mask)
    iou = "" if sample.label == GOOD else f"{both / max(either, 1):.6g}"
    return {"iou": iou, "overlap": both, "union": either}
