"""From a configuration to a classifier."""

from __future__ import annotations

from functools import partial

import torch
from pytorch_lightning.utilities.seed import isolate_rng

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.setup import rehearse_batch
from mvtec_lab.problems.classification.classifier import DefectClassifier


def _classifier(config: Config, data: MVTecDataModule) -> partial[DefectClassifier]:
    """Return what builds the classifier of a configuration, given its weights."""
    m = config.model
    return partial(
        DefectClassifier,
        m.backbone,
        data.classes,
        unfreeze=m.unfreeze,
        warmup_epochs=m.warmup_epochs,
        class_counts=list(data.counts()["train"].values()),
        loss=config.loss,
        head=m.head,
        scale=m.scale,
        neighbours=m.neighbours,
        generate=m.generate,
        optimizer=config.optimizer,
        scheduler=config.scheduler,
        image_size=config.data.image_size,
    )


def build(config: Config, data: MVTecDataModule, weights: str | None) -> Model:
    """Return a new classifier of a configuration.

    Raises:
        LabError: what the classifier refuses, and a batch of one image where that cannot train.
    """
    if data.smallest_batch == 1:
        rehearse(config, data)
    classifier = _classifier(config, data)(weights=weights)
    return Model(
        classifier,
        config.model.method,
        list(data.classes),
        config.data.image_size,
        data.white,
        data.mean,
        data.std,
        classifier.weights_name,
    )


def rehearse(config: Config, data: MVTecDataModule) -> None:
    """Refuse an architecture that cannot be built, or cannot train on the smallest batch; it gets no values.

    Raises:
        LabError: what building the classifier would raise, or a batch of one image before a batch normalisation.
    """
    with torch.device("meta"), isolate_rng():
        classifier = _classifier(config, data)(weights=None)
        rehearse_batch(config, data, classifier.train().model)
