"""SPADE: the most similar good images, and what of an image is to be found nowhere in them. See README.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import length_hint

import torch
from torch import Tensor

from mvtec_lab.problems.anomaly.base import Scores
from mvtec_lab.problems.anomaly.frozen import (
    FrozenModel,
    cells,
    collect,
    joined,
    nearest,
    pooled,
    smooth,
)


class Spade(FrozenModel):
    """Of the maps the last one, pooled, finds the nearest images, and the cells of the others are compared.

    Args:
        channels: of the others together.
        features: of the last one.
        neighbours: images that are compared with, or all where there are fewer.
    """

    images: Tensor
    bank: Tensor

    def __init__(self, channels: int, features: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.register_buffer("images", torch.zeros(0, features))
        self.register_buffer("bank", torch.zeros(0, 0, channels))  # [images, cells, C]

    def fit(self, maps: Iterable[list[Tensor]]) -> None:
        images = []

        def blocks() -> Iterator[Tensor]:
            for found in maps:
                images.append(pooled(found[-1:]))
                yield cells(joined(found[:-1], mode="bilinear"))

        remedy = "give fewer images, a smaller data.image_size, or coarser model.options.layers"
        self.bank = collect(blocks(), length_hint(maps), "maps of good images", remedy)
        self.images = torch.cat(images)

    def forward(self, maps: list[Tensor], size: int) -> Scores:
        count = min(self.neighbours, len(self.images))
        distances, places = nearest(pooled(maps[-1:]), self.images, count)
        joint = joined(maps[:-1], mode="bilinear")
        queries, closest = cells(joint), torch.tensor(torch.inf)
        for near in places.unbind(1):  # an image of the bank for each query image
            rows = self.bank[near]  # [N, cells, C]
            squares = torch.baddbmm(rows.square().sum(2)[:, None], queries, rows.transpose(1, 2), alpha=-2)
            cell = squares.argmin(2, keepdim=True).expand(-1, -1, rows.shape[2])
            closest = torch.minimum(closest, (queries - rows.gather(1, cell)).square().sum(2))
        return Scores(distances.mean(1), smooth(closest.sqrt().view(-1, *joint.shape[-2:]), size))
