"""SAM as it is published, with the prompts of ``sam_box``: what training SAM adds is the difference."""

from mvtec_lab.problems.base import VIEWS, Method
from mvtec_lab.problems.segmentation.methods.sam_box import OPTIONS

METHOD = Method(
    "sam_zero",
    "segmentation",
    home="mvtec_lab.problems.segmentation.methods.sam_zero.model:SamZero",
    backbone=False,
    options={**OPTIONS, "views": VIEWS},
    keys=("model.sam_weights",),
)
