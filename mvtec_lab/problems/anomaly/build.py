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
from mvtec_lab.effects import FROM_SCRATCH
from mvtec_lab.engine.devices import on_gpu
from mvtec_lab.engine.setup import RANDOM_MARK, rehearse_batch
from mvtec_lab.errors import LabError
from mvtec_lab.models.weights import WeightsUnavailable
from mvtec_lab.problems.anomaly.base import AnomalyDetector
from mvtec_lab.problems.anomaly.models import build_detector


def one_class_method(config: Config) -> tuple[AnomalyDetector, list[str]]:
    """The method of a configuration, and a warning where its weights are not those asked for."""
    try:
        detector = build_detector(config.model.method, _knobs(config))
        notes = [detector.weights_note] if detector.weights_note else []
    except WeightsUnavailable as error:
        if config.data.name != "sample":
            raise
        detector = build_detector(config.model.method, {**_knobs(config), "weights": None})
        notes = [f"{RANDOM_MARK}: {error}"]
    if config.model.weights is None and config.model.method not in FROM_SCRATCH:
        notes = [f"{RANDOM_MARK}, as asked for"]
    return detector, notes


def _knobs(config: Config) -> dict[str, Any]:
    settings = {**asdict(config.optimizer), **asdict(config.model), "image_size": config.data.image_size}
    return {**settings, "optimizer": config.optimizer.name}


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
