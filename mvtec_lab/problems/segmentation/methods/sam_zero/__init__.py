"""SAM as it is published, with the prompts of ``sam_box``: what training adds is the difference."""

from mvtec_lab.problems.base import Method
from mvtec_lab.problems.segmentation.methods.sam_box import OPTIONS

METHOD = Method(
    "sam_zero",
    "segmentation",
    home="mvtec_lab.problems.segmentation.methods.sam_zero.model:SamZero",
    trains=False,
    draws=False,
    backbone=False,
    options={name: option for name, option in OPTIONS.items() if name != "channels"},
    keys=("model.sam_weights",),
)
