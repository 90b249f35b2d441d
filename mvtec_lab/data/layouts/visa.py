"""Read VisA's layout: images by normal and anomaly, their types and their division in lists.

Zou, Jeong, Pemula, Zhang, Dabeer: "SPot-the-Difference Self-supervised Pre-training for Anomaly Detection and
Segmentation", ECCV 2022. ``image_anno.csv`` names the types of an image's defects, ``split_csv/1cls.csv`` beside the
products which of them train and test with good images alone.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from pathlib import Path

from mvtec_lab.data.layouts.base import Layout
from mvtec_lab.data.layouts.table import Row, collect
from mvtec_lab.data.samples import Scan
from mvtec_lab.errors import LabError
from mvtec_lab.results import GOOD, read_csv

LIST, DIVISION = "image_anno.csv", "split_csv/1cls.csv"
NORMAL, SEVERAL = "normal", "combined"  # as MVTec AD calls images with defects of several types


def fits(folder: Path, good: Collection[str]) -> bool:
    """Tell whether a folder has VisA's list and its folder of normal images."""
    return (folder / LIST).is_file() and (folder / "Data/Images/Normal").is_dir()


def read(folder: Path, good: Collection[str]) -> Scan:
    """List the images of image_anno.csv; those with several types of defects are of the class ``combined``.

    Raises:
        LabError: a list that cannot be read, or that names a file which does not exist.
    """
    result, division = Scan(folder), folder.absolute().parent / DIVISION
    split = {path: row["split"] for _, path, row in _rows(division, "image", "split")} if division.is_file() else {}
    rows = []
    for where, path, row in _rows(folder / LIST, "image", "label"):
        types = [kind.strip() for kind in row["label"].split(",")]
        label = GOOD if types == [NORMAL] else types[0] if len(types) == 1 else SEVERAL
        mask = _inner(row.get("mask") or "")
        rows.append(Row(where, path, label, mask, split.get(path, "")))
    collect(result, rows)
    if not split:
        result.notes.append(f"{division} does not exist: train and test images are drawn from all")
    return result


def _rows(file: Path, *columns: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield the place of each row, for an error, the path of its image below the product folder, and its values."""
    try:
        rows = read_csv(file)
    except (OSError, ValueError, csv.Error) as error:
        raise LabError(f"{file} cannot be read ({error}): restore VisA's own file") from error
    for number, row in enumerate(rows, start=2):
        if lacking := [column for column in columns if not row.get(column)]:
            raise LabError(f"{file} line {number} has no {lacking[0]}: restore VisA's own file")
        yield f"{file} line {number}", _inner(row["image"]), row


def _inner(path: str) -> str:
    """Return a path of the lists, ``candle/Data/Images/Normal/0000.JPG``, below its product folder."""
    return path[path.find("Data/") :] if "Data/" in path else path


LAYOUT = Layout(
    "VisA's",
    "Data/Images/{Normal,Anomaly}, Data/Masks/Anomaly, image_anno.csv; split_csv/1cls.csv beside the products",
    fits,
    read,
)
