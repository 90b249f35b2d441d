"""DRAEM, from random weights."""

from __future__ import annotations

import torch
from torch import Tensor

from mvtec_lab.errors import LabError
from mvtec_lab.models.weights import IMAGENET_MEAN, IMAGENET_STD
from mvtec_lab.problems.anomaly.base import AnomalyDetector, Scores
from mvtec_lab.problems.anomaly.methods.draem.model import LEAST, Draem, draem_loss, image_score, spoil


class Detector(AnomalyDetector):
    """The map is the probability that a pixel is not as good ones are; the score is the smoothed map's maximum.

    Args:
        image_size: the images' side.
        optimizer, lr, weight_decay, momentum: as in OptimizerConfig.

    Raises:
        LabError: images too small for the networks.
    """

    trains = True

    def __init__(
        self,
        *,
        image_size: int = 128,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if image_size < LEAST:
            raise LabError(f"data.image_size={image_size} is too small for draem: give {LEAST} or more, 128 are meant")
        self.save_hyperparameters(logger=False)
        self.mean, self.std = list(IMAGENET_MEAN), list(IMAGENET_STD)
        self.weights_name, self.weights_note = "random", None
        self.network = Draem()

    def _pictures(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)

    def loss(self, images: Tensor) -> Tensor:
        pictures = self._pictures(images)
        spoilt, mask = spoil(pictures)
        return draem_loss(pictures, mask, *self.network(spoilt))

    def forward(self, images: Tensor) -> Scores:
        found = self.network(self._pictures(images))[1].float().sigmoid()[:, 0]
        return Scores(image_score(found), found)
