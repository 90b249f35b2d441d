"""PaDiM: a Gaussian for each place in the image, and the Mahalanobis distance from it. See README.md."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mvtec_lab.problems.anomaly.base import Scores
from mvtec_lab.problems.anomaly.frozen import FrozenModel, cells, joined, require_images, require_memory, smooth

RIDGE = 0.01  # added to each variance: the paper's
BLOCK = 256  # places that are factored at once, in float64: 20 MB with 100 channels


class Padim(FrozenModel):
    """Args: channels: of all layers together; dimensions: how many of them, drawn at random."""

    drawn: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("drawn", torch.randperm(channels)[:dimensions].sort().values)
        self.register_buffer("mean", torch.zeros(0, dimensions))  # [P, d], P places
        self.register_buffer("whitening", torch.zeros(0, dimensions, dimensions))  # [P, d, d]

    def fit(self, maps: Iterable[list[Tensor]]) -> None:
        count, shift, sums, squares = 0, torch.empty(0), torch.empty(0), torch.empty(0)
        for found in maps:
            values = self.embed(found).transpose(0, 1)  # [P, N, d]
            if not count:
                places, dimensions = values.shape[0], values.shape[2]
                needed = places * dimensions**2 * 4
                remedy = "give fewer model.options.dimensions, or coarser model.options.layers"
                require_memory(needed, values.device, f"covariances at {places} places", remedy)
                shift = values.mean(1, keepdim=True)  # near the mean: sums of squares keep their digits
                sums, squares = torch.zeros_like(shift), values.new_zeros(places, dimensions, dimensions)
            values = values - shift
            sums += values.sum(1, keepdim=True)
            squares.baddbmm_(values.transpose(1, 2), values)
            count += values.shape[1]
        require_images(count, 2, "padim")
        mean = sums / count
        squares.baddbmm_(mean.transpose(1, 2), mean, alpha=-count).div_(count - 1)
        squares.diagonal(dim1=1, dim2=2).add_(RIDGE)
        for part in squares.split(BLOCK):
            factor = torch.linalg.cholesky(part.double())
            identity = torch.eye(part.shape[-1], dtype=torch.float64, device=part.device)
            part.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        self.mean, self.whitening = (shift + mean)[:, 0], squares

    def forward(self, maps: list[Tensor], size: int) -> Scores:
        centred = self.embed(maps).transpose(0, 1) - self.mean[:, None]  # [P, N, d]
        distances = (centred @ self.whitening.transpose(1, 2)).norm(dim=2).T
        finest = max(found.shape[-1] for found in maps)
        found = smooth(distances.unflatten(1, (-1, finest)), size)
        return Scores(found.flatten(1).amax(1), found)

    def embed(self, maps: list[Tensor]) -> Tensor:
        """[N, P, d]"""
        return cells(joined(maps, mode="nearest")[:, self.drawn])
