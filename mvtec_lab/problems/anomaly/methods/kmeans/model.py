"""k-means over globally pooled features. See README.md."""

from __future__ import annotations

import torch
from sklearn.cluster import KMeans as ScikitKMeans
from torch import Tensor

from mvtec_lab.problems.anomaly.features import POOLED
from mvtec_lab.problems.anomaly.frozen import FrozenFeatureModel, PooledModel
from mvtec_lab.problems.anomaly.methods.kmeans import METHOD
from mvtec_lab.problems.memory import nearest

STARTS = 10  # the best of these is kept: a single one often ends in a poor local optimum


class CentreDistance(PooledModel):
    """Measure the distance [N] of features [N, D] from the nearest centre of good images.

    Args:
        features: D.
        clusters: number of centres; equal images share one.
    """

    centres: Tensor

    def __init__(self, features: int, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters
        self.required[f"model.options.clusters={clusters}"] = clusters
        self.register_buffer("centres", torch.zeros(0, features))

    def learn(self, features: Tensor) -> None:
        clusters = min(self.clusters, len(features.unique(dim=0)))
        seed = int(torch.randint(2**31, ()))
        fitted = ScikitKMeans(clusters, n_init=STARTS, random_state=seed).fit(features.cpu().numpy())  # once, and small
        self.centres = torch.from_numpy(fitted.cluster_centers_).to(features)

    def score(self, features: Tensor) -> Tensor:
        return nearest(features, self.centres)[0][:, 0]


class KMeans(FrozenFeatureModel):
    """Score an image by its distance from the nearest centre, drawn from torch's generator."""

    method, cells = METHOD, POOLED

    def build_model(self) -> CentreDistance:
        return CentreDistance(sum(self.features.channels), self.options["clusters"])
