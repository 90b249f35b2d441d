"""A one-class SVM (Schölkopf et al., 2001) on pooled features."""

from __future__ import annotations

from collections.abc import Sequence

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.features import FeatureMaps
from mvtec_lab.problems.anomaly.frozen import POOLED, FrozenDetector
from mvtec_lab.problems.anomaly.methods.ocsvm.model import SupportVectors


class Detector(FrozenDetector):
    """Args: dimensions: principal components; None: the features as they are."""

    draws = False

    def __init__(
        self,
        backbone: str,
        weights: str | None = "DEFAULT",
        layers: Sequence[str] | None = None,
        dimensions: int | None = None,
    ) -> None:
        features = FeatureMaps(backbone, weights, layers, cells=POOLED)
        channels = sum(features.channels)
        if dimensions is not None and not 1 <= dimensions <= channels:
            raise LabError(
                f"model.options.dimensions={dimensions} is out of range: these layers have {channels} channels"
            )
        super().__init__(features, SupportVectors(channels, dimensions))
        self.save_hyperparameters()
