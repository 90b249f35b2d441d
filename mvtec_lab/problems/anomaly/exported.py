"""The network that task=export writes of an anomaly model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from mvtec_lab.problems.anomaly.base import AnomalyModel


class ScoreAndMap(nn.Module):
    """Return the score [N] of normalised images and, where the method localises, their map [N, h, w]."""

    outputs = ("score", "map")
    about: ClassVar[Mapping[str, str]] = {
        "use": "an image with a score above threshold is a defect; map, where there is one, covers the image: resized "
        "to it bilinearly (cv2.INTER_LINEAR), it is above map_threshold where the image is unusual"
    }

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        score, score_map = self.model.scores(images)
        return (score,) if score_map is None else (score, score_map)
