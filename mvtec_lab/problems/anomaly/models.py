"""Build, save and load anomaly models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from mvtec_lab.problems import METHODS
from mvtec_lab.problems.anomaly.base import AnomalyDetector


def build_detector(method: str, settings: Mapping[str, Any]) -> AnomalyDetector:
    """A method by its folder's name, with those of the settings that it takes; None leaves a method's own default.

    Raises:
        LabError: an unknown method, or settings that it refuses.
    """
    module, _, name = METHODS[method].home.partition(":")
    make = getattr(import_module(module), name)
    taken = inspect.signature(make).parameters
    # No weights are random ones, which is something else than the method's default.
    given = {k: v for k, v in settings.items() if k in taken and (v is not None or k == "weights")}
    detector: AnomalyDetector = make(**given)
    return detector


def restore(content: Mapping[str, Any]) -> AnomalyDetector:
    """Return the anomaly model of a checkpoint's content (``engine.model.read_checkpoint``)."""
    detector = build_detector(content["about"]["method"], {**content["hyper_parameters"], "weights": None})
    detector.load_state_dict(content["state_dict"])
    return detector
