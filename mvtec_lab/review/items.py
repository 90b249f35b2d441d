"""Read what is reviewed: the images of a run's predictions.csv, or of one that task=predict wrote.

Both directories may come from elsewhere: no path in them leads out of the data, and every file is checked before it is
shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mvtec_lab.config import Config
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.data.listing import EXTENSIONS
from mvtec_lab.data.samples import Sample, classes_of
from mvtec_lab.data.source import locate
from mvtec_lab.engine.origin import origin_of, typed_for
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.operating import doubt
from mvtec_lab.foreign import damaged, file_of, read_json, read_yaml
from mvtec_lab.results import (
    BEST,
    CONFIG,
    DEFECT,
    GOOD,
    OPERATING,
    PREDICTED,
    PREDICTIONS,
    RESULT,
    SAMPLES,
    RunResult,
    table_of,
)

_SHOWN = ("prediction", "decision", "confidence", "certainty", "score", "threshold", "accept", "split")
_NUMBERS = ("score", "threshold", "accept", "prob_")  # how columns of numbers begin
_DRAWN = ("maps", "found")  # folders beside predictions.csv, a file for each image by its name below the source


@dataclass(frozen=True)
class Item:
    """Hold one image that is reviewed.

    Args:
        key: its path as predictions.csv has it, by which the review knows it.
        file: where it lies.
        label: the class of the data set; of a new image the prediction.
        said: what predictions.csv says of it, column -> text.
        doubt: as ``evaluation.operating.doubt`` returns it of its label.
        sample: as the data set has it; None: a new image.
        drawn: a picture with the heat map or with what was found.
        found: the mask of what was found, or the map of how unlike good images each place is.
        level: above which such a map marks a place; None: ``found`` is a mask.
        name: what it is called on the page; empty: its key.
    """

    key: str
    file: Path
    label: str
    said: Mapping[str, str]
    doubt: tuple[int, float]
    sample: Sample | None = None
    drawn: Path | None = None
    found: Path | None = None
    level: float | None = None
    name: str = ""


@dataclass(frozen=True)
class Base:
    """Hold the data set that a new version begins from.

    Args:
        folder: the product's.
        samples: all its images, each with the split of the run.
        config: the data and the split of the run.
        attempt: the run's.
        typed: what was typed for it, ``key=value`` each.
    """

    folder: Path
    samples: Sequence[Sample]
    config: Config
    attempt: str
    typed: Sequence[str] = ()


@dataclass
class Subject:
    """Hold what is reviewed: ``items`` in the order of predictions.csv; ``notes`` say what is not shown."""

    directory: Path
    title: str
    items: list[Item]
    classes: list[str]
    base: Base | None = None
    notes: list[str] = field(default_factory=list)


def read_subject(directory: str | None) -> Subject:
    """Return what a directory has to review.

    Raises:
        LabError: it is none of a run or of predictions, is damaged, or its images are gone.
    """
    wanted = "give dir=DIR: the directory of a run, or one that task=predict wrote"
    if directory is None:
        raise LabError(f"task=review needs dir=RUN_OR_PREDICTIONS: {wanted}")
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise LabError(f"dir={directory} {'is no directory' if folder.exists() else 'does not exist'}: {wanted}")
    rows = table_of(folder, PREDICTIONS, "path", "prediction")
    if rows is None:
        inner = next(iter(sorted(folder.glob(f"*/{PREDICTIONS}"))), None)
        remedy = f"give one of its runs, dir={inner.parent}" if inner else wanted
        raise LabError(f"dir={directory} has no {PREDICTIONS}: {remedy}")
    of_run = "split" in rows[0]
    if of_run and file_of(folder, CONFIG) is None:
        raise LabError(f"dir={directory} has predictions of a data set, but no {CONFIG} that names it: {wanted}")
    subject = _of_run(folder, rows) if of_run else _of_predictions(folder, rows)
    labels = dict.fromkeys(item.label for item in subject.items)
    known = classes_of(subject.base.samples) if subject.base else []
    subject.classes = list(dict.fromkeys([GOOD, *known, *sorted({*subject.classes, *labels})]))
    if DEFECT not in {*known, *labels}:  # what a model that knows no types says of all of them
        subject.classes = [name for name in subject.classes if name != DEFECT]
    return subject


def base_of(run_dir: Path) -> Base | None:
    """Return the data set of a run, by its config.yaml and samples.csv; None without these files.

    Raises:
        LabError: they are damaged, or the data set is gone.
    """
    config, rows = origin_of(run_dir / BEST), table_of(run_dir, SAMPLES, "path", "split")
    if config is None or rows is None:
        return None
    d = config.data
    assert d.root is not None
    folder = locate(d.name, d.root, d.category)
    splits = {row["path"]: row["split"] for row in rows}
    # Types as they are, also where the run made one class of all of them.
    samples = read_folder(folder, d.name, d.good, d.labels).samples
    said = read_yaml(run_dir / CONFIG)  # of a run, and of what task=threshold makes of one
    attempt = str(said.get("attempt") or "base")
    return Base(
        folder, [replace(s, split=splits.get(s.path, "")) for s in samples], config, attempt, typed_for(run_dir)
    )


def _of_run(folder: Path, rows: Sequence[Mapping[str, str]]) -> Subject:
    base = base_of(folder)
    if base is None:
        raise damaged(folder / SAMPLES, "it is missing")
    samples = {s.path: s for s in base.samples}
    limits = _limits(folder)  # which a run's predictions.csv does not repeat
    rows = [{**limits, **row} for row in rows] if "score" in rows[0] else rows
    used = list({row["path"]: row for row in rows}.values())  # one that validates and tests stands there twice
    gone = [row["path"] for row in used if row["path"] not in samples]
    if len(gone) == len(used):
        raise LabError(f"{base.folder} has none of the images of {folder / PREDICTIONS}: restore them")
    items = [
        Item(s.path, base.folder / s.path, s.label, _said(row), _doubt(row, row.get("label") or s.label), s)
        for row in used
        if (s := samples.get(row["path"]))
    ]
    return Subject(folder, f"{base.folder.name}, {base.attempt}", items, [], base, _not_shown(gone, "are gone"))


def _limits(folder: Path) -> dict[str, str]:
    """Return the thresholds of a run's scores as columns of predictions.csv; empty where it has none.

    What task=threshold has chosen counts before what the run chose itself.
    """
    if (path := file_of(folder, OPERATING)) is not None:
        chosen = read_json(path)
        values = {"threshold": chosen.get("reject"), "accept": chosen.get("accept")} if isinstance(chosen, dict) else {}
    else:
        of_run = RunResult.load(folder).threshold if file_of(folder, RESULT) else None
        values = {"threshold": of_run["value"]} if of_run else {}
    return {name: f"{value:.9g}" for name, value in values.items() if isinstance(value, int | float)}


def _of_predictions(folder: Path, rows: Sequence[Mapping[str, str]]) -> Subject:
    about = _about(folder)
    here, source = Path(about.get("directory", "")), about.get("source")
    root = Path(about["root"]) if "root" in about else None
    items, gone, odd = [], list[str](), list[str]()
    for row in {row["path"]: row for row in rows}.values():
        file = (here / row["path"]).absolute()
        if file.suffix.lower() not in EXTENSIONS or ".." in file.parts:  # what is shown is a picture in any case
            odd.append(row["path"])
        elif not file.is_file():
            gone.append(row["path"])
        else:
            drawn = next(_drawn(folder, file, root, ".jpg"), None)
            found, level = next(_drawn(folder, file, root, ".png"), None), None
            if found is None and (level := about.get("map_threshold")) is not None:
                found = next(_drawn(folder, file, root, ".tiff"), None)
            label = row["prediction"]
            name = file.relative_to(root).as_posix() if root is not None and file.is_relative_to(root) else ""
            items.append(
                Item(row["path"], file, label, _said(row), _doubt(row, label), None, drawn, found, level, name)
            )
    if not items:
        first = (odd or gone)[0]
        remedy = "restore it" if about else "call this from the folder in which task=predict was called"
        raise LabError(f"{folder / PREDICTIONS} names no image that can be shown, {first} for one: {remedy}")
    base, notes = None, [*_not_shown(gone, "are gone"), *_not_shown(odd, "have no name of an image")]
    ckpt = about.get("ckpt")
    try:
        base = base_of(Path(ckpt).parent) if ckpt else None
        lost = "the model's run is not known" if base is None else ""
    except LabError as error:
        lost = str(error)
    if lost:
        notes.append(f"a new version will hold these images alone, as its data set is not here: {lost}")
    classes = [*about.get("classes", []), *(name[5:] for name in rows[0] if (name or "").startswith("prob_"))]
    return Subject(
        folder, f"predictions of {Path(source).name if source else folder.name}", items, classes, base, notes
    )


def _about(folder: Path) -> dict[str, Any]:
    """Return what task=predict wrote of itself; empty where it is older than that."""
    path = file_of(folder, PREDICTED)
    about = read_json(path) if path else {}
    texts = ("directory", "source", "root", "ckpt")
    if not isinstance(about, dict) or any(not isinstance(about.get(key, ""), str) for key in texts):
        raise damaged(folder / PREDICTED, "it is not what task=predict writes")
    if not isinstance(about.get("classes", []), list):
        raise damaged(folder / PREDICTED, "classes is no list")
    if not isinstance(about.get("map_threshold", 0.0), int | float | None):
        raise damaged(folder / PREDICTED, "map_threshold is no number")
    return about


def _drawn(folder: Path, file: Path, root: Path | None, ending: str) -> Iterator[Path]:
    """Yield the files of an image in maps/ and found/: by its name below the root, else by the longest that fits."""
    if root is not None and file.is_relative_to(root):
        names = [PurePosixPath(file.relative_to(root).as_posix())]
    else:
        names = [PurePosixPath(*file.parts[place:]) for place in range(1, len(file.parts))]
    for home in _DRAWN:
        for name in names:
            path = folder / home / f"{name}{ending}"
            with suppress(OSError, RuntimeError):  # a name that is too long, a link to itself
                if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
                    yield path
                    break


def _doubt(row: Mapping[str, str], label: str) -> tuple[int, float]:
    """Return how doubtful a label is, from a row that anybody may have written: what is no number, it does not say."""
    says = {k: v for k, v in row.items() if k and (not k.startswith(_NUMBERS) or _number(v) is not None)}
    return doubt(says, label)


def _number(text: str | None) -> float | None:
    with suppress(TypeError, ValueError):
        if math.isfinite(value := float(text)):  # type: ignore[arg-type]
            return value
    return None


def most_doubtful(items: Sequence[Item]) -> list[int]:
    """Return the places of the items: first what the decision leaves to a person, then labels that the model
    contradicts, then those near a threshold or with a close second, then those that it is sure of.
    """
    return sorted(range(len(items)), key=lambda place: items[place].doubt)


def _said(row: Mapping[str, str]) -> dict[str, str]:
    one = row.get("accept") == row.get("threshold")  # said once
    return {key: row[key] for key in _SHOWN if row.get(key) and not (one and key == "accept")}


def _not_shown(paths: Sequence[str], why: str) -> list[str]:
    more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    return [f"{len(paths)} image(s) {why} and cannot be reviewed: {paths[0]}{more}"] if paths else []
