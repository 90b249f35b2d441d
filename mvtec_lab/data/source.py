"""Find the images: the sample that is drawn, an existing folder, or an archive that is unpacked into one."""

from __future__ import annotations

import logging
from pathlib import Path

from mvtec_lab.data.catalogue import CATEGORIES, LICENSE, PAGE
from mvtec_lab.errors import LabError, unknown

log = logging.getLogger(__name__)


def product_folder(root: str | Path, category: str | None) -> Path:
    """Return the folder of one product, ``root/category`` or ``root`` itself.

    Raises:
        LabError: it does not exist; the error names the categories that do.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise LabError(f"data.root={root} is not a folder: give the folder that holds the category folders")
    folder = root / category if category else root
    if not folder.is_dir():
        present = _products(root)
        if not present:
            raise LabError(f"data.root={root} holds no category folder (a folder with test/ in it)")
        raise LabError(f"{unknown('category', category, present)} in {root}")
    return folder


def locate(name: str, root: str, category: str | None, archive: str | None = None, sha256: str | None = None) -> Path:
    """Return the folder of the product that a configuration names; a missing one is drawn or fetched.

    Args:
        name: ``sample``, ``mvtec`` or ``folder``.
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
    if not folder.is_dir() and archive is not None:
        from mvtec_lab.data.download import fetch_archive

        if "://" not in archive and not Path(archive).expanduser().is_file():
            raise LabError(f"data.archive={archive} does not exist: give an archive's file or URL")
        if name == "mvtec":
            log.warning(LICENSE)
        fetch_archive(archive, Path(root).expanduser(), sha256=sha256)
    if name == "mvtec" and not folder.is_dir():
        present = ", ".join(_products(Path(root).expanduser())) or "no category"
        raise LabError(
            f"{root} has no {category!r} (found: {present}): give data.root=FOLDER or MVTEC_ROOT, or "
            f"data.archive=URL_OR_FILE of an archive from {PAGE}"
        )
    return product_folder(root, category)


def _products(root: Path) -> list[str]:
    return sorted(p.parent.name for p in root.glob("[!.]*/test"))
