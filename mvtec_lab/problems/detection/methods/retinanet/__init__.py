"""RetinaNet, Lin et al., ICCV 2017: anchors of three sizes and shapes in every cell, with the focal loss."""

from mvtec_lab.problems.detection import torchvision_method

METHOD = torchvision_method("retinanet", "Retina")
