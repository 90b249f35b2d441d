"""A feature pyramid over any backbone: the last map of each resolution, joined from coarse to fine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mvtec_lab.errors import LabError
from mvtec_lab.models.backbones import build, stages, trainable_stages
from mvtec_lab.models.weights import load_weights

CELLS = (4, 8, 16, 32)  # pixels a side: a coarser map sees the whole image, a finer one is too large for a CPU


class Pyramid(nn.Module):
    """Turn normalised images [N, 3, S, S] into maps [N, channels, H, W] by name, from fine to coarse.

    Batch normalisation stays in eval mode: a few images a batch have no statistics. The stages that do not train run
    without a gradient.

    Args:
        backbone, weights, unfreeze: as in ``ModelConfig``.
        channels: of every map, ``out_channels``.
        finest: pixels a side of the finest map's cells; one coarser map than the backbone's is pooled.

    Raises:
        LabError: a backbone without maps of such cells, or stages that it does not have.
    """

    def __init__(
        self,
        backbone: str,
        weights: str | None,
        unfreeze: int | str | Sequence[str],
        channels: int,
        finest: int,
    ) -> None:
        super().__init__()
        self.loaded = load_weights(backbone, weights)
        network = build(backbone, 1, weights=self.loaded.state_dict)
        trained = trainable_stages(network, unfreeze)
        trunk = [name for name in stages(network) if name != "neck"]
        self.stages = nn.Sequential(OrderedDict((name, network.get_submodule(name)) for name in trunk))
        maps = self._maps(finest)
        if not maps:
            raise LabError(
                f"{backbone} has no map with cells of {finest} to {max(CELLS)} pixels: give another backbone, or "
                "another model.options.finest"
            )
        self.cells, self.taken, widths = map(list, zip(*maps, strict=True))
        self.cells.append(2 * self.cells[-1])
        kept = trunk[: max(self.taken) + 1]
        self.stages = nn.Sequential(OrderedDict((name, network.get_submodule(name)) for name in kept))
        if out := [name for name in trained if name not in kept]:
            raise LabError(f"model.unfreeze={unfreeze} names {out[0]}, which gives no map: give another stage")
        self.frozen = next((i for i, name in enumerate(kept) if name in trained), len(kept))
        for name, stage in self.stages.named_children():
            stage.requires_grad_(name in trained)
        self.fpn = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool())
        self.out_channels = channels

    def _maps(self, finest: int) -> list[tuple[int, int, int]]:
        """Return pixels a side of a cell, stage and channels of the last map of each size, the finest first."""
        shapes = self._shapes(224)
        try:
            smaller = self._shapes(192)
        except LabError:  # a network for one size has no maps but tokens
            smaller = shapes
        pairs = enumerate(zip(shapes, smaller, strict=True))
        last = {224 // shape[2]: (place, shape[1]) for place, (shape, other) in pairs if _is_map(shape, other)}
        return [(cell, *last[cell]) for cell in sorted(last) if finest <= cell <= max(CELLS)]

    @torch.no_grad()
    def _shapes(self, size: int) -> list[tuple[int, ...]]:
        """Return the shape of what each stage makes of an image of this size."""
        self.eval()
        shapes, values = [], torch.zeros(1, 3, size, size)
        for stage in self.stages:
            values = stage(values)
            shapes.append(tuple(values.shape))
        return shapes

    def train(self, mode: bool = True) -> Pyramid:
        super().train(mode)
        self.stages.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps, values = [], images
        for place, stage in enumerate(self.stages):
            with torch.set_grad_enabled(torch.is_grad_enabled() and place >= self.frozen):
                values = stage(values)
            if place in self.taken:
                maps.append(values.float())
        return self.fpn(OrderedDict((str(i), values) for i, values in enumerate(maps)))


def _is_map(shape: Sequence[int], of_smaller: Sequence[int]) -> bool:
    """Tell whether shapes of two image sizes are those of a map [1, C, H, W]: H is smaller for the smaller image."""
    return len(shape) == 4 and shape[2] == shape[3] > 1 and of_smaller[1] == shape[1] and of_smaller[2] < shape[2]
