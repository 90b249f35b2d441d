"""Nearest neighbours over pooled features (Bergman, Cohen & Hoshen, 2020)."""

from __future__ import annotations

from collections.abc import Sequence

from mvtec_lab.problems.anomaly.base import setting
from mvtec_lab.problems.anomaly.features import FeatureMaps
from mvtec_lab.problems.anomaly.frozen import POOLED, FrozenDetector
from mvtec_lab.problems.anomaly.methods.nearest.model import Nearest

NEIGHBOURS = 5  # one alone may be an odd image itself


class Detector(FrozenDetector):
    """Args: neighbours: good images whose mean distance is the score."""

    draws = False

    def __init__(
        self,
        backbone: str,
        weights: str | None = "DEFAULT",
        layers: Sequence[str] | None = None,
        neighbours: int | None = None,
    ) -> None:
        count = setting("neighbours", neighbours, NEIGHBOURS)
        features = FeatureMaps(backbone, weights, layers, cells=POOLED)
        super().__init__(features, Nearest(sum(features.channels), count))
        self.save_hyperparameters()
