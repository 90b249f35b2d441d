"""Regions of an image: one object each with its type, box and outline; from a mask, from polygons, and back.

Outlines are COCO's run lengths, which are exact and a few hundred bytes each. pycocotools encodes and decodes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as rle

# Pixels by which a polygon may leave the pixels' edges. 0.5 takes the steps out of diagonal edges only: on MVTec's
# bottle the polygons keep all pixels (IoU 1.000); 0.75 has half as many points and loses up to 4.5% of an object.
TOLERANCE = 0.5

Size = tuple[int, int]  # height and width of an image, pixels
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; x1 and y1 are exclusive


class Region(NamedTuple):
    """Hold one object of an image.

    Args:
        label: its type.
        box: x0, y0, x1, y1 in pixels of the image; x1 and y1 are exclusive, so that a single pixel has the area 1.
        size: height and width of the image.
        counts: its outline as COCO's compressed run lengths; None: the box is all that is known.
    """

    label: str
    box: Box
    size: Size
    counts: str | None = None

    def mask(self) -> np.ndarray:
        """Return its pixels, [H, W] bool; without an outline those of its box."""
        if self.counts is not None:
            return rle.decode(self.rle()).astype(bool)
        mask = np.zeros(self.size, bool)
        x0, y0, x1, y1 = (round(edge) for edge in self.box)
        mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
        return mask

    def area(self) -> float:
        """Return the number of its pixels; without an outline the area of its box."""
        if self.counts is not None:
            return int(rle.area(self.rle()))
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)

    def rle(self) -> dict[str, Any]:
        """Return its outline as COCO writes it: ``{"size": [H, W], "counts": text}``."""
        return {"size": list(self.size), "counts": self.counts}


def box_around(mask: np.ndarray) -> Box:
    """Return the box around all pixels that a mask [H, W] marks, one at least."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def region_of(mask: np.ndarray, label: str) -> Region:
    """Return the region that a mask [H, W] marks as a whole; it marks a pixel at least."""
    counts = rle.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    return Region(label, box_around(mask), (mask.shape[0], mask.shape[1]), counts)


def region_of_rle(runs: Mapping[str, Any], label: str) -> Region:
    """Return the region that COCO's run lengths mark; they mark a pixel at least.

    Raises:
        ValueError: they mark none, or end before the image does.
    """
    height, width = runs["size"]
    if isinstance(runs["counts"], list):
        if sum(runs["counts"]) != height * width:
            raise ValueError(f"its run lengths cover {sum(runs['counts'])} of {height * width} pixels")
        runs = rle.frPyObjects(dict(runs), height, width)
    if not rle.decode(runs).any():  # which raises ValueError where they lead out of the image
        raise ValueError("it marks no pixel")
    x, y, w, h = rle.toBbox(runs).tolist()
    counts = runs["counts"]
    return Region(label, (x, y, x + w, y + h), (height, width), counts if isinstance(counts, str) else counts.decode())


def region_of_polygons(polygons: Sequence[np.ndarray], label: str, size: Size) -> Region:
    """Return the region inside the polygons of one object, given as for ``mask_of_polygons``.

    Raises:
        ValueError: there is no pixel in them.
    """
    flat = [polygon.astype(float).ravel().tolist() for polygon in polygons]
    return region_of_rle(rle.merge(rle.frPyObjects(flat, *size)), label)


def regions_of(mask: np.ndarray, label: str) -> list[Region]:
    """Return one region per 8-connected component of a mask [H, W], from top to bottom."""
    count, places = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return [region_of(places == place, label) for place in range(1, count)]


def merged(regions: Sequence[Region]) -> np.ndarray:
    """Return the pixels of all regions, one at least, [H, W] bool."""
    return np.logical_or.reduce([region.mask() for region in regions])


def mask_of_polygons(polygons: Sequence[np.ndarray], size: Size) -> np.ndarray:
    """Return the pixels inside the polygons of one object, [H, W] bool.

    Args:
        polygons: corners (x, y) [N, 2] in pixels, where (0, 0) is the upper left corner of the first pixel.
        size: H and W.
    """
    return region_of_polygons(polygons, "", size).mask()


def polygons_of(mask: np.ndarray, tolerance: float = TOLERANCE) -> list[np.ndarray]:
    """Return the outlines of a mask [H, W], a polygon [N, 2] of corners (x, y) per connected part; holes are filled.

    They follow the edges of pixels. OpenCV's contours run through the pixels' centres: read as polygons, those lose
    half a pixel on every side.
    """
    twice = np.pad(mask, 1).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    outlines, _ = cv2.findContours(twice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for outline in outlines:
        corners = (outline[:, 0] - 1) // 2  # of the left half of a pixel its left edge, of the right half its right one
        corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
        polygons.append(cv2.approxPolyDP(corners.astype(np.int32)[:, None], tolerance, closed=True)[:, 0])
    return polygons


def joined(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Return the polygons of one object as a single one [N, 2], linked by lines without a width."""
    first, *others = polygons
    parts = [first]
    for polygon in others:  # to its first corner, around it, and back to where the line came from
        parts += [polygon, polygon[:1], first[-1:]]
    return np.concatenate(parts)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Return the shared pixels of two masks [H, W] over the pixels of either, in [0, 1]; 1 where both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0
