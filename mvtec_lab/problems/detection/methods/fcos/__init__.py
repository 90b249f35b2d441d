"""FCOS, Tian et al., ICCV 2019: every cell of a map says how far the sides of its box are."""

from mvtec_lab.problems.detection import torchvision_method

METHOD = torchvision_method("fcos", "Fcos")
