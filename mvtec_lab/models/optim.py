"""Optimizers and learning-rate schedules by name. Another one is one line here and one file under conf/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn, optim
from torch.optim import lr_scheduler

from mvtec_lab.config import SCHEDULERS, OptimizerConfig, SchedulerConfig
from mvtec_lab.errors import unknown

Parameters: TypeAlias = Iterable[nn.Parameter] | Iterable[dict[str, Any]]  # or groups of them
OPTIMIZERS = {
    "adam": lambda p, lr, decay, momentum, fused: optim.Adam(p, lr, weight_decay=decay, fused=fused),
    "adamw": lambda p, lr, decay, momentum, fused: optim.AdamW(p, lr, weight_decay=decay, fused=fused),
    "sgd": lambda p, lr, decay, momentum, fused: optim.SGD(p, lr, momentum=momentum, weight_decay=decay, fused=fused),
    "rmsprop": lambda p, lr, decay, momentum, fused: optim.RMSprop(p, lr, momentum=momentum, weight_decay=decay),
}


def configured(
    module: pl.LightningModule, parameters: Parameters, o: OptimizerConfig, s: SchedulerConfig
) -> OptimizerLRScheduler:
    """Return what ``configure_optimizers`` of a module is to return: an optimizer of parameters, and its schedule."""
    optimizer = build_optimizer(o.name, parameters, o.lr, o.weight_decay, o.momentum, one_kernel(module))
    schedule = build_scheduler(
        s.name,
        optimizer,
        epochs=module.trainer.max_epochs or 1,
        steps=int(module.trainer.estimated_stepping_batches) if s.name == "onecycle" else 0,
        step_size=s.step_size,
        gamma=s.gamma,
        patience=s.patience,
    )
    return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}  # type: ignore[return-value]


def by_depth(parts: Sequence[Sequence[nn.Parameter]], lr: float, first: float) -> list[dict[str, Any]]:
    """Return groups of parameters whose learning rates grow from part to part of a network by equal factors.

    Howard and Ruder, ACL 2018, call them discriminative: the nearer a part lies to the image, the more its features are
    those of photographs in general, and the less they have to change.

    Args:
        parts: what trains in each part, from the image to the head; a part that rests is empty and counts as a step.
        lr: the last part's learning rate.
        first: the first part's, as a share of it.

    Returns:
        A group for each part that trains, the last one first: the rate that a run shows is ``lr``.
    """
    depths = range(len(parts) - 1, -1, -1)
    rates = [lr * first ** (depth / max(1, len(parts) - 1)) for depth in depths]
    return [{"params": list(part), "lr": rate} for part, rate in zip(parts, rates, strict=True) if part][::-1]


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
    parameters: Parameters,
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
