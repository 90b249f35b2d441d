"""What a run shows while it trains: a line per epoch, and history.csv."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import optim

from mvtec_lab.results import from_one, write_csv

log = logging.getLogger(__name__)


class History(pl.Callback):
    """Keep one row per epoch, counted from 1: its losses, metrics, learning rate, gradient norm and seconds (validation
    included), in history.csv and on one log line.

    Args:
        path: of history.csv, rewritten after every epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.earlier_seconds = 0.0  # of the epochs before the run was interrupted and resumed
        self._steps: list[tuple[int, float, torch.Tensor]] = []  # number, learning rate and gradient norm

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = from_one(state_dict["rows"])
        self.earlier_seconds = sum(row["seconds"] for row in self.rows)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.perf_counter()
        self._steps.clear()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: optim.Optimizer
    ) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._steps.append((trainer.global_step, optimizer.param_groups[0]["lr"], norm))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("train/", "val"))}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        norms = self._write_steps(trainer)
        norm, seconds = sum(norms) / len(norms), round(time.perf_counter() - self._began, 4)
        self.add({**metrics, "lr": rate, "grad_norm": norm, "seconds": seconds}, trainer)

    def add(self, values: dict[str, float], trainer: pl.Trainer) -> None:
        """Add an epoch's row: of Lightning's loop, or of another one that trains in its place.

        Args:
            values: ``train/loss`` and ``val/loss``, other metrics by such names, ``lr`` and ``seconds``.
        """
        epoch = len(self.rows) + 1
        self.rows.append({"epoch": epoch, **values})
        if trainer.is_global_zero:
            write_csv(self.path, self.rows, list(self.rows[-1]))
            log.log(
                logging.DEBUG if trainer.progress_bar_callback else logging.INFO,  # a bar shows them already
                "epoch %*d/%d   %s",
                len(str(trainer.max_epochs)),
                epoch,
                trainer.max_epochs,
                "   ".join(_line(values, part) for part in ("train", "val")),
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        with suppress(OSError):  # the exception counts, not that the curves cannot be written either
            self._write_steps(trainer)  # where training diverged, one looks at the gradients of that epoch

    def _write_steps(self, trainer: pl.Trainer) -> list[float]:
        """Write the curves of an epoch's steps, once: reading a norm waits for a GPU. Return the norms."""
        norms = torch.stack([norm for _, _, norm in self._steps]).tolist() if self._steps else []
        for (step, lr, _), norm in zip(self._steps, norms, strict=True):
            for logger in trainer.loggers:
                logger.log_metrics({"optimizer/grad_norm": norm, "optimizer/lr": lr}, step)
        self._steps.clear()
        return norms


def _line(metrics: dict[str, float], part: str) -> str:
    accuracy = metrics.get(f"{part}/accuracy")  # a one-class method has none
    return f"{part} loss {metrics[f'{part}/loss']:.3f}" + ("" if accuracy is None else f"  accuracy {accuracy:.3f}")
