"""TorchVision's RetinaNet over the pyramid of a backbone."""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from mvtec_lab.problems.detection.base import LEAST, MOST, AsGiven, DetectionModel
from mvtec_lab.problems.detection.methods.retinanet import METHOD
from mvtec_lab.problems.detection.pyramid import Pyramid


class Retina(DetectionModel):
    """Find boxes by anchors, in one stage."""

    method = METHOD

    def build(self, pyramid: Pyramid, classes: int) -> nn.Module:
        # The paper's: anchors of four cells, at three sizes of an octave.
        sizes = tuple(tuple(int(4 * cell * 2 ** (i / 3)) for i in range(3)) for cell in pyramid.cells)
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        # With GroupNorm, as TorchVision's second version: without it mAP50 on a fold's validation images was
        # 0.15 after ten epochs, with it 0.68.
        head = RetinaNetHead(
            pyramid.out_channels, anchors.num_anchors_per_location()[0], classes, partial(nn.GroupNorm, 32)
        )
        network = RetinaNet(
            pyramid, classes, anchor_generator=anchors, head=head, score_thresh=LEAST, detections_per_img=MOST
        )
        network.transform = AsGiven(self.hparams["image_size"])
        return network
