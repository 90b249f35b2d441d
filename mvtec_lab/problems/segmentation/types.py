"""Name the type of a defect: by what the network's maps show within its mask, or by classes of its pixels.

Both weigh every place by the probability of a defect there, so that they need no threshold and are a part of an
exported network. What they say of the views of an image, ``evidence``, is averaged before the type is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEVER = -1e4  # the score of a type that training had no image of: infinity would make a checkpoint look damaged
FAINT = 1e-6  # least weight of a place: an image in which nothing was found has the mean of the whole image


class RegionTypes(nn.Module):
    """Name a type by linear discriminants of the means of maps within the mask; fitted once, after training.

    So the mask is that of a model without types. The discriminants have one covariance, shrunk as Ledoit and Wolf do,
    for a few dozen defects of a thousand channels; all types count alike, however many images there are of each. A
    single image of a type says nothing of a covariance: then the nearest mean names the type.

    Args:
        kinds: names of the defect types, K.
        channels: of the maps.
    """

    weight: Tensor
    bias: Tensor
    outputs = 0  # further channels of the decoder

    def __init__(self, kinds: Sequence[str], channels: Sequence[int]) -> None:
        super().__init__()
        self.kinds = list(kinds)
        self.register_buffer("weight", torch.zeros(len(self.kinds), sum(channels) + 1))
        self.register_buffer("bias", torch.zeros(len(self.kinds)))

    def evidence(self, maps: Sequence[Tensor], cover: Tensor, logits: Tensor | None = None) -> Tensor:
        """Return the means of maps [N, C, H, W] within a mask, and the logarithm of its share: [N, all C + 1].

        Args:
            cover: the mask, or its probabilities, [N, h, w], of any resolution.
            logits: not needed.
        """
        weights = [F.interpolate(cover[:, None], layer.shape[-2:], mode="area") + FAINT for layer in maps]
        means = [(layer * w).sum((2, 3)) / w.sum((2, 3)) for layer, w in zip(maps, weights, strict=True)]
        return torch.cat([*means, (cover.mean((1, 2)) + FAINT).log()[:, None]], dim=1)

    def fit(self, evidence: np.ndarray, kinds: Sequence[str]) -> str | None:
        """Learn the types of defects from the evidence of true masks, [N, all C + 1]; one without images is not named.

        Args:
            kinds: the types of these defects, [N].

        Returns:
            A warning where there are too few images for discriminants.
        """
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        counts = Counter(kinds)
        known = sorted(counts)
        self.weight.zero_()
        self.bias.fill_(NEVER)
        if len(known) < 2:
            self.bias[[self.kinds.index(name) for name in known]] = 0.0
            return None
        mean, scale = evidence.mean(0), evidence.std(0) + 1e-6
        single = [name for name in known if counts[name] == 1]
        if single:
            scaled = (evidence - mean) / scale
            lines = np.stack([scaled[np.array(kinds) == name].mean(0) for name in known])
            self._set(known, lines / scale, -(lines**2).sum(1) / 2, mean)
            return f"type {single[0]} has a single training image: types are named by the nearest mean"
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(len(known), 1 / len(known)))
        lda.fit((evidence - mean) / scale, list(kinds))
        lines, shifts = lda.coef_, lda.intercept_
        if len(known) == 2:  # scikit-learn gives one line for both
            lines, shifts = np.concatenate([-lines, lines]) / 2, np.concatenate([-shifts, shifts]) / 2
        self._set(known, lines / scale, shifts, mean)
        return None

    def _set(self, known: Sequence[str], lines: np.ndarray, shifts: np.ndarray, mean: np.ndarray) -> None:
        """Set the lines and shifts of some types, which are for evidence less this mean."""
        for name, line, shift in zip(known, lines, shifts, strict=True):
            place = self.kinds.index(name)
            self.weight[place] = torch.from_numpy(line)
            self.bias[place] = float(shift - line @ mean)

    def forward(self, evidence: Tensor) -> Tensor:
        """Return the probabilities [N, K] of the types from evidence [N, all C + 1]."""
        return (evidence @ self.weight.T + self.bias).softmax(1)


class PixelTypes(nn.Module):
    """Name a type by a softmax over the types in every pixel, trained beside the mask on the pixels of true defects.

    Args:
        kinds: names of the defect types, K.
        channels: not needed.
    """

    def __init__(self, kinds: Sequence[str], channels: Sequence[int]) -> None:
        super().__init__()
        self.kinds, self.outputs = list(kinds), len(kinds)

    def evidence(self, maps: Sequence[Tensor], cover: Tensor, logits: Tensor) -> Tensor:
        """Return the mean probabilities of the types within a mask, [N, K].

        Args:
            maps: not needed.
            cover: the mask, or its probabilities, [N, h, w].
            logits: of the types, [N, K, h, w].
        """
        weights = cover[:, None] + FAINT
        return (logits.softmax(1) * weights).sum((2, 3)) / weights.sum((2, 3))

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], first: int) -> Tensor:
        """Return the mean cross-entropy of the types within the true masks; each defect image of one type counts alike.

        Args:
            logits: [N, K, h, w].
            batch: ``mask``, uint8 [N, S, S]; ``label``, class indices [N]; ``mixed``, bool [N].
            first: the class index of the first type.
        """
        cover = F.interpolate(batch["mask"].float()[:, None], logits.shape[-2:], mode="area")[:, 0]
        defect = (cover.sum((1, 2)) > 0) & ~batch["mixed"]
        if not defect.any():
            return logits.sum() * 0
        wanted = (batch["label"] - first)[defect, None, None].expand(-1, *logits.shape[-2:])
        entropy, cover = F.cross_entropy(logits[defect].float(), wanted, reduction="none"), cover[defect]
        return ((entropy * cover).sum((1, 2)) / cover.sum((1, 2))).mean()

    def forward(self, evidence: Tensor) -> Tensor:
        return evidence


TYPES: dict[str, type[RegionTypes] | type[PixelTypes]] = {"region": RegionTypes, "pixel": PixelTypes}
