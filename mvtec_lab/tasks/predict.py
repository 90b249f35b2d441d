"""task=predict: a checkpoint on new images."""

from __future__ import annotations

import io
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from mvtec_lab.checks import validate
from mvtec_lab.config import Config
from mvtec_lab.data.images import attempts, read_image, too_bright
from mvtec_lab.data.incoming import KEPT, Source, Watched, find
from mvtec_lab.data.listing import name_left_out
from mvtec_lab.data.transforms import Cut, read_cut
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.origin import checkpoint_of
from mvtec_lab.engine.pictures import SHOWN, map_over, sheet, write_picture
from mvtec_lab.engine.setup import claim
from mvtec_lab.errors import IncompleteError, LabError
from mvtec_lab.evaluation.operating import doubt
from mvtec_lab.locks import held
from mvtec_lab.problems import problem_of
from mvtec_lab.problems.base import Prediction
from mvtec_lab.problems.model import judge, load_model
from mvtec_lab.progress import bar
from mvtec_lab.reporting.expected import expected, judged_by
from mvtec_lab.reporting.predicted import COLOURS, PAGE, Doubtful, Shown, write_page_of
from mvtec_lab.results import PREDICTED, PREDICTIONS, append_csv, write_csv, write_whole
from mvtec_lab.tasks.watched import Before, judged_before

log = logging.getLogger(__name__)

MAPS, FOUND = "maps", "found"
LINES = 24  # images that are named in the terminal
NAMED = 20  # broken images that are named in the terminal, a line each; run.log names all of them


class Judged(NamedTuple):
    """Hold an image, its whole picture, what the model says of it, further columns, and the seconds that it took."""

    path: Path
    picture: np.ndarray
    prediction: Prediction
    further: Mapping[str, str]
    seconds: float


def predict(config: Config, run_dir: str | Path) -> list[dict[str, Any]]:
    """Judge the images of ``config.source``: predictions.csv, predictions.jpg and report.html.

    Of a method that localises there is maps/ as well: of each image, by its name below the source, a .jpg to look at
    and the map itself as a .tiff of 32-bit floats, which covers the whole image, at whatever resolution. A camera and a
    watched folder go on until Ctrl-C; each of their rows is on the disk before the next image is judged. With
    ``config.resume`` a watched folder's task goes on in its directory; the report shows what was judged since.

    Returns:
        One row per image: path, decision and prediction, score and threshold where there are any; of a classifier
        confidence (the probability of the prediction) and prob_<class>. Of what is live, no rows: they are in the file.

    Raises:
        LabError: no checkpoint or source, or no image that can be read; raised before anything is written.
        IncompleteError: some images cannot be read; raised when the others are predicted and written.
    """
    validate(config)
    model = load_model(ckpt := checkpoint_of(config))
    source, run_dir = find(config.source, config.watch, config.fps), Path(run_dir)
    if not source.waits:
        return _predict(config, run_dir, model, ckpt, source, Before())
    with held(run_dir):  # two processes would write their rows into one file
        before = (judged_before(run_dir, ckpt, source.root) if config.resume else None) or Before()
        if before.columns:
            source = Watched(source.typed, source.root, before.images)
        return _predict(config, run_dir, model, ckpt, source, before)


