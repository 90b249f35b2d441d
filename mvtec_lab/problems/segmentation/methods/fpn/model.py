"""A light feature pyramid decoder: about 170,000 parameters on MobileNetV2's maps, which train in a minute."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.problems.segmentation.decoders import DecoderModel, begin_rare
from mvtec_lab.problems.segmentation.methods.fpn import METHOD

GROUPS = 8  # of GroupNorm, which does not care for the size of a batch


class Pyramid(nn.Module):
    """Add maps, coarse to fine, and give logits [N, outputs, H, W] at the finest one's resolution.

    Args:
        channels: of the maps [N, C, H, W], in any order.
        width: of the decoder.
        outputs: channels of the logits.
    """

    def __init__(self, channels: Sequence[int], width: int, outputs: int = 1) -> None:
        super().__init__()
        self.sides = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(_block(width, width) for _ in channels[1:])
        # Half as wide: at the finest resolution a layer costs as much as all the coarser ones together.
        self.output = nn.Sequential(_block(width, width // 2), nn.Conv2d(width // 2, outputs, 1))
        begin_rare(self.output[-1])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, coarse = (side(each) for side, each in zip(self.sides, maps, strict=True))
        for smooth, fine in zip(self.smooth, reversed(finer), strict=True):
            coarse = fine + F.interpolate(smooth(coarse), fine.shape[-2:], mode="bilinear")
        return self.output(coarse)


def _block(before: int, after: int) -> nn.Sequential:
    groups = GROUPS if after % GROUPS == 0 else 1
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.GroupNorm(groups, after), nn.ReLU())


class Fpn(DecoderModel):
    """Decode the maps of strides 4 to 32 to logits of stride 4."""

    method = METHOD

    def build_decoder(self, channels: Sequence[int], outputs: int) -> nn.Module:
        return Pyramid(channels, self.options["channels"], outputs)
