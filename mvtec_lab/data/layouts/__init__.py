"""Read product folders, whatever their layout: a file for each layout, which recognises it and reads it.

A reader gives a Scan: samples with their class, mask and, where the data set says so, their part. Recognising looks at
names alone, two folders deep.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mvtec_lab.data.annotations import READERS as ANNOTATED
from mvtec_lab.data.layouts import btad, classes, loco, mvtec, mvtec_ad2, parts, real_iad, visa
from mvtec_lab.data.layouts.base import Layout
from mvtec_lab.data.layouts.misplaced import misplaced, not_a_folder
from mvtec_lab.data.layouts.table import read_table
from mvtec_lab.data.samples import Scan, classes_of
from mvtec_lab.errors import LabError
from mvtec_lab.results import GOOD

ANY = "folder"  # the value of data.name that recognises a layout
MVTEC = ("mvtec", "sample")  # the values of data.name whose folders have MVTec AD's layout in any case
# By name, those that say more about a folder first: the first one that fits is read.
LAYOUTS: dict[str, Layout] = {
    "loco": loco.LAYOUT,
    "mvtec_ad2": mvtec_ad2.LAYOUT,
    "visa": visa.LAYOUT,
    "real_iad": real_iad.LAYOUT,
    "btad": btad.LAYOUT,
    "mvtec": mvtec.LAYOUT,
    "parts": parts.LAYOUT,
    "classes": classes.LAYOUT,
}


def recognise(folder: Path, name: str = ANY, good: Collection[str] = ()) -> str:
    """Return the name of a folder's layout, a key of LAYOUTS, from the names of files and folders alone.

    Args:
        name: the only layout that is looked for; ``folder`` looks for all.
        good: names that stand for the class ``good``.

    Raises:
        LabError: it has none; the error says what lies there, and the setting that would work.
    """
    layout = fitting(folder, good, name)
    if layout is None and name != ANY and (other := fitting(folder, good)):
        raise LabError(
            f"{folder} is in {LAYOUTS[other].title} layout, not in {LAYOUTS[name].title} ({LAYOUTS[name].shape}): give "
            "data=folder"
        )
    wanted = "class folders of images" if name == ANY else f"{LAYOUTS[name].title} layout ({LAYOUTS[name].shape})"
    if mistake := misplaced(folder, layout, wanted, lambda path: fitting(path, good, name)):
        raise mistake
    assert layout is not None
    return layout


def read_folder(
    folder: str | Path,
    name: str = ANY,
    good: Collection[str] = (),
    labels: str | Path | None = None,
    defects: str = "types",
) -> Scan:
    """Return what lies in a product folder: a root for MVTecDataModule.

    Args:
        name: a value of ``data.name``; ``folder`` recognises the layout.
        good: names that stand for the class ``good``, in any case of letters: ``["OK", "gut"]``.
        labels: a CSV or JSON file that names the images and their classes (layouts/table.py), as given or below the
            folder; no layout is looked for then.
        defects: ``merged`` makes one class, ``defect``, of all types.

    Raises:
        LabError: no layout fits, no class is called by one of the names ``good``, or whatever the layout's reader
            finds wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise not_a_folder(folder)
    scan = read_table(list_of(labels, folder), folder, good) if labels else _read(folder, name, good)
    if good and all(s.label != GOOD for s in scan.samples):
        raise LabError(
            f"{folder}: no class is called {' or '.join(good)} (data.good): there are "
            f"{', '.join(classes_of(scan.samples))}"
        )
    return scan.of_two_classes() if defects == "merged" else scan


def list_of(labels: str | Path, folder: Path) -> Path:
    """Return the file that ``data.labels`` names: as given, or below the product folder.

    Raises:
        LabError: there is neither.
    """
    given = Path(labels).expanduser()
    if found := next((path for path in (given, folder / given) if path.is_file()), None):
        return found
    raise LabError(f"data.labels={labels} does not exist, neither here nor in {folder}: give a CSV or JSON file")


def _read(folder: Path, name: str, good: Collection[str]) -> Scan:
    if name in ANNOTATED:
        return ANNOTATED[name](folder)
    if name in MVTEC:  # whose reader says what is wrong
        return mvtec.scan(folder)
    return LAYOUTS[recognise(folder, name, good)].read(folder, good)


def fitting(folder: Path, good: Collection[str] = (), name: str = ANY) -> str | None:
    """Return the name of the layout that a folder has, None where it is not ``name``, or none that is known."""
    known = LAYOUTS if name == ANY else {name: LAYOUTS[name]}
    return next((name for name, layout in known.items() if layout.fits(folder, good)), None)
