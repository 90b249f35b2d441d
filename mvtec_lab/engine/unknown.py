"""Tell images that are unlike anything in training, by their distance to the training images in frozen features.

The distance is that to the nearest training image (Sun et al., ICML 2022), in features that are pooled over the image
and standardised by the training images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvtec_lab.evaluation.operating import Scores, limit_of_false_rejects

SHARE = 0.01  # of images like those of training that are called unknown, or 1 / (n + 1) of fewer than 99 of them
LEAST = 5  # training images: fewer have no spread to measure by
MOST = 2_000  # that are kept: some 10 MB of 1,280 features
FLOOR = 0.1  # of the mean spread of all features: one that hardly varies among few images may vary in the next one
TENSORS = ("mean", "spread", "rows")
DISTANCE = "distance"  # the output, and the column of predictions.csv
_USE = (
    "where distance is larger than above in unknown, the image is unlike all that was learnt, and UNKNOWN; where first "
    "is false, REJECT stands nevertheless"
)


def learn(features: Tensor, first: bool = True) -> dict[str, Any] | None:
    """Return what is kept of the features [n, D] of training images, and the distance above which one is unknown.

    The threshold rests on the distance of each training image to the others: the features are frozen, so that none of
    them knows it. None: there are too few images.

    Args:
        first: whether an unknown image is called so even where the model's own score rejects it.
    """
    if len(features) < LEAST:
        return None
    features = features.float().cpu()
    if len(features) > MOST:
        features = features[torch.linspace(0, len(features) - 1, MOST).long()]
    spread = features.std(0)
    spread = spread.clamp_min(max(FLOOR * float(spread.mean()), 1e-12))
    known = {"mean": features.mean(0), "spread": spread}
    known["rows"] = rows = (features - known["mean"]) / spread
    apart = torch.cdist(rows, rows).fill_diagonal_(torch.inf).amin(1) / rows.shape[1] ** 0.5
    held_out = Scores(np.sort(apart.double().numpy()), np.zeros(0))
    return {**known, "threshold": limit_of_false_rejects(held_out, SHARE), "images": len(rows), "first": first}


def distances(known: Mapping[str, Any], features: Tensor) -> Tensor:
    """Return the distances [N] of images to the nearest training image, by their features [N, D].

    A matrix product finds it, and the difference measures it, which loses no digits; both have an ONNX operator.
    """
    rows, learnt = (features.float() - known["mean"]) / known["spread"], known["rows"]
    nearest = learnt[torch.addmm(learnt.square().sum(1), rows, learnt.T, alpha=-2).argmin(1)]
    return (rows - nearest).square().sum(1).sqrt() / rows.shape[1] ** 0.5


class WithDistance(nn.Module):
    """Run a network that task=export writes, and say first how far images are from those of training, [N].

    Args:
        network: as ``Problem.exported`` gives it.
        embed: normalised images [N, 3, S, S] to features [N, D], by a part of the same network.
        known: as ``learn`` gives it.
    """

    def __init__(self, network: nn.Module, embed: Callable[[Tensor], Tensor | None], known: Mapping[str, Any]) -> None:
        super().__init__()
        own: Any = network
        self.network, self.embed, self.outputs = network, embed, (DISTANCE, *own.outputs)
        self.single, self.rows = getattr(own, "single", False), getattr(own, "rows", "K")
        self.infer = getattr(own, "infer", None)
        limits = {"above": known["threshold"], "first": known["first"]}
        self.about = {**own.about, "use": f"{own.about['use']}; {_USE}", "unknown": limits}
        for name in TENSORS:
            self.register_buffer(f"known_{name}", known[name])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        known = {name: getattr(self, f"known_{name}") for name in TENSORS}
        features = self.embed(images)
        assert features is not None
        return (distances(known, features), *self.network(images))


def misfit_of_known(known: Any) -> str | None:
    """Return what is wrong with the same of a checkpoint, which may come from anywhere; None: nothing is."""
    if known is None:
        return None
    if not isinstance(known, dict) or {*known} != {*TENSORS, "threshold", "images", "first"}:
        return "it has other parts"
    if not all(isinstance(known[name], Tensor) and known[name].is_floating_point() for name in TENSORS):
        return "a part of it is no tensor"
    if known["rows"].ndim != 2 or any(known[name].shape != known["rows"].shape[1:] for name in TENSORS[:2]):
        return "its parts do not go together"
    if not all(bool(known[name].isfinite().all()) for name in TENSORS) or not bool((known["spread"] > 0).all()):
        return "it holds numbers that are not finite"
    return None if isinstance(known["threshold"], float) and known["threshold"] >= 0 else "it has no threshold"
