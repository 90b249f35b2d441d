"""Anomaly models learn good images alone; each method is a folder under methods/, with its figures in a README."""

from collections.abc import Mapping

from mvtec_lab.problems.base import Option

LAYERS = Option(list, "layers of the backbone, by TorchVision's node names: features.6, layer2; null: the method's")

GOOD, DEFECT = CLASSES = ("good", "defect")  # an image above the threshold is a defect; its type stands beside it


def two_classes(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Return the numbers of images of each split as good and defect, from those by class."""
    return {
        split: {GOOD: by_class.get(GOOD, 0), DEFECT: sum(n for name, n in by_class.items() if name != GOOD)}
        for split, by_class in counts.items()
    }
