"""task=monitor: are new images still like the known good ones of a run?"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mvtec_lab.checks import validate
from mvtec_lab.config import Config
from mvtec_lab.data.images import read_image
from mvtec_lab.data.splits import SPLITS
from mvtec_lab.engine.origin import checkpoint_of
from mvtec_lab.engine.setup import claim
from mvtec_lab.errors import ChangedError, IncompleteError, LabError
from mvtec_lab.evaluation.drift import ALPHA, Sample, all_tested, evenly, least_new, strangeness
from mvtec_lab.evaluation.operating import REJECT, score_of
from mvtec_lab.problems import problem_of
from mvtec_lab.problems.model import load_model
from mvtec_lab.reporting import monitored
from mvtec_lab.reporting.monitored import PAGE, Pair, counted, facts_of, sentences, write_monitored
from mvtec_lab.results import MONITORED, write_csv, write_whole
from mvtec_lab.tasks.batch import Judged, Side, measured, of_predictions, of_run

log = logging.getLogger(__name__)

IMAGES = "images.csv"
PAIRS = 6  # of the most unusual new images on the page
SHOWN = 320  # pixels of a picture's longer side there


def monitor(config: Config, run_dir: str | Path) -> dict[str, Any]:
    """Compare the images of ``config.predictions`` with those of the run ``config.reference``.

    It writes monitor.json, images.csv (the measures of each image) and report.html.

    Raises:
        LabError: no reference or no new images, too few of them, or predictions of another model; raised before
            anything is written.
        ChangedError: the images have changed; raised when everything is written, as
        IncompleteError: some new images are missing or cannot be read.
    """
    validate(config)
    ckpt = Path(checkpoint_of(config, "reference"))
    model = load_model(ckpt)
    problem = problem_of(model.method)
    known = of_run(ckpt, model, problem, config.reference)
    judged, broken, notes = of_predictions(config.predictions, ckpt, model, config.data.batch_size)
    kept, left_out = compared(judged)
    kept = [kept[place] for place in evenly(len(kept))]
    new = measured([each.path for each in kept], model, problem, "new images")
    own = known.digests.intersection(new.contents.values())
    notes += left_out
    if copies := len(kept) - len(new.contents):
        notes.append(f"{copies} of {len(kept)} new images are copies of others, and count once")
    if own:
        notes.append(
            f"{len(own)} new images are images of the run itself: they are compared with its others, and their scores "
            "are not, as the model may have learnt them"
        )
    old_paths = [path for path, content in known.images.items() if content not in own]
    if not old_paths:
        raise LabError(f"the new images are those of the run itself, {kept[0].path} for one: give others")
    broken += new.broken
    if not new.paths:
        raise LabError(f"predictions={config.predictions} has no image that can be read: {broken[0]}")
    old = measured(old_paths, model, problem, "known images")
    if old.broken:
        raise LabError(f"{old.broken[0]}; it is an image of the run of reference={config.reference}")
    if changed := [path for i, path in enumerate(old_paths) if old.contents.get(i) != known.images[path]]:
        raise LabError(f"{changed[0]} is not the image that the run of reference={config.reference} had: restore it")
    parts = {part: count for part in SPLITS if (count := sum(known.parts[path] == part for path in old.paths))}
    rows = [kept[place].row for place, content in new.contents.items() if content not in own]
    new = replace(new, scores=np.array([score for row in rows if (score := score_of(row)) is not None]))
    old = replace(old, scores=np.array([score for content, score in known.scores.items() if content not in own]))
    samples, left_out = samples_of(old, new)
    notes += left_out
    if not samples:
        raise LabError(f"all images of reference={config.reference} and predictions={config.predictions} are equal")
    if len(new.paths) < (least := least_new(len(old.paths), len(samples))):
        raise LabError(
            f"predictions={config.predictions} has {len(new.paths)} images to compare: {len(samples)} tests against "
            f"{counted(parts)} can show nothing with fewer than {least}: give more"
        )
    tests = all_tested(samples)
    said = sentences(tests, len(new.paths), counted(parts))
    content = {
        "reference": str(ckpt),
        "predictions": config.predictions,
        "changed": any(test.changed for test in tests),
        "alpha": ALPHA,
        "images": {
            "reference": len(old.paths),
            "parts": parts,
            "new": len(new.paths),
            "predicted": len(judged),
            "broken": broken,
        },
        "tests": facts_of(tests),
        "said": said,
        "warnings": notes,
    }
    run_dir = claim(run_dir, MONITORED)
    inside, across, like = strangeness(*_described(old, new))
    pairs = _pairs(old, new, across, like, known.parts, model.white)
    _write_images(run_dir / IMAGES, old, new, inside, across)
    write_monitored(run_dir, said, notes, tests, pairs, str(config.reference), str(config.predictions), counted(parts))
    write_whole(run_dir / MONITORED, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for line in (*notes, *broken):
        log.warning(line)
    print("\n".join([*said, f"written to {run_dir}: {PAGE}, {MONITORED}, {IMAGES}"]))
    if content["changed"]:
        raise ChangedError("; ".join(line.removeprefix("CHANGED: ") for line in said if line.startswith("CHANGED")))
    if broken:
        raise IncompleteError(f"{len(broken)} new image(s) cannot be used (named above), the others are compared")
    return content


def compared(judged: Sequence[Judged]) -> tuple[list[Judged], list[str]]:
    """Return the new images that the model does not reject, and what is to be said of it; all where most are rejected.

    Defects come and go, and are no change of the images; a changed camera may make a model reject all.
    """
    kept = [each for each in judged if each.row.get("decision") != REJECT]
    rejected = len(judged) - len(kept)
    if 2 * rejected > len(judged):
        return list(judged), [
            f"{rejected} of {len(judged)} new images are rejected, more than half: all are compared, and that may be "
            "the change"
        ]
    if rejected:
        return kept, [f"{rejected} of {len(judged)} new images are rejected and not compared: defects come and go"]
    return kept, []


def _described(old: Side, new: Side) -> tuple[np.ndarray, np.ndarray]:
    """Return what the images show, [n, D] and [m, D]: features, or miniatures where the model has none."""
    if old.features is not None and new.features is not None:
        return old.features, new.features
    return np.array([look.miniature for look in old.looks]), np.array([look.miniature for look in new.looks])


def samples_of(old: Side, new: Side) -> tuple[list[Sample], list[str]]:
    """Return what is tested, without what is equal in all images, and notes on what is not."""
    m = monitored

    def of(name: str, measures: Sequence[str], relative: bool = False) -> Sample:
        a, b = (np.array([[getattr(look, each) for each in measures] for look in side.looks]) for side in (old, new))
        if relative:
            a, b = (np.log(np.maximum(side, 1e-6)) for side in (a, b))
        return Sample(name, a, b, relative)

    what = m.LAYOUT if old.features is None else m.FEATURES
    samples = [
        of(m.BRIGHTNESS, ["brightness"], relative=True),
        of(m.SHARPNESS, ["sharpness"], relative=True),
        of(m.COLOUR, ["red", "blue"]),
        replace(of(m.SIZE, ["width", "height"]), nearest=True),
        Sample(what, *_described(old, new), nearest=True),
        Sample(m.SCORE, old.scores[:, None], new.scores[:, None]),
    ]
    kept, notes = [], []
    for sample in samples:
        if not len(sample.reference) or not len(sample.new):
            notes.append(f"{sample.name} is not compared: there are none of images that the model did not learn")
        elif (np.concatenate([sample.reference, sample.new]) != sample.reference[0]).any():
            kept.append(sample)
        elif sample.name != m.SIZE:
            notes.append(f"{sample.name} is not compared: it is the same in all images")
    return kept, notes


def _pairs(
    old: Side, new: Side, across: np.ndarray, like: np.ndarray, parts: Mapping[Path, str], white: int
) -> list[Pair]:
    """Return the most unusual new images, the most unusual first."""
    pairs = []
    for place in np.argsort(-across, kind="stable")[:PAIRS]:
        path, other = new.paths[place], old.paths[like[place]]
        pictures = _small(read_image(path, white)), _small(read_image(other, white))
        pairs.append(Pair(*pictures, str(path), str(other), parts[other], f"distance {across[place]:.3g}"))
    return pairs


def _small(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = min(SHOWN / max(height, width), 1)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _write_images(path: Path, old: Side, new: Side, inside: np.ndarray, across: np.ndarray) -> None:
    rows = []
    for name, side, distances in (("reference", old, inside), ("new", new, across)):
        for file, look, distance in zip(side.paths, side.looks, distances, strict=True):
            measures = {key: f"{value:.6g}" for key, value in look._asdict().items() if key != "miniature"}
            rows.append({"set": name, "path": str(file), **measures, "distance": f"{distance:.6g}"})
    write_csv(path, rows, list(rows[0]))
