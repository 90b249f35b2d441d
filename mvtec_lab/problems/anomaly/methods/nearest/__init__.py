"""Nearest neighbours (Bergman, Cohen & Hoshen, 2020): the mean distance to the nearest good images."""

from mvtec_lab.problems.base import LAYERS, Method, Option

METHOD = Method(
    "nearest",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.nearest.model:Nearest",
    trains=False,
    draws=False,
    options={
        "layers": LAYERS,
        # A single nearest image may be an odd one itself.
        "neighbours": Option(int, "good images whose mean distance is the score", default=5, least=1),
    },
)
