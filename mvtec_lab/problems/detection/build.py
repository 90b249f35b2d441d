"""From a configuration, or from a checkpoint, to a detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.utilities.seed import isolate_rng

from mvtec_lab import problems
from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.model import Model
from mvtec_lab.errors import LabError
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.detection.base import DetectionModel
from mvtec_lab.results import GOOD


def build(config: Config, data: MVTecDataModule, weights: str | None) -> Model:
    """Return a new detector of a configuration.

    Raises:
        LabError: what the method refuses, or a split without defects.
    """
    _require_defects(data)
    module = _detector(config, data, weights)
    d = config.data
    return Model(
        module,
        config.model.method,
        module.classes,
        d.image_size,
        data.white,
        data.mean,
        data.std,
        module.weights_name,
    )


def rehearse(config: Config, data: MVTecDataModule) -> None:
    """Refuse a network that cannot be built, with random weights, and a split without defects."""
    _require_defects(data)
    with isolate_rng():
        _detector(config, data, None)


def restore(content: Mapping[str, Any]) -> DetectionModel:
    """Return the detector of a checkpoint's content (``engine.model.read_checkpoint``)."""
    settings = content["hyper_parameters"]
    model = class_of(content["about"]["method"])(**{**settings, "weights": None})
    model.load_state_dict(content["state_dict"])
    model.weights_name = model.hparams["weights"] = content["about"]["weights"]
    return model


def class_of(name: str) -> type[DetectionModel]:
    """Import the class of a method; raise LabError if it is no detector."""
    return problems.class_of(METHODS[name], DetectionModel)


def _require_defects(data: MVTecDataModule) -> None:
    for split in ("train", "val", "test"):
        if all(sample.label == GOOD for sample in data.of_split(split)):
            remedy = {"val": "raise split.val", "test": "raise split.test"}.get(split, "give more of them")
            raise LabError(f"{data.folder} has no defect in {split}, where boxes are to be found: {remedy}")


def _detector(config: Config, data: MVTecDataModule, weights: str | None) -> DetectionModel:
    m = config.model
    return class_of(m.method)(
        [GOOD, *data.kinds],
        backbone=m.backbone,
        weights=weights,
        unfreeze=m.unfreeze,
        image_size=config.data.image_size,
        padded=data.frame.pads,
        optimizer=config.optimizer,
        scheduler=config.scheduler,
        **problems.settings_of(config),
    )
