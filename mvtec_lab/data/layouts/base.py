"""Share what the readers of layouts need: class folders, names of the good class, masks beside images."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mvtec_lab.data.annotations.reading import PARTS
from mvtec_lab.data.images import image_size
from mvtec_lab.data.listing import EXTENSIONS, Listing, list_images, name_left_out, natural
from mvtec_lab.data.samples import Sample, Scan
from mvtec_lab.errors import LabError
from mvtec_lab.results import GOOD

MASKS = "ground_truth"
# Why something is left out of a product folder, beside the reasons of a listing.
LOOSE = "image(s) in no class folder"
NESTED = "image(s) in a folder inside a class folder"


@dataclass(frozen=True)
class Layout:
    """Declare how images, classes and masks lie in a product folder.

    Args:
        title: its name in a message.
        shape: where the images lie, in a line.
        fits: tells, from names alone, whether a folder has this layout; given the folder and the good names.
        read: reads the folder: (folder, good names) -> Scan.
    """

    title: str
    shape: str
    fits: Callable[[Path, Collection[str]], bool]
    read: Callable[[Path, Collection[str]], Scan]


def label_of(name: str, good: Collection[str]) -> str:
    """Return the class that a folder or a label names: ``good`` for each name of ``good``, in any case of letters."""
    return GOOD if name.casefold() in {other.casefold() for other in good} else name


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, in natural order; none where it cannot be listed."""
    return sorted(_entries(folder, os.DirEntry.is_dir), key=lambda path: natural(path.name))


