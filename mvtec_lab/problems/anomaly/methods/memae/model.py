"""A memory-augmented autoencoder: Gong et al., ICCV 2019."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mvtec_lab.problems.anomaly.base import Batches, Scores
from mvtec_lab.problems.anomaly.convnets import WIDTHS, Reconstructor, down, squared_error, up
from mvtec_lab.problems.anomaly.methods.memae import METHOD
from mvtec_lab.problems.anomaly.reconstruction import ReconstructionModel

ENTROPY = 2e-4  # weight of the entropy in the loss; the paper's
TINY = 1e-12  # added in logarithms and divisions


class Memory(nn.Module):
    """Replace queries [M, C] by mixtures of a few slots; return them [M, C] and the weights of the slots [M, slots].

    The weights are the softmax of the cosines; those up to 1 / slots become 0. This is the lowest threshold that the
    paper allows: at least the nearest slot remains. Softmax weights of cosines differ by a factor of e^2 at most, and
    often all lie below the highest threshold, 3 / slots.
    """

    def __init__(self, slots: int, channels: int) -> None:
        super().__init__()
        # Evenly about the origin, as in the official code; the cosines do not depend on their length.
        self.slots = nn.Parameter(torch.empty(slots, channels).uniform_(-1, 1) / channels**0.5)

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        cosines = F.normalize(queries, dim=1) @ F.normalize(self.slots, dim=1).T
        weights = F.normalize(F.hardshrink(cosines.softmax(1), 1 / len(self.slots)), p=1, dim=1, eps=TINY)
        return weights @ self.slots, weights


def entropy(weights: Tensor) -> Tensor:
    """Return the entropy of weights [M, slots] in nats, mean over the rows."""
    return -(weights * (weights + TINY).log()).sum(1).mean()


class MemoryNetwork(Reconstructor):
    """Reconstruct a picture from what a memory of good pictures' codes puts in place of its own.

    Args:
        image_size: S.
        latent: channels of the code of each cell of 16 pixels, which the memory replaces.
        slots: number of codes in the memory.
    """

    def __init__(self, image_size: int, latent: int, slots: int) -> None:
        super().__init__()
        # Batch normalisation, as in the official code: without it, or with each picture's own, it hardly learns.
        self.encoder = nn.Sequential(down(nn.BatchNorm2d), nn.Conv2d(WIDTHS[-1], latent, 1))
        self.memory = Memory(slots, latent)
        self.decoder = nn.Sequential(nn.Conv2d(latent, WIDTHS[-1], 1), up(nn.BatchNorm2d), nn.Sigmoid())

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reconstructions and the weights of each cell's mixture."""
        codes = self.encoder(pictures).permute(0, 2, 3, 1).float()
        remembered, weights = self.memory(codes.flatten(0, 2))
        return self.decoder(remembered.view_as(codes).permute(0, 3, 1, 2)), weights

    def loss(self, pictures: Tensor) -> Tensor:
        reconstructions, weights = self(pictures)
        return squared_error(reconstructions, pictures).mean() + ENTROPY * entropy(weights)

    def residual(self, pictures: Tensor) -> Tensor:
        return squared_error(self(pictures)[0], pictures)


class MemoryAutoencoder(ReconstructionModel):
    """Score an image by what a memory of good images does not reconstruct.

    The image's score is the mean of its map, the paper's reconstruction error of the whole image.
    """

    method, network_class = METHOD, MemoryNetwork

    def finish(self, batches: Batches) -> None:
        """Take batch normalisation's statistics again, with the final weights: running ones lag behind."""
        update_bn(map(self.pictures, batches()), self.network)

    def forward(self, images: Tensor) -> Scores:
        residual = super().forward(images).map
        assert residual is not None
        part = self.inside(images)
        return Scores(residual.mean((1, 2)) if part is None else residual.sum((1, 2)) / part.sum((1, 2)), residual)
