"""A feature pyramid over any backbone: the last map of each resolution, joined from coarse to fine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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

    Batch normalisation stays in eval mode: a few images a batch have no statistics. The stages before the first that
    trains are ``leading``: what they make of an image never changes.

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
        self.leading = Leading(self.stages[: self.frozen], [i for i in self.taken if i < self.frozen])
        self._given: list[Tensor] | None = None
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

    @contextmanager
    def given(self, maps: Sequence[Tensor]) -> Iterator[None]:
        """Take these maps for what ``leading`` makes of the next images, whatever they show."""
        self._given = list(maps)
        try:
            yield
        finally:
            self._given = None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        *maps, values = self.leading.of_each(images) if self._given is None else self._given
        if self.frozen - 1 in self.taken:
            maps.append(values.float())
        for place in range(self.frozen, len(self.stages)):
            values = self.stages[place](values)
            if place in self.taken:
                maps.append(values.float())
        return self.fpn(OrderedDict((str(i), values) for i, values in enumerate(maps)))


class Leading(nn.Module):
    """Run the leading stages of a backbone, which do not train.

    Args:
        stages: in order; none at all: images are given back.
        taken: the places of those whose maps are read.
    """

    def __init__(self, stages: nn.Sequential, taken: Sequence[int]) -> None:
        super().__init__()
        self.stages, self.taken = stages, taken

    def extra_repr(self) -> str:
        return f"taken={list(self.taken)}"  # which a cache's key has to tell apart: the stages are the same

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps [N, C, H, W] that are read, the finest first, and what the last stage makes of images."""
        maps, values = [], images
        for place, stage in enumerate(self.stages):
            values = stage(values)
            if place in self.taken:
                maps.append(values.float())
        return maps if len(self.stages) - 1 in self.taken else [*maps, values.float()]

    def of_each(self, images: Tensor) -> list[Tensor]:
        """Return the same, of each image alone and in single precision, as ``models.maps.of_each`` does."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            each = (self(image.contiguous(memory_format=torch.channels_last)) for image in images.split(1))
            return [torch.cat(maps) for maps in zip(*each, strict=True)]


def _is_map(shape: Sequence[int], of_smaller: Sequence[int]) -> bool:
    """Tell whether shapes of two image sizes are those of a map [1, C, H, W]: H is smaller for the smaller image."""
    return len(shape) == 4 and shape[2] == shape[3] > 1 and of_smaller[1] == shape[1] and of_smaller[2] < shape[2]
