"""k-means over globally pooled features. See README.md."""

from __future__ import annotations

import torch
from sklearn.cluster import KMeans as ScikitKMeans
from torch import Tensor

from mvtec_lab.problems.anomaly.frozen import PooledModel, nearest, require_images

STARTS = 10  # the best of so many: one alone often ends in a poor local optimum


class KMeans(PooledModel):
    """Args: features: D; clusters: how many, or as many as there are different images."""

    centres: Tensor

    def __init__(self, features: int, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters
        self.register_buffer("centres", torch.zeros(0, features))

    def learn(self, features: Tensor) -> None:
        require_images(len(features), self.clusters, f"model.options.clusters={self.clusters}")
        clusters = min(self.clusters, len(features.unique(dim=0)))
        seed = int(torch.randint(2**31, ()))
        found = ScikitKMeans(clusters, n_init=STARTS, random_state=seed).fit(features.cpu().numpy())  # once, and small
        self.centres = torch.from_numpy(found.cluster_centers_).to(features)

    def score(self, features: Tensor) -> Tensor:
        return nearest(features, self.centres)[0][:, 0]
