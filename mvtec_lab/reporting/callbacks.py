"""What a run shows while it trains: a line an epoch, history.csv, and TensorBoard's curves and first batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import optim

from mvtec_lab.reporting.figures import sheet
from mvtec_lab.results import write_csv

log = logging.getLogger(__name__)

SHOWN = 16  # images of the first batch on its sheet


class History(pl.Callback):
    """One row an epoch: its losses, metrics, learning rate and gradient norm, in history.csv and on one log line.

    Args:
        path: of history.csv, written anew after every epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._norms: list[float] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: optim.Optimizer
    ) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        pl_module.log_dict({"optimizer/grad_norm": norm, "optimizer/lr": optimizer.param_groups[0]["lr"]})
        self._norms.append(float(norm))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "val"))}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append(
            {"epoch": trainer.current_epoch, **metrics, "lr": rate, "grad_norm": sum(self._norms) / len(self._norms)}
        )
        self._norms.clear()
        if trainer.is_global_zero:
            write_csv(self.path, self.rows, list(self.rows[-1]))
            log.log(
                logging.DEBUG if trainer.progress_bar_callback else logging.INFO,  # a bar shows them already
                "epoch %*d/%d   train loss %.3f  accuracy %.3f   val loss %.3f  accuracy %.3f",
                len(str(trainer.max_epochs)),
                trainer.current_epoch + 1,
                trainer.max_epochs,
                *(metrics[f"{part}/{name}"] for part in ("train", "val") for name in ("loss", "accuracy")),
            )


class FirstBatch(pl.Callback):
    """Puts the first training batch as the network sees it, augmented and resized, on a TensorBoard sheet.

    Args:
        classes: names by class index.
        picture: turns one normalised [3, S, S] tensor back into an [S, S, 3] uint8 image.
    """

    def __init__(self, classes: list[str], picture: Callable[[torch.Tensor], np.ndarray]) -> None:
        self.classes, self.picture = classes, picture
        self._shown = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict[str, torch.Tensor], batch_idx: int
    ) -> None:
        if self._shown or not trainer.is_global_zero:
            return
        self._shown = True
        images = [self.picture(image) for image in batch["image"][:SHOWN]]
        captions = [self.classes[label] for label in batch["label"][:SHOWN]]
        picture = sheet(images, captions, [None] * len(images))
        for logger in trainer.loggers:
            if isinstance(logger, pl.loggers.TensorBoardLogger):
                logger.experiment.add_image("input/first_batch", picture, 0, dataformats="HWC")
