"""PaDiM (Defard et al., ICPR 2020 workshops)."""

from __future__ import annotations

from collections.abc import Sequence

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.features import FeatureMaps
from mvtec_lab.problems.anomaly.frozen import FrozenDetector
from mvtec_lab.problems.anomaly.methods.padim.model import Padim

DIMENSIONS = 100  # the paper's for ResNet18; the covariances grow with its square


class Detector(FrozenDetector):
    """Args: dimensions: channels drawn at random from torch's generator; None: 100, or all where there are fewer."""

    def __init__(
        self,
        backbone: str,
        weights: str | None = "DEFAULT",
        layers: Sequence[str] | None = None,
        dimensions: int | None = None,
    ) -> None:
        features = FeatureMaps(backbone, weights, layers)
        channels = sum(features.channels)
        if dimensions is not None and not 1 <= dimensions <= channels:
            raise LabError(
                f"model.options.dimensions={dimensions} is out of range: these layers have {channels} channels"
            )
        super().__init__(features, Padim(channels, dimensions or min(DIMENSIONS, channels)))
        self.save_hyperparameters()
