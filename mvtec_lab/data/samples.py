"""Read one product folder in MVTec's layout into a list of samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mvtec_lab.data.images import image_size, mask_share, read_mask
from mvtec_lab.data.listing import EXTENSIONS, LeftOut, Listing, list_images, name_left_out
from mvtec_lab.data.regions import Region, merged, regions_of
from mvtec_lab.errors import LabError
from mvtec_lab.results import GOOD

PARTS = ("train", "test", "ground_truth")

# Why something is left out of a product folder, beside the reasons of a listing.
LOOSE = "image(s) in no class folder"
NESTED = "image(s) in a folder inside a class folder"
OTHER = f"folder(s) of train/ beside train/{GOOD}"


@dataclass(frozen=True)
class Sample:
    """Hold one image. Paths are relative to the product folder, with forward slashes."""

    path: str
    label: str  # the class: good, or the defect type
    mask: str | None = None  # the file that says where its defects are: a mask, or annotations
    group: str = ""  # images of one group stay in one split; the path itself where images are independent
    split: str = ""  # train, val, test, or empty: not used
    objects: tuple[Region, ...] = ()  # its defects, where annotations say them one by one

    @property
    def outlined(self) -> bool:
        """Return whether its defects are marked pixel by pixel, not by boxes alone."""
        return self.mask is not None and all(region.counts is not None for region in self.objects)

    @property
    def mixed(self) -> bool:
        """Return whether its defects are of several types, of which ``label`` names one alone."""
        return len({region.label for region in self.objects}) > 1

    def read_mask(self, folder: Path) -> np.ndarray | None:
        """Return where its defects are, [H, W] bool in the image's size; None where that is not known.

        Raises:
            LabError: the mask cannot be read.
        """
        if self.mask is None or not self.outlined:
            return None
        return merged(self.objects) if self.objects else read_mask(folder / self.mask)

    def regions(self, folder: Path) -> list[Region]:
        """Return its defects one by one: as annotated, or the 8-connected components of its mask.

        Raises:
            LabError: the mask cannot be read.
        """
        if self.objects or self.mask is None:
            return list(self.objects)
        return regions_of(read_mask(folder / self.mask), self.label)

    def marked(self, folder: Path) -> float | None:
        """Return the share of its pixels that its mask marks, in [0, 1]; None where there is no mask.

        Raises:
            LabError: the mask cannot be read.
        """
        if self.mask is None or not self.outlined:
            return None
        return float(merged(self.objects).mean()) if self.objects else mask_share(folder / self.mask)


@dataclass
class Scan:
    """Hold what lies in a product folder: samples in the order of their paths, and what was left out."""

    folder: Path
    samples: list[Sample] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=dict)
    mask_problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # how its annotations were understood, a line each

    def leave_out(self, left_out: LeftOut) -> None:
        """Add paths that are left out, by reason."""
        for reason, paths in left_out.items():
            self.left_out.setdefault(reason, []).extend(paths)

    def check_masks(self, required: bool, learnt: bool = False) -> list[str]:
        """Return a warning for each problem of the masks.

        Args:
            learnt: they are what is learnt, so that no setting makes up for one.

        Raises:
            LabError: masks are ``required``, and one is missing or does not fit.
        """
        problems, defects = list(self.mask_problems), [s for s in self.samples if s.label != GOOD]
        if required and defects and not problems and not any(s.mask for s in defects):
            problems = ["it has no ground_truth/ folder with masks"]
        if problems and required:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            remedy = "correct it, or give data.masks=optional"
            if learnt:
                remedy = "this method learns from masks: correct it, or give attempt=head, which needs none"
            raise LabError(f"{self.folder}: {problems[0]}{more}: {remedy}")
        return [f"mask: {problem}" for problem in problems]

    def oddities(self, samples: Sequence[Sample]) -> list[str]:
        """Return what a reader of the figures should know of these samples, after the split, a line each."""
        idle = sum(bool(listed.split) and not s.split for listed, s in zip(self.samples, samples, strict=True))
        messages = [f"{idle} of {len(samples)} annotated images take no part in this split"] if idle else []
        messages += [*self.notes, *name_left_out(self.left_out, self.folder)]
        if not any(s.label == GOOD for s in samples if s.split):
            messages.append(f"no class is called {GOOD!r}: every image counts as a defect")
        return messages


def classes_of(samples: Sequence[Sample]) -> list[str]:
    """Return the class names, good first, then the defect types by name; a label's index is its place here."""
    return sorted({s.label for s in samples}, key=lambda name: (name != GOOD, name))


def kinds_of(samples: Sequence[Sample]) -> list[str]:
    """Return the defect types by name, those of objects that give their image another class as well.

    A box's label is its place here, from 1.
    """
    kinds = {s.label for s in samples} | {region.label for s in samples for region in s.objects}
    return sorted(kinds - {GOOD})


def scan(folder: Path) -> Scan:
    """List ``train/good``, ``test/<class>`` and the masks ``ground_truth/<class>/<name>_mask.*``.

    Masks are read only where the folder has ``ground_truth/``; each is compared with its image's size.

    Raises:
        LabError: no ``test/``, a class folder without an image, a folder whose name differs from the layout only by
            case, a file name that is not text, or a mask that belongs to two images.
    """
    _check_case(folder, PARTS)
    if not (folder / "test").is_dir():
        refuse_class_masks(folder)
        raise LabError(f"{folder} has no test/ folder: {_layout(folder)}")
    result = Scan(folder)
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            continue
        _check_case(folder / part, [GOOD])
        top = _list(folder / part, result)
        if top.images:
            result.leave_out({LOOSE: [str(path) for path in top.images]})
        for class_folder in sorted(top.folders):
            if part == "train" and class_folder.name != GOOD:
                result.leave_out({OTHER: [str(class_folder)]})
            else:
                result.samples += _samples(class_folder, result)
    if not result.samples:
        raise LabError(f"{folder / 'test'} has no class folders: MVTec's layout is test/<defect type>/*.png")
    return result


