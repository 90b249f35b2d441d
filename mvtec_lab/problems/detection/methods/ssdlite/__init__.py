"""SSDLite, Sandler et al., CVPR 2018: anchors on every map, with separable convolutions."""

from mvtec_lab.problems.detection import torchvision_method

METHOD = torchvision_method("ssdlite", "SsdLite")
