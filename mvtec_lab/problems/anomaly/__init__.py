"""Anomaly models learn good images alone; each method is a folder under methods/, with its figures in a README."""

from mvtec_lab.problems.base import Option

LAYERS = Option(list, "layers of the backbone, by TorchVision's node names: features.6, layer2; null: the method's")

GOOD, DEFECT = CLASSES = ("good", "defect")  # an image above the threshold is a defect; its type stands beside it
