"""Four turns of an image, and how little a network is sure of them (Gidaris et al. 2018, Golan & El-Yaniv 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TURNS = 4  # quarters


def turned(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images [N, 3, S, S] by 0, 90, 180 and 270 degrees, [4 N, 3, S, S] in that order; the turns, [4 N]."""
    turns = (
        torch.arange(TURNS, device=images.device)[:, None].expand(-1, images.shape[0]).flatten()
    )  # export takes len() for fixed
    return torch.cat([images.rot90(k, (2, 3)) for k in range(TURNS)]), turns


def doubt(logits: Tensor, turns: Tensor) -> Tensor:
    """Minus the mean log-probability of the true turns: logits [4 N, 4] in the order of ``turned`` to [N].

    A network that is nearly sure differs in digits that log_softmax rounds away: hence from the others' probability.
    """
    logits = logits.float()
    true = logits.gather(1, turns[:, None])[:, 0]
    others = logits.scatter(1, turns[:, None], -torch.inf).logsumexp(1)
    return F.softplus(others - true).view(TURNS, -1).mean(0)
