"""From a configuration to an anomaly model."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch._subclasses.fake_tensor import FakeTensorMode  # where PyTorch documents it

from mvtec_lab.config import Config
from mvtec_lab.data.catalogue import GOOD
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.devices import on_gpu
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.setup import rehearse_batch
from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly import CLASSES
from mvtec_lab.problems.anomaly.models import build_detector


def build(config: Config, data: MVTecDataModule, weights: str | None) -> Model:
    """Return a new anomaly model of a configuration.

    Raises:
        LabError: what the method refuses, so far as it can be known before fitting.
    """
    rehearse(config, data)
    module = build_detector(config.model.method, {**_knobs(config), "weights": weights})
    return Model(
        module,
        config.model.method,
        list(CLASSES),
        config.data.image_size,
        data.white,
        data.mean,
        data.std,
        module.weights_name,
    )


def marks(config: Config, data: MVTecDataModule) -> list[str]:
    """Return what is known before training and takes from the worth of the figures, a line each."""
    rule, quantile = config.threshold.rule, config.threshold.quantile
    marks = []
    held_out, kinds = len(data.of_split("val")), {s.label for s in data.of_split("test")}
    if rule == "quantile" and quantile > held_out / (held_out + 1):
        marks.append(
            f"threshold.quantile={quantile:g} of {held_out} good validation image(s) is the highest of their scores: "
            f"about one good image in {held_out + 1} is a false alarm"
        )
    if GOOD not in kinds:
        marks.append("test/ has no good images: image AUROC, average precision and false alarms are left out")
    elif kinds == {GOOD}:
        marks.append("test/ has no defects: AUROC, average precision, recall and pixel metrics are left out")
    return marks


def _knobs(config: Config) -> dict[str, Any]:
    model = {"backbone": config.model.backbone, "weights": config.model.weights, **config.model.options}
    training = {**asdict(config.optimizer), "optimizer": config.optimizer.name}
    return {**training, **model, "image_size": config.data.image_size}


def rehearse(config: Config, data: MVTecDataModule) -> None:
    """Refuse ahead what a one-class run would be refused for later, so far as data and method tell without training.

    The method is prepared on images without values (PyTorch's fake tensors), until it asks for one: by then it has
    looked at its settings, at how many images there are, and at the memory that it needs.

    Raises:
        LabError: what the method would raise, or no defect for a threshold that is chosen with them.
    """
    if config.threshold.rule == "best_f1" and all(s.label == GOOD for s in data.of_split("test")):
        raise LabError("threshold.rule=best_f1 needs defects, and test/ has none: threshold.rule=quantile does without")
    size, images = config.data.image_size, len(data.of_split("train"))
    device = torch.device("cuda" if on_gpu(config) else "cpu")
    with isolate_rng(), FakeTensorMode(), device, torch.no_grad(), suppress(RuntimeError):
        detector = build_detector(config.model.method, {**_knobs(config), "weights": None})
        detector.eval().prepare(lambda: [torch.empty(images, 3, size, size)])
    if data.smallest_batch == 1:
        with isolate_rng(), FakeTensorMode(), device, torch.no_grad(), suppress(RuntimeError):
            detector = build_detector(config.model.method, {**_knobs(config), "weights": None})
            if detector.trains:
                rehearse_batch(config, data, detector.train().loss)
