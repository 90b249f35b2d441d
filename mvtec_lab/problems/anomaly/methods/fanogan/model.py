"""f-AnoGAN (Schlegl et al., Medical Image Analysis 2019): WGAN-GP (Gulrajani et al., NeurIPS 2017), then an encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.swa_utils import update_bn

from mvtec_lab.errors import LabError
from mvtec_lab.models.finite import finite_loss
from mvtec_lab.problems.anomaly.base import Batches, Scores
from mvtec_lab.problems.anomaly.convnets import CELL, WIDTHS, Reconstructor, decode, down, encode, smooth
from mvtec_lab.problems.anomaly.methods.fanogan import METHOD
from mvtec_lab.problems.anomaly.reconstruction import ReconstructionModel
from mvtec_lab.problems.padding import within

PENALTY = 10.0  # weight of the penalty on the critic's gradients; WGAN-GP's
KAPPA = 1.0  # weight of the critic's features beside the pixels; the paper's
# Share of the epochs that train generator and critic; the others train the encoder. The generator still has fewer
# steps: 15 in 100 batches, the encoder 25.
GAN_SHARE = 0.75
CRITIC_STEPS = 5  # batches that train the critic, for one that trains the generator; WGAN-GP's
BETAS = (0.0, 0.9)  # of Adam, for generator and critic; WGAN-GP's, and the official code's


class GanNetwork(Reconstructor):
    """Generate good pictures from random codes, and find the code whose picture is most like a given one.

    Pictures in [0, 1] are scaled to [-1, 1] inside, for which KAPPA is meant. ``critic_loss`` and ``generator_loss``
    train first, then ``loss``, which trains the encoder alone (the paper's izi_f).

    Args:
        image_size: S.
        latent: size of the code.
    """

    def __init__(self, image_size: int, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.generator = nn.Sequential(decode(image_size, latent, nn.BatchNorm2d), nn.Tanh())
        # Layer normalisation, as in WGAN-GP: the penalty is on each picture's own gradient, whatever its batch.
        self.features = nn.Sequential(down(lambda channels: nn.GroupNorm(1, channels)), nn.Flatten())
        self.verdict = nn.Linear(WIDTHS[-1] * (image_size // CELL) ** 2, 1)
        self.encoder = encode(image_size, latent, nn.BatchNorm2d)

    def criticise(self, pictures: Tensor) -> Tensor:
        """Return the critic's opinion [N] of pictures in [-1, 1]; the higher, the more real."""
        return self.verdict(self.features(pictures))[:, 0]

    def generated(self, like: Tensor) -> Tensor:
        """Return pictures in [-1, 1] of random codes, as many as the given ones."""
        return self.generator(torch.randn(len(like), self.latent, device=like.device))

    def critic_loss(self, pictures: Tensor) -> Tensor:
        real = 2 * pictures - 1
        with torch.no_grad():
            fake = self.generated(real)
        share = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = (real + share * (fake - real)).requires_grad_()
        (gradient,) = torch.autograd.grad(self.criticise(between).sum(), between, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        return self.criticise(fake).mean() - self.criticise(real).mean() + PENALTY * penalty

    def generator_loss(self, pictures: Tensor) -> Tensor:
        """Return the generator's loss, of as many generated pictures as there are real ones."""
        return -self.criticise(self.generated(pictures)).mean()

    def loss(self, pictures: Tensor) -> Tensor:
        return self.distance(pictures)[0].mean()

    def residual(self, pictures: Tensor) -> Tensor:
        return self.distance(pictures)[1]

    def distance(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far pictures lie from what the generator makes of their codes.

        Returns:
            For each picture [N], the mean squared error of its pixels plus KAPPA times that of the critic's features;
            for each pixel [N, S, S], the absolute residual, mean over the channels.
        """
        real = 2 * pictures - 1
        fake = self.generator(self.encoder(real)).float()
        features = (self.features(fake) - self.features(real)).float().square().mean(1)
        return (fake - real).square().mean((1, 2, 3)) + KAPPA * features, (fake - real).abs().mean(1)


class FAnoGan(ReconstructionModel):
    """Score an image by its distance from what the generator makes of its code, in pixels and critic features.

    ``train/loss`` is the critic's until the encoder's turn, then the encoder's; ``val/loss`` is always the encoder's.
    """

    method, network_class = METHOD, GanNetwork
    network: GanNetwork

    def __init__(self, *, lr: float = 1e-4, **settings: Any) -> None:
        super().__init__(lr=lr, **settings)
        self.automatic_optimization = False  # three optimisers, each with its own turn
        self._encoding = False  # whether it is the encoder's turn

    def forward(self, images: Tensor) -> Scores:
        distance, residual = self.network.distance(self.pictures(images))
        return Scores(distance, within(residual, self.inside(images), smooth))

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
            # Counted over all epochs: an epoch of few images has fewer batches than CRITIC_STEPS.
            done = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx + 1
            if done % CRITIC_STEPS == 0:
                self._step(generator, self.network.generator_loss(pictures))
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(pictures), prog_bar=True)
        return loss

    def finish(self, batches: Batches) -> None:
        """Take batch normalisation's statistics again, with the encoder's final weights: running ones lag behind."""
        update_bn((2 * self.pictures(images) - 1 for images in batches()), self.network.encoder)

    def _step(self, optimizer: Any, loss: Tensor) -> Tensor:
        optimizer.zero_grad()
        self.manual_backward(finite_loss(loss))
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
