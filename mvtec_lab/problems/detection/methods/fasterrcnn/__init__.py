"""Faster R-CNN, Ren et al., NeurIPS 2015: regions are proposed, then cut out of the maps and classified."""

from mvtec_lab.problems.detection import torchvision_method

METHOD = torchvision_method("fasterrcnn", "FasterRcnn")
