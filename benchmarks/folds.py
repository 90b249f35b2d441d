"""Simulate how often the corrected resampled t-test calls equal attempts different over folds, for several learners.

Two attempts train the same learner, each on its own noisy view of the same images, anew in every fold. Where images are
few, or a learner fits them closely, much of the difference is the luck of the images that are trained on, which all
folds share. How much of it there is decides what a test over folds is worth, and these folds do not tell it. Where good
images train in every fold that no fold tests, the folds are yet more alike than their counts say: the second table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
from scipy import optimize

from benchmarks import common
from benchmarks.metrics import (
    ALPHA,
    CLASSES,
    FOLDS,
    MEAN,
    METRICS,
    OF_80,
    PROPER,
    SCATTER,
    TITLES,
    TOO_SURE,
    Design,
    features,
    folds_of,
    labels_of,
    logits_of,
    softmax,
    values_of,
)
from mvtec_lab.evaluation import statistics

NULLS = 1_000  # of a cell: a share of 5% is then known to within 1.4 points
BATCH = 100  # simulations at once
ROUNDS = (1, 2, 10)
Predictor = Callable[[np.ndarray], np.ndarray]  # views [..., N, D] to logits [..., N, C]
Learner = Callable[[np.ndarray, np.ndarray, np.random.Generator], Predictor]  # from views [..., N, D] and labels [N]


def centroids(views: np.ndarray, labels: np.ndarray, rng: np.random.Generator, scatter: float = 0.0) -> Predictor:
    """Learn the mean of each class; ``scatter`` adds the luck of a training to it."""
    mean = np.eye(CLASSES)[labels] / np.bincount(labels)[labels, None]
    centres = mean.T @ views
    if scatter:
        centres = centres + scatter * rng.normal(size=centres.shape)
    return lambda tested: logits_of(tested, centres)


def logistic(views: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Predictor:
    """Learn a logistic regression with a small penalty, by Nesterov's accelerated gradient descent."""
    penalty, steps = 0.02, 60  # further steps change no image's class in a thousand

    def with_one(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.ones((*x.shape[:-1], 1))], axis=-1)

    x, truth = with_one(views), np.eye(CLASSES)[labels]
    slope = np.swapaxes(x, -1, -2) / len(labels)
    rate = 1 / (0.175 * float((x**2).sum(axis=(-1, -2)).max()) / len(labels) + penalty)
    weights = ahead = np.zeros((*views.shape[:-2], x.shape[-1], CLASSES))
    momentum = 1.0
    for _ in range(steps):
        following = ahead - rate * (slope @ (softmax(x @ ahead) - truth) + penalty * ahead)
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = following + (momentum - 1) / grown * (following - weights)
        weights, momentum = following, grown
    return lambda tested: with_one(tested) @ weights