def images_in(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder that are images by their names, not sorted; none where it cannot be listed."""
    return (path for path in _entries(folder, os.DirEntry.is_file) if path.suffix.lower() in EXTENSIONS)


def _entries(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> Iterator[Path]:
    with suppress(OSError), os.scandir(folder) as entries:  # whatever reads the folder names the failure
        for entry in entries:
            if not entry.name.startswith(".") and wanted(entry):
                yield folder / entry.name


def class_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that have images in them, without ground_truth/."""
    return [path for path in subfolders(folder) if path.name.lower() != MASKS and any(images_in(path))]


def parts_in(folder: Path) -> dict[Path, str]:
    """Return the folders in a folder that are called train, val, test or a word for one of these, with that part."""
    return {path: PARTS[path.name.lower()] for path in subfolders(folder) if path.name.lower() in PARTS}


def check_case(folder: Path, names: Collection[str], good: Collection[str] = ()) -> None:
    """Refuse a folder Good where good is meant: it would be left out, or be a defect type.

    Args:
        good: names that stand for ``good`` as well.

    Raises:
        LabError: a folder's name differs from one of ``names`` by case or blanks alone.
    """
    present = [path.name for path in folder.iterdir() if path.is_dir()]
    meant = {name.lower(): name for name in names if name not in present}
    for name in sorted(present):
        if name not in names and name.strip().lower() in meant and label_of(name, good) != GOOD:
            instead = meant[name.strip().lower()]
            remedy = "rename it" + (f", or give data.good=[{name}]" if instead == GOOD else "")
            raise LabError(f"{folder / name} must be called {instead}: {remedy}")


def list_in(folder: Path, result: Scan) -> Listing:
    """List a folder; what is no image is left out of ``result``.

    Raises:
        LabError: an image or a folder that cannot be used.
    """
    listing = list_images(folder)
    if listing.unusable:
        more = f" (and {len(listing.unusable) - 1} more)" if len(listing.unusable) > 1 else ""
        raise LabError(listing.unusable[0] + more)
    result.leave_out(listing.left_out)
    return listing


def samples_of(
    class_folder: Path, result: Scan, label: str, masks: Iterable[Path] = (), split: str = ""
) -> list[Sample]:
    """Return the samples of a class folder; what else lies in it is left out of ``result``, by name.

    Args:
        label: the class, ``good`` or a defect type.
        masks: the folders that may hold its masks; the first one that exists counts.
        split: the part of the data set's own that it belongs to.

    Raises:
        LabError: it holds no image, or a mask belongs to two images.
    """
    here = Scan(result.folder)
    listing = list_in(class_folder, here)
    for inner in (list_images(path, deep=True) for path in listing.folders):
        here.leave_out(inner.left_out)
        if inner.images:
            here.leave_out({NESTED: [str(path) for path in inner.images]})
    if not listing.images:
        instead = "".join(f"; {line}" for line in name_left_out(here.left_out, result.folder))
        raise LabError(f"{class_folder} holds no image ({', '.join(EXTENSIONS)}): fill it or remove it{instead}")
    result.leave_out(here.left_out)
    beside = masks_of(class_folder.name, listing.images, masks, result) if label != GOOD else {}
    paths = ((path, path.relative_to(result.folder).as_posix()) for path in listing.images)
    return [Sample(name, label, beside.get(path), name, split) for path, name in paths]


def masks_of(name: str, images: Sequence[Path], folders: Iterable[Path], result: Scan) -> dict[Path, str]:
    """Return the mask of each image that has one: the file with the image's name, with or without _mask.

    A folder of that name holds several masks of the image, which count as one.

    What is wrong with masks is added to ``result.mask_problems``, a line for each kind.

    Args:
        name: the class folder's.
        folders: that may hold masks of this class.

    Raises:
        LabError: an image has two masks, or two images have one.
    """
    candidates = list(folders)
    if not any(folder.parent.is_dir() for folder in candidates):
        return {}
    folder = next((path for path in candidates if path.is_dir()), candidates[0])
    if folder.parent.is_dir():
        check_case(folder.parent, [folder.name])
    listing = list_images(folder) if folder.is_dir() else Listing()
    by_stem = defaultdict(list)
    for path in listing.images:
        by_stem[path.stem].append(path)
    for path in listing.folders:  # several masks of one image, which are merged
        if any(images_in(path)):
            by_stem[path.name].append(path)
    masks, owner = MaskFiles(result), dict[Path, Path]()
    missing = []
    for image in images:
        fitting = [mask for stem in (f"{image.stem}_mask", image.stem) for mask in by_stem[stem]]
        if len(fitting) > 1:
            first, second = map(masks.name, fitting[:2])
            raise LabError(f"{result.folder}: {masks.name(image)} has two masks, {first} and {second}: remove one")
        if not fitting:
            missing.append(f"{masks.name(image)} has no mask in {masks.name(folder)}/")
            continue
        mask = fitting[0]
        if mask in owner:
            raise LabError(
                f"{result.folder}: {masks.name(owner[mask])} and {masks.name(image)} share the mask "
                f"{masks.name(mask)}: give each image a name and a mask of its own"
            )
        owner[mask] = image
        masks.add(image, mask)
    masks.report(name, missing)
    return masks.fitting


class MaskFiles:
    """Collect masks that fit their images, and what is wrong with the others.

    ``fitting`` are the masks by their image's path, ``seen`` those that were added: names below the product folder.
    """

    def __init__(self, result: Scan) -> None:
        self.result, self.fitting, self.seen = result, dict[Path, str](), set[str]()
        self._unreadable: list[str] = []
        self._unfit: list[str] = []

    def name(self, path: Path) -> str:
        """Return a path relative to the product folder, with forward slashes."""
        return path.relative_to(self.result.folder).as_posix()

    def add(self, image: Path, mask: Path) -> None:
        """Add the mask of an image; their sizes are compared by their headers."""
        self.seen.add(self.name(mask))
        try:
            of_mask = image_size(mask)[:2]
        except LabError as error:
            reason = str(error).replace(str(mask), self.name(mask), 1)
            self._unreadable.append(reason.rpartition(": ")[0])  # without its remedy: each task has its own
            return
        try:
            size = image_size(image)[:2]
        except LabError:  # decoding the image will name it
            size = of_mask
        if size == of_mask:
            self.fitting[image] = self.name(mask)
        else:
            sizes = "{} x {}".format(*of_mask), "{} x {}".format(*size)
            self._unfit.append(f"{self.name(mask)} is {sizes[0]} but {self.name(image)} is {sizes[1]}")

    def report(self, label: str, missing: Sequence[str]) -> None:
        """Add a line to the mask problems for each kind of problem that the images of a class have."""
        for problems in (missing, self._unfit, self._unreadable):
            if problems:
                more = f" (and {len(problems) - 1} more of {label})" if len(problems) > 1 else ""
                self.result.mask_problems.append(problems[0] + more)
