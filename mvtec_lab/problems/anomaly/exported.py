"""The network that task=export writes of an anomaly model."""

from __future__ import annotations

from torch import Tensor, nn

from mvtec_lab.problems.anomaly.base import AnomalyModel


class ScoreAndMap(nn.Module):
    """Return the score [N] of normalised images and, where the method localises, their map [N, h, w]."""

    outputs = ("score", "map")

    def __init__(self, model: AnomalyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        score, score_map = self.model(images)
        return (score,) if score_map is None else (score, score_map)
