"""STFPM's teacher, student and how the one learns from the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mvtec_lab.problems.anomaly.base import AnomalyDetector, Scores
from mvtec_lab.problems.anomaly.features import FeatureMaps
from mvtec_lab.problems.anomaly.methods.stfpm.model import anomaly_map, matching_loss


class Detector(AnomalyDetector):
    """A student of the teacher's architecture, from random weights, learns the frozen teacher's maps of good images.

    An image's score is its map's maximum.

    Args:
        backbone, weights, layers: as in FeatureMaps.
        optimizer, lr, weight_decay, momentum: as in OptimizerConfig.
    """

    trains = True

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        weights: str | None = "DEFAULT",
        layers: Sequence[str] | None = None,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.teacher = FeatureMaps(backbone, weights, layers)
        self.student = FeatureMaps(backbone, None, self.teacher.layers).network.requires_grad_(True).train()
        self.mean, self.std = self.teacher.mean, self.teacher.std
        self.weights_name, self.weights_note = self.teacher.weights_name, self.teacher.weights_note

    def _maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        with torch.no_grad():
            teacher = self.teacher(images)
        return teacher, [found.float() for found in self.student(images).values()]

    def loss(self, images: Tensor) -> Tensor:
        return matching_loss(*self._maps(images))

    def forward(self, images: Tensor) -> Scores:
        found = anomaly_map(*self._maps(images))
        return Scores(found.amax((1, 2)), found)
