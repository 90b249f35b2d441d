"""TorchVision's FCN head over the chosen backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models.segmentation.fcn import FCNHead

from mvtec_lab.problems.segmentation.decoders import DecoderModel, OfFinest
from mvtec_lab.problems.segmentation.methods.fcn import METHOD


class Fcn(DecoderModel):
    """Decode the map of stride 16: finer ones know too little, and an undilated backbone's last has stride 32."""

    method = METHOD
    cells = (16,)

    def build_decoder(self, channels: Sequence[int], outputs: int) -> nn.Module:
        return OfFinest(FCNHead(channels[0], outputs))
