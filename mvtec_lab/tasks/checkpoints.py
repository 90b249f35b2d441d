"""best.ckpt and last.ckpt of a run, without writing a network twice an epoch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from mvtec_lab.models.classifier import DefectClassifier
from mvtec_lab.results import BEST, LAST

EVERY = 30.0  # seconds between two writings, so at most as much training is lost to a kill


class Checkpoints(pl.Callback):
    """Writes best.ckpt, the earliest epoch with the best ``monitor``, and last.ckpt, from which training can go on.

    Lightning's own writes both in every epoch: a tenth of a second each for ResNet18, longer than an epoch on cached
    features. Here the best weights wait in memory, and both are written at the end and every half minute before.

    Args:
        folder: the run's directory.
        monitor: a logged metric.
        mode: ``min`` or ``max``.
    """

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        self.folder, self.monitor, self.sign = folder, monitor, 1 if mode == "max" else -1
        self.best: dict[str, Any] = {}
        self._score = float("-inf")
        self._written = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DefectClassifier)
        score = self.sign * float(trainer.callback_metrics[self.monitor])
        if score > self._score or not self.best:
            self._score = score
            self.best = {
                "epoch": trainer.current_epoch,
                "global_step": trainer.global_step,
                "pytorch-lightning_version": pl.__version__,
                "state_dict": _state(pl_module),
                "hyper_parameters": dict(pl_module.hparams),
            }
        # one process decides for all: each takes part in writing
        if trainer.strategy.broadcast(time.monotonic() - self._written > EVERY):
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.world_size == 1 and self.best:  # another process may not be there any more to take part
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        self._written = time.monotonic()
        partial = self.folder / f"{LAST}.tmp"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(self.folder / LAST)
            torch.save(self.best, partial)
            partial.replace(self.folder / BEST)


def _state(classifier: DefectClassifier) -> dict[str, Tensor]:
    """A copy of what training changes, beside what it does not."""
    trained = tuple(f"model.{name}." for name in classifier.trained)
    return {
        key: value.detach().clone() if key.startswith(trained) else value.detach()
        for key, value in classifier.state_dict().items()
    }
