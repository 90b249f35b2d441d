"""From a configuration, or from a checkpoint, to a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvtec_lab import problems
from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.model import Model
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.classification.base import Classifier


def build(config: Config, data: MVTecDataModule, weights: str | None) -> Model:
    """Return a new classifier of a configuration.

    Raises:
        LabError: what the classifier refuses.
    """
    classifier = class_of(config.model.method).of(config, data, weights)
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
    """Refuse what the method refuses, without weights."""
    class_of(config.model.method).rehearse(config, data)


def restore(content: Mapping[str, Any]) -> Classifier:
    """Return the classifier of a checkpoint's content (``engine.model.read_checkpoint``)."""
    return class_of(content["about"]["method"]).restore(content)


def class_of(name: str) -> type[Classifier]:
    """Import the class of a method; raise LabError if it is no classifier."""
    return problems.class_of(METHODS[name], Classifier)
