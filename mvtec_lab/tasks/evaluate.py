"""task=evaluate: a checkpoint on the validation and test images of a configuration."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvtec_lab.config import Config, validate
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.metrics import GROUPS
from mvtec_lab.models.classifier import DefectClassifier, load_classifier
from mvtec_lab.results import CONFIG, EXPLANATIONS, MISTAKES, PREDICTIONS, SAMPLES, read_csv
from mvtec_lab.tasks.explain import explain
from mvtec_lab.tasks.outcome import judge, write_picture, write_predictions
from mvtec_lab.tasks.setup import build_data, claim, set_up

log = logging.getLogger(__name__)

METRICS = "metrics.json"


def evaluate(config: Config, run_dir: str | Path) -> dict[str, Any]:
    """Judge ``config.ckpt`` on the split of a configuration: metrics.json, predictions.csv, sheets of pictures.

    The image size is the checkpoint's. Images that it was trained on are named in a warning, as far as the samples.csv
    beside it tells.

    Raises:
        LabError: no checkpoint, one that cannot be read, or one of other classes than the data's.
    """
    validate(config)
    classifier = the_classifier(config, "evaluate")
    config.data.image_size = classifier.hparams["image_size"]
    data = build_data(config)
    if data.classes != classifier.classes:
        raise LabError(
            f"{config.ckpt} knows the classes {', '.join(classifier.classes)}, but {data.folder} has "
            f"{', '.join(data.classes)}: give the data= and split= settings that it was trained with"
        )
    data.mean, data.std = classifier.mean, classifier.std
    set_up(config, data)
    outcomes = judge(classifier, data)
    explained, explanations = explain(classifier, outcomes["test"], data.batch_size)
    judged = [data.folder / s.path for outcome in outcomes.values() for s in outcome.dataset.samples]
    warnings = [*data.warnings, *_seen_in_training(Path(config.ckpt or ""), judged)]
    result = {
        "ckpt": config.ckpt,
        "data": config.data.name,
        "category": data.folder.name,
        "metrics": {split: outcome.metrics for split, outcome in outcomes.items()},
        "explained": explained,
        "warnings": warnings,
    }
    run_dir = claim(run_dir, METRICS)
    (run_dir / METRICS).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_predictions(run_dir / PREDICTIONS, outcomes)
    write_picture(run_dir / MISTAKES, outcomes["test"].sheet())
    if explanations is not None:
        write_picture(run_dir / EXPLANATIONS, explanations)
    for warning in warnings:
        log.warning(warning)
    table = Table(title=escape(f"{config.ckpt} on {config.data.name}/{data.folder.name}"), title_justify="left")
    table.add_column("metric")
    for split in outcomes:
        table.add_column(f"{split} ({outcomes[split].metrics['images']} images)", justify="right")
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "defect_accuracy", "loss", "calibration_error"):
        values = [outcome.metrics[name] for outcome in outcomes.values()]
        table.add_row(name, *("" if v is None else f"{v:.3f}" for v in values))
    for group in GROUPS:
        recalls = [outcome.metrics["group_recall"][group] for outcome in outcomes.values()]
        if any(recall is not None for recall in recalls):
            table.add_row(f"{group} recall", *("" if v is None else f"{v:.3f}" for v in recalls))
    Console().print(table)
    print(f"written to {run_dir}")
    return result


def the_classifier(config: Config, task: str) -> DefectClassifier:
    if config.ckpt is None:
        raise LabError(f"task={task} needs ckpt=FILE: a run's best.ckpt")
    return load_classifier(config.ckpt)


def _seen_in_training(ckpt: Path, images: Sequence[Path]) -> list[str]:
    """A warning where a checkpoint is judged on images that it was trained on, as far as its run's files tell."""
    samples, config = ckpt.parent / SAMPLES, ckpt.parent / CONFIG
    if not (samples.is_file() and config.is_file()):
        return [f"no {SAMPLES} and {CONFIG} beside {ckpt}: whether it was trained on these images cannot be told"]
    source = OmegaConf.load(config).data
    folder = Path(source.root, source.category or "").expanduser().resolve()
    trained = {folder / row["path"] for row in read_csv(samples) if row["split"] == "train"}
    seen = trained & {path.resolve() for path in images}
    if not seen:
        return []
    return [f"{len(seen)} of these images trained this checkpoint (another seed or split?): the figures are too good"]
