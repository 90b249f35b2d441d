"""Convex classifiers of descriptors. How strongly they are held back is chosen by inner folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from mvtec_lab.evaluation.confidence import fit_temperature
from mvtec_lab.problems.classification.methods.descriptors.parts import Block

INNER = 5  # folds within what is fitted on
TINY = 1e-12
SURER = 2.0
# Of blocks whose columns are standardised, each with a mean square of 1 per image. 3 was as good as a choice on each of
# five products; below 1 all of them lost.
INVERSE = (1.0, 3.0, 10.0, 30.0)
RIDGES = tuple(10.0 ** (step / 2) for step in range(4, -5, -1))
SHRINKAGES = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)
SHARPNESS = (2.0, 4.0, 8.0, 16.0)  # of ridge's scores, which aim at 0 and 1

Rows = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Linear(NamedTuple):
    """Hold a linear layer: logits are ``rows @ weight + bias``."""

    weight: np.ndarray  #: [D, C]
    bias: np.ndarray  #: [C]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return rows @ self.weight + self.bias


@dataclass(frozen=True)
class Fitted:
    """Hold a fitted head.

    Args:
        layer: of raw descriptors.
        probabilities: of each image by the inner fold that has not seen it, [N, C]; NaN where there is none.
        strength: what was chosen, of the head's ``grid``; of several heads a tuple.
        chosen: whether inner folds chose it; False where there could be none.
        left_out: whether optional blocks have no weight.
    """

    layer: Linear
    probabilities: np.ndarray
    strength: Any
    chosen: bool = True
    left_out: bool = False


class Logistic:
    """Multinomial logistic regression in which every class weighs alike; the strength is scikit-learn's C."""

    grid: Sequence[float] = INVERSE  # as every head's, from held back to free
    fallback = 3.0

    @staticmethod
    def fit(rows: np.ndarray, labels: np.ndarray, strength: float) -> Linear:
        """Return the layer of rows [N, D] and labels from 0 to K - 1, each of which occurs."""
        kinds = len(np.unique(labels))
        if kinds == 1 or not rows.shape[1]:  # of identical images nothing is left
            return Linear(np.zeros((rows.shape[1], kinds)), np.zeros(kinds))
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000, tol=1e-5)
        model.fit(rows, labels)
        weight, bias = model.coef_.T, model.intercept_
        if weight.shape[1] == 1:  # of two classes it gives the second one's logit
            weight, bias = np.concatenate([0 * weight, weight], 1), np.concatenate([0 * bias, bias])
        return Linear(weight, bias)


class Ridge:
    """Ridge regression of the classes, each weighing alike; the strength is the penalty, and how sharp scores are."""

    grid: Sequence[tuple[float, float]] = [(penalty, sharp) for penalty in RIDGES for sharp in SHARPNESS]
    fallback = 1.0, 4.0

    @staticmethod
    def fit(rows: np.ndarray, labels: np.ndarray, strength: tuple[float, float]) -> Linear:
        penalty, sharp = strength
        share, truth = _shares(labels), np.eye(labels.max() + 1)[labels]
        mean, middle = share @ rows, share @ truth
        away = rows - mean
        gram = (away * (share * len(rows))[:, None]).T @ away + penalty * np.eye(rows.shape[1])
        weight = np.linalg.solve(gram, (away * (share * len(rows))[:, None]).T @ (truth - middle))
        return Linear(sharp * weight, sharp * (middle - mean @ weight))


class Discriminant:
    """Linear discriminant analysis with equal priors; the strength is how far the covariance shrinks to a sphere."""

    grid: Sequence[float] = SHRINKAGES
    fallback = 0.5

    @staticmethod
    def fit(rows: np.ndarray, labels: np.ndarray, strength: float) -> Linear:
        share, size = _shares(labels), rows.shape[1]
        means = np.stack([rows[labels == kind].mean(0) for kind in range(labels.max() + 1)])
        away = rows - means[labels]
        within = (away * share[:, None]).T @ away
        within = (1 - strength) * within + (strength * np.trace(within) / size + TINY) * np.eye(size)
        weight = np.linalg.solve(within, means.T)
        return Linear(weight, -0.5 * (means.T * weight).sum(0))


HEADS: dict[str, Any] = {"logistic": Logistic, "ridge": Ridge, "lda": Discriminant}


