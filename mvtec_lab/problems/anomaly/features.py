"""The base of the anomaly models that read feature maps of a frozen pretrained backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mvtec_lab.errors import LabError
from mvtec_lab.models.maps import FeatureMaps
from mvtec_lab.problems.anomaly.base import AnomalyModel

# Pixels a side of a map's cell. The first two are the middle layers of PatchCore and SPADE, where a cell sees a part of
# an object, not its class; the last maps, which are pooled, are what a classifier sees.
CELLS, POOLED = (8, 16), (32,)


class BackboneModel(AnomalyModel):
    """Read maps of a frozen pretrained backbone, ``features``; which layers, ``model.options.layers`` says.

    A subclass may set ``cells``, whose layers are read by default. Its options include ``layers``.
    """

    cells: ClassVar[Sequence[int]] = CELLS

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        h = self.hparams
        self.features = FeatureMaps(h["backbone"], h["weights"], self.options["layers"], self.cells)
        self.use_weights(self.features.weights)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor | None:
        return torch.cat([layer.mean((2, 3)) for layer in self.features(images)], 1)

    def dimensions(self, spare: int = 0) -> int | None:
        """Return ``model.options.dimensions``; raise LabError if it leaves fewer than ``spare`` of the channels."""
        dimensions, channels = self.options["dimensions"], sum(self.features.channels)
        if dimensions is not None and dimensions > channels - spare:
            key = f"model.options.dimensions={dimensions}"
            raise LabError(f"{key} is out of range: these layers have {channels} channels")
        return dimensions
