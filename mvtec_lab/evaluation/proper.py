"""Score stated probabilities by proper scores: the lower, the better, and lowest on average for the true ones.

Unlike accuracy they see how sure a model is of each image, so that few images say more; and they count being too sure
as a fault, even where every class is named right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

LEAST = np.finfo(np.float64).eps  # a probability of the true class below it counts as it, as scikit-learn clips
PREFIX = "prob_"  # of the columns of predictions.csv: prob_<class>


def log_losses(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> np.ndarray:
    """Return the log loss of each image in nats, [N]: -log of the probability of its class (Good, 1952).

    An image whose class is given the probability 0 has 36 nats and not infinitely many.

    Args:
        labels: [N], in [0, C).
        probabilities: of the classes, [N, C].
    """
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    return np.asarray(-np.log(probabilities[np.arange(len(labels)), labels].clip(LEAST)))


def brier_scores(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> np.ndarray:
    """Return the Brier score of each image, [N], in [0, 2]: the sum of squared errors over the classes (Brier, 1950).

    Arguments as in ``log_losses``. Where there are two classes, the half of it is what some call by this name.
    """
    labels, probabilities = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    return np.asarray(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1))


def stated(rows: Sequence[Mapping[str, str]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return labels [N] and probabilities [N, C] of rows of predictions.csv; None where they state no probabilities.

    Raises:
        KeyError: a label has no probability.
    """
    names = [key for key in (rows[0] if rows else ()) if key.startswith(PREFIX)]
    if not names:
        return None
    place = {name: index for index, name in enumerate(names)}
    labels = np.array([place[f"{PREFIX}{row['label']}"] for row in rows])
    return labels, np.array([[float(row[name]) for name in names] for row in rows])


def of_shares(train: Mapping[str, int], test: Mapping[str, int], score: str) -> float | None:
    """Return the log loss or the Brier score of one who states the classes' shares of the training images, always.

    Args:
        train, test: images of each class.
        score: ``log_loss`` or ``brier``.

    Returns:
        The score; None without images on either side.
    """
    classes = list(dict.fromkeys([*train, *test]))
    learnt, tested = (np.array([images.get(name, 0) for name in classes], dtype=np.float64) for images in (train, test))
    if not (learnt.sum() and tested.sum()):
        return None
    of_image = log_losses if score == "log_loss" else brier_scores
    values = of_image(np.arange(len(classes)), np.tile(learnt / learnt.sum(), (len(classes), 1)))
    return float(values @ tested / tested.sum())
