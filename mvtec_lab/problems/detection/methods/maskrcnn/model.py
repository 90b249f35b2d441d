"""TorchVision's Mask R-CNN over the pyramid of a backbone."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from mvtec_lab.problems.detection.base import AsGiven, DetectionModel
from mvtec_lab.problems.detection.methods.maskrcnn import METHOD
from mvtec_lab.problems.detection.pyramid import Pyramid
from mvtec_lab.problems.detection.regions import region_settings


class MaskRcnn(DetectionModel):
    """Find boxes by anchors, in two stages, and the mask of the defect in each."""

    method = METHOD
    monitor = "val/map"  # the loss is lowest while few regions are proposed: they make up what the second stage learns
    draws_masks = True

    def build(self, pyramid: Pyramid, classes: int) -> nn.Module:
        settings = region_settings(pyramid, classes)
        maps, width = settings["box_roi_pool"].featmap_names, pyramid.out_channels
        network = MaskRCNN(
            pyramid,
            mask_roi_pool=MultiScaleRoIAlign(
                maps, 14, sampling_ratio=2
            ),  # 14 cells a side, and masks of 28: the paper's
            mask_head=MaskRCNNHeads(width, (width, width), 1),  # two convolutions of the paper's four: a few defects
            mask_predictor=MaskRCNNPredictor(width, width, classes),
            **settings,
        )
        network.transform = AsGiven(self.hparams["image_size"])
        return network
