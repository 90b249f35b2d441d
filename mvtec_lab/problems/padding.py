"""What lies beside letterboxed images in their squares is no part of what is learnt as a patch or scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mvtec_lab.data.frame import inside

TINY = 1e-6  # least weight of a smoothed place


def inside_of(batch: Mapping[str, Any], padded: bool, views: int = 1) -> Tensor | None:
    """Return where images lie in their squares, as ``data.frame.inside``; None where there is no padding.

    Args:
        batch: ``image`` [N, 3, S, S], or ``features`` with their ``inside``, a row for each view of each image.
        padded: whether images are letterboxed.
        views: how many rows of features each image has.
    """
    if not padded:
        return None
    return inside(batch["image"]) if "image" in batch else batch["inside"][::views]


def at(part: Tensor, shape: Sequence[int]) -> Tensor:
    """Return which cells of a map [..., h, w] over the square show the image at their centre: float [N, h, w], 0 or 1.

    Args:
        part: as ``inside_of`` returns it.
    """
    rows, columns = (
        ((torch.arange(n, device=part.device) + 0.5) * (part.shape[-1] / n)).long() for n in (shape[-2], shape[-1])
    )
    # Not part[:, rows][:, :, columns]: onnxruntime 1.32 crashed on what that is exported to, within PatchCore's file.
    return part.float().index_select(1, rows).index_select(2, columns)


def within(scores: Tensor, part: Tensor | None, smoothing: Callable[[Tensor], Tensor] = lambda maps: maps) -> Tensor:
    """Smooth maps [N, h, w] of scores from 0 up, in which padding has no part and is 0 afterwards.

    Args:
        part: as ``inside_of`` returns it; None: there is no padding.
        smoothing: maps [N, h, w] to maps of any resolution; it is linear.
    """
    if part is None:
        return smoothing(scores)
    cells = at(part, scores.shape)
    smooth = smoothing(scores * cells) / smoothing(cells).clamp_min(TINY)
    return smooth * at(part, smooth.shape)
