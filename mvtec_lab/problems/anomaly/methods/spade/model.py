"""SPADE: the good images most like an image, and what of the image is in none of them. See README.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import length_hint

import torch
from torch import Tensor

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.base import Scores
from mvtec_lab.problems.anomaly.features import CELLS, POOLED
from mvtec_lab.problems.anomaly.frozen import (
    FeatureModel,
    FrozenFeatureModel,
    Maps,
    cells,
    collect,
    finest,
    joined,
    pooled,
    smooth,
)
from mvtec_lab.problems.anomaly.methods.spade import METHOD
from mvtec_lab.problems.memory import nearest, require_memory


class Gallery(FeatureModel):
    """Keep the maps of all good images. The last map, pooled, finds the nearest images; the others are compared.

    Args:
        channels: number of channels of the others together.
        features: number of channels of the last map.
        neighbours: number of images that are compared, at most all.
    """

    images: Tensor
    bank: Tensor

    def __init__(self, channels: int, features: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.register_buffer("images", torch.zeros(0, features))
        self.register_buffer("bank", torch.zeros(0, 0, channels))  # [images, cells, C]

    def require_memory(self, maps: Sequence[Tensor], images: int, device: torch.device) -> None:
        held = 4 * images * finest(maps[:-1]).numel() * self.bank.shape[2]
        remedy = "give fewer images, a smaller data.image_size, or coarser model.options.layers"
        require_memory(held, device, "maps of good images", remedy)

    def fit(self, maps: Iterable[Maps]) -> None:
        images = []

        def blocks() -> Iterator[Tensor]:
            for layers in maps:
                images.append(pooled(layers[-1:]))
                yield cells(joined(layers[:-1], mode="bilinear"))

        self.bank = collect(blocks(), length_hint(maps))
        self.images = torch.cat(images)

    def forward(self, maps: Maps, size: int) -> Scores:
        count = min(self.neighbours, len(self.images))
        distances, indices = nearest(pooled(maps[-1:]), self.images, count)
        joint = joined(maps[:-1], mode="bilinear")
        queries, closest = cells(joint), torch.tensor(torch.inf)
        for near in indices.unbind(1):  # an image of the bank for each query image
            rows = self.bank[near]  # [N, cells, C]
            squares = torch.baddbmm(rows.square().sum(2)[:, None], queries, rows.transpose(1, 2), alpha=-2)
            cell = squares.argmin(2, keepdim=True).expand(-1, -1, rows.shape[2])
            closest = torch.minimum(closest, (queries - rows.gather(1, cell)).square().sum(2))
        return Scores(distances.mean(1), smooth(closest.sqrt().view(-1, *joint.shape[-2:]), size, maps.inside))


class Spade(FrozenFeatureModel):
    """Score each place by its distance from all places of the nearest good images (Cohen & Hoshen, 2020).

    The last of the layers finds these images, the others are searched.
    """

    method, cells = METHOD, (*CELLS, *POOLED)

    def build_model(self) -> Gallery:
        *channels, last = self.features.channels
        if not channels:
            what = "spade compares cells of some model.options.layers and finds images by the last"
            raise LabError(f"{what}: give two or more")
        return Gallery(sum(channels), last, self.options["neighbours"])
