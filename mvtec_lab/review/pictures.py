"""Turn image files into what a browser shows, and masks between their files, the page and the review's file.

The page sees each image, whatever its format and depth, as a JPEG of at most LONGEST pixels a side; masks are drawn on
that grid. Nothing but a decoded and encoded picture leaves a file.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle

from mvtec_lab.data.images import MAX_PIXELS, image_size, read_image, read_mask, white_level
from mvtec_lab.data.regions import Size
from mvtec_lab.errors import LabError

LONGEST = 1600  # pixels of a shown image's longer side: a screen shows no more, and a brush is coarser
QUALITY = 92  # of a JPEG: the noise of a scratch stays
PICTURES = 48  # in memory, of about 300 KB: the next ones are asked for while one is looked at
_decoding = threading.Semaphore(2)  # an image of the largest size takes 268 MB


def shown_size(size: Size) -> Size:
    """Return height and width of an image as the page shows it."""
    scale = min(1.0, LONGEST / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def size_of(path: Path) -> Size:
    """Return height and width of an image, upright.

    Raises:
        LabError: it cannot be read.
    """
    width, height, _ = image_size(path)
    return height, width


def picture(path: Path) -> bytes:
    """Return an image as a JPEG; of 16-bit files the bit depth that they use becomes white.

    Raises:
        LabError: it cannot be read.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise LabError(f"{path} cannot be read ({error.strerror}): restore it") from error
    return _encoded(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(PICTURES)
def _encoded(path: Path, size: int, changed: int) -> bytes:
    with _decoding:
        image = read_image(path, white_level([path]))
        height, width = shown_size(image.shape[:2])
        if (height, width) != image.shape[:2]:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        written, data = cv2.imencode(
            ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        )
    if not written:
        raise LabError(f"{path} cannot be shown: replace or remove it")
    return data.tobytes()


def runs_of(mask: np.ndarray) -> list[int]:
    """Return a mask [H, W] as COCO's run lengths: column by column, how many are 0, then 1, then 0 ..."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *counts] if flat.size and flat[0] else counts


def packed(runs: Any, size: Size) -> dict[str, Any]:
    """Return run lengths of a mask as they are kept: ``{"size": [H, W], "counts": text}``.

    Args:
        runs: what a page sent.
        size: of the grid that it draws on.

    Raises:
        ValueError: they are none of this size.
    """
    if not isinstance(runs, list) or any(type(run) is not int or run < 0 for run in runs):
        raise ValueError("mask is no list of run lengths")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"mask covers {sum(runs)} pixels, and the image is shown with {size[0] * size[1]}")
    return {
        "size": list(size),
        "counts": rle.frPyObjects({"size": list(size), "counts": runs}, *size)["counts"].decode(),
    }


def unpacked(mask: Mapping[str, Any], size: Size) -> np.ndarray:
    """Return a kept mask as [H, W] bool in another size than it was drawn in."""
    return resized(rle.decode(dict(mask)).astype(bool), size)


def resized(mask: np.ndarray, size: Size) -> np.ndarray:
    """Return a mask [H, W] bool in another size; a pixel is marked where more than half of it was."""
    if mask.shape == size:
        return mask
    shrinks = mask.shape[0] >= size[0]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    cover = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=way)
    marked = cover > 0.5
    return marked if marked.any() or not shrinks else cover > 0  # a scratch that covers half of no pixel


def mask_of_file(path: Path, size: Size) -> np.ndarray | None:
    """Return the mask in a file, [H, W] bool; None where it marks nothing, or is of another size than its image.

    Raises:
        LabError: it cannot be read.
    """
    mask = read_mask(path)
    return mask if mask.shape == size and mask.any() else None


def mask_of_map(path: Path, level: float, size: Size) -> np.ndarray | None:
    """Return where a map in a file is above a level, [H, W] bool in an image's size; None where it is nowhere.

    Raises:
        LabError: it is no map of numbers, or cannot be read.
    """
    try:
        with Image.open(path) as file:
            if file.mode != "F" or file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height}, {file.mode}")
            heat = np.asarray(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise LabError(f"{path} is no map that task=predict wrote ({error}): predict again") from error
    above = cv2.resize(heat, size[::-1], interpolation=cv2.INTER_LINEAR) > level
    return above if above.any() else None


def boxes_from(values: Any, size: Size) -> tuple[tuple[float, float, float, float], ...]:
    """Return boxes x0, y0, x1, y1 in pixels of an image of size (H, W), cut at its border.

    Raises:
        ValueError: they are none, or there are more than 1,000.
    """
    if not isinstance(values, list) or len(values) > 1000:
        raise ValueError("boxes is no list of up to 1,000 boxes")
    return tuple(_box(value, size) for value in values)


def _box(value: Any, size: Size) -> tuple[float, float, float, float]:
    corners: Sequence[Any] = value if isinstance(value, list) else ()
    if len(corners) != 4 or any(
        type(edge) not in (int, float) or not abs(edge) < 1e9
        for edge in corners  # NaN as well
    ):
        raise ValueError("a box is four numbers: x0, y0, x1, y1")
    (x0, x1), (y0, y1) = sorted(corners[::2]), sorted(corners[1::2])
    height, width = size
    x0, x1, y0, y1 = (
        float(np.clip(edge, 0, limit)) for edge, limit in ((x0, width), (x1, width), (y0, height), (y1, height))
    )
    if x1 - x0 < 1 or y1 - y0 < 1:
        raise ValueError("a box is one pixel wide and high at least")
    return x0, y0, x1, y1
