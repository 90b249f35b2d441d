"""task=train with a one-class method: it learns train/good, and judges the test folder by a threshold."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.seed import isolate_rng

from mvtec_lab.config import Config
from mvtec_lab.data.catalogue import GOOD
from mvtec_lab.data.contents import Contents
from mvtec_lab.data.datamodule import MVTecDataModule, MVTecDataset, Rows
from mvtec_lab.engine.devices import build_trainer, check_devices
from mvtec_lab.engine.history import History
from mvtec_lab.engine.memory import keep_memory, peak_memory
from mvtec_lab.engine.pictures import log_picture, write_picture
from mvtec_lab.engine.resume import clear, earlier_run
from mvtec_lab.engine.run import RunLogger, git_revision, quiet, versions, write_inputs
from mvtec_lab.engine.setup import absolute_paths, build_data, claim, set_up, training_seed
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.anomaly import (
    best_f1_threshold,
    image_figures,
    quantile_threshold,
)
from mvtec_lab.evaluation.metrics import majority_baseline
from mvtec_lab.locks import held
from mvtec_lab.problems.anomaly.base import AnomalyDetector
from mvtec_lab.problems.anomaly.build import one_class_method, rehearse
from mvtec_lab.problems.anomaly.methods.cutpaste.model import paste_patch
from mvtec_lab.problems.anomaly.models import save_detector
from mvtec_lab.problems.anomaly.scores import (
    CLASSES,
    DEFECT,
    SHOWN,
    Reading,
    Scored,
    figures,
    pictures,
    prediction_rows,
    score,
    sheets,
    warn,
)
from mvtec_lab.results import (
    BEST,
    CONFIG,
    EXPLANATIONS,
    FILES,
    HISTORY,
    IN_TABLE,
    MISTAKES,
    PREDICTIONS,
    RunResult,
    remove_leftovers,
    write_csv,
)

log = logging.getLogger(__name__)

MADE_UP = "made_up"  # what stands for the type of a defect that was pasted
BEST_F1_MARK = "threshold chosen on the test images, defects included: f1, recall and accuracy are too high"


def run_detection(
    config: Config, run_dir: Path, began: float, checked: Mapping[str, Contents] | None = None
) -> RunResult:
    """The one-class part of ``run_attempt``: the same directory, with a map's figures and without last.ckpt."""
    earlier = earlier_run(run_dir, config) if config.resume else None
    if earlier is not None and earlier.completed:
        log.info("%s is completed: nothing to do", run_dir)
        return earlier
    if check_devices(config) > 1:
        raise LabError(f"model.method={config.model.method} runs on one device: give trainer.devices=1")
    data = build_data(config)
    rehearse(config, data)
    pl.seed_everything(training_seed(config), verbose=False)
    detector, notes = one_class_method(config)
    data.mean, data.std = detector.mean, detector.std
    set_up(config, data, checked)
    kinds = {split: [s.label == GOOD for s in data.of_split(split)] for split in ("train", "val", "test")}
    result = RunResult(
        attempt=config.attempt,
        seed=config.seed,
        data=config.data.name,
        category=data.folder.name,
        backbone=config.model.backbone if "backbone" in detector.hparams else "none",
        weights=detector.weights_name,
        classes=CLASSES,
        counts={split: {GOOD: sum(good), DEFECT: len(good) - sum(good)} for split, good in kinds.items()},
        reported=None if config.reported.accuracy is None else asdict(config.reported),
        warnings=[*data.warnings, *notes, *_marks(config, data)],
        versions=versions(),
        git_revision=git_revision(),
        method=config.model.method,
        paths=absolute_paths(config),
        run_dir=str(run_dir),
        started=datetime.now(timezone.utc).isoformat(),
    )
    with held(run_dir):
        remove_leftovers(run_dir, FILES)
        earlier = earlier_run(run_dir, config) if config.resume else None  # again: nobody else writes there now
        if earlier is not None:
            if earlier.completed:
                raise LabError(f"{run_dir} was completed by another process in the meantime")
            log.info("%s %s: it starts anew", run_dir, "was stopped" if earlier.interrupted else "failed")
            clear(run_dir)
        claim(run_dir, CONFIG)
        with result.recorded():
            for warning in result.warnings:
                log.warning(warning, extra=IN_TABLE)
            write_inputs(config, data, result)
            _fit_and_judge(config, data, detector, result, began)
    return result


