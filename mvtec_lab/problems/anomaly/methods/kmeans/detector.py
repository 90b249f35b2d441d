"""k-means over pooled features: the distance to the nearest centre."""

from __future__ import annotations

from collections.abc import Sequence

from mvtec_lab.problems.anomaly.base import setting
from mvtec_lab.problems.anomaly.features import FeatureMaps
from mvtec_lab.problems.anomaly.frozen import POOLED, FrozenDetector
from mvtec_lab.problems.anomaly.methods.kmeans.model import KMeans

CLUSTERS = 5  # of the 60 to 400 good images of MVTec's categories, a dozen or more for each centre


class Detector(FrozenDetector):
    """Args: clusters: how many centres, drawn anew with torch's generator."""

    def __init__(
        self,
        backbone: str,
        weights: str | None = "DEFAULT",
        layers: Sequence[str] | None = None,
        clusters: int | None = None,
    ) -> None:
        count = setting("clusters", clusters, CLUSTERS)
        features = FeatureMaps(backbone, weights, layers, cells=POOLED)
        super().__init__(features, KMeans(sum(features.channels), count))
        self.save_hyperparameters()
