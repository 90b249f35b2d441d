"""Build anomaly models, from settings or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from mvtec_lab.errors import LabError
from mvtec_lab.problems import METHODS, REGISTERED
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
    origin = f"the method {method.name!r} ({method.home})"
    module, _, name = method.home.partition(":")
    try:
        model = REGISTERED.get(method.name) or getattr(import_module(module), name)
    except Exception as error:  # code of another package may fail in any way
        raise LabError(f"{origin} cannot be imported ({type(error).__name__}: {error})") from error
    if not (isinstance(model, type) and issubclass(model, AnomalyModel)):
        raise LabError(f"{origin} is no anomaly model: derive it from {AnomalyModel.__module__}.AnomalyModel")
    needed = ("method", "forward", "loss" if method.trains else "prepare")
    if lacking := [part for part in needed if getattr(model, part, None) is getattr(AnomalyModel, part, None)]:
        raise LabError(f"{origin} has no {', '.join(lacking)}: see AnomalyModel")
    return model
