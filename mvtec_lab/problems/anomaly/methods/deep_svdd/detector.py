"""Deep SVDD over pooled maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.base import AnomalyDetector, Batches, Scores
from mvtec_lab.problems.anomaly.features import FeatureMaps
from mvtec_lab.problems.anomaly.frozen import collect
from mvtec_lab.problems.anomaly.methods.deep_svdd.model import COMPONENTS, Sphere


class Detector(AnomalyDetector):
    """A small network draws good images' pooled features to a centre; the squared distance from it is the score.

    Pooled features know no places: there is no map.

    Args:
        backbone, weights, layers: as in FeatureMaps.
        dimensions: principal components that the network sees; None: at most ``COMPONENTS``.
        optimizer, lr, weight_decay, momentum: as in OptimizerConfig.

    Raises:
        LabError: more dimensions than channels; from ``prepare``, fewer than two good images.
    """

    trains = True

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        weights: str | None = "DEFAULT",
        layers: Sequence[str] | None = None,
        dimensions: int | None = None,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.features = FeatureMaps(backbone, weights, layers)
        channels = sum(self.features.channels)
        if dimensions is not None and not 1 <= dimensions <= channels:
            raise LabError(
                f"model.options.dimensions={dimensions} is out of range: these layers have {channels} channels"
            )
        self.sphere = Sphere(channels, dimensions or min(COMPONENTS, channels))
        self.mean, self.std = self.features.mean, self.features.std
        self.weights_name, self.weights_note = self.features.weights_name, self.features.weights_note

    def _pooled(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([found.mean((2, 3)) for found in self.features(images)], dim=1)

    def _distances(self, images: Tensor) -> Tensor:
        pooled = self._pooled(images)
        with torch.autocast(images.device.type, enabled=False):  # squares of small differences want float32
            return self.sphere(pooled)

    def prepare(self, batches: Batches) -> None:
        self.sphere.fit(collect(map(self._pooled, batches()), 0, "features", "give fewer images"))

    def loss(self, images: Tensor) -> Tensor:
        return self._distances(images).mean()

    def forward(self, images: Tensor) -> Scores:
        return Scores(self._distances(images), None)
