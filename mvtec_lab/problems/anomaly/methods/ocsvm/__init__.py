"""A one-class SVM (Schölkopf et al., 2001) on pooled features."""

from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "ocsvm",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.ocsvm.detector:Detector",
    trains=False,
    draws=False,
    options={
        "layers": Option(list, "layers of the backbone, by TorchVision's node names: features.6, layer2"),
        "dimensions": Option(int, "principal components of the features; null: the features as they are", least=1),
    },
)
