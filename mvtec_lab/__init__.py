"""A training lab for industrial defect inspection on MVTec-style image folders.

The names below are loaded when they are first used: importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvtec_lab.cli import compose as compose
    from mvtec_lab.config import Config as Config
    from mvtec_lab.data.datamodule import MVTecDataModule as MVTecDataModule
    from mvtec_lab.data.dataset import MVTecDataset as MVTecDataset
    from mvtec_lab.engine.model import Model as Model
    from mvtec_lab.errors import LabError as LabError
    from mvtec_lab.evaluation.specs import register_metric as register_metric
    from mvtec_lab.models.backbones import register_backbone as register_backbone
    from mvtec_lab.problems import register_method as register_method
    from mvtec_lab.problems.classification import register_loss as register_loss
    from mvtec_lab.problems.classification.classifier import DefectClassifier as DefectClassifier
    from mvtec_lab.problems.model import build_data as build_data
    from mvtec_lab.problems.model import build_model as build_model
    from mvtec_lab.problems.model import load_model as load_model
    from mvtec_lab.results import RunResult as RunResult
    from mvtec_lab.tasks.train import run_attempt as run_attempt

__version__ = "0.1.0"

_HOMES = {
    "Config": "config",
    "DefectClassifier": "problems.classification.classifier",
    "LabError": "errors",
    "MVTecDataModule": "data.datamodule",
    "MVTecDataset": "data.dataset",
    "RunResult": "results",
    "Model": "engine.model",
    "build_data": "problems.model",
    "build_model": "problems.model",
    "compose": "cli",
    "load_model": "problems.model",
    "register_backbone": "models.backbones",
    "register_loss": "problems.classification",
    "register_method": "problems",
    "register_metric": "evaluation.specs",
    "run_attempt": "tasks.train",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
