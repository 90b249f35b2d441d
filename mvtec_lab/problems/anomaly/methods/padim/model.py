"""PaDiM: a Gaussian at each place of the image, and the Mahalanobis distance from it. See README.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mvtec_lab.problems.anomaly.base import Scores
from mvtec_lab.problems.anomaly.frozen import (
    FeatureModel,
    FrozenFeatureModel,
    Maps,
    cells,
    finest,
    joined,
    smooth,
)
from mvtec_lab.problems.anomaly.methods.padim import METHOD
from mvtec_lab.problems.memory import require_memory

DIMENSIONS = 100  # the paper's for ResNet18; the covariances grow with its square
RIDGE = 0.01  # added to each variance: the paper's
BLOCK = 256  # places that are factored at once, in float64: 20 MB with 100 channels


class PlaceGaussians(FeatureModel):
    """Fit a Gaussian to some channels at each place P of the maps.

    Args:
        channels: number of channels of all layers together.
        dimensions: d, how many of them are drawn at random.
    """

    drawn: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.required["padim"] = 2
        self.register_buffer("drawn", torch.randperm(channels)[:dimensions].sort().values)
        self.register_buffer("mean", torch.zeros(0, dimensions))  # [P, d]
        self.register_buffer("whitening", torch.zeros(0, dimensions, dimensions))  # [P, d, d]

    def require_memory(self, maps: Sequence[Tensor], images: int, device: torch.device) -> None:
        places = finest(maps).numel()
        remedy = "give fewer model.options.dimensions, or coarser model.options.layers"
        require_memory(4 * places * len(self.drawn) ** 2, device, f"covariances at {places} places", remedy)

    def fit(self, maps: Iterable[Maps]) -> None:
        count, shift, sums, squares = 0, torch.empty(0), torch.empty(0), torch.empty(0)
        for layers in maps:
            values = self.embed(layers).transpose(0, 1)  # [P, N, d]
            if not count:
                shift = values.mean(1, keepdim=True)  # near the mean: sums of squares keep their digits
                sums = torch.zeros_like(shift)
                squares = values.new_zeros(values.shape[0], values.shape[2], values.shape[2])
            values = values - shift
            sums += values.sum(1, keepdim=True)
            squares.baddbmm_(values.transpose(1, 2), values)
            count += values.shape[1]
        mean = sums / count
        squares.baddbmm_(mean.transpose(1, 2), mean, alpha=-count).div_(count - 1)
        squares.diagonal(dim1=1, dim2=2).add_(RIDGE)
        for part in squares.split(BLOCK):
            factor = torch.linalg.cholesky(part.double())
            identity = torch.eye(part.shape[-1], dtype=torch.float64, device=part.device)
            part.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        self.mean, self.whitening = (shift + mean)[:, 0], squares

    def forward(self, maps: Maps, size: int) -> Scores:
        centred = self.embed(maps).transpose(0, 1) - self.mean[:, None]  # [P, N, d]
        distances = (centred @ self.whitening.transpose(1, 2)).norm(dim=2).T
        heat = smooth(distances.unflatten(1, (-1, finest(maps)[1])), size, maps.inside)
        return Scores(heat.flatten(1).amax(1), heat)

    def embed(self, maps: list[Tensor]) -> Tensor:
        """Return the drawn channels at each place: [N, P, d]."""
        return cells(joined(maps, mode="nearest")[:, self.drawn])


class Padim(FrozenFeatureModel):
    """Score each place by its distance from good images' Gaussian there (Defard et al., ICPR 2020 workshops)."""

    method = METHOD

    def build_model(self) -> PlaceGaussians:
        channels = sum(self.features.channels)
        return PlaceGaussians(channels, self.dimensions() or min(DIMENSIONS, channels))