def _marks(config: Config, data: MVTecDataModule) -> list[str]:
    """What is known before training to take from the worth of the figures, a line each."""
    rule, quantile = config.threshold.rule, config.threshold.quantile
    marks = [BEST_F1_MARK] if rule == "best_f1" else []
    held_out, kinds = len(data.of_split("val")), {s.label for s in data.of_split("test")}
    if rule == "quantile" and quantile > held_out / (held_out + 1):
        marks.append(
            f"threshold.quantile={quantile:g} of {held_out} good validation image(s) is the highest of their scores: "
            f"about one good image in {held_out + 1} is a false alarm"
        )
    if GOOD not in kinds:
        marks.append("test/ has no good images: image AUROC, average precision and false alarms are left out")
    elif kinds == {GOOD}:
        marks.append("test/ has no defects: AUROC, average precision, recall and pixel metrics are left out")
    return marks


def _fit_and_judge(
    config: Config, data: MVTecDataModule, detector: AnomalyDetector, result: RunResult, began: float
) -> None:
    t, run_dir = config.trainer, Path(result.run_dir)
    history = History(run_dir / HISTORY)
    callbacks: list[pl.Callback] = [history]
    if t.patience is not None:
        callbacks.append(EarlyStopping("val/loss", patience=t.patience))
    trainer = build_trainer(
        config,
        max_epochs=t.max_epochs,
        callbacks=callbacks,
        enable_checkpointing=False,
        logger=RunLogger(run_dir, name="", version="", default_hp_metric=False),
        enable_progress_bar=False,
        log_every_n_steps=1,
    )
    device = trainer.strategy.root_device
    result.device, result.precision = str(device), str(trainer.precision)
    total = sum(p.numel() for p in detector.parameters())
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad) if detector.trains else 0
    result.parameters = {"total": total, "trained": trained}
    result.luck = detector.draws or detector.weights_name == "random"
    train, val, test = (data.images(data.of_split(split)) for split in ("train", "val", "test"))
    log.info(
        "%s: %s%s%d good images to learn from, %d for the threshold (%s), %d images to test; %s, %d CPU thread(s)",
        config.attempt,
        "" if config.model.method == config.attempt else f"{config.model.method}, ",
        "" if result.backbone == "none" else f"{result.backbone} ({result.weights}), ",
        len(train),
        len(val),
        config.threshold.rule,
        len(test),
        device,
        torch.get_num_threads(),
    )

    def batches() -> Reading:
        return Reading(train, data.batch_size, device)

    parts = {"val": val, "test": test}
    if config.threshold.rule == "synthetic":
        parts["made up"] = made_up(val, config.seed)
    if detector.trains:
        keep_memory()
    result.startup_seconds = time.perf_counter() - began
    peak = peak_memory(device)
    started = time.perf_counter()
    detector.to(device).eval()
    with torch.no_grad():
        detector.prepare(batches)
    if detector.trains:
        try:
            with quiet():
                trainer.fit(detector, data.train_dataloader(), data.val_dataloader())
        except SystemExit as stop:
            raise KeyboardInterrupt(f"stopped from outside after {len(history.rows)} epochs") from stop
        detector.to(device).eval()
        with torch.no_grad():
            detector.finish(batches)
    result.epochs, result.best_epoch = len(history.rows), len(history.rows) - 1 if history.rows else None
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what is still under way belongs to the fit
    result.seconds = result.fit_seconds = time.perf_counter() - started
    for remark in detector.remarks:
        warn(result, remark)
    started = time.perf_counter()
    scored = {name: Scored(each, *score(detector, each, data.batch_size, device)) for name, each in parts.items()}
    result.seconds_per_image = (time.perf_counter() - started) / sum(len(each.scores) for each in scored.values())
    result.peak_mib = peak()
    _judge(config, detector, result, scored)
    _show(config, trainer, result, scored)


