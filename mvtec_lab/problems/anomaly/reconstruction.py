"""The detector around a network that reconstructs good images; what it cannot reconstruct is unlike them."""

from __future__ import annotations

import torch
from torch import Tensor

from mvtec_lab.models.weights import IMAGENET_MEAN, IMAGENET_STD
from mvtec_lab.problems.anomaly.base import AnomalyDetector, Scores
from mvtec_lab.problems.anomaly.convnets import Reconstructor, check_size, smooth


class ReconstructionDetector(AnomalyDetector):
    """Maps are a ``Reconstructor``'s smoothed residuals; an image's score is the largest value of its map.

    So an image is a defect where any place of it is, as in Bergmann et al., "MVTec AD", CVPR 2019. A subclass sets
    ``network`` and has the optimiser's settings among its hyperparameters.

    Raises:
        LabError: an image size that the networks cannot give back.
    """

    trains = True
    network: Reconstructor
    offset: Tensor
    scale: Tensor
    weights_name = "random"
    weights_note: str | None = None

    def __init__(self, image_size: int) -> None:
        super().__init__()
        check_size(image_size)
        self.mean, self.std = list(IMAGENET_MEAN), list(IMAGENET_STD)
        self.register_buffer("offset", torch.tensor(self.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(self.std).view(3, 1, 1), persistent=False)

    def pictures(self, images: Tensor) -> Tensor:
        """Normalised images as they were in [0, 1]."""
        return images.float() * self.scale + self.offset

    def loss(self, images: Tensor) -> Tensor:
        return self.network.loss(self.pictures(images))

    def forward(self, images: Tensor) -> Scores:
        residual = smooth(self.network.residual(self.pictures(images)))
        return Scores(residual.amax((1, 2)), residual)
