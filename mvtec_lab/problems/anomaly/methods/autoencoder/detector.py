"""A convolutional autoencoder: what does not pass its narrow code is unlike the good images."""

from __future__ import annotations

from mvtec_lab.problems.anomaly.base import setting
from mvtec_lab.problems.anomaly.methods.autoencoder.model import LATENT, Autoencoder
from mvtec_lab.problems.anomaly.reconstruction import ReconstructionDetector


class Detector(ReconstructionDetector):
    def __init__(
        self,
        image_size: int = 128,
        latent: int | None = None,
        reconstruction: str = "l2",
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(image_size)
        self.save_hyperparameters()
        self.network = Autoencoder(image_size, setting("latent", latent, LATENT), reconstruction)
