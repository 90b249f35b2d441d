"""A one-class support vector machine on globally pooled features. See README.md."""

from __future__ import annotations

import torch
from sklearn.svm import OneClassSVM
from torch import Tensor

from mvtec_lab.problems.anomaly.features import POOLED
from mvtec_lab.problems.anomaly.frozen import FrozenFeatureModel, PooledModel
from mvtec_lab.problems.anomaly.methods.ocsvm import METHOD

NU = 0.05  # share of the good images that may lie outside: what threshold.quantile allows by default
SMALLEST = 1e-8  # variance: constant images have none


class SupportVectors(PooledModel):
    """Separate the features of good images from the origin, in the space of a Gaussian kernel.

    Args:
        features: D.
        dimensions: principal components; None: the features as they are.
    """

    mean: Tensor
    components: Tensor
    vectors: Tensor
    weights: Tensor
    gamma: Tensor
    offset: Tensor

    def __init__(self, features: int, dimensions: int | None) -> None:
        super().__init__()
        self.dimensions = dimensions
        if dimensions is not None:
            self.required[f"model.options.dimensions={dimensions}"] = dimensions + 1
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("components", torch.zeros(0, features))  # [d, D]
        self.register_buffer("vectors", torch.zeros(0, dimensions or features))  # [V, d]
        self.register_buffer("weights", torch.zeros(0))  # [V]
        self.register_buffer("gamma", torch.zeros(()))
        self.register_buffer("offset", torch.zeros(()))

    def learn(self, features: Tensor) -> None:
        self.mean = features.mean(0)
        if self.dimensions is not None:
            self.components = torch.linalg.svd(features - self.mean, full_matrices=False)[2][: self.dimensions]
        points = self.project(features).double().cpu().numpy()  # once, and small
        gamma = 1 / (points.shape[1] * max(points.var(), SMALLEST))  # scikit-learn's "scale"
        machine = OneClassSVM(kernel="rbf", gamma=gamma, nu=NU).fit(points)
        for name, values in (
            ("vectors", machine.support_vectors_),
            ("weights", machine.dual_coef_[0]),
            ("gamma", gamma),
            ("offset", machine.offset_[0]),
        ):
            setattr(self, name, torch.as_tensor(values).to(features))

    def score(self, features: Tensor) -> Tensor:
        """Return minus scikit-learn's ``decision_function``."""
        squares = (self.project(features)[:, None] - self.vectors).square().sum(2)
        return self.offset - (-self.gamma * squares).exp() @ self.weights

    def project(self, features: Tensor) -> Tensor:
        """Return centred features [N, D], or their principal components [N, d]."""
        centred = features - self.mean
        return centred if self.dimensions is None else centred @ self.components.T


class OneClassSvm(FrozenFeatureModel):
    """Score an image by how far it lies outside of the good images' support (Schölkopf et al., 2001)."""

    method, cells = METHOD, POOLED

    def build_model(self) -> SupportVectors:
        return SupportVectors(sum(self.features.channels), self.dimensions())
