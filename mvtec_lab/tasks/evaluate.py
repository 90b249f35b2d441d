"""task=evaluate: a checkpoint on the validation and test images of a configuration."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvtec_lab.config import Config, validate
from mvtec_lab.data.contents import Contents, contents_listed, contents_of, require_same
from mvtec_lab.data.datamodule import MVTecDataset, describe_oddities
from mvtec_lab.data.images import WHITE, digests, odd_masks, too_bright
from mvtec_lab.data.samples import scan
from mvtec_lab.data.source import product_folder
from mvtec_lab.engine.origin import origin_of
from mvtec_lab.engine.pictures import write_picture
from mvtec_lab.engine.setup import SAMPLE_MARK, build_data, claim, data_module, set_up
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.metrics import GROUPS
from mvtec_lab.foreign import damaged
from mvtec_lab.models.weights import load_file
from mvtec_lab.problems.anomaly.base import AnomalyDetector
from mvtec_lab.problems.anomaly.models import load_detector
from mvtec_lab.problems.anomaly.run import BEST_F1_MARK
from mvtec_lab.problems.anomaly.scores import judge_again, score
from mvtec_lab.problems.classification.build import config_findings
from mvtec_lab.problems.classification.classifier import DefectClassifier, load_classifier
from mvtec_lab.problems.classification.explanations import explain
from mvtec_lab.problems.classification.outcome import judge, write_predictions
from mvtec_lab.results import (
    CONFIG,
    EXPLANATIONS,
    MISTAKES,
    PREDICTIONS,
    SAMPLES,
    RunResult,
    table_of,
    write_whole,
)

log = logging.getLogger(__name__)

METRICS = "metrics.json"
FIGURES = {  # of a one-class method
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "false_alarm_rate": "false alarms",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_aupro": "AUPRO",
}
OF_TYPES = ("image_auroc", "recall", "pixel_auroc", "pixel_aupro")


def evaluate(config: Config, run_dir: str | Path, own: bool = False) -> dict[str, Any]:
    """Judge ``config.ckpt`` on the split of a configuration: metrics.json, predictions.csv, sheets of pictures.

    A one-class method is judged on the whole test folder, by its own threshold; of its maps there is pixels.npz too.
    The image size is the checkpoint's. Images that it was trained on are named in a warning, as far as the samples.csv
    beside it tells.

    Args:
        own: the images have to be those of the checkpoint's run.

    Raises:
        LabError: no checkpoint, one that cannot be read, or one of other classes than the data's; other images than
            the run's own.
    """
    validate(config)
    classifier, about = the_model(config, "evaluate")
    if isinstance(classifier, AnomalyDetector):
        return _evaluate_detector(config, run_dir, classifier, about, own)
    config.data.image_size, config.data.white = about["image_size"], about["white"]
    data = build_data(config)
    if own:  # first: a class that is gone is one whose files are
        _require_own(Path(config.ckpt or ""), data.folder, data.contents())
    if data.classes != classifier.classes:
        raise LabError(
            f"{config.ckpt} knows the classes {', '.join(classifier.classes)}, but {data.folder} has "
            f"{', '.join(data.classes)}: give the data= and split= settings that it was trained with"
        )
    data.mean, data.std = classifier.mean, classifier.std
    set_up(config, data, findings=config_findings(config))
    outcomes = judge(classifier, data)
    explained, explanations = explain(classifier, outcomes["test"], data.batch_size)
    judged = [data.folder / s.path for outcome in outcomes.values() for s in outcome.dataset.samples]
    warnings = [*data.warnings, *_seen_before(Path(config.ckpt or ""), judged)]
    result = {
        "ckpt": config.ckpt,
        "data": config.data.name,
        "category": data.folder.name,
        "metrics": {split: outcome.metrics for split, outcome in outcomes.items()},
        "explained": explained,
        "warnings": warnings,
    }
    run_dir = claim(run_dir, METRICS)
    write_whole(run_dir / METRICS, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    write_predictions(run_dir / PREDICTIONS, outcomes)
    write_picture(run_dir / MISTAKES, outcomes["test"].page)
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


def _evaluate_detector(
    config: Config, run_dir: str | Path, detector: AnomalyDetector, about: dict[str, Any], own: bool
) -> dict[str, Any]:
    d = config.data
    folder = product_folder(data_module(config).root, None)
    found = scan(folder)
    samples = [replace(s, split="test") for s in found.samples if s.path.startswith("test/")]
    if not samples:
        raise LabError(f"{folder} has no test folder: MVTec's layout is test/good and test/<defect type>")
    if own:
        _require_own(Path(config.ckpt or ""), folder, contents_of(folder, found.samples, samples))
    dataset = MVTecDataset(folder, samples, **{key: about[key] for key in ("image_size", "white", "mean", "std")})
    scores, maps = score(detector, dataset, d.batch_size, torch.device("cpu"))
    judged = RunResult(config.attempt, config.seed, d.name, folder.name, "", str(claim(run_dir, METRICS)))
    judged.threshold = {"value": about["threshold"], "map": about["map_threshold"]}
    judge_again(dataset, scores, maps, judged)
    further = [SAMPLE_MARK] if d.name == "sample" else []
    further += [f"mask: {problem}" for problem in found.mask_problems] + describe_oddities(found, samples)
    further += too_bright([folder / s.path for s in samples], about["white"])
    further += odd_masks([folder / s.mask for s in samples if s.mask])
    further += _seen_before(Path(config.ckpt or ""), [folder / s.path for s in samples])
    for warning in further:
        log.warning(warning)
    metrics = judged.metrics["test"]
    result = {
        "ckpt": config.ckpt,
        "data": d.name,
        "category": folder.name,
        "method": about["method"],
        "threshold": judged.threshold,
        "metrics": judged.metrics,
        "warnings": further + judged.warnings,
    }
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    write_whole(Path(judged.run_dir) / METRICS, text)
    title = f"{config.ckpt} on {d.name}/{folder.name}: {len(samples)} images, threshold {about['threshold']:.4g}"
    table = Table(title=escape(title), title_justify="left")
    for column in ("metric", "value", "95% interval"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    named = {**metrics, "recall": metrics["recall_of_defects"]}
    for key in (key for key in FIGURES if named.get(key) is not None):
        low_high = metrics["intervals"].get(key)
        interval = "" if low_high is None else "[{:.3f}, {:.3f}]".format(*low_high)
        table.add_row(FIGURES[key], f"{named[key]:.3f}", interval)
    Console().print(table)
    table = Table()
    for column in ("defect type", "images", *(FIGURES[key] for key in OF_TYPES)):
        table.add_column(column, justify="left" if column == "defect type" else "right")
    for kind, values in metrics["by_type"].items():
        figures = ("" if values.get(key) is None else f"{values[key]:.3f}" for key in OF_TYPES)
        table.add_row(escape(kind), str(values["images"]), *figures)
    if metrics["by_type"]:
        Console().print(table)
    print(f"written to {run_dir}")
    return result


def the_model(config: Config, task: str) -> tuple[DefectClassifier | AnomalyDetector, dict[str, Any]]:
    """The model of a checkpoint, a classifier or a one-class method, and its image_size, white, mean and std; of
    the latter, method, threshold and map_threshold as well.

    Raises:
        LabError: none is given, or it cannot be read.
    """
    if config.ckpt is None:
        raise LabError(f"task={task} needs ckpt=FILE: a run's best.ckpt")
    found = load_file(config.ckpt)
    if isinstance(found, dict) and "method" in found:
        detector, about = load_detector(config.ckpt)
        return detector, {"white": WHITE, **about}  # which older checkpoints lack
    classifier = load_classifier(config.ckpt)
    about = {key: classifier.hparams[key] for key in ("image_size", "white")}
    return classifier, {**about, "mean": classifier.mean, "std": classifier.std}


def run_of(ckpt: Path) -> tuple[Path, list[dict[str, str]]] | None:
    """The product folder of a checkpoint's run and the rows of its samples.csv; None: its files are not beside it."""
    run, rows = origin_of(ckpt), table_of(ckpt.parent, SAMPLES, "path", "split")
    if run is None or rows is None:
        return None
    for path in (path for row in rows for path in (row["path"], row.get("mask") or "")):
        if PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts:
            raise damaged(ckpt.parent / SAMPLES, f"{path!r} leads out of the data")
    return Path(run.data.root or "", run.data.category or "").expanduser().resolve(), rows


