"""task=train: one attempt, one seed, one fold, one directory."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from rich.console import Console

from mvtec_lab.config import Config, validate
from mvtec_lab.data.contents import Contents, contents_listed, require_same
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.checkpoints import Checkpoints, WholeFiles, read_last
from mvtec_lab.engine.devices import build_trainer, check_devices
from mvtec_lab.engine.history import History
from mvtec_lab.engine.memory import keep_memory
from mvtec_lab.engine.pictures import log_picture, sheet, write_picture
from mvtec_lab.engine.resume import clear, earlier_run
from mvtec_lab.engine.run import RunLogger, as_yaml, git_revision, quiet, sample_rows, versions, write_inputs
from mvtec_lab.engine.setup import absolute_paths, build_data, claim, set_up, training_seed
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.metrics import confusion, majority_baseline, top_confusions
from mvtec_lab.locks import held
from mvtec_lab.problems.classification.build import build_classifier, config_findings
from mvtec_lab.problems.classification.classifier import DefectClassifier
from mvtec_lab.problems.classification.explanations import explain
from mvtec_lab.problems.classification.features import teach, use_features
from mvtec_lab.problems.classification.outcome import Outcome, judge, write_predictions
from mvtec_lab.reporting.figures import MOST, confusion_figure
from mvtec_lab.results import (
    CONFIG,
    EXPLANATIONS,
    FILES,
    HISTORY,
    IN_TABLE,
    LAST,
    MISTAKES,
    PREDICTIONS,
    SAMPLES,
    RunResult,
    remove_leftovers,
    table_of,
)

log = logging.getLogger(__name__)

SHOWN = 16  # images of the first batch on its sheet
_SPLIT = ("path", "label", "split", "fold", "group", "mask")  # of samples.csv; older ones lack the digests
_ELSEWHERE = "restore them, or give another directory"


def run_attempt(
    config: Config | None = None,
    run_dir: str | Path = "outputs/run",
    checked: Mapping[str, Contents] | None = None,
) -> RunResult:
    """Train one attempt and judge it on validation and test images.

    ``run_dir`` is left complete in itself: config.yaml, result.json, samples.csv, predictions.csv, history.csv,
    mistakes.jpg, explanations.jpg, best.ckpt, last.ckpt and TensorBoard's events. A run that fails on the way leaves
    result.json with its error, and raises. With ``resume``, a run that lies there completed is returned, one that was
    stopped goes on from its last.ckpt, to the same result as if it had not been, and any other starts anew.

    Args:
        checked: the files that a sweep's check found, by product folder; others are refused.

    Raises:
        LabError: a mistake in the configuration or the data; raised before anything is written.
    """
    began = time.perf_counter()
    config, run_dir = config or Config(), Path(run_dir)
    validate(config)
    if config.model.method != "classifier":
        from mvtec_lab.problems.anomaly.run import run_detection  # which is another way through the same files

        return run_detection(config, run_dir, began, checked)
    earlier = earlier_run(run_dir, config) if config.resume else None
    if earlier is not None and earlier.completed:
        log.info("%s is completed: nothing to do", run_dir)
        return earlier
    check_devices(config)
    data = build_data(config)
    pl.seed_everything(training_seed(config), verbose=False)
    classifier, notes = build_classifier(config, data)
    set_up(config, data, checked, config_findings(config))
    result = RunResult(
        attempt=config.attempt,
        seed=config.seed,
        fold=config.split.fold if config.split.protocol == "kfold" else None,
        data=config.data.name,
        category=data.folder.name,
        backbone=config.model.backbone,
        weights=classifier.weights_name,
        classes=data.classes,
        counts=data.counts(),
        val_is_test=data.val_is_test,
        reported=None if config.reported.accuracy is None else asdict(config.reported),
        warnings=[*data.warnings, *notes],
        versions=versions(),
        git_revision=git_revision(),
        paths=absolute_paths(config),
        run_dir=str(run_dir),
        started=datetime.now(timezone.utc).isoformat(),
    )
    first = getattr(rank_zero_only, "rank", 0) == 0  # Lightning starts this command again for each further device
    if not first:  # trains along and leaves everything else to the first process
        logging.disable(logging.WARNING)
        _fit(config, data, classifier, result, began, _go_on(config, data, classifier, result))
        raise SystemExit(0)
    with held(run_dir):
        remove_leftovers(run_dir, FILES)
        step = _go_on(config, data, classifier, result)
        if step is None:
            if config.resume:
                clear(run_dir)
            claim(run_dir, CONFIG)
        with result.recorded():
            for warning in result.warnings:
                log.warning(warning, extra=IN_TABLE)
            if step is None:
                write_inputs(config, data, result)
            _fit(config, data, classifier, result, began, step)
            _judge(config, data, classifier, result)
    return result


def _go_on(config: Config, data: MVTecDataModule, classifier: DefectClassifier, result: RunResult) -> int | None:
    """Take up the run that was stopped in this directory; the optimizer step to go on from, None where it starts anew.

    Raises:
        LabError: its images, split or weights are no longer those that it began with.
    """
    run_dir = Path(result.run_dir)
    earlier = earlier_run(run_dir, config) if config.resume else None  # again: nobody else writes there now
    if earlier is None:
        return None
    if earlier.completed:
        raise LabError(f"{run_dir} was completed by another process in the meantime")
    if not earlier.interrupted:
        log.info("%s failed (%s): it starts anew", run_dir, earlier.error)
        return None
    if not (run_dir / LAST).exists():
        log.info("%s was stopped before its first %s: it starts anew", run_dir, LAST)
        return None
    try:
        checkpoint = read_last(run_dir)
    except LabError as error:
        log.warning("%s; the run starts anew", error)
        return None
    if earlier.weights not in (None, result.weights):
        raise LabError(f"{run_dir} began with the weights {earlier.weights}, these are {result.weights}: {_ELSEWHERE}")
    if not (run_dir / SAMPLES).exists():
        raise LabError(f"{run_dir / SAMPLES} is missing: which images this run has seen is not known; {_ELSEWHERE}")
    began, rows = table_of(run_dir, SAMPLES) or [], sample_rows(data, result)
    require_same(data.folder, data.contents(), contents_listed(began), f"{run_dir} began with", _ELSEWHERE)
    split = [{key: "" if row[key] is None else str(row[key]) for key in _SPLIT} for row in rows]
    if [{key: row.get(key) for key in _SPLIT} for row in began] != split:
        raise LabError(f"{run_dir / SAMPLES} names another split than {data.folder} has now: {_ELSEWHERE}")
    classifier.load_state_dict(checkpoint["state_dict"])  # now: features are made before Lightning does
    result.started, result.resumed = earlier.started or result.started, earlier.resumed + 1
    changed = [
        f"{name} {earlier.versions[name]}, now {version}"
        for name, version in result.versions.items()
        if earlier.versions.get(name, version) != version
    ]
    if changed:
        result.warnings.append(f"gone on under other versions ({'; '.join(changed)}): no exact repetition")
    log.info("%s goes on after epoch %d of %d", run_dir, checkpoint["epoch"], config.trainer.max_epochs)
    return checkpoint["global_step"]


def _fit(
    config: Config,
    data: MVTecDataModule,
    classifier: DefectClassifier,
    result: RunResult,
    began: float,
    step: int | None,
) -> None:
    """Train, from the beginning or from last.ckpt, which was written after ``step`` steps of the optimizer."""
    t, run_dir = config.trainer, Path(result.run_dir)
    mode = "min" if t.monitor == "val/loss" else "max"
    keep_memory()
    checkpoints, history = Checkpoints(run_dir, t.monitor, mode), History(run_dir / HISTORY)
    callbacks: list[pl.Callback] = [checkpoints, history]
    if t.patience is not None:
        callbacks.append(EarlyStopping("val/loss", patience=t.patience))
    interactive = Console(stderr=True).is_interactive
    if interactive:
        callbacks.append(RichProgressBar(leave=False))
    trainer = build_trainer(
        config,
        max_epochs=t.max_epochs,
        callbacks=callbacks,
        enable_checkpointing=False,  # Checkpoints does
        plugins=[WholeFiles()],
        logger=RunLogger(run_dir, name="", version="", default_hp_metric=False, purge_step=step),
        enable_progress_bar=interactive,
        log_every_n_steps=1,  # an epoch has a handful of batches
    )
    result.device, result.precision = str(trainer.strategy.root_device), str(trainer.precision)
    counted = {"total": classifier.parameters(), "trained": classifier.trained_parameters}
    result.parameters = {name: sum(p.numel() for p in parameters) for name, parameters in counted.items()}
    # A head that trains nothing, the neighbours' vote, is the same whatever the seed.
    result.luck = bool(result.parameters["trained"]) or classifier.weights_name == "random" or config.model.generate
    log.info(
        "%s: %s (%s), %s of %s parameters train, %s images, %s in %s, %d CPU thread(s)",
        config.attempt,
        config.model.backbone,
        result.weights,
        f"{result.parameters['trained']:,}",
        f"{result.parameters['total']:,}",
        sum(result.counts["train"].values()),
        result.precision,
        result.device,
        torch.get_num_threads(),
    )
    result.features = use_features(data, classifier, trainer)
    if result.features:
        log.info("frozen up to %s, computed once: %s", classifier.prefix[-1], ", ".join(result.features))
    if classifier.learns and (note := teach(data, classifier, trainer, training_seed(config))):
        log.info("%s", note)
    if t.compile:
        classifier.compile_network()
    if trainer.is_global_zero and step is None:
        _log_first_batch(data, trainer)
    result.startup_seconds = time.perf_counter() - began
    started = time.perf_counter()
    try:
        with quiet():
            trainer.fit(classifier, datamodule=data, ckpt_path=None if step is None else run_dir / LAST)
    except SystemExit as stop:  # what Lightning makes of Ctrl-C and of SIGTERM
        raise KeyboardInterrupt(f"stopped from outside after {len(history.rows)} epochs") from stop
    finally:
        result.seconds = history.earlier_seconds + time.perf_counter() - started
        result.epochs = len(history.rows)
    classifier.load_state_dict(checkpoints.best["state_dict"])
    classifier.to(trainer.strategy.root_device)  # from which Lightning takes it at the end
    result.best_epoch = checkpoints.best["epoch"]


def _log_first_batch(data: MVTecDataModule, trainer: pl.Trainer) -> None:
    """The first training batch as the network sees it, augmented and resized, on a TensorBoard sheet."""
    dataset = data.dataset("train")
    keys = list(data.train_sampler())[: min(SHOWN, data.batch_size)]
    captions = [dataset.samples[place].label for place, _ in keys]
    picture = sheet([dataset.seen(key) for key in keys], captions, [None] * len(keys))
    assert isinstance(trainer.logger, TensorBoardLogger)
    log_picture(trainer.logger.experiment, "input/first_batch", picture, 0)


def _judge(config: Config, data: MVTecDataModule, classifier: DefectClassifier, result: RunResult) -> None:
    run_dir = Path(result.run_dir)
    outcomes = judge(classifier, data)
    result.metrics = {split: outcome.metrics for split, outcome in outcomes.items()}
    index = {name: i for i, name in enumerate(data.classes)}
    result.majority_baseline = majority_baseline(
        np.array([index[s.label] for s in data.of_split("train")]), outcomes["test"].labels
    )
    write_predictions(run_dir / PREDICTIONS, outcomes)
    write_picture(run_dir / MISTAKES, outcomes["test"].page)
    result.explained, picture = explain(classifier, outcomes["test"], data.batch_size)
    if picture is not None:
        write_picture(run_dir / EXPLANATIONS, picture)
    _log_outcomes(config, classifier, outcomes, picture)
    m = result.metrics["test"]
    log.info(
        "%s: test accuracy %.3f (majority %.3f), balanced %.3f, macro-F1 %.3f, on %d images; best epoch %d of %d; %s",
        config.attempt,
        m["accuracy"],
        result.majority_baseline,
        m["balanced_accuracy"],
        m["macro_f1"],
        m["images"],
        (result.best_epoch or 0) + 1,
        result.epochs,
        run_dir,
    )


def _log_outcomes(
    config: Config, classifier: DefectClassifier, outcomes: dict[str, Outcome], explanations: np.ndarray | None
) -> None:
    """The judged checkpoint in TensorBoard: confusion matrices, picture sheets, the config, and its HParams row."""
    logger = classifier.trainer.logger
    assert isinstance(logger, TensorBoardLogger)
    writer, step = logger.experiment, classifier.trainer.global_step
    classes = classifier.classes
    for split, outcome in outcomes.items():
        if split == "val" and outcome.dataset is outcomes["test"].dataset:  # validation = test: drawn once
            continue
        matrix = confusion(outcome.labels, outcome.predictions, len(classes))
        title = f"{config.attempt}, {split}"
        if len(classes) > MOST:
            table = [f"| {title}: class | taken for | how often | of |", "|---|---|---|---|"]
            table += ["| {} | {} | {} | {} |".format(*mistake) for mistake in top_confusions(matrix, classes)]
            writer.add_text(f"confusion/{split}", "\n".join(table), step)
        else:
            writer.add_figure(f"confusion/{split}", confusion_figure(matrix, classes, title), step)
        log_picture(writer, f"pictures/{split}_mistakes_first", outcome.page, step)
    if explanations is not None:
        log_picture(writer, "pictures/explanations", explanations, step)
    writer.add_text(
        "config", "    " + as_yaml(config).replace("\n", "\n    "), 0
    )  # four spaces: a code block in Markdown
    names = ("accuracy", "balanced_accuracy", "macro_f1", "loss")
    scores = {f"{split}_best/{name}": o.metrics[name] for split, o in outcomes.items() for name in names}
    logger.log_hyperparams(_hyperparameters(config), scores)
    logger.finalize("success")


def _hyperparameters(config: Config) -> dict[str, Any]:
    """What attempts usually differ in: a page with every key could not be read."""
    c = asdict(config)
    return {
        "attempt": config.attempt,
        "seed": config.seed,
        "augment": ", ".join(config.augment.transforms) or "none",
        **{key: c["data"][key] for key in ("image_size", "batch_size", "sampler")},
        "imbalance": str(config.data.imbalance),
        "mix": config.augment.mix,
        "paste": config.augment.paste,
        "loss": config.loss.name,
        **{key: c["loss"][key] for key in ("class_weights", "defer", "posthoc")},
        **{key: c["model"][key] for key in ("head", "generate")},
        "fold": config.split.fold,
        "backbone": config.model.backbone,
        "weights": str(config.model.weights),
        "unfreeze": str(config.model.unfreeze),
        "warmup_epochs": config.model.warmup_epochs,
        "optimizer": config.optimizer.name,
        "lr": config.optimizer.lr,
        "weight_decay": config.optimizer.weight_decay,
        "scheduler": config.scheduler.name,
        "max_epochs": config.trainer.max_epochs,
        "patience": str(config.trainer.patience),
    }
