"""Measure found boxes against true ones: average precision as COCO counts it, and how certain it is.

Boxes are matched within their image, so a draw of images with replacement needs no new matching: an image that is
drawn twice counts its boxes twice. Found boxes are matched and sorted by score once; every draw is a weighted
cumulative sum over them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mvtec_lab.evaluation.statistics import RESAMPLES, wilson_interval
from mvtec_lab.results import GOOD

IOUS = np.linspace(0.5, 0.95, 10)  # COCO's overlaps; the first alone is map50's
RECALLS = np.linspace(0, 1, 101)  # at which COCO averages the precision
FALSE_BOXES = 0.1  # per good image: an operator looks at one sound product in ten without need
BOX_METRICS = ("map50", "map", "box_recall")
CHUNK = 100  # draws at a time: some 10 MiB for a thousand boxes


class Box(NamedTuple):
    """Hold a found or true box: its type, its score (1 of a true one), and its corners in pixels."""

    kind: str
    score: float
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Matches:
    """Hold what the metrics of N images need of their boxes, matched at T overlaps.

    Args:
        kinds: the types of boxes, C of them.
        labels: of the images, [N]: good, or their defect's type.
        objects: true boxes of each type in each image, [C, N].
        images: of each type, the places of the images that its found boxes lie in, [D], the highest score first.
        scores: of each type, the boxes' scores, [D].
        hits: of each type, whether a box found its own true box at each overlap, bool [T, D].
    """

    kinds: Sequence[str]
    labels: Sequence[str]
    objects: np.ndarray
    images: Sequence[np.ndarray]
    scores: Sequence[np.ndarray]
    hits: Sequence[np.ndarray]

    def precisions(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the average precision of each type and overlap in draws of the images.

        Args:
            weights: how often each draw has each image, [B, N]; None: each image once.

        Returns:
            [B, C, T]; NaN where a draw has no true box of a type.
        """
        weights = np.ones((1, len(self.labels))) if weights is None else weights
        if not self.kinds:
            return np.zeros((len(weights), 0, len(IOUS)))
        parts = [
            np.stack([self._precision(c, part) for c in range(len(self.kinds))], axis=1)
            for part in np.array_split(weights, -(-len(weights) // CHUNK))
        ]
        return np.concatenate(parts)

    def _precision(self, kind: int, weights: np.ndarray) -> np.ndarray:
        drawn, objects = weights[:, self.images[kind]][:, None], weights @ self.objects[kind]
        found = np.cumsum(drawn * self.hits[kind], axis=2)
        recall = found / np.maximum(objects, 1)[:, None, None]
        precision = found / np.maximum(np.cumsum(drawn, axis=2), 1)
        highest = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]  # at this recall or a higher one
        steps = np.diff(np.searchsorted(RECALLS, recall, side="right"), prepend=0, axis=2)
        values = (highest * steps).sum(axis=2) / len(RECALLS)
        return np.where(objects[:, None] > 0, values, np.nan)

    def threshold(self) -> float | None:
        """Return the lowest score above which there are at most FALSE_BOXES per good image; None without any."""
        good = np.array([label == GOOD for label in self.labels])
        if not good.any():
            return None
        false = np.sort(np.concatenate([s[good[i]] for s, i in zip(self.scores, self.images, strict=True)] or [[]]))
        allowed = int(FALSE_BOXES * good.sum() + 1e-9)
        return float(false[-1 - allowed]) if len(false) > allowed else -np.inf

    def recalls(self) -> list[float | None]:
        """Return the share of each type's true boxes that are found at IoU 0.5 above ``threshold``."""
        threshold = self.threshold()
        totals = self.objects.sum(axis=1)
        return [
            None if threshold is None or not total else float(hits[0][scores > threshold].sum() / total)
            for hits, scores, total in zip(self.hits, self.scores, totals, strict=True)
        ]


def match(found: Sequence[Sequence[Box]], truth: Sequence[Sequence[Box]], labels: Sequence[str]) -> Matches:
    """Match found boxes to true ones of their type in each of N images, the highest score first, as COCO does.

    A found box takes the free true box that it overlaps most, if their intersection over union reaches the limit.
    """
    kinds = sorted({box.kind for boxes in (*truth, *found) for box in boxes} | set(labels) - {GOOD})
    objects = np.array([[sum(box.kind == kind for box in boxes) for boxes in truth] for kind in kinds], dtype=float)
    images, scores, hits = [], [], []
    for kind in kinds:
        parts = []
        for place, (ours, theirs) in enumerate(zip(found, truth, strict=True)):
            here = np.array([box[1:] for box in ours if box.kind == kind], dtype=float).reshape(-1, 5)
            here = here[np.argsort(-here[:, 0], kind="stable")]
            true = np.array([box[2:] for box in theirs if box.kind == kind], dtype=float).reshape(-1, 4)
            parts.append((np.full(len(here), place), here[:, 0], _hits(overlaps(here[:, 1:], true))))
        together = [np.concatenate(part, axis=-1) for part in zip(*parts, strict=True)]
        order = np.argsort(-together[1], kind="stable")
        images.append(together[0][order].astype(np.int64))
        scores.append(together[1][order])
        hits.append(together[2][:, order])
    return Matches(kinds, list(labels), objects.reshape(len(kinds), len(labels)), images, scores, hits)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes [D, 4] with boxes [G, 4]: [D, G]."""
    low, high = np.maximum(first[:, None, :2], second[:, :2]), np.minimum(first[:, None, 2:], second[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-12)


def _hits(ious: np.ndarray) -> np.ndarray:
    """Return which boxes [D], in their order, take a true box at each overlap: bool [T, D]."""
    hits = np.zeros((len(IOUS), len(ious)), dtype=bool)
    for hit, limit in zip(hits, IOUS, strict=True):
        free = np.ones(ious.shape[1], dtype=bool)
        for place, row in enumerate(ious):
            if free.any():
                best = int(np.flatnonzero(free)[np.argmax(row[free])])
                hit[place] = row[best] >= limit
                free[best] &= not hit[place]
    return hits


def box_metrics(matches: Matches) -> dict[str, Any]:
    """Return map50, map (IoU 0.5 to 0.95), box_recall and the same by_type: plain Python values, ready for JSON.

    box_recall is the share of the true boxes that are found at IoU 0.5, with their type, where one good image in ten
    has a false box. A metric is None where the true boxes, or the good images, that it needs are missing.
    """
    precisions, recalls = matches.precisions()[0], matches.recalls()
    totals = matches.objects.sum(axis=1)
    found = sum(r * n for r, n in zip(recalls, totals, strict=True) if r is not None)
    known = bool(totals.any())
    return {
        "map50": float(np.nanmean(precisions[:, 0])) if known else None,
        "map": float(np.nanmean(precisions)) if known else None,
        "box_recall": float(found / totals.sum()) if known and matches.threshold() is not None else None,
        "by_type": {
            kind: {
                "images": list(matches.labels).count(kind),
                "map50": _plain(precisions[i, 0]),
                "map": _plain(precisions[i].mean()),
                "box_recall": recalls[i],
            }
            for i, kind in enumerate(matches.kinds)
            if totals[i] or kind in matches.labels
        },
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def draws(labels: Sequence[str]) -> np.ndarray:
    """Return how often each of RESAMPLES draws has each image, [B, N]: as many of every label as there are.

    Two attempts on the same images, in the same order, get the same draws.
    """
    rng, names = np.random.default_rng(0), np.array(labels)
    weights = np.zeros((RESAMPLES, len(names)))
    for name in sorted(set(labels)):
        here = np.flatnonzero(names == name)
        weights[:, here] = rng.multinomial(len(here), np.full(len(here), 1 / len(here)), size=RESAMPLES)
    return weights


def drawn(matches: Matches, key: str) -> np.ndarray:
    """Return map50 or map in each of ``draws``, [B]; the images have to be in the order of their paths."""
    precisions = matches.precisions(draws(matches.labels))
    return np.nanmean(precisions[..., 0] if key == "map50" else precisions.mean(axis=2), axis=1)


def box_intervals(matches: Matches, metrics: Mapping[str, Any]) -> dict[str, tuple[float, float] | None]:
    """Return the 95% intervals of BOX_METRICS: the outer bounds of a bootstrap over images and of Wilson's interval.

    Wilson's takes the value as a share of the true boxes, as Boyd, Eng and Page, ECML 2013, do for average precision;
    it has a width where all boxes are found, and no draw of the images differs. Recall has Wilson's alone.
    """
    objects = float(matches.objects.sum())
    intervals: dict[str, tuple[float, float] | None] = {}
    for key in BOX_METRICS:
        value = metrics[key]
        if value is None:
            intervals[key] = None
            continue
        low, high = wilson_interval(value * objects, objects)
        if key != "box_recall":
            values = drawn(matches, key)
            low, high = min(low, float(np.quantile(values, 0.025))), max(high, float(np.quantile(values, 0.975)))
        intervals[key] = (low, high)
    return intervals


def as_text(boxes: Sequence[Box]) -> str:
    """Return boxes as a cell of predictions.csv: JSON, a list [type, score, x0, y0, x1, y1] per box."""
    return json.dumps([[b.kind, *b[1:]] for b in boxes], ensure_ascii=False)


def from_text(text: str) -> list[Box]:
    """Return the boxes of a cell.

    Raises:
        ValueError: it holds something else than boxes, or numbers that are not finite.
    """
    boxes = []
    for values in json.loads(text):
        kind, *numbers = values
        if not isinstance(kind, str) or len(numbers) != 5 or not np.isfinite(np.array(numbers, dtype=float)).all():
            raise ValueError(f"{values} is no box [type, score, x0, y0, x1, y1]")
        boxes.append(Box(kind, *map(float, numbers)))
    return boxes


def of_rows(rows: Sequence[Mapping[str, Any]]) -> Matches:
    """Return the matches of rows of predictions.csv, with their columns label, found and truth, ordered by path."""
    rows = sorted(rows, key=lambda row: row["path"])
    found, truth = ([from_text(row[column]) for row in rows] for column in ("found", "truth"))
    return match(found, truth, [row["label"] for row in rows])
