"""Write objects in YOLO's format, and read a folder in it: a label file per image, a row per object."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mvtec_lab.data.annotations.export import Annotated, Loss, copy_images, require_outlines, write_text
from mvtec_lab.data.annotations.reading import (
    PARTS,
    SLACK,
    Annotations,
    fitted,
    fitted_box,
    other_format,
    part_of,
    refuse_class_masks,
    size_of,
)
from mvtec_lab.data.listing import list_images
from mvtec_lab.data.regions import Region, Size, joined, polygons_of, region_of_polygons
from mvtec_lab.data.samples import Scan
from mvtec_lab.errors import LabError
from mvtec_lab.foreign import read_yaml

LISTS = ("train.txt", "val.txt", "valid.txt", "test.txt")  # images of a part, a path per line
DIGITS = 6  # after the point: 0.005 pixels of an image with a side of 10,000


def box_row(region: Region, index: int) -> str:
    """Return ``<class> <x_center> <y_center> <width> <height>``, as shares of the image's width and height."""
    (x0, y0, x1, y1), (height, width) = region.box, region.size
    return _row(index, ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height))


def polygon_row(polygon: np.ndarray, size: Size, index: int) -> str:
    """Return ``<class> <x1> <y1> <x2> <y2> ...`` of a polygon [N, 2] in pixels, as shares of width and height."""
    return _row(index, (polygon / size[::-1]).ravel())


def write_yolo(folder: Path, images: Sequence[Annotated], kinds: Sequence[str]) -> str:
    """Write data.yaml, ``images/<split>/`` and ``labels/<split>/<name>.txt``: boxes; a good image's file is empty."""
    _write(folder, images, kinds, [[box_row(r, kinds.index(r.label)) for r in image.regions] for image in images])
    return "boxes by rows of class, centre and size"


def write_yolo_seg(folder: Path, images: Sequence[Annotated], kinds: Sequence[str]) -> str:
    """Write the same with polygons; the parts of an object are linked to one polygon, its holes are filled.

    Raises:
        LabError: an object without an outline.
    """
    require_outlines(images, "yolo_seg")
    loss, rows = Loss(), []
    for image in images:
        polygons = [joined(polygons_of(region.mask())) for region in image.regions]
        for region, polygon in zip(image.regions, polygons, strict=True):
            written = np.round(polygon / image.size[::-1], DIGITS) * image.size[::-1]
            loss.add(region, [written], image.name)
        pairs = zip(image.regions, polygons, strict=True)
        rows.append([polygon_row(polygon, image.size, kinds.index(region.label)) for region, polygon in pairs])
    _write(folder, images, kinds, rows)
    return loss.line()


def _row(index: int, numbers: Sequence[float] | np.ndarray) -> str:
    return " ".join([str(index), *(f"{number:.{DIGITS}f}".rstrip("0").rstrip(".") for number in numbers)])


