"""Build, save and load anomaly models."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from mvtec_lab.errors import LabError
from mvtec_lab.models.finite import not_finite
from mvtec_lab.models.weights import load_file, save_file
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


def save_detector(detector: AnomalyDetector, path: str | os.PathLike[str], **about: Any) -> None:
    """Write a checkpoint: weights and plain values alone."""
    save_file({"state_dict": detector.state_dict(), "hyper_parameters": dict(detector.hparams), **about}, path)


def load_detector(path: str | os.PathLike[str]) -> tuple[AnomalyDetector, dict[str, Any]]:
    """The method of a run's best.ckpt, in eval mode on the CPU, and what was saved about it: method, threshold,
    image_size, mean, std. Nothing but tensors and plain values is read.

    Raises:
        LabError: the file is missing, damaged, holds NaN or infinity, or is no checkpoint of a one-class method.
    """
    found = load_file(path)
    if not isinstance(found, dict) or not {"state_dict", "hyper_parameters", "method"} <= found.keys():
        raise LabError(f"{path} is no checkpoint of a one-class method: give the best.ckpt of such a run")
    try:
        detector = build_detector(found["method"], {**found["hyper_parameters"], "weights": None})
        detector.load_state_dict(found.pop("state_dict"))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LabError(f"{path} is no checkpoint of this version's {found['method']}: {reason}") from error
    if key := not_finite(detector.state_dict()):
        raise LabError(f"{path} holds NaN or infinity in {key}: train that run again")
    for key in ("threshold", "map_threshold"):
        if found.get(key) is not None and not math.isfinite(found[key]):
            raise LabError(f"{path} holds {found[key]} as its {key}: train that run again")
    found.pop("hyper_parameters")
    return detector.eval(), found
