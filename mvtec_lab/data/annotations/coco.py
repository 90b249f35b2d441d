"""Write objects in COCO's format, and read a folder in it: a json file per split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvtec_lab.data.annotations.export import Annotated, Loss, copy_images, write_text
from mvtec_lab.data.regions import Region, polygons_of


def annotation(region: Region, category: int, polygons: Sequence[np.ndarray] | None = None) -> dict[str, Any]:
    """Return a region as a COCO annotation, without ``id`` and ``image_id``.

    Args:
        category: the id of its type.
        polygons: [N, 2] in pixels, to stand for its outline; None: its run lengths.
    """
    x0, y0, x1, y1 = region.box
    facts: dict[str, Any] = {
        "category_id": category,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0) if region.counts is None else int(np.count_nonzero(region.mask())),
        "iscrowd": 0,
    }
    if polygons is not None:
        facts["segmentation"] = [polygon.astype(float).ravel().tolist() for polygon in polygons]
    elif region.counts is not None:
        facts["segmentation"] = region.rle()
    return facts


def write_coco(folder: Path, images: Sequence[Annotated], kinds: Sequence[str]) -> str:
    """Write ``annotations/instances_<split>.json`` and ``images/<split>/``: boxes, and exact run lengths."""
    _write(folder, images, kinds, None)
    return "boxes and run lengths, which are exact"


def write_coco_polygons(folder: Path, images: Sequence[Annotated], kinds: Sequence[str]) -> str:
    """Write the same with polygons; ``info`` says their IoU with the masks. An object without an outline has none."""
    loss = Loss()
    _write(folder, images, kinds, loss)
    return loss.line()


def _write(folder: Path, images: Sequence[Annotated], kinds: Sequence[str], loss: Loss | None) -> None:
    annotations: dict[str, list[dict[str, Any]]] = {}
    listed: dict[str, list[dict[str, Any]]] = {}
    number = 0
    for place, image in enumerate(images, start=1):  # ids run over all files: so they can be put together
        height, width = image.size
        listed.setdefault(image.split, []).append(
            {"id": place, "file_name": image.name, "width": width, "height": height}
        )
        of_split = annotations.setdefault(image.split, [])
        for region in image.regions:
            number += 1
            polygons = None if loss is None or region.counts is None else polygons_of(region.mask())
            if loss is not None and polygons is not None:
                loss.add(region, polygons, image.name)
            facts = annotation(region, kinds.index(region.label) + 1, polygons)
            of_split.append({"id": number, "image_id": place, **facts})
    copy_images(folder, images)
    info = {"description": "written by mvtec_lab", **({} if loss is None else {"polygons": loss.facts()})}
    for split, entries in listed.items():
        content = {
            "info": info,
            "licenses": [],
            "categories": [{"id": i, "name": kind, "supercategory": ""} for i, kind in enumerate(kinds, start=1)],
            "images": entries,
            "annotations": annotations[split],
        }
        write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(content, ensure_ascii=False))
