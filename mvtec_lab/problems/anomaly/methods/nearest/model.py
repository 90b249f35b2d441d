"""Nearest neighbours over globally pooled features. See README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from mvtec_lab.problems.anomaly.frozen import PooledModel, nearest, require_images


class Nearest(PooledModel):
    """Args: features: D; neighbours: good images whose mean distance is the score."""

    bank: Tensor

    def __init__(self, features: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.register_buffer("bank", torch.zeros(0, features))

    def learn(self, features: Tensor) -> None:
        require_images(len(features), self.neighbours, f"model.options.neighbours={self.neighbours}")
        self.bank = features

    def score(self, features: Tensor) -> Tensor:
        return nearest(features, self.bank, self.neighbours)[0].mean(1)
