"""Learn from a run's training images which new images are unlike all of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvtec_lab.config import Config
from mvtec_lab.data.images import digests, each_image
from mvtec_lab.data.transforms import normalise, read_cut
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.unknown import SHARE, learn
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.operating import least_share, percent
from mvtec_lab.problems.base import Problem
from mvtec_lab.tasks.evaluate import run_of

BATCH = 16  # images at once


@torch.no_grad()
def learn_unknown(ckpt: Path, own: Config, model: Model, problem: Problem) -> tuple[dict[str, Any] | None, str]:
    """Return what ``engine.unknown.learn`` keeps of the images that a checkpoint has learnt, and what was learnt.

    None where the model has no frozen features, or the images are no longer those of its run: the text says why.
    """
    if model.tile is not None:
        return None, "nothing is called unknown: the model judges images by tiles"
    run = run_of(ckpt)
    rows = [row for row in run[1] if row["split"] in problem.learns_from(own)] if run else []
    paths = [run[0] / row["path"] for row in rows] if run else []
    try:
        same = bool(paths) and all(row["digest"] == digest for row, digest in zip(rows, digests(paths), strict=True))
    except LabError:
        same = False
    if not same:
        return None, "nothing is called unknown: the images that trained this model are not where its run found them"
    first = dict(zip((row["digest"] for row in rows), paths, strict=True))  # copies are one image
    parts = []
    pictures = each_image(list(first.values()), lambda path: read_cut(path, model.frame, model.white).picture)
    while batch := list(islice(pictures, BATCH)):
        features = problem.embed(model, normalise(np.stack(batch), model.mean, model.std))
        if features is None:
            return None, f"nothing is called unknown: model.method={model.method} has no frozen features"
        parts.append(features)
    known = learn(torch.cat(parts), first=not problem.good_alone)
    if known is None:
        return None, f"nothing is called unknown: {len(first)} training images are too few to say what is unlike them"
    share = max(SHARE, least_share(known["images"]))
    also = "" if known["first"] else ", where the score does not reject them"
    return known, (
        f"UNKNOWN{also}: farther from every training image than {known['threshold']:.3g}, as {percent(share)}% of "
        f"images like these {known['images']} are"
    )
