"""From a configuration to an anomaly model."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.devices import on_gpu
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.setup import rehearse_batch
from mvtec_lab.errors import LabError
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.anomaly.models import build_anomaly_model
from mvtec_lab.problems.anomaly.rules import known
from mvtec_lab.problems.scored import CLASSES
from mvtec_lab.results import GOOD


def build(config: Config, data: MVTecDataModule, weights: str | None) -> Model:
    """Return a new anomaly model of a configuration.

    Raises:
        LabError: what the method refuses, so far as it can be known before fitting.
    """
    rehearse(config, data)
    module = build_anomaly_model(config.model.method, **_settings(config, data), weights=weights)
    return Model(
        module,
        config.model.method,
        list(CLASSES),
        config.data.image_size,
        data.white,
        data.mean,
        data.std,
        module.weights_name,
        tile=config.data.tile,
    )


NO_DEFECTS = (
    "no defects are tested: how many good images are refused is known, but not how many defects are found, nor AUROC, "
    "average precision, F1 and pixel metrics"
)


def marks(config: Config, data: MVTecDataModule) -> list[str]:
    """Return what is known before training and takes from the worth of the figures, a line each."""
    rule, quantile = config.threshold.rule, config.threshold.quantile
    marks = []
    kinds, scored = {s.label for s in data.of_split("test")}, len(data.of_split("val"))
    if not METHODS[config.model.method].trains:
        scored += len(data.of_split("train"))
    if rule == "quantile" and quantile > scored / (scored + 1):
        marks.append(
            f"threshold.quantile={quantile:g} of {scored} good image(s) is the highest of their scores: about one good "
            f"image in {scored + 1} is a false reject"
        )
    if GOOD not in kinds:
        marks.append("test/ has no good images: image AUROC, average precision and false rejects are left out")
    elif kinds == {GOOD}:
        marks.append(NO_DEFECTS)
    return marks


def rehearse(config: Config, data: MVTecDataModule) -> None:
    """Refuse ahead what a run would be refused for later, as far as it can be known without training.

    The model is built on torch's meta device, where tensors have shapes and no values, and plans its fit. Where a batch
    holds a single image, the loss of a trained method is computed once, on a model with random weights.

    Raises:
        LabError: what the method would raise, or no defect for a threshold that is chosen with them.
    """
    if config.threshold.rule == "best_f1" and all(s.label == GOOD for s in data.of_split("test")):
        raise LabError("threshold.rule=best_f1 needs defects, and test/ has none: threshold.rule=quantile does without")
    _require_known(config, data)
    name, settings = config.model.method, {**_settings(config, data), "weights": None}
    with isolate_rng(), torch.no_grad():
        with torch.device("meta"):
            model = build_anomaly_model(name, **settings)
            good = [s for s in data.of_split("train") if s.label == GOOD]
            model.plan(len(data.tiles(good)), torch.device("cuda" if on_gpu(config) else "cpu"))
        if data.smallest_batch == 1 and METHODS[name].trains:
            rehearse_batch(config, data, build_anomaly_model(name, **settings).train().loss)


def _require_known(config: Config, data: MVTecDataModule) -> None:
    """Refuse to learn from known defects where the split leaves none, or none of a tile is known."""
    if not known(config):
        return
    defects = [s for s in data.of_split("train") if s.label != GOOD]
    if not defects:
        raise LabError(
            f"model.options.known={known(config)}, but split.protocol={config.split.protocol} leaves no defect to "
            "learn from: split.protocol=holdout or cv.folds=5 (with -m) leaves those that are not tested, "
            "model.options.known=0 learns good images alone"
        )
    bare = [s for s in defects if not s.outlined]
    if bare and config.data.tile is not None:
        raise LabError(
            f"{data.folder / bare[0].path} has no mask: which of its tiles show the defect is not known: add one, or "
            "leave out data.tile"
        )


def _settings(config: Config, data: MVTecDataModule) -> dict[str, Any]:
    """Return the arguments of an anomaly model; the caller gives the weights."""
    o = config.optimizer
    training = {"optimizer": o.name, "lr": o.lr, "weight_decay": o.weight_decay, "momentum": o.momentum}
    size = {"image_size": config.data.image_size, "padded": data.frame.pads}
    return {**training, "backbone": config.model.backbone, **size, **config.model.options}
