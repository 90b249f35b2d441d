"""Validation ranks attempts; of different numbers of images the middle of value and lower end does."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_reporting import CLASSES, fabricate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is no part of the package

from benchmarks import ranking as simulated
from mvtec_lab.evaluation.metrics import classification_metrics
from mvtec_lab.evaluation.statistics import balanced_interval
from mvtec_lab.reporting.best import best_run
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.pairs import Comparison
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import BEST, PREDICTIONS, RESULT


def validated(run_dir: Path, attempt: str, wrong: int, of: int, *, rows: bool = True, **fields: Any) -> None:
    """Write a run that was validated on ``of`` images, of which the first ``wrong`` were called something else."""
    run = fabricate(run_dir, attempt, **fields)
    labels = np.arange(of) % len(CLASSES)
    predictions = np.where(np.arange(of) < wrong, (labels + 1) % len(CLASSES), labels)
    probabilities = np.full((of, len(CLASSES)), 0.4 / (len(CLASSES) - 1))
    probabilities[np.arange(of), predictions] = 0.6
    run.metrics["val"] = classification_metrics(labels, probabilities, CLASSES)
    run.save()
    lines = [f"val,val_{i:03}.png,{CLASSES[labels[i]]},{CLASSES[predictions[i]]}\n" for i in range(of)]
    if rows:
        with (run_dir / PREDICTIONS).open("a", encoding="utf-8") as file:
            file.writelines(lines)
    (run_dir / BEST).touch()


def compared(directory: Path) -> Comparison:
    return compare(load_runs(directory))


def lower(wrong: int, of: int) -> float:
    images = np.bincount(np.arange(of) % len(CLASSES))
    right = images - np.bincount(np.arange(wrong) % len(CLASSES), minlength=len(CLASSES))
    return balanced_interval(right, images)[0]


def middle(wrong: int, of: int) -> float:
    images = np.bincount(np.arange(of) % len(CLASSES))
    recalls = 1 - np.bincount(np.arange(wrong) % len(CLASSES), minlength=len(CLASSES)) / images
    return float((recalls.mean() + lower(wrong, of)) / 2)


def test_of_different_numbers_of_images_the_middle_of_value_and_lower_end_names_the_best(tmp_path: Path) -> None:
    validated(tmp_path / "network", "network", 1, 12, right=9)
    validated(tmp_path / "recipe", "recipe", 6, 44, right=11)
    comparison = compared(tmp_path)
    (ranking,) = comparison.described["ranked_by"]
    assert ranking["values"]["network"] > ranking["values"]["recipe"]
    assert ranking["ends"] == pytest.approx({"network": lower(1, 12), "recipe": lower(6, 44)})
    assert ranking["middles"] == pytest.approx({"network": middle(1, 12), "recipe": middle(6, 44)})
    assert (comparison.best, ranking["by"], ranking["images"]) == ("recipe", "interval", {"network": 12, "recipe": 44})
    said = (
        "The attempts were validated on 12 and on 44 images, so the middle between the value and the lower end of its "
        f"95% interval names the best: recipe {middle(6, 44):.3f} on 44, network {middle(1, 12):.3f} on 12."
    )
    assert said in comparison.verdict
    assert f"Use {comparison.best} if one has to be chosen" in comparison.headline[0]
    run, why = best_run(tmp_path)  # the run that task=threshold, predict and export take
    assert run.attempt == "recipe"
    assert said.removesuffix(".") in why


def test_an_attempt_with_few_images_is_named_where_it_is_far_ahead(tmp_path: Path) -> None:
    validated(tmp_path / "network", "network", 0, 12, right=9)
    validated(tmp_path / "recipe", "recipe", 7, 44, right=11)
    assert lower(0, 12) < lower(7, 44)  # by the lower end alone it would be the other one
    assert middle(0, 12) > middle(7, 44)
    assert compared(tmp_path).best == "network"


@pytest.mark.parametrize("images", [(12, 44), (12, 200)])
def test_the_rule_loses_less_than_value_and_lower_end_among_attempts_that_are_alike(images: tuple[int, int]) -> None:
    scenario = simulated.SCENARIOS[-1]
    lost = simulated.outcomes(simulated.draw(scenario, images, repeats=500))
    by_lab, by_value, by_end = (
        np.mean([lost[rule, attempts][0] for attempts in simulated.ATTEMPTS])
        for rule in (simulated.LAB, "value", simulated.LOWER)
    )
    assert by_lab < min(by_value, by_end) - 0.001


def test_of_equal_numbers_the_value_ranks_as_ever(tmp_path: Path) -> None:
    validated(tmp_path / "one", "one", 1, 12, right=9)
    validated(tmp_path / "two", "two", 2, 12, right=11)
    comparison = compared(tmp_path)
    (ranking,) = comparison.described["ranked_by"]
    assert (comparison.best, ranking["by"], ranking["ends"]) == ("one", "value", {})
    assert not any("validated on" in line for line in comparison.verdict)
    assert "validated on" not in best_run(tmp_path)[1]


def test_attempts_that_validation_hardly_tells_apart_are_named(tmp_path: Path) -> None:
    for name, wrong in (("one", 1), ("two", 1), ("three", 3)):
        validated(tmp_path / name, name, wrong, 12, right=9)
    comparison = compared(tmp_path)
    other = "two" if comparison.best == "one" else "one"
    said = f"On validation {other} came within one point of {comparison.best}: that it was named is luck."
    assert said in comparison.verdict
    (tmp_path / "two" / RESULT).unlink()
    assert not any("came within" in line for line in compared(tmp_path).verdict)


def test_without_an_interval_the_value_ranks_and_that_is_said(tmp_path: Path) -> None:
    validated(tmp_path / "network", "network", 1, 12, right=9)
    validated(tmp_path / "recipe", "recipe", 6, 44, right=11, rows=False)  # whose predictions were not kept
    comparison = compared(tmp_path)
    assert (comparison.best, comparison.described["ranked_by"][0]["by"]) == ("network", "value")
    said = "the value ranks them all the same: balanced accuracy on validation has no interval for recipe."
    assert comparison.verdict[1].endswith(said)


def folds_of(directory: Path, attempt: str, wrong: Sequence[int], of: int, **fields: Any) -> None:
    for fold, mistakes in enumerate(wrong):
        name = f"{attempt}-{fold}"
        validated(directory / name, attempt, mistakes, of, images=20 + fold, fold=fold, **fields)


def test_over_folds_each_image_counts_once(tmp_path: Path) -> None:
    folds_of(tmp_path, "network", [0, 1, 1], 12, right=9)
    folds_of(tmp_path, "recipe", [4, 4, 4], 44, right=11)
    comparison = compared(tmp_path)
    (ranking,) = comparison.described["ranked_by"]
    assert (comparison.best, ranking["by"]) == ("recipe", "interval")
    assert ranking["ends"]["recipe"] == pytest.approx(lower(4, 44))  # the same 44 images in each fold
    assert "on 12 and on 44 images in each run, so the middle" in comparison.verdict[1]


def test_over_products_squares_of_the_distances_add_up(tmp_path: Path) -> None:
    for product in ("bottle", "cable"):
        validated(tmp_path / f"n-{product}", "network", 1, 12, right=9, category=product)
        validated(tmp_path / f"r-{product}", "recipe", 6, 44, right=11, category=product)
    comparison = compared(tmp_path)
    (ranking,) = comparison.described["ranked_by"]
    value = ranking["values"]["network"]
    assert ranking["ends"]["network"] == pytest.approx(value - (value - lower(1, 12)) / math.sqrt(2))
    assert (comparison.best, ranking["by"]) == ("recipe", "interval")
    assert "on 12 and on 44 images" in comparison.verdict[0]


def test_a_fold_that_is_missing_makes_no_different_numbers(tmp_path: Path) -> None:
    """Folds of 12 and of 13 images: without one of 13 the mean is another one, 12.25 in place of 12.4."""
    for product, name, folds in (("bottle", "one", 5), ("bottle", "two", 5), ("cable", "one", 4), ("cable", "two", 5)):
        for fold in range(folds):
            place, more = tmp_path / f"{product}-{name}-{fold}", fold > 2
            validated(place, name, fold % 3, 12 + more, images=20 + fold, fold=fold, category=product, right=15)
    comparison = compared(tmp_path)
    (ranking,) = comparison.described["ranked_by"]
    assert (ranking["by"], ranking["images"]) == ("value", {"one": 12.325, "two": 12.4})
    assert not any("validated on" in line for line in comparison.verdict)


def test_numbers_that_differ_on_products_and_not_in_their_mean_are_different(tmp_path: Path) -> None:
    for product, name, images in (("a", "one", 12), ("a", "two", 44), ("b", "one", 44), ("b", "two", 12)):
        validated(tmp_path / f"{product}-{name}", name, images // 12, images, category=product, right=15)
    comparison = compared(tmp_path)
    assert comparison.described["ranked_by"][0]["by"] == "interval"
    assert "The attempts were validated on different numbers of images, so the middle" in comparison.verdict[0]
