"""The head of descriptors: inner folds leave optional blocks out where they only disturb."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from mvtec_lab.problems.classification.methods.descriptors.heads import (
    HEADS,
    INNER,
    Fitted,
    Linear,
    calibrated,
    deal,
    fit_head,
)
from mvtec_lab.problems.classification.methods.descriptors.parts import Block

LABELS = np.arange(48) % 4
FOLDS = deal(LABELS, range(48))


def rows_of(rng: np.random.Generator, signal: float, width: int) -> np.ndarray:
    """Return rows [48, width] of noise, the first four columns of which say the class as loudly as ``signal``."""
    rows = rng.normal(size=(len(LABELS), width))
    rows[:, :4] += signal * np.eye(4)[LABELS]
    return rows


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("useful", [True, False])
def test_inner_folds_leave_an_optional_block_out_where_it_only_disturbs(kind: str, useful: bool):
    rng = np.random.default_rng(0)
    # 5 deviations: hardly an error; the noise of 60 columns, thrice the weight of four of signal, costs some
    rows = np.concatenate([rows_of(rng, 5.0 if useful else 0.0, 60), rows_of(rng, 1.0 if useful else 2.5, 4)], 1)
    blocks = [Block(60, 3.0, optional=True), Block(4)]
    fitted = fit_head(kind, lambda a, b: (rows[a], rows[b]), blocks, LABELS, FOLDS)
    assert fitted.left_out == (not useful)
    assert bool(np.abs(fitted.layer.weight[:60]).max()) == useful
    assert np.abs(fitted.layer.weight[60:]).max() > 0
    if not useful:
        alone = fit_head(kind, lambda a, b: (rows[a, 60:], rows[b, 60:]), [Block(4)], LABELS, FOLDS)
        np.testing.assert_allclose(fitted.probabilities, alone.probabilities, atol=1e-3)  # as far as its solver goes


def test_a_block_is_kept_where_it_is_all_there_is():
    rows = rows_of(np.random.default_rng(0), 0.0, 20)
    fitted = fit_head("logistic", lambda a, b: (rows[a], rows[b]), [Block(20, optional=True)], LABELS, FOLDS)
    assert not fitted.left_out
    assert fitted.layer.weight.any()


def test_a_block_counts_by_its_weight_and_not_by_its_width():
    rng = np.random.default_rng(1)
    some, other = rows_of(rng, 2.0, 4), rows_of(rng, 0.0, 12)

    def fitted(weight: float) -> np.ndarray:
        rows = np.concatenate([some, other], 1)
        return fit_head(
            "logistic", lambda a, b: (rows[a], rows[b]), [Block(4), Block(12, weight)], LABELS, FOLDS
        ).layer.weight

    assert np.abs(fitted(0.1)[4:]).max() < 0.2 * np.abs(fitted(1.0)[4:]).max()
    assert not fitted(0.0)[4:].any()


def test_of_strengths_that_sixty_images_do_not_tell_apart_the_most_restrained_is_taken():
    rng = np.random.default_rng(2)
    rows, folds = rows_of(rng, 3.0, 8), FOLDS
    taken = fit_head("logistic", lambda a, b: (rows[a], rows[b]), [Block(8)], LABELS, folds).strength
    means, errors = [], []
    for strength in HEADS["logistic"].grid:
        lost = np.zeros(len(LABELS))
        for fold in range(INNER):
            fitting, others = folds != fold, folds == fold
            mean, scale = rows[fitting].mean(0), rows[fitting].std(0) * 8**0.5
            model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
            model.fit((rows[fitting] - mean) / scale, LABELS[fitting])
            logs = model.predict_log_proba((rows[others] - mean) / scale)
            lost[others] = -logs[np.arange(len(logs)), LABELS[others]]
        means.append(lost.mean())
        errors.append(lost.std() / len(lost) ** 0.5)
    best = int(np.argmin(means))
    within = [place for place, mean in enumerate(means) if mean <= means[best] + errors[best]]
    assert min(within) < best, "the case tells nothing"
    assert taken == HEADS["logistic"].grid[min(within)]


def test_a_restrained_head_becomes_as_sure_as_it_is_right():
    """Its predictions stay; images without a prediction of an inner fold choose nothing, and those all right little."""
    rng, labels = np.random.default_rng(0), np.arange(400) % 4
    logits = rng.normal(size=(400, 4)) + 2 * np.eye(4)[labels]  # these are calibrated when multiplied by 2
    fitted = Fitted(Linear(np.eye(4), np.ones(4)), softmax(1.4 * logits, axis=1), 1.0)
    fitted.probabilities[7] = np.nan
    surer = calibrated(fitted, labels)
    share = surer.layer.weight[0, 0]
    assert share == pytest.approx(2 / 1.4, rel=0.1)
    assert surer.layer.bias == pytest.approx(share)
    known = np.arange(400) != 7
    assert (surer.probabilities[known].argmax(1) == logits[known].argmax(1)).all()
    assert surer.probabilities[known] == pytest.approx(softmax(share * 1.4 * logits[known], axis=1))
    assert np.isnan(surer.probabilities[7]).all()
    right = Fitted(fitted.layer, softmax(np.eye(4)[labels], axis=1), 1.0)
    assert calibrated(right, labels).layer.weight[0, 0] == pytest.approx(2)
    none = Fitted(fitted.layer, np.full((400, 4), np.nan), 1.0)
    assert calibrated(none, labels) is none
