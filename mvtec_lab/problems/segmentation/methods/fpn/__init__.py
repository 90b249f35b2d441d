"""FPN (Lin et al., CVPR 2017) as a light decoder: maps of four resolutions are added, coarse to fine."""

from mvtec_lab.problems.base import LAYERS, VIEWS, Method, Option
from mvtec_lab.problems.segmentation import TYPES

METHOD = Method(
    "fpn",
    "segmentation",
    home="mvtec_lab.problems.segmentation.methods.fpn.model:Fpn",
    options={
        "layers": LAYERS,
        "views": VIEWS,
        "types": TYPES,
        "channels": Option(int, "channels of the decoder", 64, least=8),
    },
)
