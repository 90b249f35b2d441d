"""Read MVTec AD 2's layout: a public test with masks inside of it, and private tests without labels.

Heckler-Kram, Neudeck, Scheler, Koenig, Steger: "The MVTec AD 2 Dataset: Advanced Scenarios for Unsupervised Anomaly
Detection", 2025. A scene is photographed in several lights, ``000_regular.png``, ``000_overexposed.png`` ...: its
images are one group, and stay in one split.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from mvtec_lab.data.layouts.base import MASKS, Layout, class_folders, images_in, label_of, list_in, samples_of
from mvtec_lab.data.samples import Sample, Scan
from mvtec_lab.errors import LabError
from mvtec_lab.results import GOOD

PUBLIC = "test_public"
PARTS = {"train": "train", "validation": "val", PUBLIC: "test"}
HIDDEN = "image(s) of the private tests, whose labels are not published"


def fits(folder: Path, good: Collection[str]) -> bool:
    """Tell whether a folder has a public test."""
    return bool(class_folders(folder / PUBLIC))


def read(folder: Path, good: Collection[str]) -> Scan:
    """List train, validation and the public test; masks lie in ``test_public/ground_truth/<class>``.

    Raises:
        LabError: no good images to train on, a class folder without an image, or a mask that belongs to two images.
    """
    result = Scan(folder)
    top = list_in(folder, result)
    for part_folder in (path for path in top.folders if path.name in PARTS):
        for class_folder in list_in(part_folder, result).folders:
            if class_folder.name == MASKS:
                continue
            masks = [folder / PUBLIC / MASKS / class_folder.name]
            label, part = label_of(class_folder.name, good), PARTS[part_folder.name]
            result.samples += [_grouped(s) for s in samples_of(class_folder, result, label, masks, part)]
    hidden = [str(image) for path in top.folders if path.name.startswith("test_private") for image in images_in(path)]
    if hidden:
        result.leave_out({HIDDEN: hidden})
    if not any(s.split == "train" and s.label == GOOD for s in result.samples):
        raise LabError(f"{folder} has no train/good/ with images: {LAYOUT.title} layout is {LAYOUT.shape}")
    return result


def _grouped(sample: Sample) -> Sample:
    """Return a sample in the group of its scene: the number that its name begins with."""
    return replace(sample, group=re.sub(r"(/\d+)_[^/]*$", r"\1", sample.path))


LAYOUT = Layout(
    "MVTec AD 2's",
    "train/good, validation/good, test_public/{good,bad}, test_public/ground_truth/bad/*_mask.png",
    fits,
    read,
)
