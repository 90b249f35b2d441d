"""The one way to build the data and the model of any problem, and to load a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.transforms import Cut, normalise
from mvtec_lab.engine.model import ABOUT, Model, read_checkpoint
from mvtec_lab.engine.onnx import Look
from mvtec_lab.engine.setup import RANDOM_MARK
from mvtec_lab.engine.setup import build_data as data_of
from mvtec_lab.engine.unknown import DISTANCE, WithDistance, distances
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


def judge(
    model: Model, cuts: Sequence[Cut], batch_size: int, look: Look | None = None
) -> list[tuple[Prediction, dict[str, str]]]:
    """Return what a model says of new images, each with further columns: how far it is from those of training.

    Images are judged at once; one that is cut into tiles, by itself.

    Args:
        batch_size: tiles that are judged at once.
        look: what runs the network; by default PyTorch, ``looking``.
    """
    problem, look = problem_of(model.method), look or looking(model)
    if model.tile is None:
        outputs = look(np.stack([cut.picture for cut in cuts]))
        return [(p, _columns(model, of)) for p, of in zip(problem.predictions(model, outputs), outputs, strict=True)]
    predictions = []
    for cut in cuts:
        assert cut.tiles is not None
        starts = range(0, len(cut.tiles), batch_size)
        outputs = [of_tile for start in starts for of_tile in look(cut.tiles[start : start + batch_size])]
        predictions.append((problem.prediction_of_tiles(model, outputs, cut.windows), dict[str, str]()))
    return predictions


def looking(model: Model) -> Look:
    """Return what runs a model's network by PyTorch."""
    problem, known = problem_of(model.method), model.unknown

    def look(pictures: np.ndarray) -> list[Mapping[str, Tensor]]:
        images = normalise(pictures, model.mean, model.std)
        outputs = problem.outputs(model, images)
        if known is None or (features := problem.embed(model, images)) is None:
            return outputs
        return [{**of, DISTANCE: d} for of, d in zip(outputs, distances(known, features.cpu()), strict=True)]

    return look


def exported(model: Model) -> nn.Module:
    """Return the network that task=export writes, in eval mode: its problem's, and how far images are from training.

    Raises:
        LabError: the model cannot be exported.
    """
    problem, known = problem_of(model.method), model.unknown
    network = problem.exported(model).eval()
    blank = torch.zeros(1, 3, model.image_size, model.image_size)
    if known is None or problem.embed(model, blank) is None:
        return network
    return WithDistance(network, partial(problem.embed, model), known)


def _columns(model: Model, outputs: Mapping[str, Tensor]) -> dict[str, str]:
    """Return how far an image is from those of training, and what is unknown: columns of its row."""
    if model.unknown is None or DISTANCE not in outputs:
        return {}
    return {DISTANCE: f"{float(outputs[DISTANCE]):.6g}", "unknown_above": f"{model.unknown['threshold']:.6g}"}
