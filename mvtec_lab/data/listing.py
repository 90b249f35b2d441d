"""List the images of a folder: one rule for training, describing and predicting."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path

from mvtec_lab.errors import is_text, printable

HEIC = (".heic", ".heif")  # of phones; they are read with the extra heic
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", *HEIC)
LITTER = {".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep"}  # left by file managers, not worth a warning

# Why something is left out; a number stands before it.
HIDDEN = "hidden file(s) or folder(s)"  # .ipynb_checkpoints, ._000.png of macOS
NO_IMAGES = "file(s) that are not images"
SPECIAL = "pipe(s) or other special file(s)"  # reading one may never end
LISTED = "folder(s) that are listed already"  # by a link to it, or to a folder around it

LeftOut = dict[str, list[str]]  # reason -> paths


@dataclass
class Listing:
    """Hold the images of a folder in natural order, and everything else in it."""

    images: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)  # that were not looked into
    left_out: LeftOut = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)  # why an image or a folder cannot be used, one line each


def list_images(folder: Path, deep: bool = False) -> Listing:
    """List the image files of a folder and, where ``deep``, of all folders below it.

    Linked folders are followed, and each folder is listed once. Only names are read: an image may still be broken.
    """
    listing = Listing()
    folders, links = [folder], list[Path]()  # links last: a folder is listed by its own name where it has one below
    seen: set[Path] = set()
    while folders or links:
        current = folders.pop() if folders else heappop(links)
        try:
            if (real := current.resolve()) in seen:
                listing.left_out.setdefault(LISTED, []).append(str(current))
                continue
            seen.add(real)
            with os.scandir(current) as entries:
                for entry in entries:
                    inner = _sort_in(current, entry, listing)
                    if inner is None:
                        continue
                    if not deep:
                        listing.folders.append(inner)
                    elif entry.is_symlink():
                        heappush(links, inner)
                    else:
                        folders.append(inner)
        except OSError as error:
            listing.unusable.append(f"{current} cannot be listed ({error.strerror}): make it readable or remove it")
    for paths in (listing.images, listing.folders):
        paths.sort(key=lambda path: natural(str(path)))
    for names in (listing.unusable, *listing.left_out.values()):
        names.sort(key=natural)
    return listing


def _sort_in(folder: Path, entry: os.DirEntry[str], listing: Listing) -> Path | None:
    """Put a file into the listing, or return the path of a folder."""
    path, link = folder / entry.name, entry.is_symlink()
    if entry.name in LITTER:
        return None
    if entry.name.startswith("."):
        reason = HIDDEN
    # os.path, where pathlib raises for a link into a forbidden folder
    elif os.path.isdir(path) if link else entry.is_dir():  # noqa: PTH112
        return path
    elif path.suffix.lower() not in EXTENSIONS:
        reason = NO_IMAGES
    elif (os.path.isfile(path) or not os.path.exists(path)) if link else entry.is_file():  # noqa: PTH110, PTH113
        if is_text(str(path)):
            listing.images.append(path)  # a broken link as well: reading it names it
        else:
            listing.unusable.append(f"{printable(str(path))} cannot be used (its name is not UTF-8): rename it")
        return None
    else:
        reason = SPECIAL
    listing.left_out.setdefault(reason, []).append(str(path))
    return None


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts 2.png before 10.png, folder by folder."""
    parts = re.split(r"(\d+)", name.replace(os.sep, "\0"))  # \0: before every other character, so a folder stays whole
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def name_left_out(left_out: LeftOut, folder: Path) -> list[str]:
    """Return a line for each reason: how many, and the first three by their names below ``folder``."""
    return [f"left out: {len(paths)} {reason} ({_few(paths, folder)})" for reason, paths in left_out.items()]


def _few(paths: Iterable[str], folder: Path) -> str:
    names = [printable(Path(path).relative_to(folder).as_posix()) for path in paths]
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
