"""DRAEM (Zavrtanik et al., ICCV 2021): one network restores corrupted images, another one finds what was corrupted."""

from mvtec_lab.problems.anomaly import SCORE
from mvtec_lab.problems.base import Method

METHOD = Method(
    "draem",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.draem.model:Draem",
    backbone=False,
    options={"score": SCORE},
)
