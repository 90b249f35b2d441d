"""Read MVTec AD's layout: ``train/good``, ``test/<class>``, masks ``ground_truth/<class>/<name>_mask.*``."""

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

PARTS = ("train", "test", MASKS)
OTHER = f"folder(s) of train/ beside train/{GOOD}"


def fits(folder: Path, good: Collection[str]) -> bool:
    """Tell whether a folder has test images, and good images alone to train on, if any."""
    parts = parts_in(folder)
    if "val" in parts.values() or all(path.name.lower() != "test" for path in parts):
        return False
    trained = [path.name.strip().lower() for part in parts if parts[part] == "train" for path in class_folders(part)]
    return len(trained) < 2 or all(label_of(name, [GOOD, *good]) == GOOD for name in trained)


def scan(folder: Path, good: Collection[str] = ()) -> Scan:
    """List ``train/good``, ``test/<class>`` and the masks ``ground_truth/<class>/<name>_mask.*``.

    Masks are read only where the folder has ``ground_truth/``; each is compared with its image's size.

    Args:
        good: names that stand for ``good`` as well.

    Raises:
        LabError: no ``test/``, a class folder without an image, a folder whose name differs from the layout only by
            case, a file name that is not text, or a mask that belongs to two images.
    """
    check_case(folder, PARTS)
    if not (folder / "test").is_dir():
        raise LabError(f"{folder} has no test/ folder: MVTec's layout is test/<defect type>/*.png")
    result = Scan(folder)
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            continue
        check_case(folder / part, [GOOD], good)
        top = list_in(folder / part, result)
        if top.images:
            result.leave_out({LOOSE: [str(path) for path in top.images]})
        for class_folder in sorted(top.folders):
            label = label_of(class_folder.name, good)
            if part == "train" and label != GOOD:
                result.leave_out({OTHER: [str(class_folder)]})
            else:
                result.samples += samples_of(class_folder, result, label, [folder / MASKS / class_folder.name])
    if not result.samples:
        raise LabError(f"{folder / 'test'} has no class folders: MVTec's layout is test/<defect type>/*.png")
    return result


LAYOUT = Layout("MVTec AD's", "train/good/*.png, test/<class>/*.png, ground_truth/<class>/*_mask.png", fits, scan)
