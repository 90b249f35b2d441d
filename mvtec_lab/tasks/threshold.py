"""task=threshold: a checkpoint with another operating point, chosen by the held-out images of its run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mvtec_lab.checks import validate
from mvtec_lab.config import Config
from mvtec_lab.engine.folder import whole_folder
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.origin import checkpoint_of, origin_of, typed_for
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.operating import (
    Rate,
    Scores,
    images_for,
    least_share,
    limit_of_cost,
    limit_of_escapes,
    limit_of_false_rejects,
    percent,
    rates,
    scores_of,
)
from mvtec_lab.foreign import damaged, read_yaml
from mvtec_lab.problems import problem_of
from mvtec_lab.problems.model import load_model
from mvtec_lab.reporting.expected import attempt_of
from mvtec_lab.reporting.operating import HELD_OUT, PAGE, TESTED, points, write_operating_page
from mvtec_lab.results import BEST, CONFIG, GOOD, OPERATING, PREDICTIONS, SAMPLES, table_of, write_whole
from mvtec_lab.tasks.unknown import learn_unknown

log = logging.getLogger(__name__)

NAMES = {
    "false_rejects": ("false rejects", "good images"),
    "escapes": ("escapes", "defects"),
    "good_reviewed": ("reviewed", "good images"),
    "defects_reviewed": ("reviewed", "defects"),
}


@dataclass(frozen=True)
class Held:
    """Hold what a checkpoint's run left to choose by.

    Args:
        rows: of its predictions.csv.
        held_out, tested: the scores of its validation and test images.
        by: what judged the held-out images, and what else they chose, in a clause.
        own: the settings of its run.
    """

    rows: Sequence[Mapping[str, str]]
    held_out: Scores
    tested: Scores
    by: str
    own: Config


def set_threshold(config: Config, run_dir: str | Path) -> dict[str, Any]:
    """Choose the thresholds of ``config.ckpt`` by rates or costs: best.ckpt with them, operating.json, report.html.

    The test images choose nothing; they show what the choice does. config.yaml, samples.csv and predictions.csv of the
    run lie beside the new checkpoint, so that every task takes it as it takes a run's. The directory is no run: a
    comparison leaves it out.

    Raises:
        LabError: no checkpoint, one that does not tell good from defect, or no held-out image to choose by; raised
            before anything is written.
    """
    validate(config)
    ckpt = Path(checkpoint_of(config))
    model = load_model(ckpt)
    held = _held(ckpt, model)
    accept, reject, notes = _chosen(config, held.held_out)
    known, learnt = learn_unknown(ckpt, held.own, model, problem_of(model.method))
    new = replace(model, threshold=reject, accept=accept, unknown=known)
    if known is None:
        notes.append(learnt)
    sets = {HELD_OUT: held.held_out, TESTED: held.tested}
    shown = {name: rates(scores, reject, accept) for name, scores in sets.items()}
    facts: dict[str, Any] = {
        "ckpt": str(ckpt),
        "attempt": attempt_of(ckpt),  # still known where this folder alone is copied to a line
        "rule": _rule(config),
        "reject": reject,
        "accept": accept,
        "before": {"reject": model.threshold, "accept": model.accept},
        "unknown": None if known is None else {"distance": known["threshold"], "images": known["images"]},
        "held_out": {"good": len(held.held_out.good), "defects": len(held.held_out.defects), "by": held.by},
        "expected": {key: _plain(rate) for key, rate in shown[HELD_OUT].items()},
        "test": {key: _plain(rate) for key, rate in shown[TESTED].items()},
        "table": [
            {**point, **{part: {k: _plain(r) for k, r in point[part].items()} for part in ("held_out", "test")}}
            for point in points(held.held_out, held.tested)
        ],
        "warnings": notes,
        "typed": typed_for(ckpt.parent),  # for the run: task=review shows the command that trains it again
    }
    for note in notes:
        log.warning(note)
    lines = [*_lines(facts["rule"], model, new, held, shown), *([learnt] if known is not None else [])]
    with whole_folder(run_dir := Path(run_dir), OPERATING) as folder:
        for name in (SAMPLES, PREDICTIONS):
            if (ckpt.parent / name).exists():
                shutil.copyfile(ckpt.parent / name, folder / name)
        _write_config(ckpt, held.own, folder)
        write_operating_page(folder, lines, notes, held.rows, shown)
        new.save(folder / BEST)
        write_whole(folder / OPERATING, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    print("\n".join([*lines, f"written to {run_dir}: {BEST}, {OPERATING}, {PAGE}"]))
    return facts


def _held(ckpt: Path, model: Model) -> Held:
    """Return what the run of a checkpoint left to choose its threshold by.

    Raises:
        LabError: it left nothing, or nothing that was held out.
    """
    own = origin_of(ckpt)
    rows = table_of(ckpt.parent, PREDICTIONS, "split", "path", "label")
    if own is None or rows is None:
        raise LabError(
            f"{ckpt} has no {CONFIG if own is None else PREDICTIONS} of its run beside it, and with it no held-out "
            "score to choose a threshold by: give the run's directory"
        )
    if ckpt.name != BEST:
        raise LabError(f"{ckpt} is not the {BEST} that {ckpt.parent / PREDICTIONS} is of: give the run's directory")
    if GOOD not in model.classes:
        raise LabError(
            f"{ckpt} knows the classes {', '.join(model.classes)}, none of which is {GOOD}: there is no good-or-defect "
            "decision to move"
        )
    if own.split.val_is_test:
        raise LabError(
            f"{ckpt} was validated on its test images (split.val_is_test=true): train it with images held out"
        )
    held_out, tested, problem = scores_of(rows, "val"), scores_of(rows, "test"), problem_of(model.method)
    if not np.isfinite([*held_out.both, *tested.both]).all():
        raise damaged(ckpt.parent / PREDICTIONS, "a score is no finite number")
    if not len(held_out.both):
        raise LabError(
            f"{ckpt.parent / PREDICTIONS} has no held-out image (split val) with a score: train the attempt with "
            "split.val=0.2, or, of images that are divided, with images in val/"
        )
    others, chose = problem.validates_by(own), problem.chosen_on_val(own).partition(" by ")[0]
    by = (
        f"{others} judged those that it has learnt, by other models than this one"
        if others
        else "no model that scored them has learnt them"
    )
    if chose not in ("", "the threshold"):
        by += f", but {chose} rests on them, so that their rates are a little too good"
    return Held(rows, held_out, tested, by, own)


def _chosen(config: Config, scores: Scores) -> tuple[float, float, list[str]]:
    """Return the thresholds to accept and to reject at, and what the held-out images cannot carry.

    Raises:
        LabError: there is no held-out image of a kind that the choice needs.
    """
    wanted, cost, notes = config.false_rejects, config.cost, []
    if cost.escape is not None or config.escapes is not None:
        _require(scores.defects, "defect", "escapes", "give false_rejects=0.01, which needs good images alone")
    if cost.escape is not None or wanted is not None:
        _require(scores.good, "good image", "false rejects", "give escapes=0.02, which needs defects alone")
    if cost.escape is not None and cost.false_reject is not None:
        share = cost.defects
        if share is None:
            share = len(scores.defects) / (len(scores.defects) + len(scores.good))
            notes.append(
                f"cost.defects is not given: {percent(share)}% of the held-out images are defects, and the line has "
                "far fewer: give cost.defects=0.01"
            )
        limit = limit_of_cost(scores, cost.escape, cost.false_reject, share)
        return limit, limit, notes
    for asked, images, what in ((wanted, scores.good, "good images"), (config.escapes, scores.defects, "defects")):
        if asked is not None and asked < (least := least_share(len(images))):
            notes.append(
                f"{len(images)} held-out {what} cannot carry {percent(asked)}%: beyond the outermost of them, "
                f"where the threshold lies, {percent(least)}% of new {what} are expected; {images_for(asked)} images "
                "are needed"
            )
    if wanted is None:
        assert config.escapes is not None
        limit = limit_of_escapes(scores, config.escapes)
        return limit, limit, notes
    reject = limit_of_false_rejects(scores, wanted)
    if config.reviews is not None:
        return min(limit_of_false_rejects(scores, wanted + config.reviews), reject), reject, notes
    if config.escapes is None:
        return reject, reject, notes
    accept = limit_of_escapes(scores, config.escapes)
    if accept >= reject:  # any threshold between the two keeps both rates
        reject = accept = (accept + reject) / 2
        notes.append("one threshold keeps both rates on the held-out images: nothing is left to review")
    return accept, reject, notes


def _require(images: Any, what: str, rate: str, remedy: str) -> None:
    if not len(images):
        raise LabError(f"no {what} was held out of this run's training, so that {rate} cannot be chosen: {remedy}")


def _rule(config: Config) -> dict[str, float]:
    given = {name: getattr(config, name) for name in ("false_rejects", "escapes", "reviews")}
    given |= {f"cost.{name}": value for name, value in vars(config.cost).items()}
    return {name: value for name, value in given.items() if value is not None}


def _write_config(ckpt: Path, own: Config, folder: Path) -> None:
    """Write the run's config.yaml; the places of its images as absolute ones, as there is no result.json beside it."""
    values = read_yaml(ckpt.parent / CONFIG)
    for key in ("root", "labels"):
        if (place := getattr(own.data, key)) is not None:
            values.setdefault("data", {})[key] = str(Path(place).expanduser().resolve())
    write_whole(folder / CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _lines(
    rule: Mapping[str, float], before: Model, now: Model, held: Held, shown: Mapping[str, Mapping[str, Rate | None]]
) -> list[str]:
    """Return what was chosen, and what to expect of it, a line each."""
    assert now.threshold is not None
    assert now.accept is not None
    asked = " ".join(f"{name}={value:g}" for name, value in rule.items())
    old = "none: the most probable class decided" if before.threshold is None else f"{before.threshold:.4g}"
    lines = [f"{asked}: REJECT above {now.threshold:.4g} (before: {old})"]
    if now.accept < now.threshold:
        lines[0] = (
            f"{asked}: OK up to {now.accept:.4g}, REJECT above {now.threshold:.4g} (before: {old}), REVIEW between"
        )
    of = ", ".join(
        f"{len(scores)} {what}"
        for scores, what in ((held.held_out.good, "good images"), (held.held_out.defects, "defects"))
        if len(scores)
    )
    lines.append(f"chosen by {of} that are held out: {held.by}")
    for name, title in ((HELD_OUT, "held out"), (TESTED, "test, which chose nothing")):
        for key, rate in shown[name].items():
            what, images = NAMES[key]
            if rate is None or (key.endswith("reviewed") and now.accept == now.threshold):
                continue
            new = f"; of new ones expect about {percent(rate.expected)}%" if name == HELD_OUT else ""
            lines.append(f"  {title}: {what} {rate} {images}{new}")
    if shown[HELD_OUT]["escapes"] is None:
        lines.append("  no defect is held out: how many escape is known from the test images alone")
    return lines


def _plain(rate: Rate | None) -> dict[str, float] | None:
    return None if rate is None else asdict(rate)
