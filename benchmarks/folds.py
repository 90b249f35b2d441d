"""Simulate how often the corrected resampled t-test calls equal attempts different over folds, for several learners.

Two attempts train the same learner, each on its own noisy view of the same images, anew in every fold. Where images are
few, or a learner fits them closely, much of the difference is the luck of the images that are trained on, which all
folds share. How much of it there is decides what a test over folds is worth, and these folds do not tell it.
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


def level(kind: Kind, metric: str, rounds: int, sure: float = 1.0, *, once: bool | None = None) -> float:
    """Return how often equal attempts are called different; ``once``: see ``statistics.of_mean``, None: as the lab."""
    found, images = changes(kind)[metric, sure][:, :rounds].reshape(NULLS, -1), sum(kind.counts)
    rarest = FOLDS / (CLASSES * min(kind.counts))  # what one image of it changes in balanced accuracy
    one = {"accuracy": FOLDS / images, "balanced_accuracy": rarest}.get(metric, 0.0)
    apart = metric in PROPER if once is None else once
    p = [statistics.corrected_t_test(each, 1 / (FOLDS - 1), one, once=apart) for each in found]
    return float((np.array(p) < ALPHA).mean())


def variance_of_mean(kind: Kind, metric: str, rounds: int, sure: float = 1.0) -> float:
    """Return the variance of the mean difference, in units of what is seen among the test sets."""
    found = changes(kind)[metric, sure][:, :rounds].reshape(NULLS, -1)
    return float(found.mean(axis=1).var() / found.var(axis=1, ddof=1).mean())


def show_learners() -> None:
    kinds = [(metric, sure) for metric, sure in changes(KINDS[0])]
    names = [TITLES[metric] + (", too sure" if sure != 1 else "") for metric, sure in kinds]

    def cell(kind: Kind, metric: str, sure: float) -> str:
        levels = " / ".join(f"{100 * level(kind, metric, rounds, sure):.1f}" for rounds in ROUNDS)
        if metric not in PROPER:
            return levels
        return f"{levels} ({100 * level(kind, metric, ROUNDS[-1], sure, once=False):.1f})"

    rows = [[kind.name, *(cell(kind, *each) for each in kinds)] for kind in KINDS]
    rows.append(
        [
            "variance of the mean, least to most",
            *(
                " / ".join(
                    f"{min(of_kinds):.2f} to {max(of_kinds):.2f}"
                    for rounds in ROUNDS
                    if (of_kinds := [variance_of_mean(kind, metric, rounds, sure) for kind in KINDS])
                )
                for metric, sure in kinds
            ),
        ]
    )
    notes = [
        f"equal attempts called different at 0.05, %, of {NULLS:,}, over 5 folds x {' / x '.join(map(str, ROUNDS))}; "
        "in brackets the scores over ten rounds, were these counted as for accuracy",
        "last row: in units of the variance between test sets, of which the test takes "
        + " / ".join(f"{statistics.of_mean(FOLDS * rounds, 1 / (FOLDS - 1), False):.2f}" for rounds in ROUNDS)
        + f", and {statistics.of_mean(FOLDS, 1 / (FOLDS - 1), True):.2f} for the scores",
    ]
    common.show("learners", notes, ["both attempts", *names], rows, False)


if __name__ == "__main__":
    show_learners()
