"""Read ``<class>/*``: a folder for each class, not divided."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mvtec_lab.data.layouts.base import (
    LOOSE,
    MASKS,
    Layout,
    check_case,
    class_folders,
    label_of,
    list_in,
    parts_in,
    samples_of,
)
from mvtec_lab.data.samples import Scan
from mvtec_lab.results import GOOD

EMPTY = "folder(s) that hold no image of their own"


def fits(folder: Path, good: Collection[str]) -> bool:
    """Tell whether a folder has several class folders of images, or good images, and none called train, val or test."""
    names = [path.name for path in class_folders(folder)]
    enough = len(names) > 1 or any(label_of(name, [GOOD, *good]) == GOOD for name in names)
    return enough and not parts_in(folder)


def read(folder: Path, good: Collection[str]) -> Scan:
    """List the class folders; masks may lie in ``ground_truth/<class>``.

    Raises:
        LabError: a file name that is not text, or a mask that belongs to two images.
    """
    result = Scan(folder)
    check_case(folder, [GOOD, MASKS], good)
    top = list_in(folder, result)
    if top.images:
        result.leave_out({LOOSE: [str(path) for path in top.images]})
    of_images = set(class_folders(folder))
    if empty := [str(path) for path in top.folders if path not in of_images and path.name != MASKS]:
        result.leave_out({EMPTY: empty})
    for class_folder in (path for path in top.folders if path in of_images):
        masks = [folder / MASKS / class_folder.name]
        result.samples += samples_of(class_folder, result, label_of(class_folder.name, good), masks)
    return result


LAYOUT = Layout("class folders", "<class>/*.png", fits, read)
