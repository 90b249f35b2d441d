"""One-class Deep SVDD (Ruff et al., ICML 2018) on embeddings of a frozen backbone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.base import Batches, Scores
from mvtec_lab.problems.anomaly.features import BackboneModel
from mvtec_lab.problems.anomaly.frozen import collect, pooled
from mvtec_lab.problems.anomaly.methods.deep_svdd import METHOD

COMPONENTS = 64  # principal ones: most of the variance of two hundred embeddings
WIDTHS = (64, 32)  # of the network's layers
SLOPE = 0.1  # of the paper's leaky ReLU; a bounded function could saturate into a constant
APART = 0.1  # least distance of the centre's coordinates from zero, where weights of 0 would lead; the official code's


class Sphere(nn.Module):
    """Measure the squared distances [N] of embeddings [N, D] from a centre, after whitening and a network.

    The network has no biases: with them it could send everything to the centre (the paper's proposition 2).

    Args:
        features: D.
        components: number of principal components that the network sees, at most D.
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
        """Fit whitening and centre to embeddings [M, D], before training; raise LabError if they are fewer than two."""
        if len(embeddings) < 2:
            raise LabError(f"deep_svdd needs two good training images, not {len(embeddings)}: add images")
        x = embeddings.double()
        mean = x.mean(0)
        _, lengths, axes = torch.linalg.svd(x - mean, full_matrices=False)
        spread = lengths / (len(x) - 1) ** 0.5
        # Components in which nothing varies stay 0: divided by rounding errors, they would outweigh all others.
        varying = int((spread > 1e-6 * spread[0].clamp(min=1e-6)).sum())
        kept = min(varying, len(self.axes))
        self.mean.copy_(mean)
        self.axes.zero_()[:kept] = (axes[:kept] / spread[:kept, None]).to(self.axes)
        centre = self.embed(embeddings).mean(0)
        self.centre.copy_(torch.where(centre < 0, centre.clamp(max=-APART), centre.clamp(min=APART)))

    def embed(self, embeddings: Tensor) -> Tensor:
        """Return the network's output for embeddings [N, D]."""
        return self.network((embeddings - self.mean) @ self.axes.T)

    def forward(self, embeddings: Tensor) -> Tensor:
        return (self.embed(embeddings) - self.centre).square().sum(1)


class DeepSvdd(BackboneModel):
    """Draw the pooled features of good images to a centre; the squared distance from it is the score.

    Pooled features know no places: there is no map.
    """

    method = METHOD

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        channels = sum(self.features.channels)
        self.sphere = Sphere(channels, self.dimensions() or min(COMPONENTS, channels))

    @torch.no_grad()
    def _pooled(self, images: Tensor) -> Tensor:
        return pooled(self.features(images))

    def _distances(self, images: Tensor) -> Tensor:
        features = self._pooled(images)
        with torch.autocast(images.device.type, enabled=False):  # squares of small differences want float32
            return self.sphere(features)

    def prepare(self, batches: Batches) -> None:
        self.sphere.fit(collect(map(self._pooled, batches())))

    def loss(self, images: Tensor) -> Tensor:
        return self._distances(images).mean()

    def forward(self, images: Tensor) -> Scores:
        return Scores(self._distances(images), None)
