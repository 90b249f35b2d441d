"""Build anomaly models, from settings or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvtec_lab.errors import LabError
from mvtec_lab.problems import METHODS, class_of
from mvtec_lab.problems.anomaly.base import AnomalyModel
from mvtec_lab.problems.base import Method


def build_anomaly_model(method: str, /, **settings: Any) -> AnomalyModel:
    """Return the model of a method, not yet fitted.

    Args:
        settings: the arguments of ``AnomalyModel``, with the method's options among them.

    Raises:
        LabError: an unknown method, one that cannot be imported or is no anomaly model, or settings that it refuses.
    """
    return _class_of(METHODS[method])(**settings)


def restore(content: Mapping[str, Any]) -> AnomalyModel:
    """Return the anomaly model of a checkpoint's content (``engine.model.read_checkpoint``)."""
    model = build_anomaly_model(content["about"]["method"], **{**content["hyper_parameters"], "weights": None})
    model.load_state_dict(content["state_dict"])
    return model


def _class_of(method: Method) -> type[AnomalyModel]:
    """Import the class of a method; raise LabError if it lacks what every anomaly model has."""
    model = class_of(method, AnomalyModel)
    needed = ("method", "forward", "loss" if method.trains else "prepare")
    if lacking := [part for part in needed if getattr(model, part, None) is getattr(AnomalyModel, part, None)]:
        raise LabError(f"the method {method.name!r} ({method.home}) has no {', '.join(lacking)}: see AnomalyModel")
    return model
