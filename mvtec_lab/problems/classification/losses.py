"""Training losses: pure functions of logits and targets, and ``Criterion``, which calls one of them by name.

A target is one class index per sample, [N], or shares of the classes, [N, C], for mixed images. ``weight`` are class
weights [C]; a mean is over their sum, with shares as with classes. ``counts`` are the training images of each
class, [C]; a class without any counts as one image.

Another loss is a function here and its name in ``OWN_LOSSES``, or one under ``@register_loss("name")`` in a script or a
package, with the arguments (logits, target, weight) and, by name,
``counts`` and the fields of LossConfig that it takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.config import LossConfig
from mvtec_lab.data.sampling import class_weights
from mvtec_lab.errors import LabError, unknown
from mvtec_lab.problems.classification import LOSSES
from mvtec_lab.problems.classification.groups import (
    Bins,
    check_bins,
    count_bins,
    group_scores,
    group_softmax,  # noqa: F401  looked up by its name, as the functions below
    slots,
)
from mvtec_lab.results import GOOD


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return -log p of the target, in nats.

    With the effective number of samples as ``weight`` it is the loss of Cui et al., CVPR 2019
    (richardaecn/class-balanced-loss).
    """
    if target.ndim == 1:
        return F.cross_entropy(logits, target, weight)
    return weighted_mean(-logits.log_softmax(1), target, weight)


def focal(logits: Tensor, target: Tensor, weight: Tensor | None = None, *, gamma: float = 2.0) -> Tensor:
    """Return (1 - p)^gamma times cross-entropy, so that easy images count less: Lin et al., ICCV 2017, with softmax.

    p comes from the unweighted logits: kaidic/LDAM-DRW takes it from the weighted loss, which is not a probability.

    Raises:
        LabError: gamma below 0.
    """
    if not gamma >= 0:
        raise LabError(f"loss.gamma={gamma} is out of range: give 0 or more")
    log_p = logits.log_softmax(1)
    # From below, or the slope of the power at 0 is infinite where gamma < 1.
    missing = (-log_p.expm1()).clamp_min(torch.finfo(log_p.dtype).tiny)
    return weighted_mean(-(missing**gamma) * log_p, target, weight)


def ldam(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    counts: Tensor,
    margin: float = 0.5,
    scale: float = 30.0,
) -> Tensor:
    """Return the cross-entropy after a margin is taken from the true class's cosine: the rarer the class, the larger.

    Cao et al., NeurIPS 2019 (kaidic/LDAM-DRW): n_c^(-1/4), scaled so that the largest is ``margin``.

    Args:
        logits: ``scale`` times cosines, as ``CosineLinear`` gives them.
    """
    margins = _present(counts) ** -0.25
    margins = scale * margin * margins / margins.max()
    if_true = logits.unsqueeze(1) - torch.diag(margins)  # [N, C, C]: of each class, if it were the true one
    return weighted_mean(-if_true.log_softmax(2).diagonal(dim1=1, dim2=2), target, weight)


def logit_adjustment(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, counts: Tensor, tau: float = 1.0
) -> Tensor:
    """Return the cross-entropy of logits + tau log(prior), so that the logits themselves favour no frequent class.

    Menon et al., ICLR 2021 (google-research/logit_adjustment).
    """
    return cross_entropy(logits + tau * log_prior(counts), target, weight)


def balanced_softmax(logits: Tensor, target: Tensor, weight: Tensor | None = None, *, counts: Tensor) -> Tensor:
    """Return the cross-entropy of logits + log(counts): Ren et al., NeurIPS 2020 (jiawei-ren/BalancedMetaSoftmax).

    A softmax does not see the constant between counts and priors: ``logit_adjustment`` with tau = 1 is the same loss.
    """
    return cross_entropy(logits + _present(counts).log(), target, weight)


def log_prior(counts: Tensor) -> Tensor:
    """Return the logarithm of each class's share of the training images, [C]."""
    present = _present(counts)
    return (present / present.sum()).log()


def _present(counts: Tensor) -> Tensor:
    return counts.float().clamp_min(1)


