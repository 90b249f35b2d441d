"""Balanced group softmax: a class competes only with classes that are about as frequent.

Li et al., CVPR 2020 (FishYuLi/BalancedGroupSoftmax, gs_bbox_head_with0.py). Defect types are divided into bins by their
training counts. Each bin has a softmax of its own, with a slot for "others"; bin 0 separates good from defect, as the
paper separates background from objects.

The outputs of such a layer are [N, K]: good and defect (left out where no class is good), then the others and the
classes of each bin.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvtec_lab.errors import LabError

Bins = Sequence[Sequence[int]]  # the class indices of each bin


def count_bins(counts: Sequence[int], bins: int | Sequence[int], good: int | None = None) -> list[list[int]]:
    """Divide the classes except ``good`` by their training counts; bins without a class are left out.

    Args:
        bins: the number of bins of equally many classes (the paper's edges put a few dozen images into one or two
            bins), or the counts to divide them at: [10, 100, 1000] in the paper.
    """
    classes = sorted((c for c in range(len(counts)) if c != good), key=lambda c: (counts[c], c))
    if isinstance(bins, int):
        parts = np.array_split(classes, bins)
    else:
        place = np.searchsorted(np.asarray(bins), [counts[c] for c in classes], side="right")
        parts = [np.asarray(classes)[place == i] for i in range(len(bins) + 1)]
    return [sorted(part.tolist()) for part in parts if len(part)]


def check_bins(bins: Bins, num_classes: int, good: int | None = None) -> None:
    """Raise LabError unless every class but ``good`` is in exactly one bin."""
    binned = sorted(c for members in bins for c in members)
    wanted = [c for c in range(num_classes) if c != good]
    if binned != wanted:
        missing = sorted(set(wanted) - set(binned))
        reason = f"leave out class {missing[0]}" if missing else f"hold a class twice, or one that is not: {binned}"
        raise LabError(f"bins {[list(members) for members in bins]} {reason}: put each defect type into one bin")


def slots(bins: Bins, good: int | None = None) -> list[list[int]]:
    """Return the slot of each of the C classes in each softmax, bin 0 first: 0 (good, or others) and above."""
    num_classes = sum(map(len, bins)) + (good is not None)
    places = [] if good is None else [[0 if c == good else 1 for c in range(num_classes)]]
    for members in bins:
        places.append([members.index(c) + 1 if c in members else 0 for c in range(num_classes)])
    return places


def group_softmax(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    bins: Bins,
    good: int | None = None,
    others: float = 8.0,
) -> Tensor:
    """Return the sum of the bins' mean cross-entropies.

    A bin takes ``others`` samples from outside for each of its own in the batch, drawn from torch's global generator,
    so that they do not outweigh a rare bin; a bin without a sample of its own in the batch is left out.

    Args:
        logits: [N, K], laid out as the module says.
        target: class indices [N], or shares [N, C].
        weight: must be None, as the bins balance.
    """
    if weight is not None:
        raise LabError("group_softmax balances by its bins: leave out class weights")
    total = logits.new_zeros(())
    for place, (part, slot) in enumerate(_parts(logits, bins, good)):
        shares = F.one_hot(target, len(slot)).to(logits) if target.ndim == 1 else target
        of_slot = logits.new_zeros(part.shape).index_add_(1, slot, shares)
        taken = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        if good is None or place:
            taken = _sample_others(of_slot[:, 1:].sum(1) > 0, others)
        if taken.any():
            total = total - (of_slot * part.log_softmax(1))[taken].sum() / taken.sum()
    return total


def group_scores(logits: Tensor, bins: Bins, good: int | None = None) -> Tensor:
    """Return log probabilities of the classes, [N, C], from the outputs [N, K].

    Good has its share of bin 0; a defect type has the share of "defect" times its share of its own bin. The others are
    part of that bin's softmax and then dropped, as in the paper. The rest is below 1, so it is scaled to 1, which does
    not change the largest class.
    """
    factors = []
    for place, (part, slot) in enumerate(_parts(logits, bins, good)):
        log_p = part.log_softmax(1)[:, slot]
        factors.append(log_p if good is not None and place == 0 else torch.where(slot > 0, log_p, 0.0))
    return torch.stack(factors).sum(0).log_softmax(1)


def _parts(logits: Tensor, bins: Bins, good: int | None) -> list[tuple[Tensor, Tensor]]:
    maps = slots(bins, good)
    pieces = logits.split([max(slot) + 1 for slot in maps], dim=1)
    return [(piece, torch.tensor(slot, device=piece.device)) for piece, slot in zip(pieces, maps, strict=True)]


def _sample_others(own: Tensor, ratio: float) -> Tensor:
    """Return which samples a bin's softmax learns from, [N] bool: its own, and ``ratio`` times as many from outside."""
    if not own.any():
        return own
    outside = (~own).nonzero()[:, 0]
    count = int(ratio * int(own.sum()))
    if count < len(outside):
        outside = outside[torch.randperm(len(outside))[:count].to(outside.device)]
    taken = own.clone()
    taken[outside] = True
    return taken
