"""Student-teacher feature pyramid matching (Wang et al., BMVC 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Half the squared distance of two maps [N, C, H, W] whose channels are scaled to length one at each place.

    Returns [N, H, W]; in [0, 1] where neither map is negative. Of the paper; the official code leaves out the half.
    """
    return (F.normalize(teacher) - F.normalize(student)).square().sum(1) / 2


def matching_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """The layers' mean distances, added up."""
    return torch.stack([distance(t, s).mean() for t, s in zip(teacher, student, strict=True)]).sum()


def anomaly_map(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Product of the layers' distances on the finest layer's grid: [N, H, W]."""
    found = [distance(t, s)[:, None] for t, s in zip(teacher, student, strict=True)]
    size = max(tuple(layer.shape[-2:]) for layer in found)
    return torch.stack([F.interpolate(layer, size, mode="bilinear") for layer in found]).prod(0)[:, 0]
