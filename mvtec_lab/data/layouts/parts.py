"""Read ``train/<class>``, ``val/<class>`` and ``test/<class>``: a folder that has been divided already."""

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
from mvtec_lab.errors import LabError
from mvtec_lab.results import GOOD

OTHER = "folder(s) beside train, val and test"


def fits(folder: Path, good: Collection[str]) -> bool:
    """Tell whether a folder called train, val or test, or a word for one of these, holds class folders."""
    return any(class_folders(part) for part in parts_in(folder))


def read(folder: Path, good: Collection[str]) -> Scan:
    """List the class folders of each part.

    Masks may lie in ``ground_truth/<part>/<class>``, those of test images in ``ground_truth/<class>`` as well.

    Raises:
        LabError: a class folder without an image, a file name that is not text, or a mask that belongs to two images.
    """
    result, parts = Scan(folder), parts_in(folder)
    top = list_in(folder, result)
    if top.images:
        result.leave_out({LOOSE: [str(path) for path in top.images]})
    if others := [str(path) for path in top.folders if path not in parts and path.name != MASKS]:
        result.leave_out({OTHER: others})
    for part_folder, part in parts.items():
        check_case(part_folder, [GOOD], good)
        top = list_in(part_folder, result)
        if top.images:
            result.leave_out({LOOSE: [str(path) for path in top.images]})
        for class_folder in top.folders:
            name = class_folder.name
            masks = [folder / MASKS / part_folder.name / name]
            if part == "test":  # names of images repeat from part to part: MVTec's masks are of test images
                masks.append(folder / MASKS / name)
            result.samples += samples_of(class_folder, result, label_of(name, good), masks, part)
    if not result.samples:
        raise LabError(f"{folder} has no class folders: the layout is {LAYOUT.shape}")
    return result


LAYOUT = Layout("class folders in parts", "train/<class>/*.png, val/<class>/*.png, test/<class>/*.png", fits, read)
