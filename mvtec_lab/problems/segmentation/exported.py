"""The network that task=export writes of a segmentation model, and what infer.py does with its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from mvtec_lab.engine.infer import draw_map, verdict
from mvtec_lab.evaluation.segmentation import peak
from mvtec_lab.models.views import view
from mvtec_lab.problems.padding import inside_of, within
from mvtec_lab.problems.segmentation.base import SegmentationModel

# How to use an exported file's outputs, for its metadata.
USE = (
    "an image with a score above threshold is a defect; its mask is where map, resized to the image bilinearly "
    "(cv2.INTER_LINEAR), is above map_threshold; that of an image without a defect is empty"
)
USE_TYPES = "The output types holds the probabilities of the names in types, if there is a defect"


class DefectMap(nn.Module):
    """Return the score [N] of normalised images, as ``image_score``, and the probability of a defect in each cell of
    the map that covers each of them, [N, h, w].

    Where the model names types, their probabilities [N, K] as well: they are those of a defect, if there is one.
    """

    outputs = ("score", "map", "types")

    def __init__(self, module: SegmentationModel) -> None:
        super().__init__()
        self.module = module
        self.infer = (decide, draw)
        self.about: dict[str, Any] = {"use": USE}
        if module.type_model is not None:
            self.about = {"use": f"{USE}. {USE_TYPES}", "types": module.kinds}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        module = self.module
        maps, types = module.judged({"image": view(images, number)} for number in range(module.views))
        maps = within(maps, inside_of({"image": images}, module.hparams["padded"]))
        scores = maps.flatten(1).topk(peak(maps[0].numel()), dim=1).values.mean(1)
        return (scores, maps) if module.type_model is None else (scores, maps, types)


def decide(outputs: dict[str, np.ndarray], about: dict[str, Any]) -> tuple[str, str, float, None]:
    """Return decision, class and score of an image; of a defect, its type where the model names one."""
    score = float(outputs["score"][0])
    name = about["classes"][score > about["threshold"]]
    if "types" in outputs and score > about["threshold"]:
        name = about["types"][int(outputs["types"][0].argmax())]
    return verdict(score, about), name, score, None


def draw(image: np.ndarray, outputs: dict[str, np.ndarray], about: dict[str, Any]) -> Image.Image:
    """Return the image, red where the mask of a defect is."""
    if outputs["score"][0] <= about["threshold"]:
        outputs = {**outputs, "map": np.zeros(image.shape[:2])}
    return draw_map(image, outputs, about)
