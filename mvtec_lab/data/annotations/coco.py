"""Write objects in COCO's format, and read a folder in it: a json file per split."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvtec_lab.data.annotations.export import Annotated, Loss, copy_images, write_text
from mvtec_lab.data.annotations.reading import (
    Annotations,
    fitted,
    fitted_box,
    other_format,
    part_of,
    refuse_class_masks,
    size_of,
)
from mvtec_lab.data.regions import Region, Size, polygons_of, region_of_polygons, region_of_rle
from mvtec_lab.data.samples import Scan
from mvtec_lab.errors import LabError

ROBOFLOW = "_annotations.coco.json"
# Where json files are looked for; the first place that has some counts.
PLACES = ("annotations/instances_*.json", f"*/{ROBOFLOW}", ROBOFLOW, "result.json", "*.json", "annotations/*.json")


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
        "area": region.area(),
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
    contents = coco_content(images, kinds, loss)
    copy_images(folder, images)
    for split, content in contents.items():
        write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(content, ensure_ascii=False))


def coco_content(images: Sequence[Annotated], kinds: Sequence[str], loss: Loss | None = None) -> dict[str, Any]:
    """Return the content of the json file of each split.

    Args:
        loss: measures what polygons lose, which are written then; None: exact run lengths are.
    """
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
    info = {"description": "written by mvtec_lab", **({} if loss is None else {"polygons": loss.facts()})}
    return {
        split: {
            "info": info,
            "licenses": [],
            "categories": [{"id": i, "name": kind, "supercategory": ""} for i, kind in enumerate(kinds, start=1)],
            "images": entries,
            "annotations": annotations[split],
        }
        for split, entries in listed.items()
    }


def read_coco(folder: str | Path) -> Scan:
    """Read a folder in COCO's format: boxes, polygons or run lengths, as Roboflow, CVAT, Label Studio and this lab
    export them.

    The json files are ``annotations/instances_<part>.json``, ``<part>/_annotations.coco.json``, or those of the folder
    itself. Several polygons are one object, and so is a crowd region, which is named in a note.

    Raises:
        LabError: an annotation without an image, a class or a size, an image that is missing or of another size, an
            id that is given twice; the first of them.
    """
    folder = Path(folder)
    refuse_class_masks(folder)
    files = next((found for pattern in PLACES if (found := sorted(folder.glob(pattern)))), None)
    if files is None:
        advice = other_format(folder, "coco", "give data.root=FOLDER of a data set with one")
        raise LabError(f"{folder} has no COCO json ({', '.join(PLACES)}): {advice}")
    annotations, crowds = Annotations(folder), list[str]()
    for file in files:
        _read_file(folder, file, annotations, crowds)
    if crowds:
        annotations.note(f"{len(crowds)} crowd region(s) (iscrowd=1, {crowds[0]} first) count as one object each")
    return annotations.scan()


def region_of_annotation(entry: Mapping[str, Any], label: str, size: Size, where: str) -> Region:
    """Return the object of a COCO annotation: its outline where it has one, else its box.

    Args:
        where: the place that an error names.

    Raises:
        LabError: it is malformed, empty, or lies outside of its image.
    """
    shape, box = entry.get("segmentation"), entry.get("bbox")
    try:
        if box is not None:
            x, y, w, h = (float(value) for value in box)
            if not np.isfinite([x, y, w, h]).all():
                raise ValueError("its box is not finite")
            box = fitted_box((x, y, x + w, y + h), size, where)
        if isinstance(shape, dict):
            if list(shape["size"]) != list(size):
                given = "{1} x {0}".format(*shape["size"])
                raise ValueError(f"its run lengths are of {given} pixels, its image has {size[1]} x {size[0]}")
            return region_of_rle(shape, label)
        if shape:
            polygons = [np.array(polygon, float).reshape(-1, 2) for polygon in shape]
            if min(map(len, polygons)) < 3:
                raise ValueError("a polygon has three corners or more")
            return region_of_polygons([fitted(polygon, size, where) for polygon in polygons], label, size)
    except (KeyError, TypeError, ValueError) as error:
        raise LabError(f"{where} is malformed ({_reason(error)}): correct or remove it") from error
    if box is None:
        raise LabError(f"{where} has neither bbox nor segmentation: correct or remove it")
    return Region(label, box, size)


def _read_file(folder: Path, file: Path, annotations: Annotations, crowds: list[str]) -> None:
    content = _content(folder, file)
    categories = {key: str(entry["name"]) for key, entry in _by_id(file, content, "categories", "name").items()}
    images = _by_id(file, content, "images", "file_name")
    entries = _by_id(file, content, "annotations", "image_id", "category_id")
    part = file.parent.name if file.name == ROBOFLOW else file.stem.removeprefix("instances_")
    objects: dict[Any, list[Region]] = {key: [] for key in images}
    files = {key: _image_of(folder, file, part, str(entry["file_name"])) for key, entry in images.items()}
    sizes = {key: _size(file, entry, files[key]) for key, entry in images.items()}
    for key, entry in entries.items():
        where = f"{file}: annotation {key}"
        if (image := entry["image_id"]) not in images:
            raise LabError(f"{where} is of the image {image}, which does not exist: add it or remove the annotation")
        where += f" ({images[image]['file_name']})"
        if (kind := entry["category_id"]) not in categories:
            raise LabError(
                f"{where} has the class {kind}, which has no name in categories: add it, or correct the annotation"
            )
        objects[image].append(region_of_annotation(entry, categories[kind], sizes[image], where))
        if entry.get("iscrowd"):
            crowds.append(f"annotation {key} of {file.name}")
    for key, regions in objects.items():
        annotations.add(files[key], part_of([part]), file, regions)


def _content(folder: Path, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(f"{file} cannot be read ({_reason(error)}): export it again") from error
    if not isinstance(content, dict) or not {"images", "categories"} <= content.keys():
        advice = other_format(folder, "coco", "remove it, or export it again")
        raise LabError(f"{file} is no COCO json (images, annotations, categories): {advice}")
    return content


def _by_id(file: Path, content: Mapping[str, Any], name: str, *needed: str) -> dict[Any, Mapping[str, Any]]:
    """Return the entries of a list by their ids."""
    entries: dict[Any, Mapping[str, Any]] = {}
    for place, entry in enumerate(content.get(name) or []):
        lacking = [key for key in ("id", *needed) if not isinstance(entry, dict) or entry.get(key) is None]
        if lacking or not isinstance(entry["id"], int | str):
            raise LabError(f"{file}: entry {place} of {name} has no {(lacking or ['id'])[0]}: correct or remove it")
        if entry["id"] in entries:
            raise LabError(f"{file}: two of its {name} have the id {entry['id']}: give each its own")
        entries[entry["id"]] = entry
    return entries


def _image_of(folder: Path, file: Path, part: str, name: str) -> Path:
    """Return the file of an image: by the whole name that is given, never by its last part alone."""
    name = name.replace("\\", "/")
    homes = [file.parent, folder / "images" / part, folder / "images", folder / part, folder / part / "images", folder]
    path = next((home / name for home in homes if (home / name).is_file()), None)
    if path is None:
        raise LabError(f"{file} names the image {name}, which does not exist: add it, or remove its entry")
    return folder / os.path.relpath(path, folder)  # without .. in it


def _size(file: Path, entry: Mapping[str, Any], image: Path) -> Size:
    size = size_of(image)
    said = entry.get("height"), entry.get("width")
    if None not in said and said != size:
        raise LabError(f"{file}: {image} is {size[1]} x {size[0]}, not {said[1]} x {said[0]} pixels: export it again")
    return size


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
