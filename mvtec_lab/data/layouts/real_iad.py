"""Read Real-IAD's layout: five views of each part, whose classes, masks and division a JSON file lists.

Wang et al.: "Real-IAD: A Real-World Multi-View Dataset for Benchmarking Versatile Industrial Anomaly Detection", CVPR
2024. Images lie in ``OK/<part>/`` and ``NG/<type>/<part>/``, masks beside them; types are two letters. The views of a
part are one group, and stay in one split.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mvtec_lab.data.layouts.base import Layout, images_in, subfolders
from mvtec_lab.data.layouts.table import Row, collect
from mvtec_lab.data.samples import Scan
from mvtec_lab.errors import LabError
from mvtec_lab.results import GOOD

# Where the list of a product lies: beside the folder realiad_1024/, or inside of the folder that was unpacked.
PLACES = ("../realiad_jsons/realiad_jsons", "../realiad_jsons", "realiad_jsons/realiad_jsons", "realiad_jsons", ".")


def fits(folder: Path, good: Collection[str]) -> bool:
    """Tell whether a folder has folders of good parts in it, and bad ones too or its list beside it.

    Images themselves in OK/ and NG/ are what any line calls its good and bad ones: two classes.
    """
    good_parts = (path for path in subfolders(folder / "OK") if any(images_in(path)))
    return any(good_parts) and ((folder / "NG").is_dir() or _list_of(folder) is not None)


def read(folder: Path, good: Collection[str]) -> Scan:
    """List the images of the product's JSON file.

    Raises:
        LabError: there is no such file, or it cannot be read or names a file which does not exist.
    """
    file = _list_of(folder)
    if file is None:
        raise LabError(
            f"{folder} has no list of its images: unpack realiad_jsons.zip beside {folder.absolute().parent}, so that "
            f"realiad_jsons/{folder.name}.json is there"
        )
    result = Scan(folder)
    collect(result, _rows(file))
    return result


def _list_of(folder: Path) -> Path | None:
    above = folder.absolute().parent
    places = [above / place / f"{folder.name}.json" for place in PLACES]
    return next((place.resolve() for place in places if place.is_file()), None)


def _rows(file: Path) -> Iterator[Row]:
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        normal = content["meta"]["normal_class"]
        entries = [(part, number, entry) for part in ("train", "test") for number, entry in enumerate(content[part])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabError(f"{file} is no list of Real-IAD ({error}): restore it from realiad_jsons.zip") from error
    for part, number, entry in entries:
        where = f"{file} entry {number} of {part}"
        try:
            path, kind, mask = entry["image_path"], entry["anomaly_class"], entry.get("mask_path") or ""
        except (KeyError, TypeError, AttributeError) as error:
            raise LabError(f"{where} has no {error}: restore the file from realiad_jsons.zip") from error
        group = PurePosixPath(path).parent.as_posix()
        yield Row(where, path, GOOD if kind == normal else kind, mask, part, group)


LAYOUT = Layout(
    "Real-IAD's",
    "OK/<part>/*.jpg, NG/<type>/<part>/*.jpg, realiad_jsons/<product>.json beside the products",
    fits,
    read,
)
