"""Fit an anomaly model to good images, in one pass or by gradient."""

from __future__ import annotations

import logging
import time

import torch

from mvtec_lab.engine.run import Run
from mvtec_lab.problems.anomaly.scores import Reading

log = logging.getLogger(__name__)


def fit(run: Run) -> None:
    """Fit ``run.model`` to the training images; no checkpoint is kept before its threshold is chosen."""
    data, result, module = run.data, run.result, run.model.module
    trainer = run.build_trainer()
    device = trainer.strategy.root_device
    total = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad) if module.method.trains else 0
    result.parameters = {"total": total, "trained": trained}
    result.luck = module.method.draws or result.weights == "random"
    images = data.of_split("train")
    train = data.images(data.tiles(images))
    log.info(
        "%s: %s%s%d good images%s to learn from, %d for the threshold (%s), %d images to test; %s, %d CPU thread(s)",
        run.config.attempt,
        "" if run.model.method == run.config.attempt else f"{run.model.method}, ",
        "" if result.backbone == "none" else f"{result.backbone} ({result.weights}), ",
        len(images),
        data.tiled,
        len(data.of_split("val")),
        run.config.threshold.rule,
        len(data.of_split("test")),
        device,
        torch.get_num_threads(),
    )

    def batches() -> Reading:
        return Reading(train, data.batch_size, device)

    result.startup_seconds = time.perf_counter() - run.began
    run.watch_memory()
    started = time.perf_counter()
    module.to(device).eval()
    with torch.no_grad():
        module.prepare(batches)
    if module.method.trains:
        run.fit(train_dataloaders=data.train_dataloader(), val_dataloaders=data.val_dataloader())
        module.eval()
        with torch.no_grad():
            module.finish(batches)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what is still under way belongs to the fit
    result.seconds = result.fit_seconds = time.perf_counter() - started
    for remark in module.remarks:
        run.warn(remark)
