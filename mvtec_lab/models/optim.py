"""Optimizers and learning-rate schedules by name. Another one is one line here and one file under conf/."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
from torch import nn, optim
from torch.optim import lr_scheduler

from mvtec_lab.config import SCHEDULERS
from mvtec_lab.errors import unknown

OPTIMIZERS = {
    "adam": lambda p, lr, decay, momentum, fused: optim.Adam(p, lr, weight_decay=decay, fused=fused),
    "adamw": lambda p, lr, decay, momentum, fused: optim.AdamW(p, lr, weight_decay=decay, fused=fused),
    "sgd": lambda p, lr, decay, momentum, fused: optim.SGD(p, lr, momentum=momentum, weight_decay=decay, fused=fused),
    "rmsprop": lambda p, lr, decay, momentum, fused: optim.RMSprop(p, lr, momentum=momentum, weight_decay=decay),
}


def one_kernel(module: pl.LightningModule) -> bool | None:
    """Return whether one kernel may update all parameters, as on a GPU; None leaves it to PyTorch.

    In half precision such a kernel also takes back the scale of the gradients, so that nobody can measure or clip them
    before.
    """
    try:
        trainer = module.trainer
    except RuntimeError:  # it has none
        return None
    gpu = trainer.strategy.root_device.type == "cuda"
    return True if gpu and not trainer.precision.startswith("16") and not trainer.gradient_clip_val else None


def build_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float,
    momentum: float,
    fused: bool | None = None,
) -> optim.Optimizer:
    """Return an optimizer by its name, of parameters or of groups of them; ``fused`` as PyTorch takes it."""
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name](list(parameters), lr, weight_decay, momentum, fused)


def build_scheduler(
    name: str,
    optimizer: optim.Optimizer,
    *,
    epochs: int,
    steps: int,
    step_size: int,
    gamma: float,
    patience: int,
) -> dict[str, Any] | None:
    """Lightning's description of a schedule over ``epochs`` epochs or ``steps`` batches; None for a constant rate."""
    match name:
        case "none":
            return None
        case "cosine":
            return {"scheduler": lr_scheduler.CosineAnnealingLR(optimizer, epochs)}
        case "step":
            return {"scheduler": lr_scheduler.StepLR(optimizer, step_size, gamma)}
        case "onecycle":
            peak = [group["lr"] for group in optimizer.param_groups]
            cycle = lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, cycle_momentum=False)  # momentum is set
            return {"scheduler": cycle, "interval": "step"}
        case "plateau":
            plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=gamma, patience=patience)
            return {"scheduler": plateau, "monitor": "val/loss"}
    raise unknown("scheduler", name, SCHEDULERS)
