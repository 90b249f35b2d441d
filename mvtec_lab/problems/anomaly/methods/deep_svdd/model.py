"""One-class Deep SVDD (Ruff et al., ICML 2018) on embeddings of a frozen backbone."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from mvtec_lab.errors import LabError

COMPONENTS = 64  # principal ones: most of the variance of two hundred embeddings
WIDTHS = (64, 32)  # of the network's layers
SLOPE = 0.1  # the paper's leaky ReLU: a bounded one could be saturated into a constant
APART = 0.1  # the official code's least distance of the centre's coordinates from zero, where all weights 0 would lead


class Sphere(nn.Module):
    """Embeddings [N, D] to their squared distances from a centre, after whitening and a network without biases.

    With a bias the network could send everything to the centre (the paper's proposition 2).

    Args:
        features: D.
        components: principal components that the network sees, at most D.
    """

    mean: Tensor
    axes: Tensor
    centre: Tensor

    def __init__(self, features: int, components: int) -> None:
        super().__init__()
        widths = (components, *WIDTHS)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after, bias=False), nn.LeakyReLU(SLOPE)]
        self.network = nn.Sequential(*layers[:-1])
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("axes", torch.zeros(components, features))
        self.register_buffer("centre", torch.zeros(WIDTHS[-1]))

    @torch.no_grad()
    def fit(self, embeddings: Tensor) -> None:
        """Whitening and centre from embeddings [M, D], before training.

        Raises:
            LabError: fewer than two.
        """
        if len(embeddings) < 2:
            raise LabError(f"deep_svdd needs two good training images, not {len(embeddings)}: add images")
        x = embeddings.double()
        mean = x.mean(0)
        _, lengths, axes = torch.linalg.svd(x - mean, full_matrices=False)
        spread = lengths / (len(x) - 1) ** 0.5
        # Components in which nothing varies stay 0: divided by rounding errors, they would rule every distance.
        varying = int((spread > 1e-6 * spread[0].clamp(min=1e-6)).sum())
        kept = min(varying, len(self.axes))
        self.mean.copy_(mean)
        self.axes.zero_()[:kept] = (axes[:kept] / spread[:kept, None]).to(self.axes)
        centre = self.embed(embeddings).mean(0)
        self.centre.copy_(torch.where(centre < 0, centre.clamp(max=-APART), centre.clamp(min=APART)))

    def embed(self, embeddings: Tensor) -> Tensor:
        return self.network((embeddings - self.mean) @ self.axes.T)

    def forward(self, embeddings: Tensor) -> Tensor:
        return (self.embed(embeddings) - self.centre).square().sum(1)