def weighted_mean(costs: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean of what samples cost, over their class weights.

    Args:
        costs: [N, C], what each sample costs if that class is its true one.
        target: classes [N], or shares of the classes [N, C].
    """
    shares = F.one_hot(target, costs.shape[1]).to(costs) if target.ndim == 1 else target
    if weight is not None:
        shares = shares * weight
    return (shares * costs).sum() / shares.sum()


class Criterion(nn.Module):
    """Compute a training loss by name, and the class logits that the network's outputs stand for.

    Args:
        name: one of ``LOSSES``.
        num_classes: C.
        counts: training images of each class, [C]; None where the loss does not ask for them.
        posthoc: tau of the adjustment of the logits that predict (Menon et al., ICLR 2021): z - tau log(prior).
        weights: class weights, [C]; None: all 1.
        options: the loss's own arguments.

    ``outputs`` is K, the number of values that the last layer must give. ``deferred`` says whether class weights (of
    ``group_softmax``, its groups) are put off.

    Raises:
        LabError: an unknown loss or argument, or counts that are missing or too few.
    """

    counts: Tensor
    weights: Tensor | None

    def __init__(
        self,
        name: str,
        num_classes: int,
        counts: Sequence[int] | None = None,
        posthoc: float = 0.0,
        *,
        weights: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.function = LOSSES[name]
        known = inspect.signature(self.function).parameters
        if strangers := [key for key in options if key not in known]:
            raise unknown(f"option of loss {name}", strangers[0], list(known)[3:])
        self.needs_counts = "counts" in known
        if counts is None and (self.needs_counts or posthoc):
            raise LabError(
                f"loss {name} with posthoc={posthoc:g} needs class_counts, the training images of each class"
            )
        if counts is not None and len(counts) != num_classes:
            raise LabError(f"class_counts has {len(counts)} numbers for {num_classes} classes")
        self.options, self.posthoc, self.outputs, self.deferred = options, posthoc, num_classes, False
        # Not among a checkpoint's weights: its hyperparameters have them.
        self.register_buffer("counts", torch.tensor(counts or [1] * num_classes), persistent=False)
        self.register_buffer("weights", None if weights is None else torch.tensor(weights).float(), persistent=False)

    def defer(self, deferred: bool) -> None:
        """Put class weights (of ``group_softmax``, its groups) off, or let them begin."""
        self.deferred = deferred

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss (nats, mean over the batch) of outputs [N, K]."""
        counts = {"counts": self.counts} if self.needs_counts else {}
        weights = None if self.deferred else self.weights
        return self.function(outputs.float(), target, weights, **counts, **self.options)

    def scores(self, outputs: Tensor) -> Tensor:
        """Return the class logits [N, C] of outputs [N, K]."""
        return outputs - self.posthoc * log_prior(self.counts) if self.posthoc else outputs


class GroupSoftmax(Criterion):
    """Put ``group_softmax`` behind plain cross-entropy: K is C plain logits, then those of the groups.

    While it is deferred, the plain logits train and predict. ``begin`` lets the groups' outputs start from the plain
    ones of their classes, and only they train: the paper's second step, from a trained classifier's last layer.

    Args:
        good: index of the class without a defect; None: bin 0 is left out.
        bins: as in ``count_bins``, or lists of class indices.
        others: as in ``group_softmax``.

    Raises:
        LabError: bins that leave a class out.
    """

    def __init__(
        self,
        num_classes: int,
        counts: Sequence[int] | None,
        posthoc: float = 0.0,
        *,
        weights: Sequence[float] | None = None,
        good: int | None = None,
        bins: int | Sequence[int] | Bins = 2,
        others: float = 8.0,
    ) -> None:
        if isinstance(bins, int) or all(isinstance(edge, int) for edge in bins):
            if counts is None:
                raise LabError(
                    "group_softmax needs class_counts, the training images of each class, or lists of classes"
                )
            bins = count_bins(counts, bins, good)  # type: ignore[arg-type]
        check_bins(bins, num_classes, good)  # type: ignore[arg-type]
        options = {"bins": bins, "good": good, "others": others}
        super().__init__("group_softmax", num_classes, counts, posthoc, weights=weights, **options)
        self.num_classes = num_classes
        self.slots = slots(bins, good)  # type: ignore[arg-type]
        self.outputs = num_classes + sum(max(slot) + 1 for slot in self.slots)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.deferred)

    def set_extra_state(self, state: Tensor) -> None:
        self.deferred = bool(state)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        plain, grouped = outputs.float().tensor_split([self.num_classes], dim=1)
        return cross_entropy(plain, target) if self.deferred else super().forward(grouped, target)

    def scores(self, outputs: Tensor) -> Tensor:
        plain, grouped = outputs.tensor_split([self.num_classes], dim=1)
        return super().scores(
            plain if self.deferred else group_scores(grouped, self.options["bins"], self.options["good"])
        )

    @torch.no_grad()
    def begin(self, last: nn.Module) -> None:
        """Let the groups' outputs of a network's last layer start from those of their classes."""
        self.defer(False)
        start = self.num_classes
        for slot in self.slots:
            for place in range(max(slot) + 1):
                # "others" and "defect" stand for several classes: for their mean
                members = [c for c, of_class in enumerate(slot) if of_class == place]
                for values in last.parameters():
                    values[start + place] = values[members].mean(0) if members else 0
            start += max(slot) + 1


def build_criterion(
    loss: LossConfig, classes: Sequence[str], counts: Sequence[int] | None = None, scale: float = 30.0
) -> Criterion:
    """Return the training loss of a configuration.

    Args:
        classes: the class names in the order of their index.
        counts: training images of each class, [C].
        scale: of a cosine head, between whose cosines the margins of ``ldam`` lie.

    Raises:
        LabError: an unknown loss, bins that leave a class out, or counts that are missing.
    """
    weights = None
    if loss.class_weights != "none":
        if counts is None:
            raise LabError(
                f"loss.class_weights={loss.class_weights} needs class_counts, the training images of each class: give "
                "them, or class_weights=none"
            )
        weights = class_weights(counts, loss.class_weights, loss.beta).tolist()
    options = options_of(loss.name, {**asdict(loss), "scale": scale})
    if loss.name == "group_softmax":
        good = classes.index(GOOD) if GOOD in classes else None
        return GroupSoftmax(len(classes), counts, loss.posthoc, weights=weights, good=good, **options)
    return Criterion(loss.name, len(classes), counts, loss.posthoc, weights=weights, **options)


def options_of(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some settings that a loss takes."""
    return {key: settings[key] for key in inspect.signature(LOSSES[name]).parameters if key in settings}
