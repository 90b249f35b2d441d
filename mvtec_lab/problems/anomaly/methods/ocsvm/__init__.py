"""A one-class SVM (Schölkopf et al., 2001) on pooled features."""

from mvtec_lab.problems.base import LAYERS, Method, Option

METHOD = Method(
    "ocsvm",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.ocsvm.model:OneClassSvm",
    trains=False,
    draws=False,
    options={
        "layers": LAYERS,
        "dimensions": Option(int, "principal components of the features; null: the features as they are", least=1),
    },
)