def _predict(
    config: Config, run_dir: Path, model: Model, ckpt: str, source: Source, before: Before
) -> list[dict[str, Any]]:
    problem = problem_of(model.method)
    # What makes its images below the task's own folder needs it first.
    claimed = [] if source.images else [run_dir if before.begun else claim(run_dir, PREDICTIONS)]
    judged = _judged(model, source, run_dir, config.data.batch_size)
    try:
        first = [] if source.waits else [next(judged)]
    except (StopIteration, LabError) as error:
        for left in claimed:
            (left / PREDICTIONS).unlink(missing_ok=True)
            shutil.rmtree(left / KEPT, ignore_errors=True)
        if isinstance(error, LabError):
            raise
        more = f" (and {len(source.broken) - 1} more)" if len(source.broken) > 1 else ""
        raise LabError(f"source={config.source} has no image that can be read: {source.broken[0]}{more}") from None
    run_dir = claimed[0] if claimed else claim(run_dir, PREDICTIONS)
    _describe(run_dir, ckpt, model, source)
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    counts = Counter(row.get("decision") or row["prediction"] for row in before.rows)
    seconds: list[float] = []
    shown = Doubtful()
    with bar() as progress, suppress(*([KeyboardInterrupt] if source.live else [])):
        total = None if source.live or not source.images else len(source.images)
        for each in progress.track(chain(first, judged), total, description="predicting"):
            row, tiles = _written(each, model, source.name(each.path), run_dir)
            row |= source.facts(each.path)
            caption = " ".join(filter(None, (row.get("decision"), each.prediction.caption)))
            shown.add(Shown(doubt(row, row["prediction"]), row.get("decision", ""), caption, str(each.path), tiles))
            counts[row.get("decision") or row["prediction"]] += 1
            seconds.append(each.seconds)
            line = f"{caption}  {each.path}"
            if source.live:
                _require_columns(run_dir, row, before)
                append_csv(run_dir / PREDICTIONS, row)
                print(line, flush=True)
            else:
                rows.append(row)
                lines += [line] * (len(rows) <= LINES)
    if not seconds:
        log.info("stopped before the first %simage", "new " * bool(before.rows))
        for name in () if before.rows else (PREDICTED, PREDICTIONS):
            (run_dir / name).unlink(missing_ok=True)
        return rows
    if not source.live:
        write_csv(run_dir / PREDICTIONS, rows, list(dict.fromkeys(key for row in rows for key in row)))
        lines += [f"... and {len(rows) - LINES} more"] * (len(rows) > LINES)
    by = judged_by(Path(ckpt), model.method, model.threshold, model.accept)
    notes = [] if source.live else problem.conclude(model, rows)
    expectation = expected(Path(ckpt))
    speed = _speed(seconds, config.data.batch_size, str(model.module.device))
    images, total = shown.most_doubtful(), sum(counts.values())
    write_picture(run_dir / "predictions.jpg", _sheet(images, expectation.light != "red"))
    write_page_of(run_dir, images, counts, expectation, [by, *notes, speed], config.source or "")
    counted = ", ".join(f"{number} {word}" for word, number in counts.items())
    written = f"written to {run_dir}: {PREDICTIONS}, {PAGE}"
    print("\n".join([*lines, *notes, f"{total} images: {counted}", by, *expectation.lines, speed, written]))
    for warning in too_bright([Path(row["path"]) for row in rows], model.white):
        log.warning(warning)
    log.info("judged by %s, %d CPU thread(s)", model.module.device, torch.get_num_threads())
    _report(source, len(seconds))
    return rows


def _require_columns(run_dir: Path, row: Mapping[str, Any], before: Before) -> None:
    """Refuse a row of other columns than those of a file that was begun before."""
    if before.columns and [*row] != [*before.columns]:
        raise LabError(
            f"{run_dir / PREDICTIONS} was begun by another model, of other classes or thresholds: give another "
            "directory, hydra.run.dir=NEW_FOLDER"
        )


