"""Write objects in YOLO's format, and read a folder in it: a label file per image, a row per object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mvtec_lab.data.annotations.export import Annotated, Loss, copy_images, require_outlines, write_text
from mvtec_lab.data.regions import Region, Size, joined, polygons_of

DIGITS = 6  # after the point: 0.005 pixels of an image with a side of 10,000


def box_row(region: Region, index: int) -> str:
    """Return ``<class> <x_center> <y_center> <width> <height>``, as shares of the image's width and height."""
    (x0, y0, x1, y1), (height, width) = region.box, region.size
    return _row(index, ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height))


def polygon_row(polygon: np.ndarray, size: Size, index: int) -> str:
    """Return ``<class> <x1> <y1> <x2> <y2> ...`` of a polygon [N, 2] in pixels, as shares of width and height."""
    return _row(index, (polygon / size[::-1]).ravel())


def write_yolo(folder: Path, images: Sequence[Annotated], kinds: Sequence[str]) -> str:
    """Write data.yaml, ``images/<split>/`` and ``labels/<split>/<name>.txt``: boxes; a good image's file is empty."""
    _write(folder, images, kinds, [[box_row(r, kinds.index(r.label)) for r in image.regions] for image in images])
    return "boxes by rows of class, centre and size"


def write_yolo_seg(folder: Path, images: Sequence[Annotated], kinds: Sequence[str]) -> str:
    """Write the same with polygons; the parts of an object are linked to one polygon, its holes are filled.

    Raises:
        LabError: an object without an outline.
    """
    require_outlines(images, "yolo_seg")
    loss, rows = Loss(), []
    for image in images:
        polygons = [joined(polygons_of(region.mask())) for region in image.regions]
        for region, polygon in zip(image.regions, polygons, strict=True):
            written = np.round(polygon / image.size[::-1], DIGITS) * image.size[::-1]
            loss.add(region, [written], image.name)
        pairs = zip(image.regions, polygons, strict=True)
        rows.append([polygon_row(polygon, image.size, kinds.index(region.label)) for region, polygon in pairs])
    _write(folder, images, kinds, rows)
    return loss.line()


def _row(index: int, numbers: Sequence[float] | np.ndarray) -> str:
    return " ".join([str(index), *(f"{number:.{DIGITS}f}".rstrip("0").rstrip(".") for number in numbers)])


def _write(folder: Path, images: Sequence[Annotated], kinds: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    copy_images(folder, images)
    for image, lines in zip(images, rows, strict=True):
        write_text(folder / "labels" / image.split / f"{image.stem}.txt", "".join(f"{line}\n" for line in lines))
    # No `path`: programs take a relative one from their own data folder, and without one from beside this file. Without
    # validation images of their own the test images validate: trainers ask for both names.
    splits = {image.split for image in images}
    parts: dict[str, Any] = {split: f"images/{split}" for split in ("train", "val", "test") if split in splits}
    if "test" in splits:
        parts.setdefault("val", parts["test"])
    content = {**parts, "names": dict(enumerate(kinds))}
    write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
