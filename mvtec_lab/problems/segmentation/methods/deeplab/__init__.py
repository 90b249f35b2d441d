"""DeepLabV3 (Chen et al., 2017): TorchVision's head, which looks at one map with several dilations."""

from mvtec_lab.problems.base import LAYERS, VIEWS, Method
from mvtec_lab.problems.segmentation import TYPES

METHOD = Method(
    "deeplab",
    "segmentation",
    home="mvtec_lab.problems.segmentation.methods.deeplab.model:DeepLab",
    options={"layers": LAYERS, "views": VIEWS, "types": TYPES},
)
