"""Levels, coverage and power of the verdict by simulation: the cells of benchmarks/README.md, and smaller ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is no part of the package

from benchmarks import levels


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
