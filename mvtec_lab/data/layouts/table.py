"""Read a list of images and their classes: ``data.labels=FILE``, CSV or JSON, and the lists of other data sets."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mvtec_lab.data.annotations.reading import PARTS, UNNAMED
from mvtec_lab.data.layouts.base import MaskFiles, label_of
from mvtec_lab.data.listing import list_images, natural
from mvtec_lab.data.samples import Sample, Scan
from mvtec_lab.errors import LabError, unknown
from mvtec_lab.results import GOOD, read_csv

# The columns, each with other names that it may have; case does not count.
COLUMNS = {
    "path": ("image", "file", "filename", "file_name", "image_path", "datei", "pfad", "bild"),
    "label": ("class", "category", "defect", "type", "klasse", "fehler"),
    "mask": ("mask_path",),
    "split": ("part", "set", "subset"),
    "group": ("serial",),
}


@dataclass(frozen=True)
class Row:
    """Hold what a list says of an image. Paths lie below the product folder, with forward slashes."""

    where: str  # the file and the line, for an error
    path: str
    label: str  # good or the defect type
    mask: str = ""
    split: str = ""  # train, val, test, or empty
    group: str = ""


def read_table(file: Path, folder: Path, good: Collection[str]) -> Scan:
    """Read the images that a list names.

    Its columns are ``path`` and ``label`` and, if need be, ``mask``, ``split`` (train, val, test or a word for one of
    these) and ``group`` (images of one group stay in one split). Paths are relative to the product folder or the list.

    Args:
        file: a CSV file with a header, its values parted by commas, semicolons or tabs; or a JSON file: a list of
            objects with these keys, or one object from path to label.
        folder: the product folder, below which all images lie.

    Raises:
        LabError: the list cannot be read, lacks a column or a value, or names a file that does not exist, lies
            elsewhere or is listed twice; the first of them.
    """
    result = Scan(folder)
    collect(result, _rows(file, folder, good))
    if not any(s.split for s in result.samples):  # a path test/... says nothing here
        result.samples = [replace(s, split="train") for s in result.samples]
    return result


def check_columns(file: Path) -> None:
    """Refuse a list that cannot be read or has no path or no label, without a look at its images.

    Raises:
        LabError: as ``read_table``.
    """
    next(_values(file), None)


def collect(result: Scan, rows: Iterable[Row]) -> None:
    """Add the images of a list to a scan; images that it does not name are left out, by name.

    Raises:
        LabError: a file that does not exist or is listed twice, a split that some images lack.
    """
    samples: dict[str, Sample] = {}
    masks, part, where = MaskFiles(result), "", ""
    for row in rows:
        if row.path in samples:
            raise LabError(f"{row.where}: {row.path} is listed twice: remove one of the rows")
        for name in filter(None, (row.path, row.mask)):
            if not (result.folder / name).exists():
                raise LabError(f"{row.where}: {name} does not exist in {result.folder}: correct or remove the row")
        if samples and bool(row.split) is not bool(part):
            raise LabError(f"{row.where}: some images have a split and others none: give one to all, or to none")
        part, where = row.split, row.where
        if row.mask and row.label != GOOD:
            masks.add(result.folder / row.path, result.folder / row.mask)
        samples[row.path] = Sample(row.path, row.label, None, row.group or row.path, row.split)
    if not samples:
        raise LabError(f"{where or result.folder}: the list names no image: add rows")
    masks.report("the list", [])
    fitting = {masks.name(image): mask for image, mask in masks.fitting.items()}
    ordered = sorted(samples.values(), key=lambda s: natural(s.path))
    result.samples = [replace(s, mask=fitting.get(s.path)) for s in ordered]
    listing = list_images(result.folder, deep=True)
    if listing.unusable:
        raise LabError(listing.unusable[0])
    known = {*samples, *masks.seen}
    strangers = [path for path in listing.images if known.isdisjoint(map(masks.name, (path, path.parent)))]
    if strangers:
        result.leave_out({UNNAMED: [str(path) for path in strangers]})


def _rows(file: Path, folder: Path, good: Collection[str]) -> Iterator[Row]:
    for where, values in _values(file):
        for column in ("path", "label"):
            if not values.get(column):
                raise LabError(f"{where} has no {column}: a row needs path and label: correct or remove it")
        split = values.get("split", "").lower()
        if split and split not in PARTS:
            raise LabError(f"{where}: {unknown('split', split, PARTS)}")
        path, mask = (_below(values.get(name, ""), folder, file, where) for name in ("path", "mask"))
        yield Row(where, path, label_of(values["label"], good), mask, PARTS.get(split, ""), values.get("group", ""))


def _below(name: str, folder: Path, file: Path, where: str) -> str:
    """Return a path of the list relative to the product folder, whether it is given from there or from the list."""
    if not name:
        return ""
    name = name.replace("\\", "/")
    places = [folder / name, file.parent / name]
    path = next((path for path in places if path.is_file()), places[0])
    try:
        inside = path.absolute().relative_to(folder.absolute())
    except ValueError as error:
        raise LabError(f"{where}: {name} does not lie in {folder}: give data.root=FOLDER that holds it") from error
    if ".." in inside.parts:
        raise LabError(f"{where}: {name} leads out of {folder}: give data.root=FOLDER that holds it")
    return inside.as_posix()


def _values(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place of every row of a list, for an error, and its values by our names of the columns."""
    try:
        content = _json(file) if file.suffix.lower() == ".json" else _csv(file)
    except (OSError, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise LabError(f"data.labels={file} cannot be read ({reason}): give a CSV file in UTF-8, or JSON") from error
    names = {other: column for column, others in COLUMNS.items() for other in (column, *others)}
    for number, (where, values) in enumerate(content):
        row = {}
        for name, value in values.items():
            column = names.get(str(name or "").strip().lower())
            if column and value is not None:
                row[column] = str(value).strip()
        if not number and not {"path", "label"} <= {names.get(str(name or "").strip().lower()) for name in values}:
            raise LabError(
                f"data.labels={file} has the columns {', '.join(map(str, values))}: it needs path and label (and may "
                "have mask, split and group)"
            )
        yield where, row


def _csv(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    with file.open(encoding="utf-8-sig") as text:
        header = text.readline()
    delimiter = max(",;\t", key=header.count)  # Excel writes semicolons where a comma is the decimal point
    rows = read_csv(file, delimiter)
    return [(f"{file} line {number}", row) for number, row in enumerate(rows, start=2)]


def _json(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict) and all(isinstance(value, str) for value in content.values()):
        content = [{"path": path, "label": label} for path, label in content.items()]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError("it is neither a list of objects nor an object from path to label")
    return [(f"{file} entry {number}", row) for number, row in enumerate(content)]
