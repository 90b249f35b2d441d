"""Rotation prediction (Gidaris et al., ICLR 2018; Golan & El-Yaniv, NeurIPS 2018): four turns of each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mvtec_lab.problems.anomaly.base import Scores
from mvtec_lab.problems.anomaly.methods.rotation import METHOD
from mvtec_lab.problems.anomaly.pretext import PretextModel

TURNS = 4  # quarters


def turned(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images [N, 3, S, S] turned by 0, 90, 180 and 270 degrees, [4 N, 3, S, S], and the turns [4 N]."""
    # shape[0], not len(): an export takes the latter for a constant.
    turns = torch.arange(TURNS, device=images.device)[:, None].expand(-1, images.shape[0]).flatten()
    return torch.cat([images.rot90(k, (2, 3)) for k in range(TURNS)]), turns


def uncertainty(logits: Tensor, turns: Tensor) -> Tensor:
    """Return minus the mean log-probability [N] of the true turns: logits are [4 N, 4] in the order of ``turned``.

    It is computed from the probability of the other turns: log_softmax rounds away the digits in which a nearly certain
    network differs.
    """
    logits = logits.float()
    true = logits.gather(1, turns[:, None])[:, 0]
    others = logits.scatter(1, turns[:, None], -torch.inf).logsumexp(1)
    return F.softplus(others - true).view(TURNS, -1).mean(0)


class RotationPrediction(PretextModel):
    """Train a classifier of quarter turns on good images; its uncertainty is the score, and there is no map."""

    method, ways = METHOD, TURNS

    def _uncertainty(self, images: Tensor) -> Tensor:
        images, turns = turned(images)
        return uncertainty(self.classifier(images), turns)

    def loss(self, images: Tensor) -> Tensor:
        return self._uncertainty(images).mean()

    def forward(self, images: Tensor) -> Scores:
        return Scores(self._uncertainty(images), None)
