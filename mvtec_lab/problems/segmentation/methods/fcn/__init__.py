"""FCN (Long et al., CVPR 2015): TorchVision's head, two convolutions on one map."""

from mvtec_lab.problems.base import LAYERS, VIEWS, Method
from mvtec_lab.problems.segmentation import TYPES

METHOD = Method(
    "fcn",
    "segmentation",
    home="mvtec_lab.problems.segmentation.methods.fcn.model:Fcn",
    options={"layers": LAYERS, "views": VIEWS, "types": TYPES},
)