def _write(folder: Path, images: Sequence[Annotated], kinds: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    copy_images(folder, images)
    for image, lines in zip(images, rows, strict=True):
        write_text(folder / "labels" / image.split / f"{image.stem}.txt", "".join(f"{line}\n" for line in lines))
    # No `path`: programs take a relative one from their own data folder, and without one from beside this file. Without
    # validation images of their own the test images validate: trainers ask for both names.
    splits = {image.split for image in images}
    parts: dict[str, Any] = {split: f"images/{split}" for split in ("train", "val", "test") if split in splits}
    if "test" in splits:
        parts.setdefault("val", parts["test"])
    content = {**parts, "names": dict(enumerate(kinds))}
    write_text(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def read_yolo(folder: str | Path) -> Scan:
    """Read a folder in YOLO's format: boxes or polygons, as Roboflow, CVAT, Label Studio and this lab export them.

    Classes are named by ``names`` of data.yaml, or by classes.txt or obj.names. Train, val and test are what data.yaml
    says, else folders of these names. The labels of ``images/a.png`` are ``labels/a.txt``, or a.txt beside the image.
    Images without a label file are good, and named in a note.

    Raises:
        LabError: a row that is none, a class without a name, labels without an image; the first of them.
    """
    folder = Path(folder)
    refuse_class_masks(folder)
    names, parts, named_in = _data_yaml(folder)
    annotations = Annotations(folder)
    present = list_images(folder, deep=True).images
    if parts is None:
        of_layout = [p for p in present if "images" in p.relative_to(folder).parts[:-1]]
        parts = {}
        for image in of_layout or present:
            parts.setdefault(part_of(image.relative_to(folder).parts[:-1]), []).append(image)
    _check_labels(folder, present)
    parts = _once(parts, annotations)
    bare: list[Path] = []
    repeated = 0
    for part, images in parts.items():
        for image in images:
            label = _label_of(folder, image)
            if not label.is_file():
                bare.append(image)
            regions = _read_label(label, names, image, named_in) if label.is_file() else []
            unique = list(dict.fromkeys(regions))
            repeated += len(regions) - len(unique)
            annotations.add(image, part, label, unique)
    if bare:
        first = bare[0].relative_to(folder).as_posix()
        annotations.note(f"{len(bare)} image(s), {first} first, have no label file: they count as good")
    if repeated:
        annotations.note(f"{repeated} label row(s) repeat another one of their image: each object counts once")
    return annotations.scan()


def region_of_row(
    row: str, names: Mapping[int, str], size: Size, where: str, named_in: str | Path = "data.yaml"
) -> Region:
    """Return the object of a label row: a class and a box, or a class and three corners or more.

    Args:
        where: the place that an error names, beside the row.
        named_in: the file of the names.

    Raises:
        LabError: the row is malformed or out of range, or its class has no name.
    """
    words, where = row.split(), f"{where} ({row.strip()[:60]!r})"
    try:
        index, numbers = float(words[0]), np.array(words[1:], float)
    except ValueError as error:
        raise LabError(f"{where} is no row of numbers: correct or remove it") from error
    if not index.is_integer() or len(numbers) < 4 or len(numbers) % 2 or not np.isfinite(numbers).all():
        raise LabError(
            f"{where} has {len(words)} values: a row is a class and a box (4 values) or corners (6, 8 ...): correct it"
        )
    if int(index) not in names:
        known = f"{named_in} (known are {_shown(names)})"
        raise LabError(f"{where} has the class {int(index)}, which has no name in {known}: add it, or correct the row")
    height, width = size
    label, points = names[int(index)], numbers.reshape(-1, 2) * [width, height]
    if len(points) > 2:
        try:
            return region_of_polygons([fitted(points, size, where)], label, size)
        except ValueError as error:
            raise LabError(f"{where} has corners that enclose no pixel: correct or remove it") from error
    (x, y), (w, h) = points
    if not ((numbers >= 0) & (numbers <= 1 + SLACK)).all():
        raise LabError(f"{where} is out of range: a box is given in shares of the image, 0 to 1")
    return Region(label, fitted_box((x - w / 2, y - h / 2, x + w / 2, y + h / 2), size, where), size)


def _read_label(label: Path, names: Mapping[int, str], image: Path, named_in: Path) -> list[Region]:
    try:
        lines = label.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"{label} cannot be read ({error}): correct or remove it") from error
    rows = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    size = size_of(image) if rows else (0, 0)
    return [region_of_row(line, names, size, f"{label} line {number}", named_in) for number, line in rows]


def _shown(names: Mapping[int, str]) -> str:
    return ", ".join(f"{index} {name}" for index, name in list(names.items())[:10])


def _label_of(folder: Path, image: Path) -> Path:
    """Return where the labels of an image belong: ``labels`` in place of the last ``images`` of its path."""
    parts = list(image.relative_to(folder).parts)
    places = [place for place, name in enumerate(parts[:-1]) if name == "images"]
    if places:
        parts[places[-1]] = "labels"
    return folder.joinpath(*parts).with_suffix(".txt")


def _check_labels(folder: Path, images: Sequence[Path]) -> None:
    """Raise LabError for labels without an image, and for labels that two images share."""
    owners: dict[Path, Path] = {}
    for image in images:
        label = _label_of(folder, image)
        if label.is_file() and label in owners:
            raise LabError(f"{owners[label]} and {image} share the labels {label}: rename one of the images")
        owners[label] = image
    places = {label.parent for label in owners}
    for label in sorted(folder.rglob("*.txt")):
        is_label = label.parent in places or "labels" in label.relative_to(folder).parts[:-1]
        if is_label and label not in owners and label.name not in ("classes.txt", *LISTS):
            raise LabError(f"{label} is of an image that does not exist: add the image, or remove the labels")


def _data_yaml(folder: Path) -> tuple[dict[int, str], dict[str, list[Path]] | None, Path]:
    """Return the class names by index, the images of each part (None where nothing says them), and the names' file."""
    files = [path for pattern in ("data.yaml", "data.yml", "*.yaml", "*.yml") for path in sorted(folder.glob(pattern))]
    for file in files:
        try:
            content = read_yaml(file)
        except LabError as error:
            raise LabError(f"{file} is no YAML file with keys: correct or remove it") from error
        if "names" in content:
            return _names(file, content["names"]), _parts(folder, file, content), file
    for name in ("classes.txt", "obj.names", "labels/classes.txt"):
        if (file := folder / name).is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            return dict(enumerate(line.strip() for line in lines if line.strip())), None, file
    advice = other_format(folder, "yolo", "the classes have no names: add one")
    raise LabError(f"{folder} has no data.yaml with names, no classes.txt and no obj.names: {advice}")


def _names(file: Path, names: Any) -> dict[int, str]:
    pairs = names.items() if isinstance(names, dict) else enumerate(names if isinstance(names, list) else [])
    try:
        known = {int(index): str(name).strip() for index, name in pairs}
    except ValueError as error:
        raise LabError(f"{file}: names is no list, and no mapping from numbers: correct it") from error
    twice = [name for name, count in Counter(known.values()).items() if count > 1 or not name]
    if not known or twice:
        raise LabError(f"{file}: names {'has no class' if not known else f'gives {twice[0]!r} twice or is empty'}")
    return known


def _parts(folder: Path, file: Path, content: Mapping[str, Any]) -> dict[str, list[Path]] | None:
    parts: dict[str, list[Path]] = {}
    for key, entries in content.items():
        if PARTS.get(str(key).lower()) is None or not entries:
            continue
        for entry in entries if isinstance(entries, list) else [entries]:
            path = _resolved(folder, file, str(key), content.get("path"), str(entry))
            images = list_images(path, deep=True).images if path.is_dir() else _listed(folder, path)
            parts.setdefault(PARTS[str(key).lower()], []).extend(images)
    return parts or None


def _resolved(folder: Path, file: Path, key: str, base: Any, entry: str) -> Path:
    """Return a folder or a list that data.yaml names; Roboflow writes ../train/images for what lies beside the file."""
    inside = entry.lstrip("./") if entry.startswith(".") else entry
    candidates = [*([folder / str(base) / entry] if base else []), folder / entry, folder / inside]
    for candidate in candidates:
        path = folder / os.path.relpath(candidate, folder)  # without the .. in it that lead back to the folder
        if path.exists() and ".." not in path.relative_to(folder).parts:
            return path
    raise LabError(f"{file}: {key}: {entry} does not exist below {folder}: correct or remove the line")


def _listed(folder: Path, file: Path) -> list[Path]:
    """Return the images that a list names, a path per line; CVAT writes data/ in front of them."""
    images = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        name = line.strip().removeprefix("./")
        if not name:
            continue
        candidates = [folder / name, folder / name.removeprefix("data/")]
        image = next((path for path in candidates if path.is_file()), None)
        if image is None:
            raise LabError(f"{file} line {number} names {name}, which does not exist: add the image or remove the line")
        images.append(image)
    return images


def _once(parts: Mapping[str, list[Path]], annotations: Annotations) -> dict[str, list[Path]]:
    """Leave out a part that has the images of another one: trainers ask for val, so that some data.yaml repeat one."""
    kept: dict[str, list[Path]] = {}
    for part in ("test", "train", "val"):
        same = next((other for other, images in kept.items() if images == parts.get(part)), None)
        if same is not None:
            annotations.note(f"{part} and {same} are the same images: they are {same} alone")
        elif part in parts:
            kept[part] = parts[part]
    return kept
