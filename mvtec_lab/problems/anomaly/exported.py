"""The network that task=export writes of an anomaly model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from mvtec_lab.engine.infer import draw_map, verdict
from mvtec_lab.problems.anomaly.base import AnomalyModel


class ScoreAndMap(nn.Module):
    """Return the score [N] of normalised images and, where the method localises, their map [N, h, w]."""

    outputs = ("score", "map")
    about: ClassVar[Mapping[str, str]] = {
        "use": "an image with a score above threshold is a defect; map, where there is one, covers the image: resized "
        "to it bilinearly (cv2.INTER_LINEAR), it is above map_threshold where the image is unusual"
    }

    def __init__(self, model: AnomalyModel, localises: bool) -> None:
        super().__init__()
        self.model = model
        self.infer = (decide, draw_map if localises else None)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        score, score_map = self.model.scores(images)
        return (score,) if score_map is None else (score, score_map)


def decide(outputs: dict[str, np.ndarray], about: dict[str, Any]) -> tuple[str, str, float, None]:
    """Return decision, class and score of an image."""
    score = float(outputs["score"][0])
    return verdict(score, about), about["classes"][score > about["threshold"]], score, None
