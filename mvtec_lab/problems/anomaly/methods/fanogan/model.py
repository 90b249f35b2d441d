"""f-AnoGAN (Schlegl et al., Medical Image Analysis 2019): WGAN-GP (Gulrajani et al., NeurIPS 2017), then an encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvtec_lab.problems.anomaly.convnets import CELL, WIDTHS, Reconstructor, decode, down, encode

LATENT = 128  # the official code's
PENALTY = 10.0  # of the critic's gradients; WGAN-GP's
KAPPA = 1.0  # what the critic's features weigh beside the pixels; the paper's


class FAnoGAN(Reconstructor):
    """Pictures in [0, 1] are [-1, 1] within, where KAPPA is meant.

    Its three losses are in the order of training: ``critic_loss`` and ``generator_loss`` first, then ``loss``, which is
    the encoder's alone (the paper's izi_f).

    Args:
        image_size: S.
        latent: of the code.
    """

    def __init__(self, image_size: int, latent: int = LATENT) -> None:
        super().__init__()
        self.latent = latent
        self.generator = nn.Sequential(decode(image_size, latent, nn.BatchNorm2d), nn.Tanh())
        # Layer normalisation, as there: the penalty is on each picture's own gradient, whatever its batch.
        self.features = nn.Sequential(down(lambda channels: nn.GroupNorm(1, channels)), nn.Flatten())
        self.verdict = nn.Linear(WIDTHS[-1] * (image_size // CELL) ** 2, 1)
        self.encoder = encode(image_size, latent, nn.BatchNorm2d)

    def criticise(self, pictures: Tensor) -> Tensor:
        """The critic's opinion of pictures in [-1, 1], [N]; the higher, the more real."""
        return self.verdict(self.features(pictures))[:, 0]

    def made_up(self, like: Tensor) -> Tensor:
        """As many pictures in [-1, 1] of random codes."""
        return self.generator(torch.randn(len(like), self.latent, device=like.device))

    def critic_loss(self, pictures: Tensor) -> Tensor:
        real = 2 * pictures - 1
        with torch.no_grad():
            made = self.made_up(real)
        share = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = (real + share * (made - real)).requires_grad_()
        (gradient,) = torch.autograd.grad(self.criticise(between).sum(), between, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        return self.criticise(made).mean() - self.criticise(real).mean() + PENALTY * penalty

    def generator_loss(self, pictures: Tensor) -> Tensor:
        """Of as many made-up pictures as there are real ones."""
        return -self.criticise(self.made_up(pictures)).mean()

    def loss(self, pictures: Tensor) -> Tensor:
        return self.distance(pictures)[0].mean()

    def residual(self, pictures: Tensor) -> Tensor:
        return self.distance(pictures)[1]

    def distance(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Between pictures and what the generator makes of their codes.

        Returns:
            Of each picture [N], mean squared error of its pixels, plus KAPPA times that of the critic's features; and
            of each pixel [N, S, S], the absolute residual, mean over the channels.
        """
        real = 2 * pictures - 1
        made = self.generator(self.encoder(real)).float()
        features = (self.features(made) - self.features(real)).float().square().mean(1)
        return (made - real).square().mean((1, 2, 3)) + KAPPA * features, (made - real).abs().mean(1)
