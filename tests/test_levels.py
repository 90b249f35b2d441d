"""Levels, coverage and power of the verdict by simulation: the cells of benchmarks/README.md, and smaller ones."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mvtec_lab.reporting.verdict import FEW_IMAGES, MANY_ROUNDS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is no part of the package

from benchmarks import common, folds, levels, metrics
from mvtec_lab.evaluation import statistics


@pytest.mark.slow
@pytest.mark.parametrize("scatter", levels.SCATTERS)
@pytest.mark.parametrize("seeds", levels.SEEDS)
@pytest.mark.parametrize("images", [83, 16])
def test_equal_attempts_are_rarely_called_different(images: int, seeds: int, scatter: float) -> None:
    assert levels.seeds_level(images, seeds, scatter) <= 0.06


def test_the_luck_of_training_is_not_taken_for_the_attempt() -> None:
    assert levels.seeds_level(83, 3, 0.08, repeats=60) <= 0.1
    assert levels.seeds_power(83, 5, 0.03, 0.25, repeats=40) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("kinds", levels.SCORES)
@pytest.mark.parametrize(("good", "defects"), levels.SIZES)
def test_scores_of_equal_auroc_are_rarely_called_different(good: int, defects: int, kinds: tuple[str, str]) -> None:
    for auroc in levels.AUROCS:
        assert levels.auroc_called(good, defects, kinds, (auroc, auroc)) <= 0.06


@pytest.mark.slow
def test_scores_of_other_auroc_are_told_apart() -> None:
    assert levels.auroc_called(20, 63, ("normal", "normal"), (0.95, 0.7)) > 0.85
    assert levels.auroc_called(20, 63, ("normal", "normal"), (0.99, 0.8)) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["pixel_aupro", "pixel_auroc"])
@pytest.mark.parametrize("kinds", levels.PIXELS)
@pytest.mark.parametrize(("good", "defects"), levels.SIZES)
def test_maps_of_equal_figures_are_rarely_called_different(
    good: int, defects: int, kinds: tuple[str, str], metric: str
) -> None:
    assert levels.pixels_called(good, defects, kinds, metric) <= 0.06


def test_maps_of_other_figures_are_told_apart() -> None:
    assert levels.pixels_called(20, 63, ("plain", "plain"), "pixel_aupro", apart=1.5, repeats=10) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("recall", levels.RECALLS)
@pytest.mark.parametrize("counts", levels.CLASSES)
def test_the_interval_of_balanced_accuracy_covers(counts: tuple[int, ...], recall: float) -> None:
    held, below = levels.coverage(counts, recall)
    assert 0.94 <= held <= 0.985
    assert below <= 0.06


def test_the_interval_of_balanced_accuracy_covers_many_small_classes() -> None:
    held, below = levels.coverage((10,) + (2,) * 14, 0.95, repeats=200)
    assert held >= 0.9  # intervals of each recall combined: 0.83
    assert below <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("comparisons", [1, 3])
@pytest.mark.parametrize("design", levels.DESIGNS, ids=lambda design: design.name)
def test_the_difference_that_is_stated_is_found_in_eight_of_ten_cases(design: levels.Design, comparisons: int) -> None:
    _, power = levels.stated_power(design, comparisons, repeats=600)
    assert 0.73 <= power <= 0.87  # 75 to 85%, and what 600 simulations are off by


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "more"), metrics.KINDS)
@pytest.mark.parametrize("design", metrics.DESIGNS, ids=lambda design: design.name)
def test_equal_attempts_are_rarely_called_different_by_any_metric(
    design: metrics.Design, metric: str, more: str
) -> None:
    assert metrics.level(design, metric, more) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("rounds", folds.ROUNDS)
@pytest.mark.parametrize("kind", folds.KINDS, ids=lambda kind: kind.name)
def test_equal_learners_are_rarely_called_different_over_folds(kind: folds.Kind, rounds: int) -> None:
    for metric, sure in folds.changes(kind, folds.NULLS):  # as level asks for them: they are computed once
        few = metric == "accuracy" and rounds > MANY_ROUNDS and sum(kind.counts) < FEW_IMAGES  # the verdict warns
        assert folds.level(kind, metric, rounds, sure) <= (0.08 if few else 0.06)


@pytest.mark.slow
@pytest.mark.parametrize("kind", folds.BESIDE, ids=lambda kind: f"{kind.name}, {kind.beside}")
def test_good_images_beside_the_folds_call_no_more_equal_methods_different(kind: folds.Beside) -> None:
    assert all(folds.level_beside(kind, rounds) <= 0.06 for rounds in folds.ROUNDS)


def test_a_learner_that_sees_much_in_its_images_varies_more_than_its_folds_show() -> None:
    """The reason why further rounds do not count for scores."""
    few = folds.changes(folds.KINDS[0], folds.BATCH)["brier", 1.0]
    assert few.shape == (folds.BATCH, folds.ROUNDS[-1], folds.FOLDS)
    assert abs(few.mean()) < 0.01  # they are equal
    flat = few.reshape(len(few), -1)
    assert flat.mean(axis=1).var() > (1 / flat.shape[1] + 0.1) * flat.var(axis=1, ddof=1).mean()
    assert folds.level(folds.KINDS[0], "brier", 1, number=folds.BATCH) <= 0.1


def test_fewer_simulations_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for typed, nulls in (([], 1_000), (["--nulls", "120"], 200)):  # in whole batches
        monkeypatch.setattr(sys, "argv", ["folds", *typed])
        assert common.nulls("", 1_000, 100) == nulls


@pytest.mark.slow
@pytest.mark.parametrize("sure", [sure for _, sure, _ in metrics.CASES if isinstance(sure, tuple)])
@pytest.mark.parametrize("metric", metrics.PROPER)
@pytest.mark.parametrize("design", metrics.UNEQUAL, ids=lambda design: design.name)
def test_equal_scores_of_unequal_attempts_are_rarely_called_different(
    design: metrics.Design, metric: str, sure: tuple[float, float]
) -> None:
    if metric == "log_loss" and not design.repeats:
        pytest.skip("the lab makes no such test")
    cell = metrics.unequal(design, metric, 0.1, sure, metrics.NULLS)
    assert cell is None or sum(cell) <= 0.07


@pytest.mark.slow
def test_scores_find_what_accuracy_does_not() -> None:
    design = metrics.DESIGNS[0]
    assert metrics.level(design, "brier", number=250) <= 0.1
    assert metrics.power(design, "brier", 0.2, number=250) > metrics.power(design, "accuracy", 0.2, number=250) + 0.2
    # Accuracy does not see how sure a model is, and log loss calls the less accurate one better.
    accuracy, loss = (
        metrics.unequal(metrics.DESIGNS[4], m, 0.1, metrics.UNSURE, 250) for m in ("accuracy", "log_loss")
    )
    assert accuracy[0] > accuracy[1]
    assert loss[1] > loss[0]


@pytest.mark.parametrize("images", metrics.IMAGES)
def test_mcnemars_test_holds_its_level(images: int) -> None:
    assert max(metrics.mcnemar_level(images, share) for share in metrics.DISAGREEMENTS if share <= 0.8) <= 0.051


def test_the_fast_permutation_test_is_the_labs() -> None:
    rng = np.random.default_rng(0)
    for images, within in ((10, 1e-9), (40, 0.02)):  # all changes of sign, and as many random ones
        first, second = rng.normal(0.2, 1, images), rng.normal(size=images)
        assert metrics.permuted(first - second) == pytest.approx(statistics.paired_test(first, second)[1], abs=within)
