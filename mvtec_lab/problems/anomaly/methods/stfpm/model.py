"""Student-teacher feature pyramid matching (Wang et al., BMVC 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mvtec_lab.models.maps import FeatureMaps
from mvtec_lab.problems.anomaly.base import Scores
from mvtec_lab.problems.anomaly.features import BackboneModel
from mvtec_lab.problems.anomaly.methods.stfpm import METHOD
from mvtec_lab.problems.padding import within


def distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Return half the squared distance [N, H, W] of two maps [N, C, H, W] whose channels are scaled to length one.

    It lies in [0, 1] if neither map is negative. The half is the paper's; the official code leaves it out.
    """
    return (F.normalize(teacher) - F.normalize(student)).square().sum(1) / 2


def matching_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Return the sum of the layers' mean distances."""
    return torch.stack([distance(t, s).mean() for t, s in zip(teacher, student, strict=True)]).sum()


def anomaly_map(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """Return the product of the layers' distances on the finest layer's grid: [N, H, W]."""
    distances = [distance(t, s)[:, None] for t, s in zip(teacher, student, strict=True)]
    size = max(tuple(layer.shape[-2:]) for layer in distances)
    # No prod: its first use on a GPU translates a kernel, which took 1.6 s on an H200.
    return reduce(torch.mul, [F.interpolate(layer, size, mode="bilinear") for layer in distances])[:, 0]


class Stfpm(BackboneModel):
    """Train a student on the maps of a frozen teacher; at a defect it departs from the teacher.

    The teacher is ``features``; the student has its architecture and starts from random weights. The image's score is
    its map's maximum.
    """

    method = METHOD

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        student = FeatureMaps(self.hparams["backbone"], None, self.features.layers)
        self.student = student.network.requires_grad_(True).train()

    def _maps(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        if images.device.type != "cpu":
            # Channels last, as the lab's images lie, MobileNetV2's kernels took 12 s at the first step on an H200, and
            # seconds more at the first batch of each other size; channels first 1.7 s and 0.2 s.
            images = images.contiguous()
        with torch.no_grad():
            teacher = self.features(images)
        return teacher, [layer.float() for layer in self.student(images).values()]

    def loss(self, images: Tensor) -> Tensor:
        return matching_loss(*self._maps(images))

    def forward(self, images: Tensor) -> Scores:
        heat = within(anomaly_map(*self._maps(images)), self.inside(images))
        return Scores(heat.amax((1, 2)), heat)
