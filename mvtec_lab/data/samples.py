"""One product folder in MVTec's layout, read into a list of samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mvtec_lab.data.catalogue import GOOD
from mvtec_lab.data.images import EXTENSIONS, image_size
from mvtec_lab.errors import LabError

LITTER = {".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep"}  # left by file managers, not worth a word


@dataclass(frozen=True)
class Sample:
    """One image. Paths are relative to the product folder, with forward slashes."""

    path: str
    label: str  # the class: good, or the defect type
    mask: str | None = None
    group: str = ""  # images of one group never part; a path of its own where images are independent
    split: str = ""  # train, val, test, or empty: not used


@dataclass
class Scan:
    """What lies in a product folder: samples in the order of their paths, and what was passed over."""

    folder: Path
    samples: list[Sample]
    ignored: list[str] = field(default_factory=list)  # files that are no images
    mask_problems: list[str] = field(default_factory=list)


def classes_of(samples: Sequence[Sample]) -> list[str]:
    """The class names, good first, then the defect types by name; a label's index is its place here."""
    return sorted({s.label for s in samples}, key=lambda name: (name != GOOD, name))


def scan(folder: Path) -> Scan:
    """List ``train/good``, ``test/<class>`` and the masks ``ground_truth/<class>/<name>_mask.*``.

    Masks are looked for only where the folder has ``ground_truth/``; each is compared with its image's size.

    Raises:
        LabError: no ``test/``, or a class folder without an image.
    """
    if not (folder / "test").is_dir():
        raise LabError(f"{folder} has no test/ folder: MVTec's layout is test/<defect type>/*.png")
    result = Scan(folder, [])
    for part in ("train", "test"):
        for class_folder in sorted(p for p in (folder / part).glob("*") if p.name not in LITTER):
            hidden = class_folder.name.startswith(".")  # .ipynb_checkpoints and the like
            if not class_folder.is_dir() or hidden or (part == "train" and class_folder.name != GOOD):
                result.ignored.append(f"{part}/{class_folder.name}")
                continue
            images = _images(class_folder, result)
            if not images:
                raise LabError(f"{class_folder} holds no image ({', '.join(EXTENSIONS)}): fill it or remove it")
            result.samples += [_sample(path, class_folder.name, result) for path in images]
    if not result.samples:
        raise LabError(f"{folder / 'test'} has no class folders: MVTec's layout is test/<defect type>/*.png")
    return result


def _images(folder: Path, result: Scan) -> list[Path]:
    files = sorted((p for p in folder.iterdir() if p.name not in LITTER), key=lambda p: _natural(p.name))
    images = [p for p in files if p.is_file() and p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")]
    result.ignored += [p.relative_to(result.folder).as_posix() for p in files if p not in images]
    return images


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort 2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _sample(image: Path, label: str, result: Scan) -> Sample:
    path = image.relative_to(result.folder).as_posix()
    masks = result.folder / "ground_truth"
    if label == GOOD or not masks.is_dir():
        return Sample(path, label, None, path)
    found = [m for stem in (f"{image.stem}_mask", image.stem) for m in (masks / label).glob(f"{_escape(stem)}.*")]
    found = [m for m in found if m.suffix.lower() in EXTENSIONS]
    if not found:
        result.mask_problems.append(f"{path} has no mask in ground_truth/{label}/")
        return Sample(path, label, None, path)
    mask = found[0].relative_to(result.folder).as_posix()
    try:
        of_mask = image_size(found[0])[:2]
    except LabError as error:
        result.mask_problems.append(str(error))
        return Sample(path, label, None, path)
    try:
        size = image_size(image)[:2]
    except LabError:  # whoever decodes the image will name it
        return Sample(path, label, mask, path)
    if size != of_mask:
        result.mask_problems.append(f"{mask} is {of_mask[0]} x {of_mask[1]} but {path} is {size[0]} x {size[1]}")
        return Sample(path, label, None, path)
    return Sample(path, label, mask, path)


def _escape(stem: str) -> str:
    """A file name may hold glob characters."""
    return re.sub(r"([*?[])", r"[\1]", stem)