def made_up(dataset: MVTecDataset, seed: int) -> MVTecDataset:
    """Copies of good images with a patch pasted as CutPaste does: defects to choose a threshold on. Torch's generators
    are left as they are."""

    def pasted(picture: np.ndarray) -> torch.Tensor:
        image = paste_patch(torch.from_numpy(picture).movedim(2, 0) / 255)
        return image.movedim(0, 2).mul(255).round().to(torch.uint8)

    with isolate_rng():
        torch.manual_seed(seed)
        pictures = torch.stack([pasted(dataset.picture(i)) for i in range(len(dataset))])
    return MVTecDataset(
        dataset.folder,
        [replace(sample, label=MADE_UP) for sample in dataset.samples],
        image_size=dataset.image_size,
        white=dataset.white,
        mean=dataset.mean,
        std=dataset.std,
        pictures=Rows(pictures, range(len(pictures))),
    )


def _judge(config: Config, detector: AnomalyDetector, result: RunResult, scored: dict[str, Scored]) -> None:
    """Threshold, metrics, predictions.csv and best.ckpt."""
    run_dir, rule, quantile = Path(result.run_dir), config.threshold.rule, config.threshold.quantile
    val, test = scored["val"], scored["test"]
    if rule == "quantile":
        value = quantile_threshold(val.scores, quantile)
    else:
        seen = [test] if rule == "best_f1" else [val, scored["made up"]]
        defect = np.concatenate([each.defect for each in seen])
        value = best_f1_threshold(np.concatenate([each.scores for each in seen]), defect)
    on_map = None if val.maps is None else quantile_threshold([each.max() for each in val.maps], quantile)
    result.threshold = {"value": value, "rule": rule, "map": on_map}
    metrics = figures(test, result, value)
    result.metrics = {"test": metrics}
    if rule == "synthetic":
        pasted = scored["made up"]
        kinds = [*val.kinds, *pasted.kinds]
        result.metrics["val"] = image_figures(np.concatenate([val.scores, pasted.scores]), kinds, value)
    if len(test.scores) > 1 and np.ptp(test.scores) == 0:
        warn(result, "all test images have the same score: nothing tells them apart")
    result.majority_baseline = majority_baseline(np.zeros(1, dtype=np.int64), test.defect.astype(np.int64))
    rows = [
        row
        for name in ("val", "made up", "test")
        if name in scored
        for row in prediction_rows(name, scored[name], value)
    ]
    write_csv(run_dir / PREDICTIONS, rows, list(rows[0]))
    save_detector(
        detector,
        run_dir / BEST,
        method=config.model.method,
        threshold=value,
        map_threshold=on_map,
        image_size=config.data.image_size,
        white=test.dataset.white,
        mean=list(detector.mean),
        std=list(detector.std),
    )
    told = {"image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "AUPRO": "pixel_aupro"}
    alarms = test.scores > value
    log.info(
        "%s: %sfalse alarms %d of %d good images, misses %d of %d defects (threshold %.3g); "
        "fit %.1f s, %.3f s an image; %s",
        config.attempt,
        "".join(f"{name} {metrics[key]:.3f}, " for name, key in told.items() if metrics.get(key) is not None),
        (alarms & ~test.defect).sum(),
        (~test.defect).sum(),
        (~alarms & test.defect).sum(),
        test.defect.sum(),
        value,
        result.fit_seconds,
        result.seconds_per_image,
        run_dir,
    )


def _show(config: Config, trainer: pl.Trainer, result: RunResult, scored: dict[str, Scored]) -> None:
    """Sheets of the test images, in the run's directory and in TensorBoard."""
    run_dir, logger = Path(result.run_dir), trainer.logger
    assert isinstance(logger, TensorBoardLogger)
    assert result.threshold is not None
    writer, value, step = logger.experiment, result.threshold["value"], trainer.global_step
    tags = {MISTAKES: "pictures/test_mistakes_first", EXPLANATIONS: "pictures/maps"}
    for name, page in sheets(scored, result.threshold).items():
        write_picture(run_dir / name, page)
        log_picture(writer, tags[name], page, step)
    if (pasted := scored.get("made up")) is not None:
        page = pictures(pasted, np.arange(len(pasted.scores))[: 6 * SHOWN], value)
        log_picture(writer, "pictures/made_up_defects", page, step)
    named = {f"test/{k}": v for k, v in result.metrics["test"].items() if isinstance(v, float)}
    logger.log_hyperparams({"attempt": config.attempt, "method": config.model.method, "seed": config.seed}, named)
    logger.finalize("success")