def neighbours(views: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Predictor:
    """Let the five nearest images vote."""
    votes, nearest = np.eye(CLASSES)[labels], 5

    def logits(tested: np.ndarray) -> np.ndarray:
        apart = (views**2).sum(axis=-1)[..., None, :] - 2 * tested @ np.swapaxes(views, -1, -2)
        close = apart <= np.partition(apart, nearest - 1, axis=-1)[..., nearest - 1 : nearest]
        return np.log(close @ votes / nearest + 0.05)  # a class without a vote is not impossible

    return logits


@dataclass(frozen=True)
class Kind:
    """Hold what both attempts are."""

    name: str
    learner: Learner = field(repr=False)
    counts: tuple[int, ...] = OF_80


KINDS = (
    Kind("nearest centroids", centroids),
    Kind("nearest centroids, rare classes", centroids, (55, 15, 5, 5)),
    Kind("nearest centroids, luck of training", partial(centroids, scatter=SCATTER)),
    Kind("five nearest neighbours", neighbours),
    Kind("logistic regression", logistic),
    Kind("logistic regression, 40 images", logistic, (20, 10, 5, 5)),
)


def trained(kind: Kind, views: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the logits of each image in one round of folds, [number, 2, N, C], and the images of each fold."""
    labels, logits = labels_of(kind.counts), np.zeros((*views.shape[:3], CLASSES))
    folds = list(folds_of(Design("", kind.counts, repeats=1), rng))
    for test in folds:
        train = np.setdiff1d(np.arange(len(labels)), test)
        logits[:, :, test] = kind.learner(views[:, :, train], labels[train], rng)(views[:, :, test])
    return logits, folds


def calibrated(kind: Kind) -> tuple[float, float]:
    """Return how far the classes lie apart for the mean accuracy, and what makes logits there calibrated."""
    labels, strengths = labels_of(kind.counts), np.linspace(0.6, 6, 19)

    def logits(strength: float, seed: int = 1) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return trained(kind, features(rng, labels, (strength,) * 2, 150), rng)[0]

    accuracies = np.maximum.accumulate([float((logits(s).argmax(axis=-1) == labels).mean()) for s in strengths])
    strength = float(np.interp(MEAN, accuracies, strengths))
    found = logits(strength, seed=2)

    def loss(factor: float) -> float:
        return float(values_of("log_loss", labels, softmax(factor * found)).mean())

    return strength, float(optimize.minimize_scalar(loss, bounds=(0.02, 20), method="bounded").x)


@cache
def changes(kind: Kind, number: int = NULLS) -> dict[tuple[str, float], np.ndarray]:
    """Return the differences of equal attempts, [number, rounds, FOLDS], by metric and how sure they are."""
    rng, labels, (strength, factor) = np.random.default_rng(0), labels_of(kind.counts), calibrated(kind)
    found: dict[tuple[str, float], list[np.ndarray]] = {
        (metric, sure): [] for metric in METRICS for sure in (1.0, TOO_SURE) if sure == 1 or metric in PROPER
    }
    for _ in range(-(-number // BATCH)):
        views = features(rng, labels, (strength,) * 2, BATCH)
        rounds = [trained(kind, views, rng) for _ in range(ROUNDS[-1])]
        for (metric, sure), each in found.items():
            each.append(np.stack([_differences(metric, sure * factor, labels, *of) for of in rounds], axis=1))
    return {key: np.concatenate(each) for key, each in found.items()}


def _differences(
    metric: str, scale: float, labels: np.ndarray, logits: np.ndarray, folds: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the first attempt's value less the second's in each fold, [number, FOLDS]."""
    probabilities = softmax(scale * logits)
    values = [values_of(metric, labels[test], probabilities[:, :, test]).mean(axis=-1) for test in folds]
    return np.stack([each[:, 0] - each[:, 1] for each in values], axis=-1)


def level(
    kind: Kind, metric: str, rounds: int, sure: float = 1.0, *, once: bool | None = None, number: int = NULLS
) -> float:
    """Return how often equal attempts are called different; ``once``: see ``statistics.of_mean``, None: as the lab."""
    found, images = _in_one(changes(kind, number)[metric, sure], rounds), sum(kind.counts)
    rarest = FOLDS / (CLASSES * min(kind.counts))  # what one image of it changes in balanced accuracy
    one = {"accuracy": FOLDS / images, "balanced_accuracy": rarest}.get(metric, 0.0)
    apart = metric in PROPER if once is None else once
    p = [statistics.corrected_t_test(each, 1 / (FOLDS - 1), one, one_round=FOLDS if apart else 0) for each in found]
    return float((np.array(p) < ALPHA).mean())


def _in_one(changes: np.ndarray, rounds: int) -> np.ndarray:
    """Return the differences of the first rounds one after the other, [number, rounds * FOLDS]."""
    return changes[:, :rounds].reshape(len(changes), -1)


def variance_of_mean(kind: Kind, metric: str, rounds: int, sure: float = 1.0, number: int = NULLS) -> float:
    """Return the variance of the mean difference, in units of what is seen among the test sets."""
    found = _in_one(changes(kind, number)[metric, sure], rounds)
    return float(found.mean(axis=1).var() / found.var(axis=1, ddof=1).mean())


@dataclass(frozen=True)
class Beside:
    """Hold what two equal attempts learn good images with, that are trained on in every fold, and what folds divide."""

    name: str
    learner: Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]] = field(repr=False)
    beside: int = 209  # as many as in the training folder of MVTec's bottle
    good: int = 20
    defects: int = 63
    learns_defects: bool = False


