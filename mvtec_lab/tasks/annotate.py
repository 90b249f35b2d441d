"""task=annotate: a product's masks as YOLO, COCO or class-index annotations, by the lab's own split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvtec_lab.checks import formats_of, validate
from mvtec_lab.config import Config
from mvtec_lab.data.annotations import WRITERS
from mvtec_lab.data.annotations.export import Annotated, unique_names
from mvtec_lab.data.annotations.reading import inner_format
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.images import check_images, grey_masks, image_size
from mvtec_lab.data.regions import Region
from mvtec_lab.data.samples import Sample
from mvtec_lab.data.splits import SPLITS
from mvtec_lab.engine.setup import claim, data_module, marks
from mvtec_lab.errors import LabError
from mvtec_lab.results import GOOD, write_whole

ANNOTATIONS = "annotations.json"


def annotate(config: Config, run_dir: str | Path) -> dict[str, Any]:
    """Write the images and objects of a configuration's train, val and test, a folder per ``config.format``.

    An object is an 8-connected component of a mask, or what an annotated data set says. Images are copied as they are.
    annotations.json says what was written and what ``min_area`` left out.

    Raises:
        LabError: a defect whose place is not known: no mask, one of another size, an empty one; a broken image.
    """
    validate(config)
    formats = formats_of(config)
    data = data_module(config)
    data.scan()
    if data.listed.mask_problems:
        raise LabError(f"{data.folder}: {data.listed.mask_problems[0]}: annotations need it: correct it")
    used = [s for s in data.samples if s.split]
    images, dropped = _annotated(data, used, config.min_area)
    check_images([image.source for image in images])
    warnings = [*marks(config), *data.warnings, *_warnings(data, used)]
    if dropped:
        emptied = sum(s.label != GOOD and not image.regions for s, image in zip(used, images, strict=True))
        warnings.append(_say_dropped(dropped, emptied, config.min_area))
    facts: dict[str, Any] = {
        "data": config.data.name,
        "folder": str(data.folder),
        "split": vars(data.split),
        "kinds": data.kinds,
        "images": Counter(image.split for image in images),
        "objects": {split: Counter(r.label for i in images if i.split == split for r in i.regions) for split in SPLITS},
        "min_area": config.min_area,
        "dropped": [{"image": path, "area": area} for path, area in dropped],
        "names": {image.name: s.path for image, s in zip(images, used, strict=True)},
        "warnings": warnings,
    }
    run_dir = claim(run_dir, ANNOTATIONS)
    facts["formats"] = {name: WRITERS[name](run_dir / name, images, data.kinds) for name in formats}
    write_whole(run_dir / ANNOTATIONS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    _print(facts, run_dir)
    return facts


def _annotated(
    data: MVTecDataModule, used: Sequence[Sample], min_area: int
) -> tuple[list[Annotated], list[tuple[str, float]]]:
    """Return the images with their objects, and the path and the area of each object that is left out."""
    names, images = unique_names([s.path for s in used]), []
    dropped: list[tuple[str, float]] = []
    for s in used:
        regions = s.regions(data.folder)
        if s.label != GOOD and not regions:
            reason = f"its mask {s.mask} marks nothing" if s.mask else "it has no mask"
            raise LabError(
                f"{data.folder / s.path} cannot be annotated ({reason}): draw its defect, or remove the image"
            )
        areas = [region.area() for region in regions]
        dropped += [(s.path, area) for area in areas if area < min_area]
        kept: list[Region] = [region for region, area in zip(regions, areas, strict=True) if area >= min_area]
        width, height, _ = image_size(data.folder / s.path)
        images.append(Annotated(data.folder / s.path, names[s.path], s.split, (height, width), tuple(kept)))
    return images, dropped


def _warnings(data: MVTecDataModule, used: Sequence[Sample]) -> list[str]:
    lines = grey_masks([data.folder / s.mask for s in used if s.mask and not s.objects])
    if data.val_is_test:
        lines.append("validation = test: data.yaml gives the test images as val")
    return lines


def _say_dropped(dropped: Sequence[tuple[str, float]], emptied: int, min_area: int) -> str:
    paths = list(dict.fromkeys(path for path, _ in dropped))
    shown = ", ".join(paths[:3]) + (" ..." if len(paths) > 3 else "")
    line = f"min_area={min_area} leaves out {len(dropped)} object(s) of {len(paths)} image(s) ({shown})"
    return line + (f"; {emptied} image(s) have no other, so that they look good" if emptied else "")


def _print(facts: dict[str, Any], run_dir: Path) -> None:
    for warning in facts["warnings"]:
        print(f"{'warning':<14}{warning}")
    for split, count in facts["images"].items():
        objects = facts["objects"][split]
        kinds = ", ".join(f"{kind} {objects[kind]}" for kind in facts["kinds"] if objects[kind]) or "none"
        print(f"{split:<14}{count} images, {objects.total()} objects: {kinds}")
    for name, line in facts["formats"].items():
        print(f"{name:<14}{line}")
    print(f"{'written':<14}{run_dir} (images are copies)")
    if advice := inner_format(run_dir):
        print(f"{'read it with':<14}python -m mvtec_lab task=describe {advice.removeprefix('give ')}")
