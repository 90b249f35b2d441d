"""Turn the images and objects of an annotated folder into samples, whatever its format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mvtec_lab.data.images import image_size
from mvtec_lab.data.listing import list_images, natural
from mvtec_lab.data.regions import Box, Region, Size
from mvtec_lab.data.samples import Sample, Scan
from mvtec_lab.errors import LabError, setting
from mvtec_lab.results import GOOD

# The names that programs give to the three parts, in lower case.
PARTS = {
    "train": "train",
    "training": "train",
    "train2017": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "val2017": "val",
    "test": "test",
    "testing": "test",
    "test2017": "test",
}
# Files that only these formats have, by data.name.
FORMATS = {
    "coco": ("annotations/instances_*.json", "*/_annotations.coco.json", "_annotations.coco.json"),
    "yolo": ("data.yaml", "data.yml", "obj.names", "labels/*.txt", "labels/*/*.txt"),
}
UNNAMED = "image(s) that no annotation file names"
# Share of a side by which a coordinate may leave the image: programs round, and write a drag beyond the border.
SLACK = 0.01


class Annotations:
    """Collect the images of an annotated folder, with their objects.

    Args:
        folder: the data set's folder; all its images lie below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result = Scan(folder)
        self._by_path: dict[str, Sample] = {}

    def note(self, line: str) -> None:
        """Add a line that says how the annotations were understood."""
        self.result.notes.append(line)

    def add(self, image: Path, part: str, said_in: Path, objects: Sequence[Region]) -> None:
        """Add an image.

        Args:
            part: train, val or test.
            said_in: the file with its annotations.

        Raises:
            LabError: it lies elsewhere, is listed already, or has an object of the class ``good``.
        """
        try:
            path = image.relative_to(self.folder).as_posix()
        except ValueError as error:
            raise LabError(
                f"{said_in} names {image}, which is not below {self.folder}: give data.root=FOLDER that holds both"
            ) from error
        if path in self._by_path:
            first = self._by_path[path].split
            where = f"twice in {part}" if first == part else f"in {first} and in {part}"
            raise LabError(f"{said_in}: {path} is {where}: an image is listed once")
        if any(region.label == GOOD for region in objects):
            raise LabError(
                f"{said_in}: {path} has an object of the class {GOOD!r}, but an image without objects is good: rename "
                "the class, or remove its objects"
            )
        mask = said_in.relative_to(self.folder).as_posix() if objects else None
        self._by_path[path] = Sample(path, _class_of(objects), mask, path, part, tuple(objects))

    def scan(self) -> Scan:
        """Return what was added, in the order of the paths, with what was left out and what should be known.

        Raises:
            LabError: no image was added.
        """
        if not self._by_path:
            raise LabError(f"{self.folder} holds no annotated image: give data.root=FOLDER of a data set with images")
        samples = self.result.samples = sorted(self._by_path.values(), key=lambda s: natural(s.path))
        several = [s for s in samples if len({region.label for region in s.objects}) > 1]
        if several:
            self.note(
                f"{len(several)} image(s) have objects of several types ({several[0].path} first): the type with the "
                "largest area is the image's class"
            )
        boxed = [s for s in samples if s.objects and not s.outlined]
        if boxed:
            self.note(f"{len(boxed)} image(s) have boxes alone ({boxed[0].path} first): they have no mask")
        missing = [part for part in ("train", "val", "test") if all(s.split != part for s in samples)]
        if missing:
            self.note(
                f"the data set has no {' and no '.join(missing)} images of its own: split.protocol=own draws them from "
                "train"
            )
        listing = list_images(self.folder, deep=True)
        if listing.unusable:
            raise LabError(listing.unusable[0])
        strangers = [
            str(path) for path in listing.images if path.relative_to(self.folder).as_posix() not in self._by_path
        ]
        if strangers:
            self.result.leave_out({UNNAMED: strangers})
        return self.result


def format_of(folder: Path, guess: bool = False) -> str | None:
    """Return the format of a folder's annotations by the names of its files, a key of FORMATS; None: it has none.

    Args:
        guess: a list of classes alone says YOLO as well.
    """
    for name, patterns in FORMATS.items():
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            return name
    return "yolo" if guess and (folder / "classes.txt").is_file() else None


def inner_format(folder: Path, wanted: str | None = None) -> str:
    """Return the setting that reads a folder inside this one, as ``task=annotate`` writes one for each format.

    Args:
        wanted: the format that is looked for first.

    Returns:
        the advice, empty where no folder inside has annotations.
    """
    formats = {path: format_of(path) for path in sorted(folder.glob("*")) if path.is_dir()}
    known = sorted((name != wanted, path, name) for path, name in formats.items() if name)
    return f"give data={known[0][2]} {setting('data.root', known[0][1])}" if known else ""


def other_format(folder: Path, name: str, otherwise: str) -> str:
    """Return the advice for a folder without annotations in the format ``name``: what reads those that it has.

    Args:
        otherwise: the advice where it has none.
    """
    other = format_of(folder, guess=True)
    return f"give data={other}" if other and other != name else inner_format(folder, name) or otherwise


def refuse_class_masks(folder: Path) -> None:
    """Raise LabError for a folder of masks by class index, as ``task=annotate format=masks`` writes: none reads it."""
    names = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()
    others = [name for name in names if name.endswith(".json") and name != "classes.json"]
    if {"classes.json", "images", "masks"} <= names and not others and not format_of(folder):
        raise LabError(
            f"{folder} holds masks by class index (format=masks), which are for other programs: write format=coco, and "
            "read it with data=coco"
        )


def size_of(image: Path) -> Size:
    """Return height and width of an image, upright."""
    width, height, _ = image_size(image)
    return height, width


def part_of(names: Sequence[str]) -> str:
    """Return the part that the first known one of some names stands for; train where there is none."""
    return next((PARTS[name.lower()] for name in names if name.lower() in PARTS), "train")


def fitted_box(box: Box, size: Size, where: str) -> Box:
    """Return a box in pixels, cut at the image's border.

    Args:
        where: the place that an error names.

    Raises:
        LabError: it lies more than ``SLACK`` outside, or has no width or no height.
    """
    (x0, y0), (x1, y1) = fitted(np.array(box).reshape(2, 2), size, where).tolist()
    if not (x1 > x0 and y1 > y0):
        at = f"{x1 - x0:g} x {y1 - y0:g} pixels at {x0:g}, {y0:g}"
        raise LabError(f"{where} is a box without width or height ({at}): correct or remove it")
    return x0, y0, x1, y1


def fitted(points: np.ndarray, size: Size, where: str) -> np.ndarray:
    """Return points (x, y) [N, 2] in pixels, moved into the image.

    Raises:
        LabError: one lies more than ``SLACK`` outside.
    """
    limits = np.array(size[::-1])
    if not ((points >= -SLACK * limits) & (points <= (1 + SLACK) * limits)).all():
        worst = points[np.abs(points / limits - 0.5).max(axis=1).argmax()]
        at = ", ".join(f"{value:g}" for value in worst)
        raise LabError(
            f"{where} lies outside of its image ({at} of {size[1]} x {size[0]} pixels): correct or remove it"
        )
    return np.clip(points, 0, limits)


def _class_of(objects: Sequence[Region]) -> str:
    """Return the type with the largest area, the first by name of equal ones; good where there is no object."""
    areas: Counter[str] = Counter()
    for region in objects:
        areas[region.label] += region.area()  # type: ignore[assignment] # boxes have fractions of pixels
    return min(areas, key=lambda label: (-areas[label], label)) if areas else GOOD
