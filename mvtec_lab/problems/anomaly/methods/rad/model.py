"""RAD in place: good patches are remembered where they lie, and a cell is compared with those near its own place.

Zhang et al., "Is Training Necessary for Anomaly Detection?", arXiv 2601.22763 (2026), retrieval-based anomaly
detection, with the memory by place of its official code (longkukuhi/RAD). See README.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import length_hint

import torch
from torch import Tensor, nn

from mvtec_lab.problems.anomaly.base import Scores, of_map
from mvtec_lab.problems.anomaly.frozen import FeatureModel, FrozenFeatureModel, Maps, collect, smooth
from mvtec_lab.problems.anomaly.methods.rad import METHOD
from mvtec_lab.problems.memory import in_places, nearest_in_place, require_memory, thinned
from mvtec_lab.problems.padding import at

TINY = 1e-12


class PlaceBank(nn.Module):
    """Keep some good patches at each place of a layer's map, in half precision, and measure the distance of cells.

    Distances are shares of the good patches' standard deviation, all channels together: so layers can be added, and a
    channel that is silent in good images counts as much as others once a defect wakes it.

    Args:
        channels: C of the layer.
        radius: how many cells away, in each direction, a good patch may lie.
        patches: how many are kept at each place.
    """

    bank: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int, radius: int, patches: int) -> None:
        super().__init__()
        self.radius, self.patches = radius, patches
        self.register_buffer("bank", torch.zeros(0, 0, 0, channels, dtype=torch.float16))  # [H, W, M, C]
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))

    def fit(self, maps: Tensor, shown: Tensor | None) -> None:
        """Remember the maps [M, C, H, W] of good images; ``shown``: as ``in_places`` takes it."""
        bank = in_places(maps, shown)
        rows = bank.flatten(0, 2)
        self.mean, spread = rows.mean(0), rows.var(0, correction=0).sum().sqrt()
        self.scale = torch.where(spread > TINY, 1 / spread, 1.0)
        self.bank = thinned(bank, self.patches).sub(self.mean).mul(self.scale).half()

    def forward(self, layer: Tensor) -> Tensor:
        """Return the distances [N, H, W] of a map's cells [N, C, H, W]."""
        cells = (layer.movedim(1, 3) - self.mean) * self.scale
        return nearest_in_place(cells, self.bank, self.radius)[0]


class PlaceMemory(FeatureModel):
    """Remember good patches of each layer by their place; a map is the mean of the layers' distances.

    Args:
        channels: C of each layer.
        radius, patches: as in ``PlaceBank``.
    """

    def __init__(self, channels: Sequence[int], radius: int, patches: int) -> None:
        super().__init__()
        self.patches = patches
        self.banks = nn.ModuleList(PlaceBank(width, radius, patches) for width in channels)

    def require_memory(self, maps: Sequence[Tensor], images: int, device: torch.device) -> None:
        sizes = [layer[0].numel() for layer in maps]
        kept = min(images, self.patches)
        # All maps, those of one layer by place, and what is kept of them: once in single precision, all in half.
        needed = images * 4 * (sum(sizes) + max(sizes)) + kept * (4 * max(sizes) + 2 * sum(sizes))
        remedy = "give fewer images, a smaller data.image_size, or coarser model.options.layers"
        require_memory(needed, device, "maps of good images", remedy)

    def fit(self, maps: Iterable[Maps]) -> None:
        shapes: list[torch.Size] = []
        shown: list[list[Tensor]] = []  # of each batch, by layer

        def rows() -> Iterator[Tensor]:
            for layers in maps:
                shapes[:] = [layer.shape[1:] for layer in layers]
                if layers.inside is not None:
                    shown.append([at(layers.inside, shape) > 0 for shape in shapes])
                yield torch.cat([layer.flatten(1) for layer in layers], 1)

        values = collect(rows(), length_hint(maps))
        parts = values.split([shape.numel() for shape in shapes], 1)
        for place, (bank, part, shape) in enumerate(zip(self.banks, parts, shapes, strict=True)):
            assert isinstance(bank, PlaceBank)
            of_layer = torch.cat([of_batch[place] for of_batch in shown]) if shown else None
            bank.fit(part.unflatten(1, shape), of_layer)

    def forward(self, maps: Maps, size: int) -> Scores:
        layers = [smooth(bank(layer), size, maps.inside) for bank, layer in zip(self.banks, maps, strict=True)]
        heat = torch.stack(layers).mean(0)
        return Scores(of_map(heat, "top", maps.inside), heat)


class Rad(FrozenFeatureModel):
    """Score each place by its distance from good patches near that place (Zhang et al., 2026)."""

    method = METHOD

    def build_model(self) -> PlaceMemory:
        return PlaceMemory(self.features.channels, self.options["radius"], self.options["patches"])
