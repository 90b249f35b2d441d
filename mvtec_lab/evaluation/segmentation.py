"""Compare predicted masks with true ones, and choose on validation where a mask begins: pure functions on arrays.

IoU is the overlap of both masks over their union, in pixels; Dice is 2 IoU / (1 + IoU). A good image has neither: its
true mask is empty. What is found on good images counts in the pooled figures, in pixel AP and as a false reject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mvtec_lab.evaluation.statistics import RESAMPLES, balanced_interval, corrected_interval, wilson_interval
from mvtec_lab.results import GOOD

# Where a mask may begin. Above 0.5, as training counts a pixel that is more likely than not; the others are there for
# the pixels along a defect's edge, which annotators draw generously or narrowly.
MAP_THRESHOLDS = np.arange(1, 20) / 20
POOLED = ("pooled_iou", "pooled_dice")
PEAK = 1e-3  # share of a map's cells, at least one, whose mean is the image's score: one noisy cell is no defect


def image_score(score_map: npt.ArrayLike) -> float:
    """Return how certain it is that an image has a defect: the mean of the highest thousandth of its map [h, w]."""
    values = np.asarray(score_map, dtype=np.float32).ravel()
    count = peak(values.size)
    return float(np.partition(values, -count)[-count:].mean())


def peak(cells: int) -> int:
    """Return how many cells of a map with this many make its image's score."""
    return max(1, round(PEAK * cells))


def spread(score_map: npt.ArrayLike, size: tuple[int, int]) -> np.ndarray:
    """Return a map [h, w] spread over an image of size (H, W), bilinearly, as ``PixelScores.add`` does: float32."""
    import cv2

    low = np.ascontiguousarray(score_map, dtype=np.float32)
    return low if low.shape == size else cv2.resize(low, size[::-1], interpolation=cv2.INTER_LINEAR)


def overlap(found: npt.ArrayLike, mask: npt.ArrayLike) -> tuple[int, int]:
    """Return the pixels in both of two masks [H, W], and those in either."""
    found, mask = np.asarray(found, dtype=bool), np.asarray(mask, dtype=bool)
    if found.shape != mask.shape:
        raise ValueError(f"masks of {found.shape} and {mask.shape} pixels cannot be compared")
    return int((found & mask).sum()), int((found | mask).sum())


def best_map_threshold(score_maps: Sequence[npt.ArrayLike], masks: Sequence[npt.ArrayLike]) -> float:
    """Return the one of ``MAP_THRESHOLDS`` above which masks have the highest mean IoU, of equal ones nearest to 0.5.

    Args:
        score_maps: maps of probabilities, [h, w] each.
        masks: true masks [H, W] of the same images, none of them empty; none at all: 0.5.
    """
    if len(masks) == 0:
        return 0.5
    ious = np.zeros(len(MAP_THRESHOLDS))
    for score_map, mask in zip(score_maps, masks, strict=True):
        marked = np.asarray(mask, dtype=bool)
        values = spread(score_map, marked.shape).ravel()
        bins = np.searchsorted(MAP_THRESHOLDS, values, side="left")  # at a threshold is not above it
        parts = marked.ravel(), ~marked.ravel()
        inside, outside = (np.bincount(bins[part], minlength=len(MAP_THRESHOLDS) + 1) for part in parts)
        above_inside, above_outside = (part[::-1].cumsum()[::-1][1:] for part in (inside, outside))
        ious += above_inside / (marked.sum() + above_outside)
    best = np.flatnonzero(ious >= ious.max() - 1e-9)
    return float(MAP_THRESHOLDS[best[np.argmin(np.abs(MAP_THRESHOLDS[best] - 0.5))]])


