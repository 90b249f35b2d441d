"""Rotation prediction: a classifier of quarter turns is uncertain about images that are unlike good ones."""

from mvtec_lab.problems.base import Method

METHOD = Method(
    "rotation",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.rotation.model:RotationPrediction",
)