def _require_own(ckpt: Path, folder: Path, now: Contents) -> None:
    run = run_of(ckpt)
    if run is not None:
        remedy = f"restore them, or give data.root=FOLDER: that of the run, or of other images to judge {ckpt.name} on"
        require_same(folder, now, contents_listed(run[1]), f"the run of {ckpt}", remedy)


def _seen_before(ckpt: Path, images: Sequence[Path]) -> list[str]:
    """A warning where images that are judged trained the checkpoint or chose its threshold, as its run's files tell."""
    run = run_of(ckpt)
    if run is None:
        return [f"no {SAMPLES} and {CONFIG} beside {ckpt}: whether it was trained on these images cannot be told"]
    folder, rows = run
    if any(row.get("digest") for row in rows):  # wherever the images lie now
        # Of two images with the same contents the one that trained counts.
        known = {row["digest"]: row["split"] for row in sorted(rows, key=lambda row: row["split"] == "train")}
        splits = [known.get(digest) for digest in digests(images)]
    else:
        of_path = {folder / row["path"]: row["split"] for row in rows}
        splits = [of_path.get(path.resolve()) for path in images]
    warnings = []
    if seen := splits.count("train"):
        what = f"{seen} of these images trained this checkpoint (another seed or split?)"
        warnings.append(f"{what}: the figures are too good")
    origin = origin_of(ckpt)
    if origin is not None and origin.threshold.rule == "best_f1" and "test" in splits:
        warnings.append(BEST_F1_MARK)
    return warnings
