"""The one way to build the data and the model of any problem, and to load a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.transforms import Cut, normalise
from mvtec_lab.engine.model import ABOUT, Model, read_checkpoint
from mvtec_lab.engine.setup import RANDOM_MARK
from mvtec_lab.engine.setup import build_data as data_of
from mvtec_lab.engine.unknown import distances
from mvtec_lab.errors import LabError
from mvtec_lab.models.weights import WeightsUnavailable
from mvtec_lab.problems import METHODS, problem_of
from mvtec_lab.problems.base import Prediction


def build_data(config: Config) -> MVTecDataModule:
    """Return the data module of a configuration, scanned and split, normalised as its model expects.

    Raises:
        LabError: whatever is wrong with the folder, a mask or the split.
    """
    problem = problem_of(config.model.method)
    targets = problem.targets_of(config.model.method)
    return data_of(config, problem.normalisation(config), targets, problem.good_alone, problem.known_defects(config))


def build_model(config: Config, data: MVTecDataModule) -> tuple[Model, list[str]]:
    """Return the model of a configuration, and a warning where its weights are not those asked for.

    Only the sample takes random weights where those asked for cannot be fetched.

    Raises:
        LabError: settings, weights or data that do not fit.
    """
    problem, weights = problem_of(config.model.method), config.model.weights
    try:
        model, note = problem.build(config, data, weights), None
    except WeightsUnavailable as error:
        if config.data.name != "sample":
            raise
        model, note = problem.build(config, data, None), f"{RANDOM_MARK}: {error}"
    model = replace(model, fit=config.data.fit)
    note = note or getattr(model.module, "weights_note", None)
    if note is None and model.weights == "random" and METHODS[model.method].backbone:
        note = f"{RANDOM_MARK}, as asked for"
    return model, [note] if note else []


def load_model(path: str | os.PathLike[str]) -> Model:
    """Return the model of a run's best.ckpt or last.ckpt, in eval mode on the CPU.

    Nothing but tensors and plain values is read, so a checkpoint from anywhere is safe to load.

    Raises:
        LabError: the file is missing, damaged, would run code, holds NaN or infinity, or is no checkpoint of a run of
            this version.
    """
    content = read_checkpoint(path)
    about = content[ABOUT]
    if about["method"] not in METHODS:
        raise LabError(
            f"{path} is a model of the method {about['method']!r}, which is not registered here: run the script that "
            "registers it, or install its package"
        )
    problem = problem_of(about["method"])
    try:
        module = problem.restore(content)
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LabError(f"{path} is no checkpoint of this version's {about['method']}: {reason}") from error
    return Model(module.eval(), **about)


def judge(model: Model, cuts: Sequence[Cut], batch_size: int) -> list[tuple[Prediction, dict[str, str]]]:
    """Return what a model says of new images, each with further columns: how far it is from those of training.

    Images are judged at once; one that is cut into tiles, by itself.

    Args:
        batch_size: tiles that are judged at once.
    """
    problem = problem_of(model.method)
    if model.tile is None:
        images = normalise(np.stack([cut.picture for cut in cuts]), model.mean, model.std)
        return list(zip(problem.predict(model, images), _distances(model, images), strict=True))
    predictions = []
    for cut in cuts:
        assert cut.tiles is not None
        parts = (cut.tiles[start : start + batch_size] for start in range(0, len(cut.tiles), batch_size))
        tiles = (normalise(part, model.mean, model.std) for part in parts)
        predictions.append((problem.predict_tiles(model, tiles, cut.windows), dict[str, str]()))
    return predictions


def _distances(model: Model, images: Tensor) -> list[dict[str, str]]:
    """Return how far images [N, 3, S, S] are from those of training, and what is unknown: columns of their rows."""
    if model.unknown is None or (features := problem_of(model.method).embed(model, images)) is None:
        return [{}] * len(images)
    limit = f"{model.unknown['threshold']:.6g}"
    return [{"distance": f"{d:.6g}", "unknown_above": limit} for d in distances(model.unknown, features)]
