"""Few training images of each class (``data.per_class``): nested draws, the same test images, and what more bring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_reporting import fabricate, text_of

from mvtec_lab import problems
from mvtec_lab.config import Config, SplitConfig
from mvtec_lab.data.samples import Sample
from mvtec_lab.data.splits import few_of_each, split_samples
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.learning_curve import forecast
from mvtec_lab.reporting import report
from mvtec_lab.reporting.best import best_run
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.pairs import Comparison
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.reporting.shots import curves_of
from mvtec_lab.results import BEST, CONFIG, RESULT

KEY = " data.per_class="


def divided() -> list[Sample]:
    paths = [
        (f"test/{label}/{i:03}.png", label) for label, n in (("good", 20), ("crack", 12), ("hole", 5)) for i in range(n)
    ]
    return split_samples([Sample(path, label) for path, label in paths], SplitConfig(seed=3))


def of(samples: list[Sample], split: str) -> set[str]:
    return {s.path for s in samples if s.split == split}


def test_fewer_images_are_among_more_and_the_others_stay() -> None:
    samples = divided()
    drawn = {count: few_of_each(samples, count, 3) for count in (1, 2, 5, 50)}
    assert of(drawn[1], "train") < of(drawn[2], "train") < of(drawn[5], "train") < of(samples, "train")
    assert of(drawn[50], "train") == of(samples, "train")
    assert all(of(each, part) == of(samples, part) for each in drawn.values() for part in ("val", "test"))
    labels = [s.label for s in drawn[2] if s.split == "train"]
    assert {label: labels.count(label) for label in labels} == {"good": 2, "crack": 2, "hole": 2}
    assert of(few_of_each(samples, 5, 4), "train") != of(drawn[5], "train")  # another seed, another draw


def test_both_ways_to_thin_out_training_are_refused_together() -> None:
    config = Config()
    config.data.per_class, config.data.imbalance = 5, 10.0
    with pytest.raises(LabError, match=r"data\.per_class=5 does nothing for data.imbalance=10\.0: it thins"):
        problems.check(config, {})
    config.data.per_class, config.data.imbalance = 0, None
    with pytest.raises(LabError, match=r"data\.per_class=0 is out of range: give 1 or more"):
        problems.check(config, {})


def curve(folder: Path, name: str, right: dict[int | None, int], **fields: Any) -> None:
    """Write a run for each number of training images of a class, with this many of 20 test images right."""
    for count, hits in right.items():
        counts = {"train": dict.fromkeys(("good", "crack"), count or 50), "test": {"good": 20}}
        run = fabricate(folder / f"{name}{count}", name, right=hits, counts=counts, **fields)
        path = Path(run.run_dir, CONFIG)
        settings = yaml.safe_load(path.read_text())
        settings["data"] = {"per_class": count}
        path.write_text(yaml.safe_dump(settings))


@pytest.mark.slow
def test_each_attempt_has_a_curve_in_verdict_and_report(tmp_path: Path) -> None:
    curve(tmp_path, "base", {2: 10, 5: 14, 10: 16})
    curve(tmp_path, "head", {2: 12, 10: 13})
    _, comparison = report.sum_up(tmp_path)
    base, head = curves_of(comparison)
    assert (base.name, [(images, e.value) for images, e in base.points]) == ("base", [(2, 0.5), (5, 0.7), (10, 0.8)])
    assert base.sentence.startswith(
        "base: accuracy 0.500 with 2 training images of each class, 0.800 with 10; 10 more of each"
    )
    assert head.forecast is None  # two points always lie on a power law
    assert head.sentence == "head: accuracy 0.600 with 2 training images of each class, 0.650 with 10."
    assert {base.sentence, head.sentence} <= {*comparison.verdict}
    html = (tmp_path / report.REPORT).read_text(encoding="utf-8")
    assert "What labelled images bring" in text_of(html)
    assert 'alt="Test figure of each attempt by its training images of each class"' in html


def test_figures_that_do_not_go_on_rising_have_no_forecast(tmp_path: Path) -> None:
    """The sentence promised 0.580 with twice the images after 0.653, "if errors go on falling as so far"."""
    curve(tmp_path, "falls", {2: 16, 5: 12, 10: 14})
    curve(tmp_path, "perfect", {2: 20, 5: 19, 10: 20})
    falls, perfect = curves_of(compare(load_runs(tmp_path)))
    assert falls.forecast is None
    assert falls.sentence.endswith("0.700 with 10; no trend is shown in these figures that would go on from there.")
    assert perfect.sentence.endswith("1.000 with 10.")  # nothing is left to fall


def test_without_the_key_there_is_no_curve(tmp_path: Path) -> None:
    fabricate(tmp_path / "a", "a")
    fabricate(tmp_path / "b", "b")
    assert curves_of(compare(load_runs(tmp_path))) == []


def pairs_of(comparison: Comparison) -> set[tuple[str, str]]:
    return {(pair.first.replace(KEY, ""), pair.second.replace(KEY, "")) for pair in comparison.pairs}


def test_compared_are_attempts_at_the_same_number_and_neighbouring_numbers_of_one(tmp_path: Path) -> None:
    """All 15 pairs of two attempts at three numbers are more than twice the questions that anybody has."""
    curve(tmp_path, "base", {2: 5, 10: 14, 20: 19})
    curve(tmp_path, "head", {2: 6, 10: 13, 20: 9})
    comparison = compare(load_runs(tmp_path))
    same = {(f"base{count}", f"head{count}") for count in (2, 10, 20)}
    along = {(f"{name}{few}", f"{name}{many}") for name in ("base", "head") for few, many in ((2, 10), (10, 20))}
    assert {frozenset(pair) for pair in pairs_of(comparison)} == {frozenset(pair) for pair in same | along}
    assert {pair.alpha for pair in comparison.pairs} == {0.05 / 7}
    (tests,) = (line for line in comparison.verdict if line.startswith("Where p comes from"))
    assert tests.endswith(
        "with Holm's correction for 7 comparisons: of attempts at the same data.per_class, and of one attempt at "
        "values of data.per_class next to each other."
    )


def test_an_attempt_at_one_number_is_compared_with_others_at_that_number(tmp_path: Path) -> None:
    """Its name does not say the number, as that is no difference between its runs."""
    curve(tmp_path, "base", {2: 5, 10: 14})
    curve(tmp_path, "head", {10: 13})
    pairs = {frozenset(pair) for pair in pairs_of(compare(load_runs(tmp_path)))}
    assert pairs == {frozenset(("base2", "base10")), frozenset(("base10", "head"))}


def test_one_attempt_is_compared_along_its_numbers_and_all_images_come_last(tmp_path: Path) -> None:
    curve(tmp_path, "base", {10: 14, 2: 10, None: 16})
    pairs = {frozenset(pair) for pair in pairs_of(compare(load_runs(tmp_path)))}
    assert pairs == {frozenset(("base2", "base10")), frozenset(("base10", "basenull"))}


def test_the_headline_names_what_beats_all_that_it_is_compared_with(tmp_path: Path) -> None:
    curve(tmp_path, "base", {2: 4, 10: 19})
    curve(tmp_path, "head", {2: 3, 10: 4})
    comparison = compare(load_runs(tmp_path))
    assert "Use the model of base data.per_class=10" in comparison.headline[0]
    assert comparison.headline[0].endswith("it is shown to be better than head data.per_class=10.")
    assert "No attempt is shown to be the best" not in comparison.verdict[0]


def test_nobody_is_told_to_learn_from_fewer_images(tmp_path: Path) -> None:
    """The headline was "Use head data.per_class=5 if one has to be chosen now", and ckpt=SWEEP took its model."""
    curve(tmp_path, "base", {2: 8, 5: 12, 10: 14})
    curve(tmp_path, "head", {2: 7, 5: 19, 10: 11})
    for run in load_runs(tmp_path):
        run.metrics["val"] = {"balanced_accuracy": 0.9 if run.run_dir.endswith("head5") else 0.5, "images": 8}
        run.majority_baseline = 0.6
        run.save()
        Path(run.run_dir, BEST).touch()
    comparison = compare(load_runs(tmp_path))
    assert comparison.best is not None
    assert comparison.best.endswith("data.per_class=10")
    assert f"Use {comparison.best} if one has to be chosen now" in comparison.headline[0]
    assert comparison.headline[1].startswith(f"{comparison.best} is not shown to be better than always naming")
    assert "among the attempts with the most training images" in " ".join(comparison.verdict)
    assert "Not ranked" not in " ".join(comparison.verdict)
    assert best_run(tmp_path)[0].run_dir.endswith("10")


def test_one_attempt_at_several_numbers_is_no_choice(tmp_path: Path) -> None:
    curve(tmp_path, "base", {2: 17, 10: 19})
    comparison = compare(load_runs(tmp_path))
    assert comparison.headline[0].startswith("● Learnt. base data.per_class=10, the only attempt, is shown to be")
    assert not comparison.advice


def test_the_advice_is_about_another_attempt_at_the_same_number(tmp_path: Path) -> None:
    curve(tmp_path, "base", {5: 15, 10: 16})
    curve(tmp_path, "head", {5: 10, 10: 14})
    comparison = compare(load_runs(tmp_path))
    assert comparison.advice.startswith("To tell the models of base data.per_class=10 and head data.per_class=10 apart")


def test_a_power_law_is_followed_and_its_interval_grows_with_the_noise() -> None:
    images = np.array([2, 5, 10, 20])
    errors = 0.6 * images**-0.5
    exact = forecast(images, errors, [0] * 4, 40)
    noisy = forecast(images, errors, [0.03] * 4, 40)
    assert exact is not None
    assert noisy is not None
    assert exact.value == exact.low == exact.high == pytest.approx(0.6 * 40**-0.5)
    assert noisy.low < exact.value < noisy.high
    assert forecast(images[:2], errors[:2], [0, 0], 20) is None


def test_a_reference_stands_beside_the_others_at_each_number(tmp_path: Path) -> None:
    """What is typed is the attempt's name: verdict.reference=base."""
    curve(tmp_path, "base", {2: 5, 10: 14}, verdict={"metric": None, "reference": "base"})
    curve(tmp_path, "head", {2: 6, 10: 13}, verdict={"metric": None, "reference": "base"})
    curve(tmp_path, "full", {2: 4, 10: 12}, verdict={"metric": None, "reference": "base"})
    comparison = compare(load_runs(tmp_path))
    beside = {(f"{name}{count}", f"base{count}") for name in ("head", "full") for count in (2, 10)}
    assert pairs_of(comparison) == beside
    assert {pair.alpha for pair in comparison.pairs} == {0.05 / 4}
    assert not any("verdict.reference" in line for line in comparison.verdict)
    (tests,) = (line for line in comparison.verdict if line.startswith("Where p comes from"))
    assert tests.endswith("with Holm's correction for 4 comparisons: with base at the same data.per_class.")
    assert comparison.verdict[0].startswith("No attempt is shown to be the best.")


def test_a_number_beyond_the_images_is_the_same_run_and_counts_once(tmp_path: Path) -> None:
    for name, right in (("base", {2: 5, 10: 14, 20: 14}), ("head", {2: 6, 10: 13, 20: 13})):
        curve(tmp_path, name, right)
        path = tmp_path / f"{name}20" / RESULT  # asked for 20, trained on the ten that there are
        path.write_text(path.read_text().replace('"good": 20,\n      "crack": 20', '"good": 10,\n      "crack": 10'))
        assert '"crack": 10' in path.read_text()
    comparison = compare(load_runs(tmp_path))
    kept = {("base2", "head2"), ("base10", "head10"), ("base2", "base10"), ("head2", "head10")}
    assert {frozenset(pair) for pair in pairs_of(comparison)} == {frozenset(pair) for pair in kept}
    said = (
        "base data.per_class=20 trains on the same images as data.per_class=10: these are the same runs, compared once."
    )
    assert said in comparison.verdict
