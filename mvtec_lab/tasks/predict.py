"""task=predict: a checkpoint on new images."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageColor

from mvtec_lab.config import Config, untested, validate
from mvtec_lab.data.frame import Frame
from mvtec_lab.data.images import attempts, read_image, too_bright
from mvtec_lab.data.listing import EXTENSIONS, LeftOut, list_images, name_left_out
from mvtec_lab.data.transforms import Cut, normalise, read_cut
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.origin import checkpoint_of, origin_of
from mvtec_lab.engine.pictures import SHOWN, coloured, map_at, sheet, write_picture
from mvtec_lab.engine.setup import claim
from mvtec_lab.errors import IncompleteError, LabError
from mvtec_lab.problems import problem_of
from mvtec_lab.problems.base import Prediction, Problem
from mvtec_lab.problems.model import load_model
from mvtec_lab.progress import bar
from mvtec_lab.reporting.figures import INK, PAPER
from mvtec_lab.results import PREDICTIONS, write_csv, write_whole

log = logging.getLogger(__name__)

MAPS, FOUND = "maps", "found"
NAMED = 20  # broken images that are named in the terminal, a line each; run.log names all of them
COOL, HOT = 0.75, 1.5  # of the map's threshold: where its colour begins and is fullest; good images stay nearly without
SMALL, LARGE = 320, 1024  # pixels of a drawn map's longer side: lines need the one, a screen shows the other


class Source:
    """Find the images of ``source``, an image or every image below a folder, and those of them that cannot be read.

    Raises:
        LabError: none is given, or there is no image.
    """

    def __init__(self, source: str | None) -> None:
        if source is None:
            raise LabError("task=predict needs source=FILE_OR_FOLDER")
        self.path = Path(source)
        self.left_out: LeftOut = {}
        self.broken: list[str] = []  # why each of them cannot be read, a line each
        self.images = [self.path]
        if self.path.is_dir():
            listed = list_images(self.path, deep=True)
            self.images, self.left_out, self.broken = listed.images, listed.left_out, listed.unusable
            if not self.images and not self.broken:
                left_out = "".join(f"; {line}" for line in name_left_out(self.left_out, self.path))
                raise LabError(
                    f"source={source} holds no image: give an image or a folder of {', '.join(EXTENSIONS)}{left_out}"
                )
        elif not self.path.is_file():
            what = "is a pipe or another special file" if self.path.exists() else "does not exist"
            raise LabError(f"source={source} {what}: give an image or a folder of {', '.join(EXTENSIONS)}")

    def pictures(self, frame: Frame, white: int) -> Iterator[tuple[Path, Cut]]:
        """Read every image that can be read, one after another, as a model of this frame sees it.

        Raises:
            LabError: none can be read; raised at once.
        """
        pictures = self._readable(partial(read_cut, frame=frame, white=white), 64 if frame.tile is None else 4)
        first = next(pictures, None)
        if first is None:
            more = f" (and {len(self.broken) - 1} more)" if len(self.broken) > 1 else ""
            raise LabError(f"source={self.path} has no image that can be read: {self.broken[0]}{more}")
        return chain([first], pictures)

    def _readable(self, read: Callable[[Path], Cut], waiting: int) -> Iterator[tuple[Path, Cut]]:
        for path, result in zip(self.images, attempts(self.images, read, waiting), strict=True):
            if isinstance(result, LabError):
                self.broken.append(str(result))
            else:
                yield path, result

    def name(self, path: Path) -> str:
        """Return the path of an image below the source."""
        return path.name if path == self.path else path.relative_to(self.path).as_posix()

    def report(self, predicted: int) -> None:
        """Name what was left out.

        Raises:
            IncompleteError: an image cannot be read.
        """
        for line in name_left_out(self.left_out, self.path):
            log.warning(line)
        for i, line in enumerate(self.broken):
            log.log(logging.WARNING if i < NAMED else logging.DEBUG, line)
        if self.broken:
            more = f", {len(self.broken) - NAMED} of them in run.log alone" if len(self.broken) > NAMED else ""
            raise IncompleteError(
                f"{len(self.broken)} image(s) or folder(s) cannot be read (named above{more}), "
                f"{predicted} image(s) are predicted"
            )


def predict(config: Config, run_dir: str | Path) -> list[dict[str, Any]]:
    """Judge ``config.source``, an image or every image below a folder: predictions.csv and predictions.jpg.

    Of a method that localises there is maps/ as well: of each image, by its name below the source, a .jpg to look at
    and the map itself as a .tiff of 32-bit floats, which covers the whole image, at whatever resolution.

    Returns:
        One row per image: path and prediction; of a classifier confidence (the probability of the prediction) and
        prob_<class>, of an anomaly model score and threshold.

    Raises:
        LabError: no checkpoint or source, or no image that can be read; raised before anything is written.
        IncompleteError: some images cannot be read; raised when the others are predicted and written.
    """
    validate(config)
    model = load_model(ckpt := checkpoint_of(config))
    problem, source = problem_of(model.method), Source(config.source)
    pictures = source.pictures(model.frame, model.white)
    run_dir = claim(run_dir, PREDICTIONS)
    rows: list[dict[str, Any]] = []
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    files_shown: list[str] = []
    lines: list[str] = []
    with bar() as progress:
        predictions = _predictions(problem, model, pictures, config.data.batch_size)
        for path, picture, prediction in progress.track(predictions, len(source.images), description="predicting"):
            files: Mapping[str, np.ndarray | str] = {}
            if prediction.files is not None:  # written as they come: a day's production does not fit into memory
                image = read_image(path, model.white)
                files = prediction.files(image)
                _write_files(run_dir / FOUND / source.name(path), files)
                prediction = prediction.sized(image.shape[:2]) if prediction.sized else prediction
            rows.append({"path": str(path), **decided(model, prediction.row)})
            shown = {prediction.caption: model.frame.cut(picture, path)}
            if prediction.heat is not None:
                heat = prediction.heat if model.tile is not None else model.frame.cut(prediction.heat, path)
                drawn = _write_map(run_dir / MAPS / source.name(path), path, heat, model)
                shown[f"map, outlined where above {model.map_threshold:.3g}"] = drawn
            if isinstance(drawing := files.get(".jpg"), np.ndarray):
                shown["found"] = drawing
            if len(tiles) < SHOWN:
                tiles += shown.values()
                captions += shown
                files_shown += [str(path), *[""] * (len(shown) - 1)]
            lines += [f"{prediction.caption}  {path}"] * (len(rows) <= SHOWN)
    write_csv(run_dir / PREDICTIONS, rows, list(rows[0]))
    write_picture(run_dir / "predictions.jpg", sheet(tiles, captions, [None] * len(tiles), files=files_shown))
    if len(rows) > SHOWN:
        lines.append(f"... and {len(rows) - SHOWN} more")
    print("\n".join([*lines, *problem.conclude(model, rows), *_expected(ckpt), f"written to {run_dir}"]))
    for warning in too_bright([Path(row["path"]) for row in rows], model.white):
        log.warning(warning)
    log.info("judged by %s, %d CPU thread(s)", model.module.device, torch.get_num_threads())
    source.report(len(rows))
    return rows


def decided(model: Model, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of predictions.csv with the decision first, and the thresholds that it rests on."""
    decision = model.decision(row)
    limits = {} if model.accept is None else {"accept": f"{model.accept:.9g}"}
    return {**({"decision": decision} if decision else {}), **row, **limits}


