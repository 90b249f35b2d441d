"""best.ckpt and last.ckpt of a run, without writing a network twice an epoch."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from mvtec_lab.engine.model import ABOUT
from mvtec_lab.errors import LabError
from mvtec_lab.models.weights import load_file, save_file
from mvtec_lab.results import BEST, LAST

EVERY = 30.0  # seconds between two writings, so at most as much training and the epoch under way are lost to a kill
_STATE = "mvtec_lab"  # where last.ckpt keeps what Lightning does not


class Checkpoints(pl.Callback):
    """Write best.ckpt, the earliest epoch with the best ``monitor``, and last.ckpt, from which training can resume.

    Lightning's own writes both in every epoch: a tenth of a second each for ResNet18, longer than an epoch on cached
    features. Here the best weights wait in memory, and both are written at the end and every half minute before.

    last.ckpt is the state between two epochs, and a run that resumes from it repeats what was lost after it exactly.
    best.ckpt is written first: after a kill between the two it may come from an epoch that is to be repeated, whose
    equal score will not replace it.

    Args:
        folder: the run's directory.
        monitor: a logged metric: the lowest ``.../loss`` is the best, of others the highest.
        about: what ``Model.about`` says, for both files.
    """

    def __init__(self, folder: Path, monitor: str, about: dict[str, Any]) -> None:
        self.folder, self.monitor, self.about = folder, monitor, about
        self.sign = -1 if monitor.endswith("loss") else 1
        self.best: dict[str, Any] = {}
        self._random: dict[str, Tensor] = {}  # of a checkpoint that was loaded, until training resumes
        self._written = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # An epoch in which everything that the attempt is about has begun comes before any that had not got so far.
        score = not getattr(pl_module, "deferring", False), self.sign * float(trainer.callback_metrics[self.monitor])
        if not self.best or score > self.best["score"]:
            self.best = {
                "score": score,
                "epoch": trainer.current_epoch,
                "global_step": trainer.global_step,
                "pytorch-lightning_version": pl.__version__,
                "state_dict": _state_of(pl_module),
                "hyper_parameters": dict(pl_module.hparams),
                ABOUT: self.about,
            }

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The state of the epoch before: at its own end EarlyStopping and the plateau schedule have not yet seen it.
        if self._random:
            torch.set_rng_state(self._random["cpu"])
            device = trainer.strategy.root_device
            if device.type == "cuda" and "cuda" in self._random:
                torch.cuda.set_rng_state(self._random["cuda"], device)
            self._random = {}
        # one process decides for all: each takes part in writing
        elif trainer.strategy.broadcast(bool(self.best) and time.monotonic() - self._written > EVERY):
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.best and trainer.is_global_zero:  # not last.ckpt: nothing resumes exactly from within an epoch
            with suppress(OSError, LabError):  # the exception counts, not that this cannot be written either
                save_file(self.best, self.folder / BEST)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning has counted the coming epoch already, and would take it for one that was broken off.
        for counts in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            counts["ready"] = counts["completed"]
        random, device = {"cpu": torch.get_rng_state()}, trainer.strategy.root_device
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        checkpoint[ABOUT] = self.about
        checkpoint[_STATE] = {"random": random, "stopped": trainer.should_stop}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.best = load_file(self.folder / BEST)
        self._random, trainer.should_stop = checkpoint[_STATE]["random"], checkpoint[_STATE]["stopped"]
        # Lightning does so later: too late for OneCycleLR, whose number of steps has the first batches drawn.
        trainer.fit_loop.epoch_progress.load_state_dict(checkpoint["loops"]["fit_loop"]["epoch_progress"])

    def _write(self, trainer: pl.Trainer) -> None:
        self._written = time.monotonic()
        if trainer.is_global_zero:
            save_file(self.best, self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)


def _state_of(module: pl.LightningModule) -> dict[str, Tensor]:
    """Return a module's state dict with copies of what may change: its ``changing`` names, without its ``frozen`` part.

    A large network may be frozen, SAM's encoder or another run's model: it is in memory once, and not copied.
    """
    changing, part = getattr(module, "changing", ("",)), getattr(module, "frozen", None)
    still = {id(value) for value in part.state_dict(keep_vars=True).values()} if isinstance(part, nn.Module) else set()
    return {
        key: value.detach().clone() if key.startswith(changing) and id(value) not in still else value.detach()
        for key, value in module.state_dict(keep_vars=True).items()
    }


class WholeFiles(TorchCheckpointIO):
    """Let Lightning write checkpoints as the lab does; its own go through the system's temporary folder."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        save_file(checkpoint, path)


def read_last(folder: Path) -> dict[str, Any]:
    """Return a run's last.ckpt, once it is certain that training can resume from it and the best.ckpt beside it.

    Raises:
        LabError: one of them is missing, damaged, or from a version that could not resume.
    """
    last, best = load_file(folder / LAST), load_file(folder / BEST)
    for name, checkpoint, key, kind in ((LAST, last, _STATE, dict), (BEST, best, "score", tuple)):
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), kind):
            raise LabError(f"{folder / name} is no checkpoint to resume from")
    return last
