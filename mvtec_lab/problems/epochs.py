"""Log the mean loss of every epoch of a model that draws views of its training images."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from mvtec_lab.errors import LabError


class EpochLosses(pl.LightningModule):
    """Log the mean loss over the images of every epoch, as ``train/loss`` and ``val/loss``.

    A subclass gives ``keep_loss`` the loss of each batch. A step waits for
    nothing: losses are read when the epoch ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self._losses: list[tuple[Tensor, int]] = []

    def keep_loss(self, loss: Tensor, images: int) -> None:
        """Keep the loss of a batch of this many images until the epoch ends."""
        self._losses.append((loss.detach(), images))

    def on_train_epoch_start(self) -> None:
        self._losses.clear()  # what an epoch that was stopped has left

    def on_validation_epoch_start(self) -> None:
        self._losses.clear()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            self._log_losses("train")

    def on_validation_epoch_end(self) -> None:
        self._log_losses("val")

    def _log_losses(self, name: str) -> None:
        losses, sizes = torch.stack([loss for loss, _ in self._losses]), [size for _, size in self._losses]
        self._losses.clear()
        if not losses.isfinite().all():
            raise LabError(f"the training has diverged in epoch {self.current_epoch + 1}: lower optimizer.lr")
        mean = (losses.double().cpu() * torch.tensor(sizes)).sum() / sum(sizes)
        together: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": sum(sizes)}
        self.log(f"{name}/loss", mean.float(), prog_bar=True, sync_dist=True, **together)
