"""TorchVision's Faster R-CNN over the pyramid of a backbone."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection import FasterRCNN

from mvtec_lab.problems.detection.base import AsGiven, DetectionModel
from mvtec_lab.problems.detection.methods.fasterrcnn import METHOD
from mvtec_lab.problems.detection.pyramid import Pyramid
from mvtec_lab.problems.detection.regions import region_settings


class FasterRcnn(DetectionModel):
    """Find boxes by anchors, in two stages."""

    method = METHOD
    monitor = "val/map"  # the loss is lowest while few regions are proposed: they make up what the second stage learns

    def build(self, pyramid: Pyramid, classes: int) -> nn.Module:
        network = FasterRCNN(pyramid, **region_settings(pyramid, classes))
        network.transform = AsGiven(self.hparams["image_size"])
        return network
