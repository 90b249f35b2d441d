"""SAM (Kirillov et al., ICCV 2023) without a prompt: a light decoder's mask is the prompt, and both learn."""

from mvtec_lab.problems.base import VIEWS, Method, Option

METHOD = Method(
    "sam",
    "segmentation",
    home="mvtec_lab.problems.segmentation.methods.sam.model:SamMask",
    backbone=False,
    licence="Meta's SAM and MobileSAM, Apache-2.0",
    options={
        "views": VIEWS,
        "channels": Option(int, "channels of the light decoder", 64, least=8),
        "tokens": Option(int, "learnt prompts that go with every image's mask", 4, least=1),
    },
    keys=("model.sam_weights",),
)
