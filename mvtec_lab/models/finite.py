"""Refuse NaN and infinity: argmax and thresholds would turn them into decisions without a warning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mvtec_lab.errors import LabError


def require_finite(values: Tensor, what: str) -> Tensor:
    """Return the values unchanged, [N, ...] of N images.

    Args:
        what: what they are, for the error line.

    Raises:
        LabError: some are NaN or infinite.
    """
    wrong = sum(not bool(of_image.isfinite().all()) for of_image in values) if not values.isfinite().all() else 0
    if wrong:
        raise LabError(
            f"{what} of {wrong} of {len(values)} images are NaN or infinite: the training has diverged (lower "
            "optimizer.lr), or the checkpoint is damaged: train it again"
        )
    return values


def finite_loss(loss: Tensor) -> Tensor:
    """Return the loss; raise LabError if it is NaN or infinite, which would make every weight so."""
    if not loss.isfinite():
        raise LabError(f"the training has diverged, its loss is {loss.item()}: lower optimizer.lr")
    return loss


def not_finite(state: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity; None where all are finite."""
    return next((key for key, v in state.items() if isinstance(v, Tensor) and not torch.isfinite(v).all()), None)
