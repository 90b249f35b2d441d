"""The network that task=export writes of a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from mvtec_lab.problems.classification.base import Classifier


class Probabilities(nn.Module):
    """Return the class probabilities [N, C] of normalised images."""

    outputs = ("probabilities",)
    about: ClassVar[Mapping[str, str]] = {
        "use": "probabilities are those of classes, in their order; the highest one is the prediction"
    }

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.classifier(images).float().softmax(1),)
