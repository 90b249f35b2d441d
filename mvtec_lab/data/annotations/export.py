"""Hold what every format of annotations is written from, and write masks by class index."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from mvtec_lab.data.regions import Region, Size, iou, mask_of_polygons
from mvtec_lab.errors import LabError, disk_full
from mvtec_lab.results import write_whole


@dataclass(frozen=True)
class Annotated:
    """Hold one image and its objects.

    Args:
        source: its file.
        name: the file name that it gets, unique without its suffix as well.
        split: train, val or test.
        size: height and width in pixels, upright.
    """

    source: Path
    name: str
    split: str
    size: Size
    regions: tuple[Region, ...] = ()

    @property
    def stem(self) -> str:
        return Path(self.name).stem


def unique_names(paths: Sequence[str]) -> dict[str, str]:
    """Return a file name for each path: its folders and its name, ``test__broken_large__000.png``.

    Names differ in more than their suffix and in more than upper and lower case: a.png and a.jpg would share labels.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        pure = PurePosixPath(path)
        base = stem = "__".join([*pure.parts[:-1], pure.stem])
        number = 2
        while stem.casefold() in taken:
            stem, number = f"{base}__{number}", number + 1
        taken.add(stem.casefold())
        names[path] = stem + pure.suffix
    return names


def copy_images(folder: Path, images: Sequence[Annotated]) -> None:
    """Copy every image into ``images/<split>/``, byte by byte.

    A hard link would save the room, but programs that read such folders rewrite damaged files in place.

    Raises:
        LabError: a file cannot be copied.
    """
    for image in images:
        target = folder / "images" / image.split / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(image.source, target)
        except OSError as error:
            raise disk_full(error, target) or LabError(f"{target} cannot be written ({error.strerror})") from error


def write_masks(folder: Path, images: Sequence[Annotated], kinds: Sequence[str]) -> str:
    """Write ``masks/<split>/<name>.png``, 8-bit grey: 0 for the background, then the place in classes.json.

    Where objects overlap, the smaller one is on top.

    Raises:
        LabError: more types than 8 bits count, or an object without an outline.
    """
    if len(kinds) > 255:
        raise LabError(f"format=masks counts up to 255 types, not {len(kinds)}: give format=coco")
    require_outlines(images, "masks")
    copy_images(folder, images)
    for image in images:
        mask = np.zeros(image.size, np.uint8)
        parts = [(region.mask(), kinds.index(region.label) + 1) for region in image.regions]
        for part, value in sorted(parts, key=lambda pair: -np.count_nonzero(pair[0])):
            mask[part] = value
        file = io.BytesIO()
        Image.fromarray(mask).save(file, "png")
        write_text(folder / "masks" / image.split / f"{image.stem}.png", file.getvalue())
    write_text(folder / "classes.json", json.dumps(["background", *kinds], indent=2, ensure_ascii=False) + "\n")
    return "8-bit masks by class index, 0 is the background"


def write_text(path: Path, content: str | bytes) -> None:
    """Write a file, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def require_outlines(images: Sequence[Annotated], name: str) -> None:
    """Raise LabError for the first image that has an object with a box alone."""
    if bare := [image for image in images if any(region.counts is None for region in image.regions)]:
        more = f" (and {len(bare) - 1} more)" if len(bare) > 1 else ""
        raise LabError(f"format={name} needs masks, but {bare[0].source} has boxes alone{more}: give format=yolo")


class Loss:
    """Measure what polygons lose of the masks that they stand for."""

    def __init__(self) -> None:
        self.values: list[tuple[float, str]] = []

    def add(self, region: Region, polygons: Sequence[np.ndarray], name: str) -> None:
        """Compare the polygons of a region, as pycocotools fills them, with its mask."""
        self.values.append((iou(region.mask(), mask_of_polygons(polygons, region.size)), name))

    def facts(self) -> dict[str, object]:
        """Return the IoU of polygons and masks: mean and worst, and the image of the worst."""
        if not self.values:
            return {}
        worst, name = min(self.values)
        return {"iou_mean": float(np.mean([v for v, _ in self.values])), "iou_worst": worst, "worst_image": name}

    def line(self) -> str:
        """Return the same in words."""
        facts = self.facts()
        if not facts:
            return "polygons: no objects"
        text = "polygons: IoU with the masks {iou_mean:.4f} on average, {iou_worst:.4f} at worst"
        return (text + (" ({worst_image})" if facts["iou_worst"] != 1 else "")).format(**facts)