def _describe(run_dir: Path, ckpt: str, model: Model, source: Source) -> None:
    """Write what task=review has to know beside predictions.csv."""
    about = {
        "ckpt": str(Path(ckpt).absolute()),
        "classes": model.classes,
        "map_threshold": model.map_threshold,  # above which a map marks a defect
        "source": source.typed,
        "root": str(source.root.absolute()),  # maps/ and found/ have the names of images below it
        "directory": str(Path.cwd()),  # that paths of predictions.csv are relative to
    }
    write_whole(run_dir / PREDICTED, json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def _judged(model: Model, source: Source, run_dir: Path, batch_size: int) -> Iterator[Judged]:
    """Yield what the model says of each image that can be read; of the others ``source.broken`` says why."""
    read = partial(read_cut, frame=model.frame, white=model.white)
    waiting = 64 if model.tile is None else 4
    for group in source.groups(run_dir):
        batch: list[tuple[Path, Cut]] = []
        for path, result in zip(group, attempts(group, read, waiting), strict=True):
            if isinstance(result, LabError):
                source.broken.append(str(result))
                if source.live:
                    log.warning(str(result))
                continue
            batch.append((path, result))
            if len(batch) == (1 if model.tile is not None else batch_size):
                yield from _batch(model, batch, batch_size)
                batch = []
        if batch:
            yield from _batch(model, batch, batch_size)


def _batch(model: Model, batch: Sequence[tuple[Path, Cut]], size: int) -> Iterator[Judged]:
    began = time.perf_counter()
    judged = judge(model, [cut for _, cut in batch], size)
    each = (time.perf_counter() - began) / len(batch)
    for (path, cut), (prediction, columns) in zip(batch, judged, strict=True):
        yield Judged(path, cut.picture, prediction, columns, each)


def _written(judged: Judged, model: Model, name: str, run_dir: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Write the map and the files of an image; return its row, and the pictures that show it, by their captions."""
    path, picture, prediction, further, _ = judged
    files: Mapping[str, np.ndarray | str] = {}
    if prediction.files is not None:  # written as they come: a day's production does not fit into memory
        image = read_image(path, model.white)
        files = prediction.files(image)
        _write_files(run_dir / FOUND / name, files)
        prediction = prediction.sized(image.shape[:2]) if prediction.sized else prediction
    tiles = {"": model.frame.cut(picture, path)}
    if prediction.heat is not None:
        heat = prediction.heat if model.tile is not None else model.frame.cut(prediction.heat, path)
        tiles[f"map, outlined where above {model.map_threshold:.3g}"] = _write_map(
            run_dir / MAPS / name, path, heat, model
        )
    if isinstance(drawing := files.get(".jpg"), np.ndarray):
        tiles["found"] = drawing
    return {"path": str(path), **model.decided({**prediction.row, **further})}, tiles


def _sheet(images: Sequence[Shown], confident: bool) -> np.ndarray:
    """Draw the most doubtful images; where nothing shows that the model learnt, no frame has the decision's colour."""
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    marks: list[str | None] = []
    files: list[str] = []
    for shown in images:
        if len(tiles) >= SHOWN:
            break
        further = len(shown.tiles) - 1
        tiles += shown.tiles.values()
        captions += [shown.caption if confident else f"? {shown.caption}", *list(shown.tiles)[1:]]
        marks += [COLOURS.get(shown.decision) if confident else None, *[None] * further]
        files += [shown.path, *[""] * further]
    return sheet(tiles, captions, marks, files=files)


def _speed(seconds: Sequence[float], batch_size: int, device: str) -> str:
    """Return what an image takes, in a line."""
    median, late = np.quantile(seconds, [0.5, 0.95])
    return (
        f"{_milliseconds(median)} an image (median; 95% within {_milliseconds(late)}) on {device}, in batches of up to "
        f"{batch_size}, without reading the file"
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 0.9995 else f"{1000 * seconds:,.0f} ms"


def _report(source: Source, predicted: int) -> None:
    """Name what was left out.

    Raises:
        IncompleteError: an image cannot be read.
    """
    for line in name_left_out(source.left_out, source.root):
        log.warning(line)
    for i, line in enumerate(source.broken):
        log.log(logging.WARNING if i < NAMED and not source.live else logging.DEBUG, line)
    if source.broken:
        more = f", {len(source.broken) - NAMED} of them in run.log alone" if len(source.broken) > NAMED else ""
        raise IncompleteError(
            f"{len(source.broken)} image(s) or folder(s) cannot be read (named above{more}), "
            f"{predicted} image(s) are predicted"
        )


def _write_map(target: Path, path: Path, heat: np.ndarray, model: Model) -> np.ndarray:
    """Write a map as .tiff, and drawn over its image as .jpg; return the drawing."""
    assert model.map_threshold is not None
    target.parent.mkdir(parents=True, exist_ok=True)  # the target keeps the suffix: a.png and a.jpg have two maps
    file = io.BytesIO()
    Image.fromarray(heat).save(file, "tiff")
    write_whole(Path(f"{target}.tiff"), file.getbuffer())
    drawn = map_over(read_image(path, model.white), heat, model.map_threshold)
    write_picture(Path(f"{target}.jpg"), drawn)
    return drawn


def _write_files(target: Path, files: Mapping[str, np.ndarray | str]) -> None:
    """Write what a model found in an image, a file per ending."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for ending, content in files.items():
        path = Path(f"{target}{ending}")
        if isinstance(content, str):
            write_whole(path, content)
        elif ending.endswith(".png"):  # exact, as masks have to be
            file = io.BytesIO()
            Image.fromarray(content).save(file, "png")
            write_whole(path, file.getbuffer())
        else:
            write_picture(path, content)
