"""SAM (Kirillov et al., ICCV 2023) with boxes as prompts: its mask decoder is fine-tuned."""

from __future__ import annotations

from mvtec_lab.config import Config
from mvtec_lab.problems.base import VIEWS, Method, Option


def idle(config: Config) -> dict[str, str]:
    """Return the options that have no effect beside the others, each with the reason."""
    options, reasons = config.model.options, {}
    if options.get("prompts") is not None:
        reasons["model.options.channels"] = "prompts= says where to look, no light decoder"
    if options.get("prompt") == "point":
        reasons["model.options.jitter"] = "it moves the corners of boxes, and prompt=point has none"
    return reasons


OPTIONS = {
    "channels": Option(int, "channels of the light decoder that finds the boxes without prompts=", 64, least=8),
    "prompt": Option(str, "what of a component SAM is told", "box", choices=("box", "point")),
    "prompts": Option(
        str, "best.ckpt of a detector or a one-class run: it says where to look; null: a light decoder", file=True
    ),
}
METHOD = Method(
    "sam_box",
    "segmentation",
    home="mvtec_lab.problems.segmentation.methods.sam_box.model:SamBox",
    backbone=False,
    licence="Meta's SAM and MobileSAM, Apache-2.0",
    options={
        **OPTIONS,
        "views": VIEWS,
        # what finds boxes is not exact, and a cell of its mask is 4 pixels; a tenth of a side was not tuned
        "jitter": Option(float, "share of a box's side by which training moves its corners", 0.1, least=0, most=1),
    },
    keys=("model.sam_weights",),
    idle=idle,
)
