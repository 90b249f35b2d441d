"""A Gaussian over globally pooled features, and the Mahalanobis distance from it. See README.md."""

from __future__ import annotations

import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from mvtec_lab.problems.anomaly.features import POOLED
from mvtec_lab.problems.anomaly.frozen import FrozenFeatureModel, PooledModel
from mvtec_lab.problems.anomaly.methods.gaussian import METHOD

SMALLEST = 1e-8  # variance: constant images have none


class FeatureGaussian(PooledModel):
    """Fit a variance to each principal component, and a common one to all that are left out.

    Args:
        features: D.
        dimensions: principal components; None: all, and Ledoit and Wolf's shrinkage stands in for those that too few
            images do not show.
    """

    mean: Tensor
    components: Tensor
    variances: Tensor
    rest: Tensor

    def __init__(self, features: int, dimensions: int | None) -> None:
        super().__init__()
        self.dimensions = dimensions
        if dimensions is not None:  # one more for the mean, and one that leaves something out
            self.required[f"model.options.dimensions={dimensions}"] = dimensions + 2
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("components", torch.zeros(0, features))  # [k, D]
        self.register_buffer("variances", torch.zeros(0))  # [k]
        self.register_buffer("rest", torch.zeros(()))  # variance of each of the D - k others

    def learn(self, features: Tensor) -> None:
        count, size = features.shape
        mean = features.double().mean(0)
        _, spread, components = torch.linalg.svd(features.double() - mean, full_matrices=False)
        variances = spread**2 / count
        if self.dimensions is None:
            share = float(ledoit_wolf_shrinkage(features.double().cpu().numpy()))  # once, and small
            rest = share * variances.sum() / size
            variances = (1 - share) * variances + rest
        else:
            rest = variances[self.dimensions :].sum() / max(size - self.dimensions, 1)
            variances, components = variances[: self.dimensions], components[: self.dimensions]
        self.mean, self.components = mean.float(), components.float()
        self.variances, self.rest = (values.clamp_min(SMALLEST).float() for values in (variances, rest))

    def score(self, features: Tensor) -> Tensor:
        centred = features - self.mean
        along = centred @ self.components.T
        across = (centred - along @ self.components).square().sum(1)
        return ((along.square() / self.variances).sum(1) + across / self.rest).sqrt()


class Gaussian(FrozenFeatureModel):
    """Score an image by its Mahalanobis distance from good ones (Rippel et al., ICPR 2020; Ahuja et al., 2019)."""

    method, cells = METHOD, POOLED

    def build_model(self) -> FeatureGaussian:
        return FeatureGaussian(sum(self.features.channels), self.dimensions(spare=1))
