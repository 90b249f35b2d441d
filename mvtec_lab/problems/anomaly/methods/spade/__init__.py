"""SPADE (Cohen & Hoshen, 2020): the cells of an image are compared with those of the most similar good images."""

from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "spade",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.spade.detector:Detector",
    trains=False,
    draws=False,
    options={
        "layers": Option(list, "layers of the backbone, by TorchVision's node names: features.6, layer2"),
        "neighbours": Option(
            int, "good images that an image is compared with; null: 50; 5 score ten times faster", least=1
        ),
    },
)
