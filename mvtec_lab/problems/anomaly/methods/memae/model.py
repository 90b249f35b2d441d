"""A memory-augmented autoencoder: Gong et al., ICCV 2019."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.problems.anomaly.convnets import WIDTHS, Reconstructor, down, squared_error, up

LATENT = 64  # channels of a cell and of a slot: half of what the encoder has
SLOTS = 500  # the paper's for CIFAR-10: a few for each of the 64 cells of a picture of 128 pixels
ENTROPY = 2e-4  # its weight in the loss; the paper's
TINY = 1e-12  # within logarithms and divisions


class Memory(nn.Module):
    """Queries [M, C] to what a mixture of a few slots makes of them, [M, C], and the weights of the mixture [M, slots].

    The weights are the softmax of the cosines, without those up to 1 / slots. That is the least value that the paper
    allows: it leaves at least the nearest slot, whereas softmax weights of cosines, which can differ by e^2 at most,
    often all lie below 3 / slots, the largest.
    """

    def __init__(self, slots: int, channels: int) -> None:
        super().__init__()
        # Evenly about the origin, as the official code does it; the cosines do not see their length.
        self.slots = nn.Parameter(torch.empty(slots, channels).uniform_(-1, 1) / channels**0.5)

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        cosines = F.normalize(queries, dim=1) @ F.normalize(self.slots, dim=1).T
        weights = F.normalize(F.hardshrink(cosines.softmax(1), 1 / len(self.slots)), p=1, dim=1, eps=TINY)
        return weights @ self.slots, weights


def entropy(weights: Tensor) -> Tensor:
    """Of weights [M, slots], in nats: mean over the rows."""
    return -(weights * (weights + TINY).log()).sum(1).mean()


class MemoryAutoencoder(Reconstructor):
    """
    Args:
        image_size: S.
        latent: channels of the code of each cell of 16 pixels, which the memory replaces.
        slots: of the memory.
    """

    def __init__(self, image_size: int, latent: int = LATENT, slots: int = SLOTS) -> None:
        super().__init__()
        # Batch normalisation, as in the official code: with none, or of each picture by itself, it hardly learns.
        self.encoder = nn.Sequential(down(nn.BatchNorm2d), nn.Conv2d(WIDTHS[-1], latent, 1))
        self.memory = Memory(slots, latent)
        self.decoder = nn.Sequential(nn.Conv2d(latent, WIDTHS[-1], 1), up(nn.BatchNorm2d), nn.Sigmoid())

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction, and the weights of each cell's mixture."""
        codes = self.encoder(pictures).permute(0, 2, 3, 1).float()
        remembered, weights = self.memory(codes.flatten(0, 2))
        return self.decoder(remembered.view_as(codes).permute(0, 3, 1, 2)), weights

    def loss(self, pictures: Tensor) -> Tensor:
        made, weights = self(pictures)
        return squared_error(made, pictures).mean() + ENTROPY * entropy(weights)

    def residual(self, pictures: Tensor) -> Tensor:
        return squared_error(self(pictures)[0], pictures)
