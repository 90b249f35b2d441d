"""The network that task=export writes of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from mvtec_lab.engine.infer import verdict
from mvtec_lab.evaluation.confidence import reservation
from mvtec_lab.problems.classification.base import Classifier

_USE = "probabilities are those of classes, in their order; the highest one is the prediction"
_SURE = (
    "an image may be of each class whose probability is the class's number in least or more, and is sure where that is "
    "the prediction alone; alpha, by class, is the share of its images that may miss it; this aim "
)


class Probabilities(nn.Module):
    """Return the class probabilities [N, C] of normalised images."""

    outputs = ("probabilities",)
    rows = "1"  # where the file takes one image

    def __init__(self, classifier: Classifier, sets: Mapping[str, Sequence[float]] | None = None) -> None:
        super().__init__()
        self.classifier, self.single = classifier, classifier.single
        self.infer = (decide, None)
        self.about: dict[str, Any] = {"use": _USE}
        if sets is not None:
            held_out = round(sum(sets["held_out"]))
            rests = reservation(held_out, classifier.judged_by(held_out))
            self.about = {"use": f"{_USE}; {_SURE}{rests}", **sets}

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.classifier(images).float().softmax(1),)


def decide(outputs: dict[str, np.ndarray], about: dict[str, Any]) -> tuple[str, str, float | None, float]:
    """Return decision (``-``: no class is good), class, score, which is 1 - p(good), and the class's probability."""
    values, good = outputs["probabilities"][0], np.array([name == "good" for name in about["classes"]])
    best, score, decision = int(values.argmax()), None, "-"
    if good.any():
        score = sum(float(f"{value:.6g}") for value in values[~good])  # of predictions.csv, which thresholds rest on
        if "threshold" in about:
            decision = verdict(score, about)
            if decision != "REVIEW":  # the class agrees with it
                best = int(np.where(good == (decision == "OK"), values, -1).argmax())
        else:
            possible = values >= np.array(about.get("least", values.max()))
            decision = "REVIEW" if possible.sum() > 1 or not possible[best] else "OK" if good[best] else "REJECT"
    return decision, about["classes"][best], score, float(values[best])
