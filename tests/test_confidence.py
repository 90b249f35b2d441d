"""How far probabilities can be trusted: calibration, coverage against accuracy, conformal sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mvtec_lab.evaluation.confidence import (
    aurc,
    calibrate,
    coverage_curve,
    fit_dirichlet,
    fit_temperature,
    set_thresholds,
    sets_of,
    smallest_alpha,
    sure,
)
from mvtec_lab.reporting.report import REPORT, sum_up
from mvtec_lab.results import RunResult

Lab = Callable[..., int]


def drawn(images: int, seed: int = 0, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the log-probabilities by which they were drawn: calibrated ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (images, classes))
    probabilities = calibrate(logits, 1.0)
    return (probabilities.cumsum(axis=1) < rng.random((images, 1))).sum(axis=1), np.log(probabilities)


def loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_scaling_recovers_the_temperature_and_keeps_the_predictions(temperature: float) -> None:
    labels, right = drawn(20_000)
    spoilt = right * temperature
    found = fit_temperature(labels, spoilt)
    assert found == pytest.approx(temperature, rel=0.04)
    restored = calibrate(spoilt, 1 / found)
    assert loss(labels, restored) <= loss(labels, calibrate(spoilt, 1.0)) + 1e-9
    assert (restored.argmax(axis=1) == spoilt.argmax(axis=1)).all()
    assert fit_temperature(labels, spoilt + 7.0) == pytest.approx(found)  # logits as well as log-probabilities


def test_temperature_of_images_that_are_all_right_is_bounded() -> None:
    assert fit_temperature([0, 1], np.log([[0.6, 0.4], [0.4, 0.6]])) == pytest.approx(0.1, rel=1e-3)


def test_dirichlet_calibration_repairs_what_a_temperature_cannot() -> None:
    labels, right = drawn(20_000)
    spoilt = 2 * right + [1.5, 0.0, -1.5]  # a class that is named too often
    by_temperature = calibrate(spoilt, 1 / fit_temperature(labels, spoilt))
    weights, bias = fit_dirichlet(labels, spoilt, 1e-4)
    by_dirichlet = calibrate(spoilt, weights, bias)
    assert loss(labels, by_dirichlet) < loss(labels, by_temperature) - 0.05
    assert loss(labels, by_dirichlet) == pytest.approx(loss(labels, np.exp(right)), abs=0.01)
    assert bias[2] - bias[0] == pytest.approx(1.5, abs=0.15)

    def objective(weights: np.ndarray, bias: np.ndarray, strength: float) -> float:  # the paper's, for three classes
        off = weights[~np.eye(3, dtype=bool)]
        return loss(labels, calibrate(spoilt, weights, bias)) + strength * ((off**2).mean() + (bias**2).mean())

    weights, bias = fit_dirichlet(labels, spoilt, 1.0)
    least, rng = objective(weights, bias, 1.0), np.random.default_rng(0)
    for _ in range(20):  # nothing near it is better
        moved = weights + rng.normal(0, 1e-3, (3, 3)), bias + rng.normal(0, 1e-3, 3)
        assert objective(*moved, 1.0) > least - 1e-8
    # ODIR: what lies off the diagonal, and the bias, go to zero.
    weights, bias = fit_dirichlet(labels, spoilt, 1e4)
    assert np.abs(weights - np.diag(np.diag(weights))).max() < 1e-3
    assert np.abs(bias).max() < 1e-3


@pytest.mark.parametrize(("held_out", "alpha"), [(12, 0.1), (12, 1 / 13), (16, 0.2), (4, 0.2), (9, 0.1)])
def test_sets_hold_the_class_of_the_promised_share_of_each_class(held_out: int, alpha: float) -> None:
    """Over many draws: 1 - alpha at least, and not 1 / (n + 1) more; of the rare class as of the frequent one."""
    rng = np.random.default_rng(0)
    covered, draws = np.zeros(2), 3_000
    labels = np.repeat([0, 1], [held_out, 5 * held_out])
    for _ in range(draws):
        # The classes differ in how well they are known, so that one threshold for both would miss the harder one.
        of_truth = np.concatenate([rng.beta(1, 1, held_out + 1), rng.beta(6, 1, 5 * held_out + 1)])
        known = np.concatenate([of_truth[:held_out], of_truth[held_out + 1 : -1]])
        probabilities = np.where(labels[:, None] == [0, 1], known[:, None], 1 - known[:, None])
        thresholds = set_thresholds(labels, probabilities, alpha)
        covered += [of_truth[held_out] >= thresholds[0], of_truth[-1] >= thresholds[1]]
    shares = covered / draws
    assert (shares >= 1 - alpha - 0.02).all()  # three standard deviations of 3,000 draws
    assert shares[0] <= 1 - alpha + 1 / (held_out + 1) + 0.02


def test_too_few_images_give_the_full_set() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [12, 40])
    probabilities = rng.dirichlet([1, 1], 52)
    assert smallest_alpha(12) == pytest.approx(0.0769, abs=1e-4)
    below, at = set_thresholds(labels, probabilities, 0.076), set_thresholds(labels, probabilities, 1 / 13)
    assert below[0] == 0
    assert below[1] > 0
    assert at[0] == probabilities[labels == 0, 0].min()  # the least of all twelve
    assert sets_of([[0.0, 1.0]], below).tolist() == [[True, True]]
    # One image more or less than 0.1 asks for, and classes without any.
    thresholds = [set_thresholds([0] * n, np.full((n, 2), 0.5), 0.1).tolist() for n in (8, 9)]
    assert thresholds == [[0, 0], [0.5, 0]]
    assert set_thresholds(labels, probabilities, [0.5, 0.01])[1] == 0  # a share per class


def test_sure_is_the_prediction_alone_in_the_set() -> None:
    thresholds = [0.5, 0.2, 0.3]
    probabilities = [
        [0.8, 0.1, 0.1],  # the prediction alone
        [0.6, 0.3, 0.1],  # two
        [0.45, 0.15, 0.25],  # none
        [0.45, 0.25, 0.2],  # another one than the prediction
    ]
    assert sets_of(probabilities, thresholds).sum(axis=1).tolist() == [1, 2, 0, 1]
    assert sure(probabilities, thresholds).tolist() == [True, False, False, False]


def test_coverage_curve_by_hand_and_ties() -> None:
    coverage, accuracy = coverage_curve([0.9, 0.5, 0.7], [1, 0, 1])
    assert coverage.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert accuracy.tolist() == pytest.approx([1, 1, 2 / 3])
    assert aurc([0.9, 0.5, 0.7], [1, 0, 1]) == pytest.approx(1 / 9)
    tied = [0.9, 0.5, 0.5, 0.5]
    for right in ([1, 1, 0, 0], [1, 0, 0, 1]):  # the order of equal ones is nobody's merit
        assert coverage_curve(tied, right)[1].tolist() == pytest.approx([1, (1 + 1 / 3) / 2, (1 + 2 / 3) / 3, 0.5])


def test_a_report_draws_coverage_against_accuracy(lab: Lab, tmp_path: Path) -> None:
    assert lab(f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert 0 <= RunResult.load(tmp_path / "run").metrics["test"]["aurc"] <= 1
    sum_up(tmp_path / "run")
    page = (tmp_path / "run" / REPORT).read_text(encoding="utf-8")
    assert "Coverage against accuracy" in page
    assert "AURC" in page
