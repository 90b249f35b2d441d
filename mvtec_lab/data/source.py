"""Find the images: the sample that is drawn, an existing folder, or an archive that is unpacked into one."""

from __future__ import annotations

import logging
from pathlib import Path

from mvtec_lab.config import DataConfig, SplitConfig
from mvtec_lab.data.catalogue import CATEGORIES, LICENSE, PAGE
from mvtec_lab.data.layouts import ANNOTATED, MVTEC, fitting, list_of, read_folder, recognise
from mvtec_lab.data.layouts.base import subfolders
from mvtec_lab.data.layouts.misplaced import not_a_folder
from mvtec_lab.data.layouts.table import check_columns
from mvtec_lab.data.samples import Scan
from mvtec_lab.data.splits import split_samples
from mvtec_lab.errors import LabError, setting, unknown

log = logging.getLogger(__name__)


def product_folder(root: str | Path, category: str | None) -> Path:
    """Return the folder of one product, ``root/category`` or ``root`` itself.

    Raises:
        LabError: it does not exist; the error names the categories that do.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise not_a_folder(root)
    folder = root / category if category else root
    if category and not folder.is_dir():
        if fitting(root):
            remedy = f"give {setting('data.root', root.absolute().parent)}" if root.name == category else ""
            raise LabError(f"{root} is a product itself: {remedy or 'leave out data.category'}")
        present = _products(root)
        if not present:
            recognise(root)  # says what lies there
            raise LabError(f"data.root={root} has no folder {category!r}: leave out data.category")
        raise LabError(f"{unknown('category', category, present)} (in {root})")
    return folder


def look(data: DataConfig) -> Path | None:
    """Refuse data whose place or layout is wrong, from the names of files and folders alone: before torch is imported.

    Returns:
        The product's folder; None where it would have to be drawn or fetched first, which is left to ``locate``.

    Raises:
        LabError: no such folder, or none that can be read; the error says what lies there, and what would work.
    """
    assert data.root is not None
    folder = Path(data.root).expanduser() / (data.category or "")
    if data.name == "sample":
        root = Path(data.root).expanduser()
        if data.root != DataConfig().root and not folder.exists() and (fitting(root) or _products(root)):
            raise LabError(
                f"data.root={root} holds images, and the sample is drawn, not read from it: give data=folder "
                f"{setting('data.root', root)}, or another data.root"
            )
        return None
    if data.archive and _is_vacant(folder):
        return None
    folder = locate(data.name, data.root, data.category)
    if data.labels is not None:
        check_columns(list_of(data.labels, folder))
    elif data.name not in (*MVTEC, *ANNOTATED):
        recognise(folder, data.name, data.good)
    return folder


def look_at_split(folder: Path, data: DataConfig, split: SplitConfig, scans: dict[str, Scan]) -> None:
    """Refuse a split that the images of a folder do not allow, before torch is imported.

    Args:
        folder: the product's, of ``look``.
        scans: what was read for other splits of the same data; what is read here joins it.

    Raises:
        LabError: whatever is wrong with the folder or the split, as a training would say it.
    """
    key = repr((data.name, folder, data.good, data.labels, data.defects))
    if key not in scans:
        scans[key] = read_folder(folder, data.name, data.good, data.labels, data.defects)
    try:
        split_samples(scans[key].samples, split)
    except LabError as error:
        raise LabError(f"{folder}: {error}") from error


def locate(name: str, root: str, category: str | None, archive: str | None = None, sha256: str | None = None) -> Path:
    """Return the folder of the product that a configuration names; a missing one is drawn or fetched.

    Args:
        name: a value of ``data.name``.
        root, category: the folder and the category folder below it.
        archive, sha256: the archive of a missing category, and the digest that it must have.
    """
    if name == "sample":
        from mvtec_lab.data.cable import generate

        if category != "cable":
            raise LabError(f"data=sample draws the category cable, not {category!r}: data=mvtec has the real ones")
        try:
            return generate(Path(root).expanduser())
        except OSError as error:
            raise LabError(f"data.root={root} cannot be written ({error.strerror}): give data.root=FOLDER") from error
    if name == "mvtec" and category not in CATEGORIES:
        raise unknown("MVTec AD category", category, CATEGORIES)
    folder = Path(root).expanduser() / (category or "")
    if archive is not None and _is_vacant(folder):
        from mvtec_lab.data.download import fetch_archive, fetch_product

        if "://" not in archive and not Path(archive).expanduser().is_file():
            raise LabError(f"data.archive={archive} does not exist: give an archive's file or URL")
        if name == "mvtec":
            log.warning(LICENSE)
            fetch_archive(archive, Path(root).expanduser(), sha256=sha256)
        else:
            fetch_product(archive, Path(root).expanduser(), category, sha256=sha256)
    if name == "mvtec" and not folder.is_dir():
        assert category is not None
        raise _no_category(Path(root).expanduser(), category)
    return product_folder(root, category)


def _no_category(root: Path, category: str) -> LabError:
    """Return the error of a root without an MVTec category: the root that has it, or how to get it."""
    if not root.is_dir():
        return not_a_folder(root)
    above = [root.absolute().parent] if root.name == category else []
    for place in [*above, *subfolders(root)]:
        if (place / category).is_dir() and fitting(place / category):
            return LabError(f"{root} has no {category!r}, but {place} has it: give {setting('data.root', place)}")
    present = ", ".join(_products(root)) or "no category"
    return LabError(
        f"{root} has no {category!r} (found: {present}): give data.root=FOLDER or MVTEC_ROOT, or "
        f"data.archive=URL_OR_FILE of an archive from {PAGE}"
    )


def _is_vacant(folder: Path) -> bool:
    """Tell whether a folder is missing or empty: an archive may fill it."""
    return not folder.exists() or (folder.is_dir() and next(folder.iterdir(), None) is None)


def _products(root: Path) -> list[str]:
    return [path.name for path in subfolders(root) if fitting(path)]