def deal(labels: np.ndarray, groups: Sequence[int], count: int = INNER) -> np.ndarray:
    """Return the inner fold of each image, [N]: the groups of each class are dealt out in turn, in a drawn order.

    So every fold leaves some of each class to be fitted on. A class with one group has no image that could be left out:
    it stays, -1.

    Args:
        labels: classes of the images, [N].
        groups: of the images, as ``Images.groups``: their order, which is that of their content, decides the draw.
    """
    rng, folds, turn = np.random.default_rng(0), np.full(len(labels), -1), 0
    of_group: dict[int, int] = {}
    by_size = sorted(np.unique(labels), key=lambda kind: ((labels == kind).sum(), kind))
    for kind in by_size:
        own = sorted({groups[place] for place in np.flatnonzero(labels == kind).tolist()})
        if len(own) < 2:
            of_group.setdefault(own[0], -1)
            continue
        for place in rng.permutation(len(own)).tolist():
            if own[place] not in of_group:
                of_group[own[place]] = turn % count
                turn += 1
    for place, group in enumerate(groups):
        folds[place] = of_group[group]
    return folds


def fit_head(kind: str, rows: Rows, blocks: Sequence[Block], labels: np.ndarray, folds: np.ndarray) -> Fitted:
    """Fit a head to images; inner folds choose its strength by the mean over classes of their mean log loss.

    Whether optional blocks are left out is chosen with it. Of the strengths whose loss is within a standard error of
    the lowest one's, the most restrained is taken (Breiman et al., 1984): sixty images do not tell these apart.

    Args:
        kind: of ``HEADS``.
        rows: given the places of images to fit on and of others, returns descriptors of both, [n, D] each. In an inner
            fold it sees nothing of the images that are left out.
        blocks: the blocks of columns, each of which counts by its weight.
        labels: classes of the images, [N], each from 0 to C - 1 occurring.
        folds: inner fold of each image, [N], as ``deal`` returns them.
    """
    head, everything, none = HEADS[kind], np.arange(len(labels)), np.arange(0)
    classes = int(labels.max()) + 1
    sets = [blocks]
    if len({block.optional for block in blocks}) > 1:
        sets.append([block._replace(weight=0.0) if block.optional else block for block in blocks])
    trials = [(number, strength) for number in range(len(sets)) for strength in head.grid]
    logits = np.full((len(trials), len(labels), classes), np.nan)
    for fold in np.unique(folds[folds >= 0]):
        fitting, others = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        present = np.unique(labels[fitting])
        if len(present) < 2:
            continue
        known, unknown = rows(fitting, others)
        bases = [_basis(known, some) for some in sets]
        turned = [(basis(known), basis(unknown)) for basis in bases]
        for place, (number, strength) in enumerate(trials):
            layer = head.fit(turned[number][0], np.searchsorted(present, labels[fitting]), strength)
            logits[place, others] = -1e3  # of a class that the fold has not seen
            logits[place][np.ix_(others, present)] = layer(turned[number][1])
    judged = np.isfinite(logits[0]).all(1)
    known, _ = rows(everything, none)
    chosen = bool(judged.any())
    place = _chosen(logits[:, judged], labels[judged], [number for number, _ in trials]) if chosen else 0
    number, strength = trials[place] if chosen else (0, head.fallback)
    basis = _basis(known, sets[number])
    layer = basis.unfold(head.fit(basis(known), labels, strength))
    return Fitted(layer, softmax(logits[place], axis=1), strength, chosen, number > 0)


