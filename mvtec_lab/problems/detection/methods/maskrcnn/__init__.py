"""Mask R-CNN, He et al., ICCV 2017: Faster R-CNN that draws a mask into each of its boxes."""

from mvtec_lab.problems.detection import torchvision_method

METHOD = torchvision_method("maskrcnn", "MaskRcnn")
