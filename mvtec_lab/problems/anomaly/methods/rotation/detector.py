"""The classifier of turned images."""

from __future__ import annotations

from torch import Tensor

from mvtec_lab.problems.anomaly.base import AnomalyDetector, Scores
from mvtec_lab.problems.anomaly.methods.rotation.model import TURNS, doubt, turned
from mvtec_lab.problems.anomaly.pretext import FineTuned


class Detector(AnomalyDetector):
    """A classifier learns by how many quarters good images were turned; its doubt is the score, and there is no map.

    Args:
        backbone, weights: as in FineTuned.
        optimizer, lr, weight_decay, momentum: as in OptimizerConfig.
    """

    trains = True

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        weights: str | None = "DEFAULT",
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.classifier = FineTuned(backbone, weights, TURNS)
        self.mean, self.std = self.classifier.mean, self.classifier.std
        self.weights_name, self.weights_note = self.classifier.weights_name, self.classifier.weights_note

    def _doubt(self, images: Tensor) -> Tensor:
        images, turns = turned(images)
        return doubt(self.classifier(images), turns)

    def loss(self, images: Tensor) -> Tensor:
        return self._doubt(images).mean()

    def forward(self, images: Tensor) -> Scores:
        return Scores(self._doubt(images), None)
