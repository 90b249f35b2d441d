"""The base of the methods whose network reconstructs good images; it fails where an image is unlike them."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from mvtec_lab.problems.anomaly.base import AnomalyModel, Scores
from mvtec_lab.problems.anomaly.convnets import Reconstructor, check_size, smooth
from mvtec_lab.problems.padding import within


class ReconstructionModel(AnomalyModel):
    """Score images by the errors of a network that learned to reconstruct good ones, trained from random weights.

    The map is the smoothed residual; the image's score is its largest value, so that an image is a defect where any
    place of it is, as in Bergmann et al., "MVTec AD", CVPR 2019. A subclass sets ``network_class``, which takes the
    image size and the method's options.

    Raises:
        LabError: an image size that the networks cannot reconstruct.
    """

    network_class: ClassVar[type[Reconstructor]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        size = self.hparams["image_size"]
        check_size(size)
        self.network = self.network_class(size, **self.options)

    def loss(self, images: Tensor) -> Tensor:
        return self.network.loss(self.pictures(images))

    def forward(self, images: Tensor) -> Scores:
        residual = within(self.network.residual(self.pictures(images)), self.inside(images), smooth)
        return Scores(residual.amax((1, 2)), residual)
