"""The base of the methods that decode the feature maps of a backbone, frozen or unfrozen by stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mvtec_lab.models.maps import FeatureMaps
from mvtec_lab.problems.segmentation.base import Flat, SegmentationModel

RARE = -2.0  # the logits' bias: they begin where few pixels are defective, or the first steps learn just that


def begin_rare(decoder: nn.Module) -> nn.Module:
    """Return a decoder whose output convolutions, those of one channel, begin at the bias ``RARE``."""
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels == 1 and layer.bias is not None:
            nn.init.constant_(layer.bias, RARE)
    return decoder


class DecoderModel(SegmentationModel):
    """Decode maps of a backbone, ``backbone``; which layers, ``model.options.layers`` says.

    A subclass sets ``cells``, pixels a side of the cells of the maps that are read by default, and defines
    ``build_decoder``. A frozen backbone is ``frozen``, so that its maps are kept. With ``unfreeze`` some of its stages
    train, and the whole backbone runs in every step.
    """

    cells: ClassVar[Sequence[int]] = (4, 8, 16, 32)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        h = self.hparams
        features = FeatureMaps(h["backbone"], h["weights"], self.options["layers"], self.cells, h["unfreeze"])
        self.use_weights(features.weights)
        self.features = Flat(features, h["image_size"])
        self.decoder = begin_rare(self.build_decoder(features.channels)).to(memory_format=torch.channels_last)

    @property
    def frozen(self) -> nn.Module | None:
        return None if self.hparams["unfreeze"] not in (0, []) else self.features

    def build_decoder(self, channels: Sequence[int]) -> nn.Module:
        """Return a network of the maps, finest first, with these channels, to logits [N, 1, h, w]."""
        raise NotImplementedError

    def decode(self, features: Tensor) -> Tensor:
        rows = features if self.frozen is not None else self.features(features)
        return self.decoder(self.features.maps(rows))[:, 0]
