"""Compute classification metrics: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mvtec_lab.evaluation.confidence import aurc
from mvtec_lab.evaluation.proper import log_losses
from mvtec_lab.results import GOOD

BINS = 15  # of the calibration error: Guo et al.'s number
GROUPS = ("head", "middle", "tail")
# Least and largest share of the most frequent class's training images. The literature's thresholds, 100 and 20 images,
# are made for ImageNet-LT: with a few dozen images all classes would be tail, so the rule here is relative.
HEAD, TAIL = 1 / 2, 1 / 5


def frequency_groups(counts: Sequence[int]) -> list[str]:
    """Return head, middle or tail for each class, by its training images relative to the most frequent class."""
    shares = np.asarray(counts) / max(*counts, 1)
    return ["head" if share >= HEAD else "tail" if share <= TAIL else "middle" for share in shares]


def confusion(labels: npt.ArrayLike, predictions: npt.ArrayLike, num_classes: int) -> np.ndarray:
    """Return the counts of the pairs (label, prediction): int array [C, C], rows truth, columns prediction.

    Raises:
        ValueError: a label or prediction lies outside [0, C).
    """
    pairs = np.array([labels, predictions], dtype=np.int64)
    if ((pairs < 0) | (pairs >= num_classes)).any():
        raise ValueError(f"labels and predictions must lie in [0, {num_classes})")
    matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(matrix, tuple(pairs), 1)
    return matrix


def top_confusions(matrix: np.ndarray, classes: Sequence[str], most: int = 20) -> list[tuple[str, str, int, int]]:
    """Return the most frequent mistakes of a confusion matrix: truth, prediction, count, images of that truth."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = zip(*np.unravel_index(order, matrix.shape), strict=True)
    return [(classes[i], classes[j], int(wrong[i, j]), int(matrix[i].sum())) for i, j in places if wrong[i, j]]


def classification_metrics(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    classes: Sequence[str],
    train_counts: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return the metrics of probabilities [N, C] for labels [N] in [0, C): plain Python values, ready for JSON.

    accuracy; balanced_accuracy: mean recall over the classes among the labels; macro_f1: mean over the classes among
    labels or predictions; defect_accuracy: over the images that are not "good", None without such images or without a
    class "good"; loss: mean cross-entropy in nats; calibration_error: how far the predicted class's probability lies
    from the share of right predictions (Guo et al., ICML 2017); aurc: the area under the risk-coverage curve, as
    ``confidence.aurc`` says; recall: by class name, None for a class without images;
    group_recall: mean recall over the classes of each of GROUPS among the labels, None where there are none, and {}
    without ``train_counts``, the training images of each class; images: N.

    Raises:
        ValueError: no images, shapes that do not match, a label out of range, or probabilities that are not finite.
    """
    labels = np.asarray(labels, dtype=np.int64)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if not len(labels):
        raise ValueError("no images to score")
    if probabilities.shape != (len(labels), len(classes)):
        raise ValueError(f"probabilities are {probabilities.shape}, expected {(len(labels), len(classes))}")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities are not finite: the training has diverged")

    predictions = probabilities.argmax(axis=1)
    matrix = confusion(labels, predictions, len(classes))
    hits, truth, named = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    recall = [float(hit / n) if n else None for hit, n in zip(hits, truth, strict=True)]
    occurring = truth + named > 0
    defect = np.array([name != GOOD for name in classes])
    judged = GOOD in classes and truth[defect].any()
    return {
        "accuracy": float(hits.sum() / len(labels)),
        "balanced_accuracy": float(np.mean([value for value in recall if value is not None])),
        "macro_f1": float((2 * hits[occurring] / (truth + named)[occurring]).mean()),
        "defect_accuracy": float(hits[defect].sum() / truth[defect].sum()) if judged else None,
        "loss": float(log_losses(labels, probabilities).mean()),
        "calibration_error": _calibration_error(probabilities.max(axis=1), predictions == labels),
        "aurc": aurc(probabilities.max(axis=1), predictions == labels),
        "recall": dict(zip(classes, recall, strict=True)),
        "group_recall": {} if train_counts is None else _group_recall(recall, frequency_groups(train_counts)),
        "images": len(labels),
    }


def _calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Return the mean gap between confidence and accuracy over bins of equal width, weighted by their images."""
    bins = np.ceil(confidences * BINS).astype(int).clip(1, BINS)  # single precision sums to a little over 1
    return float(np.abs(np.bincount(bins, weights=right - confidences)).sum() / len(right))


def _group_recall(recall: Sequence[float | None], groups: Sequence[str]) -> dict[str, float | None]:
    known = {g: [r for r, group in zip(recall, groups, strict=True) if group == g and r is not None] for g in GROUPS}
    return {group: float(np.mean(values)) if values else None for group, values in known.items()}


def majority_baseline(train_labels: npt.ArrayLike, test_labels: npt.ArrayLike) -> float:
    """Return the test accuracy of always naming training's most frequent class (of several, the lowest index)."""
    return float(np.mean(np.asarray(test_labels) == np.bincount(np.asarray(train_labels)).argmax()))
