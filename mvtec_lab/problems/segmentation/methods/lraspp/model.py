"""TorchVision's LR-ASPP head over the chosen backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.segmentation.lraspp import LRASPPHead

from mvtec_lab.problems.segmentation.decoders import DecoderModel, begin_rare
from mvtec_lab.problems.segmentation.methods.lraspp import METHOD

WIDTH = 128  # channels between the maps and the logits, TorchVision's


class Head(nn.Module):
    """Give logits [N, outputs, H, W] of a fine map and a coarse one."""

    def __init__(self, channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.head = LRASPPHead(channels[0], channels[-1], outputs, WIDTH)
        begin_rare(self.head.low_classifier, self.head.high_classifier)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.head({"low": maps[0], "high": maps[-1]})


class Lraspp(DecoderModel):
    """Decode the maps of strides 8 and 16, as the paper does."""

    method = METHOD
    cells = (8, 16)

    def build_decoder(self, channels: Sequence[int], outputs: int) -> nn.Module:
        return Head(channels, outputs)
