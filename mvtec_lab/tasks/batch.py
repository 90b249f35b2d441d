"""Read both sides of task=monitor: the images of a run, and new ones, each with what is measured of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from mvtec_lab.data.appearance import Appearance, appearance
from mvtec_lab.data.content import Content
from mvtec_lab.data.images import attempts, digest_of, read_image
from mvtec_lab.data.incoming import find
from mvtec_lab.data.transforms import normalise, read_cut, resize
from mvtec_lab.engine.model import Model, read_checkpoint
from mvtec_lab.engine.origin import origin_of
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.drift import evenly
from mvtec_lab.evaluation.operating import REJECT, score_of
from mvtec_lab.foreign import damaged, file_of, read_json
from mvtec_lab.problems.base import Problem
from mvtec_lab.problems.model import judge
from mvtec_lab.progress import bar
from mvtec_lab.results import GOOD, PREDICTED, PREDICTIONS, SYNTHETIC, table_of
from mvtec_lab.tasks.evaluate import run_of

BATCH = 16  # images at once
T = TypeVar("T")
WANTED = "give the directory that task=predict wrote, or new images"


class Known(NamedTuple):
    """Hold the good images of a run.

    Args:
        images: file -> the digest that it had, of those that new ones are compared with.
        parts: file -> train, val or test, of the same.
        digests: of all images that the run has used, good or not.
        scores: digest -> the model's score, of those that it did not learn.
    """

    images: dict[Path, str]
    parts: dict[Path, str]
    digests: set[str]
    scores: dict[str, float]


class Judged(NamedTuple):
    """Hold an image, and its row of predictions."""

    path: Path
    row: Mapping[str, Any]


@dataclass
class Side:
    """Hold what is measured of images.

    Args:
        paths: of those that could be read.
        looks: their measures.
        features: their frozen features [n, D]; None where the model has none.
        scores: of images that the model did not learn, which on the side of the reference are others than ``paths``.
        broken: why images cannot be read, a line each.
        contents: place among all images -> digest, of those that count; that of a file that cannot be read is empty.
    """

    paths: list[Path]
    looks: list[Appearance]
    features: np.ndarray | None
    scores: np.ndarray
    broken: list[str] = field(default_factory=list)
    contents: dict[int, str] = field(default_factory=dict)


def of_run(ckpt: Path, model: Model, problem: Problem, reference: str | None) -> Known:
    """Return the good images of a checkpoint's run, of copies the first; at most as many as are compared.

    Left out is what the model rejects of the images that it did not learn, as it is of new ones.

    Raises:
        LabError: the run has no list of its images, or they are not where it found them.
    """
    run = run_of(ckpt)
    if run is None:
        raise LabError(f"reference={reference} has no list of its run's images beside its checkpoint: give a run")
    folder, rows = run
    judged = _sound(ckpt.parent, table_of(ckpt.parent, PREDICTIONS, "split", "path", "prediction") or [])
    used = {row["digest"]: row for row in reversed(rows) if row["split"]}
    good = [row for row in reversed(used.values()) if GOOD not in model.classes or row.get("label") == GOOD]
    rejected = {row["path"] for row in judged if model.decision(row) == REJECT}
    digest = {row["path"]: row["digest"] for row in good if row["path"] not in rejected}
    if not digest:
        raise LabError(f"reference={reference} has no good image to compare new ones with")
    chosen = [list(digest)[place] for place in evenly(len(digest))]
    part = {row["path"]: row["split"] for row in good}
    images, parts = ({folder / name: of[name] for name in chosen} for of in (digest, part))
    known = Known(images, parts, {*used}, {})
    if gone := [path for path in known.images if not path.is_file()]:
        first = f"{gone[0]}, and {len(gone) - 1} more" if len(gone) > 1 else f"{gone[0]}"
        raise LabError(f"the images of reference={reference} are gone ({first}): restore them in {folder}")
    # Of images that this model has learnt, other models' scores stand there, which are not those of this one.
    own = origin_of(ckpt)
    learnt = problem.learns_from(own) if own else ()
    unseen = {row["path"]: row["digest"] for row in good if row["split"] not in learnt and row["path"] not in rejected}
    for row in judged:
        if row["path"] in unseen and row.get("type") != SYNTHETIC and (score := score_of(row)) is not None:
            known.scores[unseen[row["path"]]] = score
    return known


def _sound(folder: Path, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the rows of a predictions.csv, whose scores are finite numbers.

    Raises:
        LabError: one is not.
    """
    for line, row in enumerate(rows, start=2):
        try:
            score = score_of(row)
        except ValueError:
            score = np.nan
        if score is not None and not np.isfinite(score):
            raise damaged(folder / PREDICTIONS, f"the score in line {line} is no finite number")
    return rows


