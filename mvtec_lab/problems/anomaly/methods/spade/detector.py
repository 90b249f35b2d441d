"""SPADE (Cohen & Hoshen, 2020)."""

from __future__ import annotations

from collections.abc import Sequence

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.base import setting
from mvtec_lab.problems.anomaly.features import CELLS, FeatureMaps
from mvtec_lab.problems.anomaly.frozen import POOLED, FrozenDetector
from mvtec_lab.problems.anomaly.methods.spade.model import Spade

NEIGHBOURS = 50  # the paper's


class Detector(FrozenDetector):
    """Args: neighbours: good images that an image is compared with, or all where there are fewer.

    The last of the layers finds these images, the others are searched.
    """

    draws = False

    def __init__(
        self,
        backbone: str,
        weights: str | None = "DEFAULT",
        layers: Sequence[str] | None = None,
        neighbours: int | None = None,
    ) -> None:
        if layers is not None and len(layers) < 2:
            raise LabError(
                "spade compares cells of some model.options.layers and finds images by the last: give two or more"
            )
        count = setting("neighbours", neighbours, NEIGHBOURS)
        features = FeatureMaps(backbone, weights, layers, cells=(*CELLS, *POOLED))
        *channels, last = features.channels
        super().__init__(features, Spade(sum(channels), last, count))
        self.save_hyperparameters()
