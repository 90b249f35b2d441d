"""The network that task=export writes of a detector, and what infer.py does with its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mvtec_lab.engine.infer import place, verdict
from mvtec_lab.models.views import view
from mvtec_lab.problems.detection.base import DetectionModel
from mvtec_lab.problems.detection.judging import CUT
from mvtec_lab.problems.detection.views import kept_inside
from mvtec_lab.problems.padding import inside_of


class FoundBoxes(nn.Module):
    """Return boxes [K, 4], labels [K], scores [K] and, where it draws them, masks [K, 1, S, S] of a detector."""

    outputs = ("boxes", "labels", "scores", "masks")
    single = True

    def __init__(self, module: DetectionModel) -> None:
        super().__init__()
        self.module = module
        self.infer = (decide, draw)
        squeezed = "x times its width / image_size, y times its height / image_size"
        original = "as place says" if module.hparams["padded"] else squeezed
        self.about = {
            "use": "an image with a score above threshold is a defect. boxes: x0, y0, x1, y1 in pixels of the square "
            f"image; in the original's, {original}. labels: places in classes, from 1; 0 is good, which has no box. "
            f"masks, where there are any: above {CUT} in a box's object"
        }

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        numbers = range(self.module.views)
        found = [self.module.fused(torch.cat([view(i, number) for number in numbers])) for i in images.split(1)]
        part = inside_of({"image": images}, self.module.hparams["padded"])
        found = found if part is None else [kept_inside(each, p) for each, p in zip(found, part, strict=True)]
        return tuple(torch.cat([each[name] for each in found]) for name in self.outputs if name in found[0])


def decide(outputs: dict[str, np.ndarray], about: dict[str, Any]) -> tuple[str, str, float, None]:
    """Return decision, class and score of an image: those of its best box."""
    scores, labels = outputs["scores"], outputs["labels"]
    score = float(scores.max()) if len(scores) else 0.0
    name = about["classes"][int(labels[scores.argmax()])] if score > about["threshold"] else "good"
    return verdict(score, about), name, score, None


def draw(image: np.ndarray, outputs: dict[str, np.ndarray], about: dict[str, Any]) -> Image.Image:
    """Return the image with its boxes above the threshold."""
    from PIL import ImageDraw  # here, as this function goes into infer.py without the imports above

    (height, width), drawn = image.shape[:2], Image.fromarray(image)
    top, left, h, w = place(height, width, about["image_size"], about["fit"])
    for box in outputs["boxes"][outputs["scores"] > about["threshold"]]:
        corners = (box - [left, top, left, top]) * [width / w, height / h, width / w, height / h]
        ImageDraw.Draw(drawn).rectangle(corners.tolist(), outline=(255, 0, 0), width=max(2, max(drawn.size) // 300))
    return drawn
