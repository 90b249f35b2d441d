"""A variational autoencoder: the code of a good image is likely under a prior."""

from __future__ import annotations

from mvtec_lab.problems.anomaly.base import setting
from mvtec_lab.problems.anomaly.methods.vae.model import LATENT, VariationalAutoencoder
from mvtec_lab.problems.anomaly.reconstruction import ReconstructionDetector


class Detector(ReconstructionDetector):
    def __init__(
        self,
        image_size: int = 128,
        latent: int | None = None,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(image_size)
        self.save_hyperparameters()
        self.network = VariationalAutoencoder(image_size, setting("latent", latent, LATENT))
