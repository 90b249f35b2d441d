"""Build segmentation models: from a configuration, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.setup import rehearse_batch
from mvtec_lab.problems import METHODS, class_of, settings_of
from mvtec_lab.problems.scored import CLASSES
from mvtec_lab.problems.segmentation.base import SegmentationModel


def build(config: Config, data: MVTecDataModule, weights: str | None) -> Model:
    """Return a new segmentation model of a configuration.

    Raises:
        LabError: settings, weights or data that do not fit.
    """
    _rehearse_single(config, data)
    module = _module(config, data, weights)
    module.require(data)
    d = config.data
    return Model(
        module,
        config.model.method,
        list(CLASSES),
        d.image_size,
        data.white,
        data.mean,
        data.std,
        module.weights_name,
        tile=d.tile,
    )


def rehearse(config: Config, data: MVTecDataModule) -> None:
    """Refuse what ``build`` refuses, but for the weights of a backbone: a method without one has files of its own.

    Raises:
        LabError: what ``build`` would raise.
    """
    _rehearse_single(config, data)
    if not METHODS[config.model.method].backbone:
        with isolate_rng():
            _module(config, data, None).require(data)


def _rehearse_single(config: Config, data: MVTecDataModule) -> None:
    """Refuse a batch of a single image where the method cannot train on it."""
    if data.smallest_batch == 1:
        with isolate_rng(), torch.no_grad():
            rehearse_batch(config, data, _module(config, data, None).train())


def _module(config: Config, data: MVTecDataModule, weights: str | None) -> SegmentationModel:
    return class_of(METHODS[config.model.method], SegmentationModel)(
        backbone=config.model.backbone,
        weights=weights,
        unfreeze=config.model.unfreeze,
        image_size=config.data.image_size,
        padded=data.frame.pads,
        classes=data.classes,
        optimizer=asdict(config.optimizer),
        scheduler=asdict(config.scheduler),
        **settings_of(config),
    )


def restore(content: Mapping[str, Any]) -> SegmentationModel:
    """Return the segmentation model of a checkpoint's content (``engine.model.read_checkpoint``)."""
    values = content["hyper_parameters"]
    module = class_of(METHODS[content["about"]["method"]], SegmentationModel)(**{**values, "weights": None})
    module.load_state_dict(content["state_dict"])
    module.hparams["weights"] = module.weights_name = values["weights"]
    return module