def ious(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the IoU of each image [N] from rows with ``type``, ``overlap`` and ``union``.

    It is NaN of good images, and of defects without overlap and union: no true mask of theirs is known, or no mask was
    predicted.
    """
    return np.array(
        [
            int(row["overlap"]) / max(int(row["union"]), 1) if row["type"] != GOOD and _judged(row) else np.nan
            for row in rows
        ]
    )


def _judged(row: Mapping[str, Any]) -> bool:
    return row.get("union") not in (None, "")


def dices(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the Dice coefficient of each image [N]; rows as in ``ious``."""
    values = ious(rows)
    return 2 * values / (1 + values)


def named_right(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return 1 for each defect whose type was named, 0 for the others, NaN of good images, [N].

    A defect that was passed has no type, and counts as one that was not named.

    Args:
        rows: with ``type`` and ``found_type``; NaN where the latter is empty or missing, as types were not asked for.
    """
    asked = (row["type"] != GOOD and row.get("found_type") for row in rows)
    return np.array(
        [float(row["found_type"] == row["type"]) if a else np.nan for row, a in zip(rows, asked, strict=True)]
    )


def pooled(rows: Sequence[Mapping[str, Any]], weights: npt.ArrayLike | None = None) -> np.ndarray:
    """Return IoU and Dice of all pixels together, good images included; rows as in ``ious``.

    Args:
        weights: how often each image counts, [..., N]; None: once.

    Returns:
        [..., 2]; NaN where no mask has a pixel.
    """
    both, either = (
        np.array([int(row[key]) if _judged(row) else 0 for row in rows], dtype=np.float64)
        for key in ("overlap", "union")
    )
    times = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    common, union = times @ both, times @ either
    with np.errstate(invalid="ignore"):
        return np.stack([common / union, 2 * common / (common + union)], axis=-1)


def mask_intervals(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float] | None]:
    """Return the 95% intervals of iou, dice, pooled_iou, pooled_dice and the figures of types over the images.

    Those of the means are Student's, as every comparison states them; those of the pooled figures are bounds of a
    bootstrap over the images, of type_accuracy Wilson's, of balanced_type_accuracy a score interval. None of fewer than
    two images, or where types are not named.
    """
    intervals: dict[str, tuple[float, float] | None] = {}
    for key, values in (("iou", ious(rows)), ("dice", dices(rows))):
        known = values[~np.isnan(values)]
        low, high = corrected_interval(known, 0.0) if len(known) > 1 else (np.nan, np.nan)
        intervals[key] = None if np.isnan(low) else (max(0.0, low), min(1.0, high))
    drawn = np.random.default_rng(0).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=RESAMPLES)
    bounds = np.quantile(pooled(rows, drawn), [0.025, 0.975], axis=0)
    for place, key in enumerate(POOLED):
        known = len(rows) > 1 and np.isfinite(bounds[:, place]).all()
        intervals[key] = (float(bounds[0, place]), float(bounds[1, place])) if known else None
    if right := _named(rows):
        counts = np.array([(values.sum(), len(values)) for values in right.values()])
        intervals["type_accuracy"] = wilson_interval(*counts.sum(0))
        intervals["balanced_type_accuracy"] = balanced_interval(*counts.T)
    return intervals


def mask_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of predicted masks; None where there is nothing to count. Rows as in ``ious``.

    They are iou and dice, means over the defect images, also by_type; pooled_iou and pooled_dice. Where types are
    named, type_accuracy, the share of the defects whose type is right, also by_type, and balanced_type_accuracy, the
    mean of the latter.
    """
    figures: dict[str, Any] = {**_means(rows), "by_type": {}}
    figures |= {key: _known(value) for key, value in zip(POOLED, pooled(rows), strict=True)}
    for kind in _kinds(rows):
        figures["by_type"][kind] = _means([row for row in rows if row["type"] == kind])
    if right := _named(rows):
        figures["type_accuracy"] = float(np.concatenate(list(right.values())).mean())
        figures["balanced_type_accuracy"] = balanced_named(rows)
        for kind, values in right.items():
            figures["by_type"][kind]["type_accuracy"] = float(values.mean())
    return figures


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    known = [row for row in rows if row["type"] != GOOD and _judged(row)]
    of_images = {"iou": ious, "dice": dices}
    return {key: float(values(known).mean()) if known else None for key, values in of_images.items()}


def balanced_named(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean over the types of the share that was named; None where types are not named. Rows as above."""
    right = _named(rows)
    return float(np.mean([values.mean() for values in right.values()])) if right else None


def _named(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Return ``named_right`` of the defects of each type; nothing where types are not named."""
    values, types = named_right(rows), np.array([row["type"] for row in rows])
    right = {kind: values[(types == kind) & ~np.isnan(values)] for kind in _kinds(rows)}
    return {kind: each for kind, each in right.items() if len(each)}


def _kinds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({row["type"] for row in rows} - {GOOD})


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
