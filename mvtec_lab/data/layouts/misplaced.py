"""Say in one line what lies in a folder that cannot be read, and the setting that would work."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from mvtec_lab.data.annotations.reading import format_of, inner_format, refuse_class_masks
from mvtec_lab.data.layouts.base import MASKS, class_folders, images_in, parts_in, subfolders
from mvtec_lab.data.listing import ARCHIVES, EXTENSIONS
from mvtec_lab.data.samples import LIKELY_GOOD
from mvtec_lab.errors import LabError, setting

DEEP = 3  # folders down to where a product is looked for: <root>/<download>/<data set>/<product>
WIDE = 200  # folders looked at on each level; a data set of more products names its first ones


def misplaced(folder: Path, layout: str | None, wanted: str, fitting: Callable[[Path], str | None]) -> LabError | None:
    """Return why a folder is not to be read as it is; None where a layout fits it and it is none of an other one.

    Args:
        layout: the name of the layout that fits it; None: none does.
        wanted: what is looked for.
        fitting: returns the name of the layout that fits a folder.

    Raises:
        LabError: it holds masks by class index.
    """
    if layout not in (None, "classes", "parts"):
        return None
    refuse_class_masks(folder)
    if name := format_of(folder, guess=layout is None):
        return LabError(f"{folder} has annotations in {name.upper()}'s format: give data={name}")
    above = folder.absolute().parent
    if folder.name in {MASKS, *(path.name for path in parts_in(above))} and fitting(above):
        return LabError(f"{folder} is a part of the product {above}: give {setting('data.root', above)}")
    if layout is not None:
        return None
    if not any(map(fitting, subfolders(folder)[:WIDE])):
        if any(images_in(folder)):
            return _flat(folder, fitting)
        if advice := inner_format(folder):
            return LabError(f"{folder} holds folders of annotations, no images of its own: {advice}")
    return _elsewhere(folder, wanted, fitting)


def not_a_folder(root: Path) -> LabError:
    """Return the error of a ``data.root`` that is no folder, with what it may have been meant to be."""
    given = f"data.root={root}"
    if root.is_file():
        name = root.name.lower()
        if name.endswith(ARCHIVES):
            target = root.parent / re.sub(r"(\.tar)?\.\w+$", "", root.name)
            return LabError(
                f"{given} is an archive: give {setting('data.archive', root)} {setting('data.root', target)}, the "
                "folder that it is unpacked into"
            )
        if name.endswith(EXTENSIONS):
            return LabError(
                f"{given} is an image: give the folder around its class folder; task=predict ckpt=FILE "
                f"{setting('source', root)} judges it"
            )
        if name.endswith((".csv", ".json")):
            lists = f"{setting('data.labels', root)} {setting('data.root', root.parent)}"
            return LabError(f"{given} is a list: give {lists}, or whatever folder holds the images")
        return LabError(f"{given} is a file, not a folder: give the folder that holds the images")
    if re.match(r"[A-Za-z]:", str(root)) or "\\" in str(root):
        return _windows(str(root))
    parent = next(path for path in root.absolute().parents if path.is_dir())
    inside = [path.name for path in subfolders(parent)]
    if parent == root.absolute().parent and (near := get_close_matches(root.name, inside, n=1)):
        return LabError(f"{given} is not a folder: did you mean {setting('data.root', parent / near[0])}?")
    shown = f"{', '.join(inside[:8])}{' ...' if len(inside) > 8 else ''}" if inside else "no folder"
    return LabError(f"{given} is not a folder: {parent} holds {shown}")


def _windows(path: str) -> LabError:
    given = f"data.root={path}"
    if "\\" not in path and "/" not in path:  # C:Usersmepictures
        return LabError(f"{given} has lost its backslashes to the shell: give it in single quotes, 'data.root=C:\\...'")
    drive, rest = (path[0].lower(), path[2:]) if path[1:2] == ":" else ("", path)
    mounted = Path(f"/mnt/{drive}{rest.replace(chr(92), '/')}") if drive else None
    if mounted is not None and mounted.is_dir():  # the Windows Subsystem for Linux
        return LabError(f"{given} is called {mounted} here: give {setting('data.root', mounted)}")
    return LabError(f"{given} is a Windows path, and no folder here: give the path that this system has for it")


def _flat(folder: Path, fitting: Callable[[Path], str | None]) -> LabError:
    """Return the error of a folder that has images of its own and no class folders."""
    count = sum(1 for _ in islice(images_in(folder), 100_000))
    part = folder.absolute().parent
    above = part.parent if part.name == MASKS or part in parts_in(part.parent) else part
    if (layout := fitting(above)) and (layout != "classes" or above != part):
        return LabError(f"{folder} is a class folder of {above}: give {setting('data.root', above)}")
    beside = [path.name for path in class_folders(above) if layout and path.name != folder.name]
    itself = (
        f"if it is a class itself, as {beside[0]} beside it, give {setting('data.root', above)}; else "
        if beside
        else ""
    )
    return LabError(
        f"{folder} holds {count} image(s) but no class folders: {itself}move them into {folder / '<class>'}, all good "
        f"ones into {folder / 'train/good'}; or name their classes in a list: data.labels=FILE.csv (columns path,label)"
    )


def _elsewhere(folder: Path, wanted: str, fitting: Callable[[Path], str | None]) -> LabError:
    """Return the error of a folder without images of its own: what lies below it, or that nothing does."""
    level, classes = [folder], [path.name for path in class_folders(folder)]
    deep = 1 if any(name.strip().casefold() in LIKELY_GOOD for name in classes) else DEEP
    for depth in range(deep):
        level = [path for above in level for path in subfolders(above)[:WIDE]][:WIDE]
        if not (products := [path for path in level if fitting(path) and path.name.lower() not in _NO_PRODUCT]):
            continue
        first, names = products[0], [path.name for path in products]
        if depth == 0:
            more = " ..." if len(names) > 15 else ""
            return LabError(
                f"{folder} holds {len(names)} product(s): give data.category=NAME for one of its products "
                f"({', '.join(names[:15])}{more}): {setting('data.category', first.name)}{_of_one(folder, products)}"
            )
        beside = [path for path in products if path.parent == first.parent]
        if len(beside) == 1:
            return LabError(f"{folder} does not hold {wanted}, but {first} does: give {setting('data.root', first)}")
        return LabError(
            f"{folder} does not hold {wanted}, but {first.parent} holds products ({', '.join(names[:3])} ...): give "
            f"{setting('data.root', first.parent)} {setting('data.category', first.name)}"
        )
    if classes:
        return LabError(
            f"{folder} has one class folder alone, {classes[0]}: give data.good=[{classes[0]}] if its images are good, "
            "or put a folder for each other class beside it"
        )
    archives = [path.name for path in sorted(folder.iterdir()) if path.name.lower().endswith(ARCHIVES)]
    if archives:
        return LabError(
            f"{folder} holds no image but the archive {archives[0]}: give "
            f"{setting('data.archive', folder / archives[0])} {setting('data.root', folder / 'unpacked')}"
        )
    inside = [path.name for path in sorted(folder.iterdir())[:5]]
    return LabError(
        f"{folder} does not hold {wanted} ({', '.join(EXTENSIONS)}): it holds {', '.join(inside) or 'nothing'}"
    )


def _of_one(folder: Path, products: Sequence[Path]) -> str:
    """Return what to do where folders may be days or batches of one product: they have classes of the same names."""
    classes = [{path.name.casefold() for path in class_folders(product)} for product in products[:DEEP]]
    if len(classes) < 2 or len(set.intersection(*classes)) < 2:
        return ""
    return (
        f"; or, if they are days or batches of one product, name all images in a list: data.labels=FILE.csv (columns "
        f"path,label,group) {setting('data.root', folder)}"
    )


_NO_PRODUCT = {"images", "labels", "ground_truth"}
