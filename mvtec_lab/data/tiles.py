"""Cut a large image into tiles, and stitch the maps of its tiles to one map of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Share of a tile's side that two neighbours have in common, at least: a defect up to this size lies whole in one of
# them. It adds a quarter to the number of tiles; a half would make it fourfold.
OVERLAP = 1 / 8


class Window(NamedTuple):
    """Say where a tile lies in its image, in pixels of the image."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """Return this part of an image or a mask [H, W, ...]; it is a view, not a copy."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


def windows(height: int, width: int, tile: int) -> list[Window]:
    """Return the tiles of an image, row by row. They cover it evenly, and neighbours overlap by ``OVERLAP`` or more.

    A side that is no longer than a tile is not cut: an image that is smaller than a tile is one tile, itself.

    Args:
        height, width: of the image, pixels.
        tile: side of a tile, pixels of the image.
    """
    tops, lefts = _starts(height, tile), _starts(width, tile)
    return [Window(top, left, min(tile, height), min(tile, width)) for top in tops for left in lefts]


def _starts(length: int, tile: int) -> list[int]:
    if length <= tile:
        return [0]
    overlap = round(OVERLAP * tile)
    last = math.ceil((length - overlap) / (tile - overlap)) - 1
    return [round(k * (length - tile) / last) for k in range(last + 1)]


def stitch(maps: Sequence[np.ndarray], places: Sequence[Window]) -> np.ndarray:
    """Return the map of an image, float32 [h, w], from the maps of its tiles, at their resolution.

    Where tiles overlap, it is their mean, weighted by the distance from each tile's border: so no seam shows, and what
    a network says next to a border, where it sees half of a neighbourhood, counts least.

    Args:
        maps: of all tiles, [side, side] each, all of one shape; each covers its tile.
        places: where the tiles lie: all that ``windows`` returns.
    """
    if len(maps) == 1:
        return np.asarray(maps[0], dtype=np.float32)
    _, _, window_height, window_width = places[0]
    (rows, columns), last = maps[0].shape, places[-1]
    height, width = last.top + window_height, last.left + window_width
    down = _spreads(sorted({p.top for p in places}), window_height, height, rows)
    across = _spreads(sorted({p.left for p in places}), window_width, width, columns)
    whole = np.zeros((_cells(height, window_height, rows), _cells(width, window_width, columns)), np.float32)
    for score_map, place in zip(maps, places, strict=True):
        (top, of_rows), (left, of_columns) = down[place.top], across[place.left]
        part = of_rows @ np.asarray(score_map, dtype=np.float32) @ of_columns.T
        whole[top : top + len(of_rows), left : left + len(of_columns)] += part
    return whole


def _cells(length: int, window: int, side: int) -> int:
    """Return how many cells a side of an image has, if a window of it has ``side`` cells."""
    return round(length * side / window)


def _spreads(starts: Sequence[int], window: int, length: int, side: int) -> dict[int, tuple[int, np.ndarray]]:
    """Return for each window along one side of an image its first cell and the matrix [n, side] that spreads its map.

    A matrix interpolates linearly between the map's cells, and weighs by the distance from the window's border; the
    weights of all windows over a cell sum to one.
    """
    cells = _cells(length, window, side)
    centres = (np.arange(cells) + 0.5) * length / cells  # in pixels of the image
    weights = [np.maximum(np.minimum(centres - start, start + window - centres), 0) for start in starts]
    total = np.sum(weights, axis=0)
    spreads = {}
    for start, weight in zip(starts, weights, strict=True):
        inside = np.flatnonzero(weight > 0)
        at = np.clip((centres[inside] - start) * side / window - 0.5, 0, side - 1)
        below = np.minimum(at.astype(int), max(side - 2, 0))
        matrix, row = np.zeros((len(inside), side)), np.arange(len(inside))
        matrix[row, np.minimum(below + 1, side - 1)] = at - below
        matrix[row, below] += 1 - (at - below)
        share = (weight / total)[inside]
        spreads[start] = int(inside[0]), (share[:, None] * matrix).astype(np.float32)
    return spreads
