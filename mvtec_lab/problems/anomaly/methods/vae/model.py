"""A variational autoencoder: Kingma & Welling, ICLR 2014, for anomalies An & Cho, SNU tech. report 2015."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvtec_lab.problems.anomaly.convnets import Reconstructor, decode, encode, squared_error
from mvtec_lab.problems.anomaly.methods.vae import METHOD
from mvtec_lab.problems.anomaly.reconstruction import ReconstructionModel

GREY = (1 / 255) ** 2  # variance of one grey value: a picture in eight bits is not known any better


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, variance) | N(0, 1)) of codes [N, L]: [N], in nats."""
    return (mean.square() + log_variance.exp() - log_variance - 1).sum(1) / 2


class VariationalNetwork(Reconstructor):
    """Reconstruct a picture from a code whose distribution is held close to a standard normal one.

    The pixels are Gaussian, all of one variance, whose most likely value is the mean squared error (Rybkin et al., ICML
    2021): the divergence needs no weight. The loss is in nats per pixel and channel, up to a constant.

    The residual is the reconstruction error from the code's mean, not the evidence lower bound. The bound's divergence
    belongs to the whole image and to no place in it, a hundred numbers beside fifty thousand; and the bound needs
    draws, which would make scores random.

    Args:
        image_size: S.
        latent: size of the code.
    """

    def __init__(self, image_size: int, latent: int) -> None:
        super().__init__()
        self.encoder = encode(image_size, 2 * latent)
        self.decoder = nn.Sequential(decode(image_size, latent), nn.Sigmoid())

    def loss(self, pictures: Tensor) -> Tensor:
        mean, log_variance = self.encoder(pictures).float().chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean
        error = squared_error(self.decoder(code), pictures).mean()
        return (error + GREY).log() / 2 + divergence(mean, log_variance).mean() / pictures[0].numel()

    def residual(self, pictures: Tensor) -> Tensor:
        mean, _ = self.encoder(pictures).chunk(2, dim=1)
        return squared_error(self.decoder(mean), pictures)


class VariationalAutoencoder(ReconstructionModel):
    """Score an image by what a variational autoencoder does not reconstruct."""

    method, network_class = METHOD, VariationalNetwork
