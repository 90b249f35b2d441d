"""A training lab for industrial defect inspection on MVTec-style image folders.

The names below are loaded when they are first used: importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvtec_lab.cli import compose as compose
    from mvtec_lab.cli import run_sweep as run_sweep
    from mvtec_lab.cli import run_task as run_task
    from mvtec_lab.config import AugmentConfig as AugmentConfig
    from mvtec_lab.config import Config as Config
    from mvtec_lab.config import SplitConfig as SplitConfig
    from mvtec_lab.config import VerdictConfig as VerdictConfig
    from mvtec_lab.data.annotations import read_coco as read_coco
    from mvtec_lab.data.annotations import read_yolo as read_yolo
    from mvtec_lab.data.datamodule import MVTecDataModule as MVTecDataModule
    from mvtec_lab.data.dataset import MVTecDataset as MVTecDataset
    from mvtec_lab.data.frame import Frame as Frame
    from mvtec_lab.data.images import read_image as read_image
    from mvtec_lab.data.images import read_mask as read_mask
    from mvtec_lab.data.layouts import read_folder as read_folder
    from mvtec_lab.data.samples import Sample as Sample
    from mvtec_lab.data.sampling import Sampling as Sampling
    from mvtec_lab.data.source import locate as locate
    from mvtec_lab.data.transforms import normalise as normalise
    from mvtec_lab.data.transforms import resize as resize
    from mvtec_lab.engine.model import Model as Model
    from mvtec_lab.engine.pictures import boxed as boxed
    from mvtec_lab.engine.pictures import outlined as outlined
    from mvtec_lab.engine.pictures import sheet as sheet
    from mvtec_lab.errors import LabError as LabError
    from mvtec_lab.evaluation.confidence import calibrate as calibrate
    from mvtec_lab.evaluation.confidence import coverage_curve as coverage_curve
    from mvtec_lab.evaluation.confidence import fit_dirichlet as fit_dirichlet
    from mvtec_lab.evaluation.confidence import fit_temperature as fit_temperature
    from mvtec_lab.evaluation.confidence import set_thresholds as set_thresholds
    from mvtec_lab.evaluation.confidence import sets_of as sets_of
    from mvtec_lab.evaluation.detection import Box as Box
    from mvtec_lab.evaluation.metrics import confusion as confusion
    from mvtec_lab.evaluation.specs import Inference as Inference
    from mvtec_lab.evaluation.specs import Metric as Metric
    from mvtec_lab.evaluation.specs import Words as Words
    from mvtec_lab.evaluation.specs import register_metric as register_metric
    from mvtec_lab.models.backbones import register_backbone as register_backbone
    from mvtec_lab.problems import register_method as register_method
    from mvtec_lab.problems.anomaly.base import AnomalyModel as AnomalyModel
    from mvtec_lab.problems.anomaly.base import Scores as Scores
    from mvtec_lab.problems.base import Method as Method
    from mvtec_lab.problems.base import Option as Option
    from mvtec_lab.problems.classification import register_loss as register_loss
    from mvtec_lab.problems.classification.classifier import DefectClassifier as DefectClassifier
    from mvtec_lab.problems.classification.predicted import write_run as write_run
    from mvtec_lab.problems.model import build_data as build_data
    from mvtec_lab.problems.model import build_model as build_model
    from mvtec_lab.problems.model import load_model as load_model
    from mvtec_lab.reporting.attempts import Attempt as Attempt
    from mvtec_lab.reporting.attempts import Estimate as Estimate
    from mvtec_lab.reporting.best import best_run as best_run
    from mvtec_lab.reporting.comparison import compare as compare
    from mvtec_lab.reporting.figures import confusion_figure as confusion_figure
    from mvtec_lab.reporting.figures import coverage_figure as coverage_figure
    from mvtec_lab.reporting.figures import curves_figure as curves_figure
    from mvtec_lab.reporting.figures import scores_figure as scores_figure
    from mvtec_lab.reporting.figures import verdict_figure as verdict_figure
    from mvtec_lab.reporting.pairs import Comparison as Comparison
    from mvtec_lab.reporting.pairs import Pair as Pair
    from mvtec_lab.reporting.runs import load_runs as load_runs
    from mvtec_lab.reporting.summary import print_table as print_table
    from mvtec_lab.reporting.summary import summarise as summarise
    from mvtec_lab.reporting.tables import read_results as read_results
    from mvtec_lab.results import RunResult as RunResult
    from mvtec_lab.results import read_csv as read_csv
    from mvtec_lab.tasks.describe import Description as Description
    from mvtec_lab.tasks.describe import describe as describe
    from mvtec_lab.tasks.train import run_attempt as run_attempt

__version__ = "0.1.0"

_HOMES = {
    "AnomalyModel": "problems.anomaly.base",
    "Attempt": "reporting.attempts",
    "AugmentConfig": "config",
    "Box": "evaluation.detection",
    "Comparison": "reporting.pairs",
    "Config": "config",
    "DefectClassifier": "problems.classification.classifier",
    "Description": "tasks.describe",
    "Frame": "data.frame",
    "Estimate": "reporting.attempts",
    "Inference": "evaluation.specs",
    "LabError": "errors",
    "MVTecDataModule": "data.datamodule",
    "MVTecDataset": "data.dataset",
    "Method": "problems.base",
    "Metric": "evaluation.specs",
    "Model": "engine.model",
    "Option": "problems.base",
    "Pair": "reporting.pairs",
    "RunResult": "results",
    "Sample": "data.samples",
    "Sampling": "data.sampling",
    "Scores": "problems.anomaly.base",
    "SplitConfig": "config",
    "VerdictConfig": "config",
    "Words": "evaluation.specs",
    "best_run": "reporting.best",
    "boxed": "engine.pictures",
    "build_data": "problems.model",
    "build_model": "problems.model",
    "calibrate": "evaluation.confidence",
    "compare": "reporting.comparison",
    "compose": "cli",
    "confusion": "evaluation.metrics",
    "confusion_figure": "reporting.figures",
    "coverage_curve": "evaluation.confidence",
    "coverage_figure": "reporting.figures",
    "curves_figure": "reporting.figures",
    "describe": "tasks.describe",
    "fit_dirichlet": "evaluation.confidence",
    "fit_temperature": "evaluation.confidence",
    "load_model": "problems.model",
    "load_runs": "reporting.runs",
    "locate": "data.source",
    "normalise": "data.transforms",
    "outlined": "engine.pictures",
    "print_table": "reporting.summary",
    "read_coco": "data.annotations",
    "read_csv": "results",
    "read_folder": "data.layouts",
    "read_image": "data.images",
    "read_mask": "data.images",
    "read_results": "reporting.tables",
    "read_yolo": "data.annotations",
    "register_backbone": "models.backbones",
    "register_loss": "problems.classification",
    "register_method": "problems",
    "register_metric": "evaluation.specs",
    "resize": "data.transforms",
    "run_attempt": "tasks.train",
    "run_sweep": "cli",
    "run_task": "cli",
    "scores_figure": "reporting.figures",
    "set_thresholds": "evaluation.confidence",
    "sets_of": "evaluation.confidence",
    "sheet": "engine.pictures",
    "summarise": "reporting.summary",
    "verdict_figure": "reporting.figures",
    "write_run": "problems.classification.predicted",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