def refuse_class_masks(folder: Path) -> None:
    """Raise LabError for a folder of masks by class index, as ``task=annotate format=masks`` writes: none reads it."""
    names = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()
    if names == {"classes.json", "images", "masks"}:
        raise LabError(
            f"{folder} holds masks by class index (format=masks), which are for other programs: write format=coco, and "
            "read it with data=coco"
        )


def _check_case(folder: Path, names: Collection[str]) -> None:
    """Refuse a folder Good where good is meant: it would be left out, or be a defect type."""
    present = [path.name for path in folder.iterdir() if path.is_dir()]
    meant = {name.lower(): name for name in names if name not in present}
    for name in sorted(present):
        if name not in names and name.strip().lower() in meant:
            raise LabError(f"{folder / name} must be called {meant[name.strip().lower()]}: rename it")


def _layout(folder: Path) -> str:
    """Return how to make a folder a product, or which setting reads it, by what lies in it."""
    annotated = {"coco": ("annotations/*.json", "*/_annotations.coco.json"), "yolo": ("data.yaml", "data.yml")}
    for name, patterns in annotated.items():
        if any(next(folder.glob(pattern), None) for pattern in patterns):
            return f"give data={name} for what is annotated in that format"
    listing = list_images(folder)
    classes = [path.name for path in sorted(listing.folders) if list_images(path).images]
    if classes:
        shown = ", ".join(f"{name}/" for name in classes[:3]) + (" ..." if len(classes) > 3 else "")
        return f"move its class folders ({shown}) into {folder / 'test'}"
    products = [path.name for path in sorted(listing.folders) if (path / "test").is_dir()]
    if products:
        return f"give data.category=NAME for one of its products ({', '.join(products[:15])})"
    return "MVTec's layout is test/<defect type>/*.png"


def _list(folder: Path, result: Scan) -> Listing:
    listing = list_images(folder)
    if listing.unusable:
        more = f" (and {len(listing.unusable) - 1} more)" if len(listing.unusable) > 1 else ""
        raise LabError(listing.unusable[0] + more)
    result.leave_out(listing.left_out)
    return listing


def _samples(class_folder: Path, result: Scan) -> list[Sample]:
    here = Scan(result.folder)
    listing = _list(class_folder, here)
    for inner in (list_images(path, deep=True) for path in listing.folders):
        here.leave_out(inner.left_out)
        if inner.images:
            here.leave_out({NESTED: [str(path) for path in inner.images]})
    if not listing.images:
        instead = "".join(f"; {line}" for line in name_left_out(here.left_out, result.folder))
        raise LabError(f"{class_folder} holds no image ({', '.join(EXTENSIONS)}): fill it or remove it{instead}")
    result.leave_out(here.left_out)
    label = class_folder.name
    masks = _masks(label, listing.images, result) if label != GOOD else {}
    paths = ((path, path.relative_to(result.folder).as_posix()) for path in listing.images)
    return [Sample(name, label, masks.get(path), name) for path, name in paths]


def _masks(label: str, images: Sequence[Path], result: Scan) -> dict[Path, str]:
    """Return the mask of each image that has one: the file with the image's name, with or without _mask."""
    folder = result.folder / "ground_truth"
    if not folder.is_dir():
        return {}
    _check_case(folder, [label])
    listing = list_images(folder / label) if (folder / label).is_dir() else Listing()
    by_stem = defaultdict(list)
    for path in listing.images:
        by_stem[path.stem].append(path)

    def name(path: Path) -> str:
        return path.relative_to(result.folder).as_posix()

    masks: dict[Path, str] = {}
    owner: dict[Path, Path] = {}
    missing, unreadable, unfit = [], [], []
    for image in images:
        candidates = [mask for stem in (f"{image.stem}_mask", image.stem) for mask in by_stem[stem]]
        if len(candidates) > 1:
            first, second = map(name, candidates[:2])
            raise LabError(f"{result.folder}: {name(image)} has two masks, {first} and {second}: remove one")
        if not candidates:
            missing.append(f"{name(image)} has no mask in ground_truth/{label}/")
            continue
        mask = candidates[0]
        if mask in owner:
            raise LabError(
                f"{result.folder}: {name(owner[mask])} and {name(image)} share the mask {name(mask)}: give each image "
                "a name and a mask of its own"
            )
        owner[mask] = image
        try:
            of_mask = image_size(mask)[:2]
        except LabError as error:
            reason = str(error).replace(str(mask), name(mask), 1)
            unreadable.append(reason.rpartition(": ")[0])  # without its remedy: each task has its own
            continue
        try:
            size = image_size(image)[:2]
        except LabError:  # decoding the image will name it
            size = of_mask
        if size == of_mask:
            masks[image] = name(mask)
        else:
            sizes = "{} x {}".format(*of_mask), "{} x {}".format(*size)
            unfit.append(f"{name(mask)} is {sizes[0]} but {name(image)} is {sizes[1]}")
    if missing and listing.folders:
        inner = name(sorted(listing.folders)[0])
        missing[0] += f", but {inner}/: masks are one file per image, <name>_mask.png: merge those of a folder"
    for problems in (missing, unfit, unreadable):
        if problems:
            more = f" (and {len(problems) - 1} more of {label})" if len(problems) > 1 else ""
            result.mask_problems.append(problems[0] + more)
    return masks
