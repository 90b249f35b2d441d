"""Say how far class probabilities can be trusted: calibration, coverage against accuracy, conformal sets.

Pure functions on arrays. What is fitted needs predictions of images that the model was not fitted to: held-out ones.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

# Temperatures beyond these are those of held-out images that are all right, or no better than chance.
COLDEST, HOTTEST = 0.1, 10.0


def calibrate(
    log_probabilities: npt.ArrayLike, weights: npt.ArrayLike, bias: npt.ArrayLike | None = None
) -> np.ndarray:
    """Return the probabilities [N, C] that a calibration makes of log-probabilities or logits [N, C].

    Args:
        log_probabilities: natural logarithms; what is added to a row changes nothing.
        weights: 1 / temperature, or a matrix [C, C] of a row per class.
        bias: [C]; None: zeros.
    """
    values, weights = np.asarray(log_probabilities, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    logits = (values * weights if weights.ndim == 0 else values @ weights.T) + (0.0 if bias is None else bias)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def fit_temperature(labels: npt.ArrayLike, log_probabilities: npt.ArrayLike) -> float:
    """Return the temperature that makes held-out probabilities most likely: above 1 they were too sure.

    Guo et al., ICML 2017. The class that a row names stays the same. It lies in [0.1, 10]: where every held-out image
    is right, the likelihood asks for a temperature of 0.

    Args:
        labels: [N], in [0, C).
        log_probabilities: as in ``calibrate``.
    """
    from scipy.optimize import minimize_scalar

    labels, values = np.asarray(labels), np.asarray(log_probabilities, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        return _loss(labels, values * math.exp(-log_temperature))

    bounds = math.log(COLDEST), math.log(HOTTEST)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def fit_dirichlet(
    labels: npt.ArrayLike, log_probabilities: npt.ArrayLike, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [C, C] and bias [C] of Dirichlet calibration with ODIR, which ``calibrate`` takes.

    Kull et al., NeurIPS 2019: a linear map of log-probabilities, whose off-diagonal weights and bias are held small.
    Arguments as above.

    Args:
        labels: [N], in [0, C).
        log_probabilities: as in ``calibrate``.
        strength: of the regularisation, above 0, of weights and bias alike.
    """
    from scipy.optimize import minimize

    labels, values = np.asarray(labels), np.asarray(log_probabilities, dtype=np.float64)
    classes = values.shape[1]
    off, truth = 1 - np.eye(classes), np.eye(classes)[labels]
    pairs = max(classes * (classes - 1), 1)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-classes].reshape(classes, classes), parameters[-classes:]
        logits = values @ weights.T + bias
        penalty = strength * ((off * weights**2).sum() / pairs + (bias**2).sum() / classes)
        slope = (calibrate(logits, 1.0) - truth) / len(labels)
        of_weights = slope.T @ values + 2 * strength * off * weights / pairs
        of_bias = slope.sum(axis=0) + 2 * strength * bias / classes
        return _loss(labels, logits) + penalty, np.concatenate([of_weights.ravel(), of_bias])

    start = np.concatenate([np.eye(classes).ravel(), np.zeros(classes)])
    result = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2_000})
    return result.x[:-classes].reshape(classes, classes), result.x[-classes:]


def _loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Return the mean cross-entropy of logits, nats."""
    highest = logits.max(axis=1)
    total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return float((total - logits[np.arange(len(labels)), labels]).mean())


def coverage_curve(confidences: npt.ArrayLike, right: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and accuracy, [N] each, where only the most confident images are answered.

    Images of equal confidence are answered in the mean order: each of them counts as right as all of them are.

    Args:
        confidences: of the predictions, [N].
        right: whether they are right, [N].
    """
    confidences, right = np.asarray(confidences, dtype=np.float64), np.asarray(right, dtype=np.float64)
    _, inverse, counts = np.unique(-confidences, return_inverse=True, return_counts=True)
    of_ties = np.bincount(inverse, weights=right, minlength=len(counts)) / counts
    answered = np.arange(1, len(right) + 1)
    return answered / max(len(right), 1), np.cumsum(np.repeat(of_ties, counts)) / answered