def of_predictions(
    typed: str | None, ckpt: Path, model: Model, batch_size: int
) -> tuple[list[Judged], list[str], list[str]]:
    """Return new images with their rows, those of ``predictions.csv`` or, of images alone, new ones.

    Returns:
        The images, why others are broken, and notes, a line each.

    Raises:
        LabError: there are none, or another model predicted them.
    """
    if typed is None:
        raise LabError(f"task=monitor needs predictions=DIR: {WANTED}")
    folder = Path(typed).expanduser()
    rows = table_of(folder, PREDICTIONS, "path", "prediction") if folder.is_dir() else None
    if rows is None:
        return *_judged_here(typed, model, batch_size), []
    if "split" in rows[0]:
        raise LabError(f"predictions={typed} is a run, whose images are those of training: {WANTED}")
    _sound(folder, rows)
    about = read_json(path) if (path := file_of(folder, PREDICTED)) else {}
    if not isinstance(about, dict) or not all(isinstance(about.get(key, ""), str) for key in ("ckpt", "directory")):
        raise damaged(folder / PREDICTED, "it does not name its model")
    _require_same_model(typed, about.get("ckpt"), ckpt, model)
    here = Path(about.get("directory", ""))
    if lacking := [line for line, row in enumerate(rows, start=2) if not row["path"].strip()]:
        raise damaged(folder / PREDICTIONS, f"line {lacking[0]} names no image")
    named = {(here / row["path"]).absolute(): row for row in rows}  # of one file several times the last row
    judged = [Judged(path, row) for path, row in named.items()]
    gone = [str(each.path) for each in judged if not each.path.is_file()]
    if len(gone) == len(judged):
        raise LabError(
            f"{folder / PREDICTIONS}: none of its {len(gone)} images is there: restore {gone[0]} and the others"
        )
    again = len(rows) - len(judged)
    notes = [f"{again} rows of predictions.csv name a file once more: its last row counts"] if again else []
    there = [each for each in judged if str(each.path) not in {*gone}]
    return there, [f"{path} is gone: restore it" for path in gone], notes


def _require_same_model(typed: str, other: str | None, ckpt: Path, model: Model) -> None:
    """Refuse predictions of another model, as its scores are others; one that is gone cannot be asked."""
    if other is None or not Path(other).is_file() or Path(other).samefile(ckpt):
        return
    theirs = read_checkpoint(other)["state_dict"]
    ours = model.module.state_dict()
    if theirs.keys() != ours.keys() or not all(torch.equal(theirs[key], value) for key, value in ours.items()):
        raise LabError(f"predictions={typed} are of another model, {other}: predict with ckpt={ckpt}, or give its run")


def _judged_here(typed: str, model: Model, batch_size: int) -> tuple[list[Judged], list[str]]:
    try:
        source = find(typed)
    except LabError as error:
        raise LabError(f"{str(error).partition(': give')[0].replace('source=', 'predictions=')}: {WANTED}") from None
    if not source.images:
        raise LabError(f"predictions={typed} is no list of images that lie there: predict them first (task=predict)")
    broken, judged = list(source.broken), list[Judged]()
    results = attempts(source.images, partial(read_cut, frame=model.frame, white=model.white), BATCH)
    pairs = zip(source.images, results, strict=True)
    while batch := list(islice(pairs, batch_size)):
        broken += [str(cut) for _, cut in batch if isinstance(cut, LabError)]
        cuts = [(path, cut) for path, cut in batch if not isinstance(cut, LabError)]
        said = judge(model, [cut for _, cut in cuts], batch_size) if cuts else []
        for (path, _), (prediction, columns) in zip(cuts, said, strict=True):
            judged.append(Judged(path, model.decided({**prediction.row, **columns})))
    return judged, broken


@torch.no_grad()
def measured(paths: Sequence[Path], model: Model, problem: Problem, what: str) -> Side:
    """Return what is measured of images, without scores; each file is read once, and of copies the first counts.

    Features are of whole images, also where a model judges tiles.

    Args:
        what: they are, for the progress bar.
    """

    def read(path: Path) -> tuple[str, tuple[Appearance, np.ndarray] | LabError]:
        content = Content(str(path), path.read_bytes())
        try:
            image = read_image(content, model.white)
        except LabError as error:
            return digest_of(content.data), error
        return digest_of(content.data), (appearance(image), resize(image, model.frame))

    side, parts = Side([], [], None, np.zeros(0)), list[np.ndarray]()
    with bar() as progress:
        results = progress.track(attempts(paths, read, BATCH), len(paths), description=f"reading {what}")
        counted = _counted(results, side)
        while batch := [(paths[place], result) for place, result in islice(counted, BATCH)]:
            side.broken += [str(result) for _, result in batch if isinstance(result, LabError)]
            kept = [(path, *result) for path, result in batch if not isinstance(result, LabError)]
            side.paths += [path for path, _, _ in kept]
            side.looks += [look for _, look, _ in kept]
            if kept:
                images = normalise(np.stack([picture for _, _, picture in kept]), model.mean, model.std)
                if (features := problem.embed(model, images)) is not None:
                    parts.append(features.float().cpu().numpy())
    side.features = np.concatenate(parts) if parts else None
    return side


def _counted(results: Iterable[tuple[str, T] | LabError], side: Side) -> Iterator[tuple[int, T | LabError]]:
    """Yield the places and results of images that are no copies of others, and note the digests in ``side``."""
    known = set[str]()
    for place, result in enumerate(results):
        digest, of_image = ("", result) if isinstance(result, LabError) else result
        if digest not in known:
            known |= {digest} if digest else set()
            side.contents[place] = digest
            yield place, of_image
