"""TorchVision's SSDLite over the pyramid of a backbone."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead

from mvtec_lab.problems.detection.base import LEAST, MOST, AsGiven, DetectionModel
from mvtec_lab.problems.detection.methods.ssdlite import METHOD
from mvtec_lab.problems.detection.pyramid import Pyramid


class SsdLite(DetectionModel):
    """Find boxes by anchors, in one stage and with the fewest operations."""

    method = METHOD

    def build(self, pyramid: Pyramid, classes: int) -> nn.Module:
        levels, size = len(pyramid.cells), self.hparams["image_size"]
        # Sides of the boxes as shares of the image: 4 cells each, as RetinaNet has them, and the whole image last.
        scales = [min(1.0, 4 * cell / size) for cell in pyramid.cells] + [1.0]
        anchors = DefaultBoxGenerator([[2] for _ in range(levels)], scales=scales, steps=pyramid.cells)
        # GroupNorm: batch normalisation of a few images would judge them by one another.
        head = SSDLiteHead(
            [pyramid.out_channels] * levels, anchors.num_anchors_per_location(), classes, lambda c: nn.GroupNorm(8, c)
        )
        network = SSD(pyramid, anchors, (size, size), classes, head=head, score_thresh=LEAST, detections_per_img=MOST)
        network.transform = AsGiven(size)
        return network