def _expected(ckpt: str) -> list[str]:
    """Return a line in a list where the checkpoint's run has no test images, else an empty list."""
    with suppress(LabError):  # a damaged file beside it is no reason to predict nothing
        if (origin := origin_of(Path(ckpt))) is not None and untested(origin.split):
            return ["no image has tested this model: what to expect of it is its attempt's figure in cross-validation"]
    return []


def _predictions(
    problem: Problem, model: Model, pictures: Iterator[tuple[Path, Cut]], batch_size: int
) -> Iterator[tuple[Path, np.ndarray, Prediction]]:
    """Yield for each image its path, its picture as a whole, and what the model says of it."""
    if model.tile is not None:
        for path, (picture, tiles, windows) in pictures:
            assert tiles is not None
            batches = (tiles[start : start + batch_size] for start in range(0, len(tiles), batch_size))
            normalised = (normalise(batch, model.mean, model.std) for batch in batches)
            yield path, picture, problem.predict_tiles(model, normalised, windows)
        return
    while batch := list(islice(pictures, batch_size)):
        images = normalise(np.stack([cut.picture for _, cut in batch]), model.mean, model.std)
        for (path, cut), prediction in zip(batch, problem.predict(model, images), strict=True):
            yield path, cut.picture, prediction


def _write_map(target: Path, path: Path, heat: np.ndarray, model: Model) -> np.ndarray:
    """Write a map as .tiff, and drawn over its image as .jpg; return the drawing."""
    assert model.map_threshold is not None
    target.parent.mkdir(parents=True, exist_ok=True)  # the target keeps the suffix: a.png and a.jpg have two maps
    file = io.BytesIO()
    Image.fromarray(heat).save(file, "tiff")
    write_whole(Path(f"{target}.tiff"), file.getbuffer())
    drawn = _map_over(read_image(path, model.white), heat, model.map_threshold)
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


def _map_over(image: np.ndarray, heat: np.ndarray, limit: float) -> np.ndarray:
    """Draw a map over its image, coloured from about the map's threshold up, and outlined where it is above it.

    All images have one scale, whatever images there will be.

    Args:
        image: uint8 RGB [H, W, 3].
        heat: [h, w].
        limit: the map's threshold.

    Returns:
        uint8 RGB of the image's proportions.
    """
    longest = max(image.shape[:2])
    side = min(max(longest, SMALL), LARGE)
    size = max(1, round(image.shape[1] * side / longest)), max(1, round(image.shape[0] * side / longest))
    share = map_at(heat, size[::-1]) / max(limit, 1e-12)
    drawn = coloured(cv2.resize(image, size, interpolation=cv2.INTER_AREA), (share - COOL) / (HOT - COOL))
    lines, _ = cv2.findContours((share > 1).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(2, side // 160)  # a pixel on a sheet
    for wide, colour in ((2 * width, INK), (width, PAPER)):  # a dark rim, as the line crosses bright and dark
        cv2.drawContours(drawn, lines, -1, ImageColor.getrgb(colour), wide)
    return drawn
