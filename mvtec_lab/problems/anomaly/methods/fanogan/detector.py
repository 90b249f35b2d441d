"""f-AnoGAN's two trainings, one after the other in one run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, optim
from torch.optim.swa_utils import update_bn

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.base import Batches, Scores, finite, setting
from mvtec_lab.problems.anomaly.convnets import smooth
from mvtec_lab.problems.anomaly.methods.fanogan.model import LATENT, FAnoGAN
from mvtec_lab.problems.anomaly.reconstruction import ReconstructionDetector

# Share of the epochs that train generator and critic; the others train the encoder. The generator has fewer steps even
# so: 15 in 100 batches, the encoder 25.
GAN_SHARE = 0.75
CRITIC_STEPS = 5  # a batch each, for one of the generator's; WGAN-GP's
BETAS = (0.0, 0.9)  # of Adam, for generator and critic; WGAN-GP's, and the official code's


class Detector(ReconstructionDetector):
    """An image's score is its distance from what the generator makes of its code, in pixels and critic features.

    ``train/loss`` is the critic's until the encoder's turn, then the encoder's; ``val/loss`` is always the encoder's.
    """

    network: FAnoGAN

    def __init__(
        self,
        image_size: int = 128,
        latent: int | None = None,
        optimizer: str = "adam",
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(image_size)
        self.save_hyperparameters()
        self.automatic_optimization = False  # three optimisers, each with its own turn
        self._encoding = False  # whether it is the encoder's turn
        self.network = FAnoGAN(image_size, setting("latent", latent, LATENT))

    def forward(self, images: Tensor) -> Scores:
        distance, residual = self.network.distance(self.pictures(images))
        return Scores(distance, smooth(residual))

    def on_fit_start(self) -> None:
        if self.trainer.max_epochs == 1:
            raise LabError("trainer.max_epochs=1 leaves none to the encoder, which trains last: give 2 or more")

    def on_train_epoch_start(self) -> None:
        epochs = self.trainer.max_epochs or 1
        self._encoding = self.current_epoch >= min(round(GAN_SHARE * epochs), epochs - 1)
        if self._encoding:
            for part in (self.network.generator, self.network.features, self.network.verdict):
                part.eval().requires_grad_(False)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        pictures = self.pictures(batch["image"])
        critic, generator, encoder = self.optimizers()  # type: ignore[attr-defined]
        if self._encoding:
            loss = self._step(encoder, self.network.loss(pictures))
        else:
            loss = self._step(critic, self.network.critic_loss(pictures))
            # counted over the epochs: one of few images has fewer batches than that
            done = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx + 1
            if done % CRITIC_STEPS == 0:
                self._step(generator, self.network.generator_loss(pictures))
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(pictures), prog_bar=True)
        return loss

    def finish(self, batches: Batches) -> None:
        """Batch normalisation's statistics, of the encoder's weights as they are now: running ones lag behind."""
        update_bn((2 * self.pictures(images) - 1 for images in batches()), self.network.encoder)

    def _step(self, optimizer: Any, loss: Tensor) -> Tensor:
        optimizer.zero_grad()
        self.manual_backward(finite(loss))
        optimizer.step()
        return loss.detach()

    def configure_optimizers(self) -> list[optim.Optimizer]:
        n = self.network
        critic = self.optimizer_of([*n.features.parameters(), *n.verdict.parameters()])
        generator = self.optimizer_of(n.generator.parameters())
        for group in critic.param_groups + generator.param_groups:
            if "betas" in group:
                group["betas"] = BETAS
        return [critic, generator, self.optimizer_of(n.encoder.parameters())]
