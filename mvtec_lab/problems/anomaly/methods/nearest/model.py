"""Nearest neighbours over globally pooled features. See README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from mvtec_lab.problems.anomaly.features import POOLED
from mvtec_lab.problems.anomaly.frozen import FrozenFeatureModel, PooledModel
from mvtec_lab.problems.anomaly.methods.nearest import METHOD
from mvtec_lab.problems.memory import nearest


class NeighbourDistance(PooledModel):
    """Measure the mean distance [N] of features [N, D] from the nearest ones of good images.

    Args:
        features: D.
        neighbours: number of good images.
    """

    bank: Tensor

    def __init__(self, features: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.required[f"model.options.neighbours={neighbours}"] = neighbours
        self.register_buffer("bank", torch.zeros(0, features))

    def learn(self, features: Tensor) -> None:
        self.bank = features

    def score(self, features: Tensor) -> Tensor:
        return nearest(features, self.bank, self.neighbours)[0].mean(1)


class Nearest(FrozenFeatureModel):
    """Score an image by its mean distance from the nearest good images (Bergman, Cohen & Hoshen, 2020)."""

    method, cells = METHOD, POOLED

    def build_model(self) -> NeighbourDistance:
        return NeighbourDistance(sum(self.features.channels), self.options["neighbours"])
