"""LR-ASPP (Howard et al., ICCV 2019): TorchVision's head of MobileNetV3, on two maps."""

from mvtec_lab.problems.base import LAYERS, VIEWS, Method
from mvtec_lab.problems.segmentation import TYPES

METHOD = Method(
    "lraspp",
    "segmentation",
    home="mvtec_lab.problems.segmentation.methods.lraspp.model:Lraspp",
    options={"layers": LAYERS, "views": VIEWS, "types": TYPES},
)
