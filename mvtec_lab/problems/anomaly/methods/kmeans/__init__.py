"""k-means: the distance to the nearest centre of good images."""

from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "kmeans",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.kmeans.detector:Detector",
    trains=False,
    options={
        "layers": Option(list, "layers of the backbone, by TorchVision's node names: features.6, layer2"),
        "clusters": Option(int, "number of centres; null: 5", least=1),
    },
)
