"""Hold what lies in a product folder: samples with their class, mask and part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from mvtec_lab.data.images import mask_share, read_mask
from mvtec_lab.data.listing import LeftOut, name_left_out
from mvtec_lab.data.regions import Region, merged, regions_of
from mvtec_lab.data.tiles import Window
from mvtec_lab.errors import LabError
from mvtec_lab.results import DEFECT, GOOD

# What plants and data sets call their good images.
LIKELY_GOOD = ("ok", "io", "i.o.", "gut", "normal", "pass", "passed", "conforming", "bon", "buono", "bueno", "clean")


@dataclass(frozen=True)
class Sample:
    """Hold one image, or a tile of it. Paths are relative to the product folder, with forward slashes."""

    path: str
    label: str  #: the class: good, or the defect type
    mask: str | None = None  #: the file that says where its defects are: a mask, or annotations
    group: str = ""  #: images of one group stay in one split; the path itself where images are independent
    split: str = ""  #: train, val, test, or empty: not used
    objects: tuple[Region, ...] = ()  #: its defects, where annotations say them one by one
    window: Window | None = None  #: the tile of the image that it is; None: the image as a whole

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

    def of_two_classes(self) -> Scan:
        """Return the same with the class ``defect`` for all defects, of images and of objects, whatever their types."""
        return replace(
            self,
            samples=[
                s
                if s.label == GOOD
                else replace(s, label=DEFECT, objects=tuple(region._replace(label=DEFECT) for region in s.objects))
                for s in self.samples
            ],
        )

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
                needless = "attempt=head data.masks=optional"  # data=mvtec requires them for any method
                remedy = f"this method learns from masks: correct it, or give {needless}, which needs none"
            raise LabError(f"{self.folder}: {problems[0]}{more}: {remedy}")
        return [f"mask: {problem}" for problem in problems]

    def oddities(self, samples: Sequence[Sample]) -> list[str]:
        """Return what a reader of the figures should know of these samples, after the split, a line each."""
        defects_train = any(
            s.label != GOOD for s in self.samples if s.split != "test"
        )  # else the rest waits, as MVTec's
        pairs = zip(self.samples, samples, strict=True)
        idle = sum(bool(own.split) and not s.split and (defects_train or own.split == "test") for own, s in pairs)
        messages = [f"{idle} of {len(samples)} images take no part in this split"] if idle else []
        messages += [*self.notes, *name_left_out(self.left_out, self.folder)]
        if not any(s.label == GOOD for s in samples if s.split):
            messages.append(f"{no_good(classes_of(samples))}: every image counts as a defect")
        return messages


def no_good(classes: Sequence[str]) -> str:
    """Return that no class is called good, and the setting that names it: the class that sounds like it, if any."""
    likely = next((name for name in classes if name.strip().casefold() in LIKELY_GOOD), None)
    named = f"give data.good=[{likely or 'NAME'}] if {likely or 'one of them'} is the class of good images"
    return f"no class is called {GOOD!r} (there are {', '.join(classes)}): {named}"


def by_image(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Return the tiles of each image, which lie one after another; an image that is not cut is a list of its own."""
    return [list(tiles) for _, tiles in groupby(samples, key=lambda s: s.path)]


def seen_in(sample: Sample, folder: Path, windows: Sequence[Window]) -> list[dict[str, Any]]:
    """Return what the masks of an image mark in each of its windows, as fields of a sample: label, mask and objects.

    Raises:
        LabError: the mask cannot be read.
    """
    if sample.mask is None or not sample.outlined:
        return [{} for _ in windows]
    masks = [r.mask() for r in sample.objects] if sample.objects else [sample.read_mask(folder)]
    fields: list[dict[str, Any]] = []
    for window in windows:
        areas = [0 if mask is None else int(window.of(mask).sum()) for mask in masks]
        if not any(areas):
            fields.append({"label": GOOD, "mask": None, "objects": ()})
            continue
        objects = tuple(r for r, area in zip(sample.objects, areas, strict=False) if area)
        largest = sample.objects[int(np.argmax(areas))].label if objects else sample.label
        fields.append({"label": largest, "objects": objects})
    return fields


def classes_of(samples: Sequence[Sample]) -> list[str]:
    """Return the class names, good first, then the defect types by name; a label's index is its place here."""
    return sorted({s.label for s in samples}, key=lambda name: (name != GOOD, name))


def kinds_of(samples: Sequence[Sample]) -> list[str]:
    """Return the defect types by name, those of objects that give their image another class as well.

    A box's label is its place here, from 1.
    """
    kinds = {s.label for s in samples} | {region.label for s in samples for region in s.objects}
    return sorted(kinds - {GOOD})