def aurc(confidences: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Return the area under the risk-coverage curve: the mean error rate over all coverages; 0 is best.

    Geifman and El-Yaniv, NeurIPS 2017. Arguments as in ``coverage_curve``, one image at least.
    """
    return float(1 - coverage_curve(confidences, right)[1].mean())


def smallest_alpha(held_out: int) -> float:
    """Return the smallest alpha that can be aimed at for a class with n held-out images: 1 / (n + 1)."""
    return 1 / (held_out + 1)


def reservation(held_out: int, validates_by: str = "") -> str:
    """Return on what the aim of ``set_thresholds`` rests, to follow "the aim"; ``validates_by`` as in ``RunResult``."""
    if not validates_by:
        return f"rests on {held_out} held-out images, and on new ones being like them"
    return (
        f"is not guaranteed: the {held_out} held-out images were judged by {validates_by}, whose models are others "
        "than this one, and new images must be like them"
    )


def set_thresholds(labels: npt.ArrayLike, probabilities: npt.ArrayLike, alpha: npt.ArrayLike) -> np.ndarray:
    """Return the probability from which on each class belongs to an image's set, [C]: class-conditional conformal sets.

    Vovk's Mondrian conformal prediction. Of the images of any class, at least 1 - alpha have their own class in their
    set: for every sample size and distribution, on average over the draw of held-out and new images, if a class's
    held-out and new images are exchangeable, and if the held-out ones had no part in fitting or choosing the model. It
    is no promise for a single image, a single draw, or a kind of image within a class.

    A class with n held-out images, n below 1 / alpha - 1, has the threshold 0, and is in every set: nothing below
    1 / (n + 1) can be promised of it. With 12 images that is 0.077.

    Probabilities that come from a cross-validation are those of several models, none of which judges new images. CV+,
    which keeps these models, promises 1 - 2 alpha (Barber et al., Annals of Statistics 2021); where one model that was
    fitted to all images stands in, as in the lab, nothing is promised without further assumptions, and 1 - alpha is
    what is seen where the models hardly differ.

    Args:
        labels: of held-out images, [N], in [0, C).
        probabilities: of the classes, [N, C].
        alpha: share of a class's images that may miss it, in (0, 1): one number, or one per class.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    classes = probabilities.shape[1]
    thresholds = np.zeros(classes)
    for index, share in enumerate(np.broadcast_to(np.asarray(alpha, dtype=np.float64), classes)):
        of_class = np.sort(probabilities[labels == index, index])[::-1]
        # 10 * 0.9 is 9: what single steps of rounding add must not make it 10.
        rank = math.ceil((len(of_class) + 1) * (1 - share) - 1e-9)
        if 0 < rank <= len(of_class):
            thresholds[index] = of_class[rank - 1]
    return thresholds


def sets_of(probabilities: npt.ArrayLike, thresholds: npt.ArrayLike) -> np.ndarray:
    """Return which classes belong to the sets of images, bool [N, C]; a set may be empty or hold several.

    Args:
        probabilities: [N, C].
        thresholds: of ``set_thresholds``, [C].
    """
    return np.asarray(probabilities) >= np.asarray(thresholds)


def sure(probabilities: npt.ArrayLike, thresholds: npt.ArrayLike) -> np.ndarray:
    """Return whether the model is sure of images, bool [N]: the set holds the class of highest probability alone.

    Of the images of any class, at most alpha are sure and wrong, under the assumptions of ``set_thresholds``.
    """
    sets, predictions = sets_of(probabilities, thresholds), np.asarray(probabilities).argmax(axis=1)
    return (sets.sum(axis=1) == 1) & sets[np.arange(len(sets)), predictions]
