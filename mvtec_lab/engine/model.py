"""A trained or fitted model of any problem, as every task uses it and as a checkpoint holds it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mvtec_lab.data.frame import Frame
from mvtec_lab.engine.unknown import misfit_of_known
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.operating import OK, REJECT, REVIEW, UNKNOWN, decide, score_of
from mvtec_lab.foreign import Size, misfit
from mvtec_lab.models.finite import not_finite
from mvtec_lab.models.weights import load_file, save_file
from mvtec_lab.results import CERTAINTY, GOOD, UNSURE

ABOUT = "about"  # where a checkpoint keeps what is not weights
_LATER = {
    "fit": "squeeze",
    "tile": None,
    "sets": None,
    "accept": None,
    "unknown": None,
}  # what older checkpoints do not say


@dataclass
class Model:
    """Hold a LightningModule, and what has to be known to use it on images.

    Args:
        module: the network; what its ``forward`` gives is its problem's.
        method: the value of ``model.method``.
        classes: names of what it predicts, in the order of their indices.
        image_size: side of the square that images are brought into, pixels.
        white: the value of 16-bit files that becomes 255.
        mean, std: of RGB in [0, 1], by which images are normalised.
        weights: what the backbone started from: IMAGENET1K_V1, a file, random.
        threshold: the score above which an image is a defect, and rejected; None where classes are predicted and no
            operating point was chosen. A classifier's score is 1 - p(good).
        map_threshold: the same of a pixel's score; None without maps.
        fit: how images get into the square, as in ``Frame``.
        tile: pixels a side of the tiles that it sees of an image; None: it sees the image as a whole.
        sets: of a classifier, by key a list with a number per class: ``least``, the probability from which on an image
            may be of the class; ``alpha``, the share of its images that may miss it; ``held_out``, the images that
            this was chosen on. None: nothing was chosen.
        accept: the score up to which an image is accepted, at most ``threshold``; between the two it is reviewed. None:
            ``task=threshold`` chose no operating point.
        unknown: what ``engine.unknown.learn`` keeps of the training images, by which an image that is unlike all of
            them is told; None: nothing is.
    """

    module: Any  # a LightningModule: Any, as each problem calls its own's methods
    method: str
    classes: list[str]
    image_size: int
    white: int
    mean: Sequence[float]
    std: Sequence[float]
    weights: str | None = None
    threshold: float | None = None
    map_threshold: float | None = None
    fit: str = "squeeze"
    tile: int | None = None
    sets: dict[str, list[float]] | None = None
    accept: float | None = None
    unknown: dict[str, Any] | None = None

    @property
    def frame(self) -> Frame:
        """Return the square that images are brought into, as ``resize`` takes it."""
        return Frame(self.image_size, self.fit, self.tile)

    def decision(self, row: Mapping[str, Any]) -> str:
        """Return OK, REVIEW, REJECT or UNKNOWN for an image by its row of predictions; empty where no class is good.

        What a model says of an image that is unlike all that it learnt means nothing: it is UNKNOWN. One that learnt
        good images alone finds defects by just that, so that its REJECT stands. Without a threshold a classifier's
        prediction decides, and an image of which it is unsure is reviewed.
        """
        if GOOD not in self.classes:
            return ""
        if self.threshold is not None and (score := score_of(row)) is not None:
            word = decide(score, self.threshold, self.accept)
        elif row.get(CERTAINTY) == UNSURE:
            word = REVIEW
        else:
            word = OK if row["prediction"] == GOOD else REJECT
        if self.unknown is None or (word == REJECT and not self.unknown["first"]):
            return word
        return UNKNOWN if float(row.get("distance") or 0) > self.unknown["threshold"] else word

    def decided(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row of predictions with its decision first, and the threshold of what is accepted last."""
        decision = self.decision(row)
        limits = {} if self.accept is None else {"accept": f"{self.accept:.9g}"}
        return {**({"decision": decision} if decision else {}), **row, **limits}

    def about(self) -> dict[str, Any]:
        """Return everything but the module, as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "module"}
        return {**values, "mean": list(self.mean), "std": list(self.std)}

    def content(self) -> dict[str, Any]:
        """Return what a checkpoint holds: weights and plain values alone."""
        return {
            "state_dict": self.module.state_dict(),
            "hyper_parameters": dict(self.module.hparams),
            ABOUT: self.about(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, whole or not at all."""
        save_file(self.content(), path)


def read_checkpoint(path: str | os.PathLike[str], source: str | None = None) -> dict[str, Any]:
    """Return what ``Model.content`` wrote. Nothing but tensors and plain values is read, so any file is safe to read.

    Args:
        source: as in ``load_file``.

    Raises:
        LabError: the file is missing, damaged, would run code, holds NaN or infinity, or is no checkpoint of a run.
    """
    source = source or str(path)
    content = load_file(path, source)
    names = {f.name for f in fields(Model)} - {"module"}
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters", ABOUT} <= content.keys():
        raise LabError(f"{source} is no checkpoint of a run: give a run's best.ckpt or last.ckpt")
    about = content[ABOUT] = {**_LATER, **content[ABOUT]} if isinstance(content[ABOUT], dict) else {}
    if about.keys() != names:
        raise LabError(f"{source} is no checkpoint of this version: train that run again")
    if key := not_finite(content["state_dict"]):
        raise LabError(f"{source} holds NaN or infinity in {key}: train that run again")
    for key in ("threshold", "map_threshold", "accept"):
        if about[key] is not None and not math.isfinite(about[key]):
            raise LabError(f"{source} holds {about[key]} as its {key}: train that run again")
    if wrong := misfit_of_known(about["unknown"]):
        raise LabError(f"{source} cannot tell what is unknown ({wrong}): choose its threshold again")
    if wrong := _misfit_of_sets(about["sets"], len(about["classes"])):
        raise LabError(f"{source} has sets that are none ({wrong}): train that run again")
    return content


def _misfit_of_sets(sets: Any, classes: int) -> str | None:
    """Return what is wrong with the sets of a checkpoint, which may come from anywhere; None: nothing is."""
    if sets is None:
        return None
    if wrong := misfit(sets, dict[str, list[Size]], "sets"):
        return wrong
    short = [key for key in ("least", "alpha", "held_out") if len(sets.get(key, ())) != classes]
    return f"{short[0]} has not {classes} numbers" if short else None
