"""The parts that the two-stage detectors share."""

from __future__ import annotations

from typing import Any

from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from mvtec_lab.problems.detection.base import LEAST, MOST
from mvtec_lab.problems.detection.pyramid import Pyramid

HIDDEN = 256  # a quarter of TorchVision's, which is made for COCO's 80 classes: half of the time of a step
TILES = 7  # a side of the piece that is cut out of a map for each region: TorchVision's


def region_settings(pyramid: Pyramid, classes: int) -> dict[str, Any]:
    """Return the arguments of TorchVision's Faster R-CNN and Mask R-CNN over a pyramid."""
    maps = [str(i) for i in range(len(pyramid.cells) - 1)]  # all but the pooled one, which only proposes
    sizes = tuple((4 * cell,) for cell in pyramid.cells)  # of one anchor, as on COCO: 32 pixels where cells have 8
    return {
        "rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        "box_roi_pool": MultiScaleRoIAlign(maps, TILES, sampling_ratio=2),
        "box_head": TwoMLPHead(pyramid.out_channels * TILES**2, HIDDEN),
        "box_predictor": FastRCNNPredictor(HIDDEN, classes),
        "box_score_thresh": LEAST,
        "box_detections_per_img": MOST,
        # An image of 256 pixels has a few thousand anchors, a twentieth of COCO's: more regions say nothing new.
        "rpn_pre_nms_top_n_train": 500,
        "rpn_pre_nms_top_n_test": 500,
        "rpn_post_nms_top_n_train": 200,
        "rpn_post_nms_top_n_test": 200,
        "box_batch_size_per_image": 64,
    }
