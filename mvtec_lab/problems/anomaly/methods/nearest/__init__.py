"""Nearest neighbours (Bergman, Cohen & Hoshen, 2020): the mean distance to the nearest good images."""

from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "nearest",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.nearest.detector:Detector",
    trains=False,
    draws=False,
    options={
        "layers": Option(list, "layers of the backbone, by TorchVision's node names: features.6, layer2"),
        "neighbours": Option(int, "good images whose mean distance is the score; null: 5", least=1),
    },
)
