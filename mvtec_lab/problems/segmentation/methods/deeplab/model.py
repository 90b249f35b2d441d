"""TorchVision's DeepLabV3 head over the chosen backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from mvtec_lab.problems.segmentation.decoders import DecoderModel, OfFinest
from mvtec_lab.problems.segmentation.methods.deeplab import METHOD


class DeepLab(DecoderModel):
    """Decode the map of stride 16, the paper's output stride."""

    method = METHOD
    cells = (16,)

    def build_decoder(self, channels: Sequence[int], outputs: int) -> nn.Module:
        return OfFinest(DeepLabHead(channels[0], outputs))
