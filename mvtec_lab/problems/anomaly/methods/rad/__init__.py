"""RAD (Zhang et al., 2026), with its memory in place: a cell is compared with what good images show there."""

from mvtec_lab.problems.anomaly import SCORE
from mvtec_lab.problems.base import LAYERS, Method, Option

METHOD = Method(
    "rad",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.rad.model:Rad",
    trains=False,
    draws=False,
    options={
        "score": SCORE,
        "layers": LAYERS,
        # The official code's. Farther than some cells, a place means little: patchcore is for that.
        "radius": Option(int, "cells, in each direction, within which patches are compared", 1, least=0, most=10),
        "patches": Option(int, "good patches that are kept at each place", default=50, least=1, most=100_000),
    },
)