def fit_heads(
    kind: str, rows: Rows, parts: Sequence[Sequence[Block]], alone: Sequence[int], labels: np.ndarray, folds: np.ndarray
) -> Fitted:
    """Fit a head to several parts of a row, and one to each of the others; the mean of their logits classifies.

    So a few strong descriptors are not drowned by hundreds, nor do they drown them, and no weight has to be fitted:
    weights of the heads that inner folds chose were no better than equal ones.

    Args:
        kind, rows, labels, folds: as in ``fit_head``.
        parts: the blocks of each part.
        alone: numbers of the parts with a head of their own.
    """
    together = [number for number in range(len(parts)) if number not in alone]
    ends = np.cumsum([0, *(sum(block.width for block in blocks) for blocks in parts)])
    columns, fits = [], []
    for numbers in [together] * bool(together) + [[number] for number in alone]:
        own = np.concatenate([np.arange(ends[number], ends[number + 1]) for number in numbers])

        def of_own(fitting: np.ndarray, others: np.ndarray, own: np.ndarray = own) -> tuple[np.ndarray, np.ndarray]:
            known, unknown = rows(fitting, others)
            return known[:, own], unknown[:, own]

        blocks = [block for number in numbers for block in parts[number]]
        columns.append(own)
        fits.append(fit_head(kind, of_own, blocks, labels, folds))
    if len(fits) == 1:
        return fits[0]
    weight = np.zeros((ends[-1], fits[0].layer.weight.shape[1]))
    for own, fitted in zip(columns, fits, strict=True):
        weight[own] = fitted.layer.weight / len(fits)
    layer = Linear(weight, np.mean([fitted.layer.bias for fitted in fits], axis=0))
    logs = np.mean([np.log(np.maximum(fitted.probabilities, TINY)) for fitted in fits], axis=0)
    strengths = tuple(fitted.strength for fitted in fits)
    chosen, left_out = all(fitted.chosen for fitted in fits), any(fitted.left_out for fitted in fits)
    return Fitted(layer, softmax(logs, axis=1), strengths, chosen, left_out)


def calibrated(fitted: Fitted, labels: np.ndarray) -> Fitted:
    """Return a head with a temperature, chosen on the predictions of inner folds; what it predicts stays as it is.

    A restrained head is less sure than it is right. It becomes ``SURER`` times as sure at most: a few dozen images that
    are all right would ask for certainty.

    Args:
        labels: classes of the images, [N].
    """
    known = np.isfinite(fitted.probabilities).all(1)
    if not known.any():
        return fitted
    logs = np.log(np.maximum(fitted.probabilities, TINY))
    temperature = max(fit_temperature(labels[known], logs[known]), 1 / SURER)
    layer = Linear(fitted.layer.weight / temperature, fitted.layer.bias / temperature)
    return replace(fitted, layer=layer, probabilities=softmax(logs / temperature, axis=1))


@dataclass(frozen=True)
class Basis:
    """Standardise descriptors, and turn them into as few directions as there are images, which loses nothing."""

    mean: np.ndarray
    turn: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self.mean) @ self.turn

    def unfold(self, layer: Linear) -> Linear:
        """Return the layer of raw descriptors that equals one of turned ones."""
        weight = self.turn @ layer.weight
        return Linear(weight, layer.bias - self.mean @ weight)


def _basis(rows: np.ndarray, blocks: Sequence[Block]) -> Basis:
    mean, deviation = rows.mean(0), rows.std(0)
    differs = deviation > 1e-6 * np.abs(mean) + TINY
    widths = [block.width for block in blocks]
    counts = np.repeat([block.weight / np.sqrt(block.width) for block in blocks], widths)
    scale = np.where(differs, counts / np.where(differs, deviation, 1), 0)
    if len(rows) > rows.shape[1]:
        return Basis(mean, np.diag(scale))
    _, sizes, directions = np.linalg.svd((rows - mean) * scale, full_matrices=False)
    kept = sizes > 1e-6 * max(sizes[0], TINY)
    return Basis(mean, scale[:, None] * directions[kept].T)


def _shares(labels: np.ndarray) -> np.ndarray:
    """Return what each image weighs where every class weighs alike, summing to 1."""
    counts = np.bincount(labels)
    return 1 / (counts[labels] * np.count_nonzero(counts))


def _chosen(logits: np.ndarray, labels: np.ndarray, sets: Sequence[int]) -> int:
    """Return the trial to take: of the best one's set, the first whose loss is within a standard error of the best.

    Args:
        logits: [T, N, C]; within a set, trials are held back less and less.
        sets: of each trial.
    """
    share, losses = _shares(labels), np.stack([_losses(values, labels) for values in logits])
    means = losses @ share
    best = int(means.argmin())
    error = float(np.sqrt(np.square(share * (losses[best] - means[best])).sum()))
    return next(trial for trial in range(best + 1) if sets[trial] == sets[best] and means[trial] <= means[best] + error)


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    likelihood: np.ndarray = log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return -likelihood


def _loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(_shares(labels) @ _losses(logits, labels))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the log loss (nats) of probabilities [N, C], to which each class contributes alike; NaN for no image."""
    return _loss(np.log(probabilities.clip(1e-12)), labels) if len(labels) else float("nan")