def nearest(good: np.ndarray, defects: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Score by the squared distance to the nearest good image."""

    def score(tested: np.ndarray) -> np.ndarray:
        apart = (tested**2).sum(axis=-1)[..., None] - 2 * tested @ np.swapaxes(good, -1, -2)
        return (apart + (good**2).sum(axis=-1)[..., None, :]).min(axis=-1)

    return score


def gaussian(good: np.ndarray, defects: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Score by Mahalanobis' distance to the good images."""
    mean = good.mean(axis=-2, keepdims=True)
    inverse = np.linalg.inv(_covariance(good))
    return lambda tested: ((tested - mean) @ inverse * (tested - mean)).sum(axis=-1)


def discriminant(good: np.ndarray, defects: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Score along Fisher's direction from the good images to the defects."""
    way = (defects.mean(axis=-2) - good.mean(axis=-2))[..., None]
    direction = np.linalg.solve(_covariance(good) + _covariance(defects), way)
    return lambda tested: (tested @ direction)[..., 0]


def _covariance(images: np.ndarray) -> np.ndarray:
    apart = images - images.mean(axis=-2, keepdims=True)
    return np.swapaxes(apart, -1, -2) @ apart / images.shape[-2] + 0.05 * np.eye(images.shape[-1])


BESIDE = (
    Beside("nearest good image", nearest),
    Beside("Gaussian", gaussian),
    Beside("nearest good image", nearest, 100, 50, 50),
    Beside("Gaussian", gaussian, 100, 50, 50),
    Beside("Fisher's discriminant", discriminant, learns_defects=True),
    Beside("Fisher's discriminant", discriminant, 100, 50, 50, learns_defects=True),
)
FAR = {nearest: 4.0, gaussian: 4.0, discriminant: 1.2}  # of the defects along one axis: image AUROC is about 0.77


@cache
def changes_beside(kind: Beside, number: int = NULLS) -> np.ndarray:
    """Return the differences of equal attempts in image AUROC, [number, rounds, FOLDS]."""
    rng, found = np.random.default_rng(0), []
    for _ in range(-(-number // BATCH)):
        images = features(rng, np.zeros(kind.beside + kind.good + kind.defects, dtype=int), (0.0, 0.0), BATCH)
        beside, good, defects = np.split(images, [kind.beside, kind.beside + kind.good], axis=2)
        defects[..., 0] += FAR[kind.learner]
        score, rounds = kind.learner(beside, defects), []
        for _ in range(ROUNDS[-1]):
            of_good, of_defects = rng.permutation(kind.good) % FOLDS, rng.permutation(kind.defects) % FOLDS
            each = []
            for fold in range(FOLDS):
                if kind.learns_defects:
                    score = kind.learner(
                        np.concatenate([beside, good[:, :, of_good != fold]], axis=2), defects[:, :, of_defects != fold]
                    )
                low, high = score(good[:, :, of_good == fold]), score(defects[:, :, of_defects == fold])
                each.append((high[..., :, None] > low[..., None, :]).mean(axis=(-1, -2)))
            rounds.append(np.stack([values[:, 0] - values[:, 1] for values in each], axis=-1))
        found.append(np.stack(rounds, axis=1))
    return np.concatenate(found)


def level_beside(kind: Beside, rounds: int, *, by_counts: bool = False, number: int = NULLS) -> float:
    """Return how often equal attempts are called different; ``by_counts``: if images were counted as in other folds."""
    found = _in_one(changes_beside(kind, number), rounds)
    divided = kind.good + kind.defects
    learnt = kind.beside + (divided * (FOLDS - 1) / FOLDS if kind.learns_defects else 0)
    ratio, one_round = divided / FOLDS / learnt, 0 if by_counts else FOLDS
    if kind.learns_defects and not by_counts:
        ratio = 1 / (FOLDS - 1)
    return float(np.mean([statistics.corrected_t_test(each, ratio, one_round=one_round) < ALPHA for each in found]))


def show_beside(number: int = NULLS) -> None:
    rows = [
        [
            kind.name,
            "yes" if kind.learns_defects else "no",
            f"{kind.beside} / {kind.good} / {kind.defects}",
            *(
                " / ".join(
                    f"{100 * level_beside(kind, rounds, by_counts=counts, number=number):.1f}" for rounds in ROUNDS
                )
                for counts in (False, True)
            ),
        ]
        for kind in BESIDE
    ]
    header = [
        "both attempts",
        "learn defects",
        "good images beside / good and defects in folds",
        "now",
        "by counts alone",
    ]
    note = (
        f"equal attempts called different in image AUROC at 0.05, %, of {number:,}, over 5 folds x "
        f"{' / x '.join(map(str, ROUNDS))}"
    )
    common.show("beside", [note], header, rows, False)


def show_learners(number: int = NULLS) -> None:
    kinds = [(metric, sure) for metric, sure in changes(KINDS[0], number)]
    names = [TITLES[metric] + (", too sure" if sure != 1 else "") for metric, sure in kinds]

    def cell(kind: Kind, metric: str, sure: float) -> str:
        levels = " / ".join(f"{100 * level(kind, metric, rounds, sure, number=number):.1f}" for rounds in ROUNDS)
        if metric not in PROPER:
            return levels
        return f"{levels} ({100 * level(kind, metric, ROUNDS[-1], sure, once=False, number=number):.1f})"

    rows = [[kind.name, *(cell(kind, *each) for each in kinds)] for kind in KINDS]
    rows.append(
        [
            "variance of the mean, least to most",
            *(
                " / ".join(
                    f"{min(of_kinds):.2f} to {max(of_kinds):.2f}"
                    for rounds in ROUNDS
                    if (of_kinds := [variance_of_mean(kind, metric, rounds, sure, number) for kind in KINDS])
                )
                for metric, sure in kinds
            ),
        ]
    )
    notes = [
        f"equal attempts called different at 0.05, %, of {number:,}, over 5 folds x {' / x '.join(map(str, ROUNDS))}; "
        "in brackets the scores over ten rounds, were these counted as for accuracy",
        "last row: in units of the variance between test sets, of which the test takes "
        + " / ".join(f"{statistics.of_mean(FOLDS * rounds, 1 / (FOLDS - 1)):.2f}" for rounds in ROUNDS)
        + f", and {statistics.of_mean(FOLDS, 1 / (FOLDS - 1), FOLDS):.2f} for the scores",
    ]
    common.show("learners", notes, ["both attempts", *names], rows, False)


def main(number: int = NULLS) -> None:
    show_learners(number)
    show_beside(number)


if __name__ == "__main__":
    main(common.nulls(__doc__, NULLS, BATCH))
