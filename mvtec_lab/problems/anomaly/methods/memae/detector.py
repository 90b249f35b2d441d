"""A memory-augmented autoencoder: it reconstructs from what it remembers of good images."""

from __future__ import annotations

from torch import Tensor
from torch.optim.swa_utils import update_bn

from mvtec_lab.problems.anomaly.base import Batches, Scores, setting
from mvtec_lab.problems.anomaly.methods.memae.model import LATENT, SLOTS, MemoryAutoencoder
from mvtec_lab.problems.anomaly.reconstruction import ReconstructionDetector


class Detector(ReconstructionDetector):
    """An image's score is the mean of its map, the paper's reconstruction error of the whole image."""

    def __init__(
        self,
        image_size: int = 128,
        latent: int | None = None,
        slots: int | None = None,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(image_size)
        self.save_hyperparameters()
        slots = setting("slots", slots, SLOTS, least=2)  # one alone has the weight 1, not above 1 / slots
        self.network = MemoryAutoencoder(image_size, setting("latent", latent, LATENT), slots)

    def finish(self, batches: Batches) -> None:
        """Batch normalisation's statistics, of the weights as they are now: running ones lag behind."""
        update_bn(map(self.pictures, batches()), self.network)

    def forward(self, images: Tensor) -> Scores:
        residual = super().forward(images).map
        assert residual is not None
        return Scores(residual.mean((1, 2)), residual)
