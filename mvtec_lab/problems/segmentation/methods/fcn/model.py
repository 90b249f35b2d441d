"""TorchVision's FCN head over the chosen backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from mvtec_lab.problems.segmentation.decoders import DecoderModel
from mvtec_lab.problems.segmentation.methods.fcn import METHOD


class Head(nn.Module):
    """Give logits [N, outputs, H, W] of the finest map that is read."""

    def __init__(self, channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.head = FCNHead(channels[0], outputs)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.head(maps[0])


class Fcn(DecoderModel):
    """Decode the map of stride 16: finer ones know too little, and an undilated backbone's last has stride 32."""

    method = METHOD
    cells = (16,)

    def build_decoder(self, channels: Sequence[int], outputs: int) -> nn.Module:
        return Head(channels, outputs)
