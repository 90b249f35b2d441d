"""Two attempts side by side, from fabricated run directories: which test, which figures, and what it rests on."""

from __future__ import annotations

import re
import statistics as st
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from test_reporting import fabricate, fail

from mvtec_lab.config import VerdictConfig
from mvtec_lab.evaluation import statistics
from mvtec_lab.reporting.attempts import Attempt, Estimate
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.pairs import Comparison, Pair
from mvtec_lab.reporting.report import REPORT, sum_up
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import CONFIG, PREDICTIONS, RESULT, RunResult, read_csv, write_csv

FOLDS = 5


def fold(folder: Path, attempt: str, fold: int, right: int, images: int = 12, **fields: Any) -> RunResult:
    """A run on images of its own fold, of which the first ``right`` are classified correctly."""
    run = fabricate(folder, attempt, right=right, images=images, fold=fold, **fields)
    path = folder / PREDICTIONS
    rows = read_csv(path)
    for row in rows:
        row["path"] = f"{fold}/{row['path']}"
    write_csv(path, rows, list(rows[0]))
    return run


def cross_validated(folder: Path, **right: list[int]) -> None:
    for attempt, counts in right.items():
        for i, count in enumerate(counts):
            fold(folder / f"{attempt}-{i}", attempt, i, count)


def said(comparison: Comparison) -> str:
    return " ".join(comparison.verdict)


def assert_figures_are_said(comparison: Comparison) -> None:
    """Check that the verdict gives the figures of a comparison of few attempts, whatever its words."""
    text, (best, *_) = said(comparison), comparison.attempts
    estimate, judged = best.estimate(), [pair for pair in comparison.pairs if pair.p is not None]
    assert estimate is not None
    assert f"{estimate.value:.3f}" in text
    assert best.baseline is not None
    assert f"{best.baseline:.3f}" in text
    for pair in judged:
        assert pair.test in text
        if pair.different or best.name in (pair.first, pair.second):
            assert f"{100 * abs(pair.lead):.1f} points" in text
    if judged:
        median = st.median(1.0 if pair.found is None else pair.found for pair in judged)
        assert median == 1 or f"{100 * median:.1f} points" in text


def test_one_test_set_is_compared_image_by_image(tmp_path: Path) -> None:
    for place, (name, right) in enumerate((("good", 20), ("fair", 16), ("bad", 6))):
        fabricate(tmp_path / str(place), name, right=right)
    comparison = compare(load_runs(tmp_path))
    assert comparison.best == "good"
    pairs = {(pair.first, pair.second): pair for pair in comparison.pairs}
    near, far = pairs["good", "fair"], pairs["good", "bad"]
    assert near.test == "mid-p McNemar test"
    assert (near.p, near.p_holm) == pytest.approx((0.0625, 0.0625))  # four images, all one way
    assert far.p == pytest.approx(0.5**14)
    assert far.p_holm == pytest.approx(3 * far.p)
    assert far.different
    assert not near.different
    assert near.difference is not None
    assert near.difference.value == pytest.approx(0.2)
    assert near.bayesian is None  # the Bayesian test is one over folds
    assert near.models
    assert far.models
    assert far.lead == far.lead_of("good") == -far.lead_of("bad") == pytest.approx(0.7)
    assert near.found is not None
    assert 0.3 < near.found < 1  # that of six images, all one way, is found in half of the cases at best
    for attempt in comparison.attempts:
        assert attempt.resolution(list(attempt.tests), attempt.metric) == pytest.approx(1 / 20)
        assert (attempt.baseline, attempt.learnt) == (0.25, attempt.name != "bad")
    assert_figures_are_said(comparison)


def test_folds_are_compared_by_the_corrected_test(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[6, 7, 5, 6, 7], c=[10, 12, 12, 10, 11])
    comparison = compare(load_runs(tmp_path))
    pairs = {(pair.first, pair.second): pair for pair in comparison.pairs}
    far, near = pairs["a", "b"], pairs["a", "c"]
    assert (far.test, far.test_sets, far.images) == ("corrected resampled t-test", 5, 60)
    assert far.different
    assert far.bayesian is not None
    assert far.bayesian[2] > 0.99
    assert far.image_test == "mid-p McNemar test"
    assert not near.different
    assert comparison.best == "a"
    assert not any(pair.models for pair in comparison.pairs)  # each fold has the luck of a training of its own
    assert all(pair.found is not None for pair in comparison.pairs)
    assert_figures_are_said(comparison)


@pytest.mark.parametrize(("rounds", "warned"), [(5, False), (6, True)])
def test_many_rounds_of_few_images_are_warned_of(tmp_path: Path, rounds: int, warned: bool) -> None:
    right = [8 + index % 3 for index in range(5 * rounds)]  # of 10 images in each fold, 50 in a round
    for name in ("a", "b"):
        for index, count in enumerate(right):
            fold(tmp_path / f"{name}{index}", name, index, count - (name == "b") * (index % 2), 10)
    for path in tmp_path.glob(f"*/{CONFIG}"):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        path.write_text(yaml.safe_dump(config | {"split": {"protocol": "kfold", "folds": 5}}), encoding="utf-8")
    comparison = compare(load_runs(tmp_path))
    assert comparison.pairs[0].evidence.design.repeats == rounds
    assert ("Take p with care: 6 rounds" in said(comparison)) == warned


@pytest.mark.parametrize(
    ("train", "problem", "ratio", "one_round"),
    [
        ({"good": 209}, "anomaly", 17 / 209, 5),  # the same images in every fold
        ({"good": 225, "hole": 50}, "segmentation", 1 / 4, 0),  # 209 of them in every fold
        ({"good": 16, "hole": 50}, "classification", 17 / 66, 0),
    ],
)
def test_good_images_beside_the_folds_do_not_make_the_folds_less_alike(
    train: dict[str, int], problem: str, ratio: float, one_round: int
) -> None:
    counts = {"train": train, "test": {"good": 4, "hole": 13}}
    run = RunResult("base", 0, "folder", "widget", "resnet18", "run", fold=0, problem=problem, counts=counts)
    run.status = "completed"
    settings = {"run": {"split.protocol": "kfold", "split.folds": "5"}}
    attempt = Attempt("base", [run], settings)
    assert (attempt.ratio(), attempt.one_round) == (pytest.approx(ratio), one_round)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["a", "b"])
def test_the_bayesian_side_is_that_of_the_pairs_first(tmp_path: Path, first: str) -> None:
    """Worse, equal and better are about the first of a pair, whichever that is, in fields, verdict and report."""
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[8, 9, 8, 9, 9])
    second = "b" if first == "a" else "a"
    comparison = compare(load_runs(tmp_path), VerdictConfig(reference=second))
    (pair,) = comparison.pairs
    assert (pair.first, pair.second) == (first, second)
    change = np.array([run.metrics["test"]["accuracy"] for run in load_runs(tmp_path)]).reshape(2, FOLDS)
    expected = statistics.practical_equivalence(
        (change[0] - change[1]) * (1 if first == "a" else -1), 12 / 40, 0.01, 1 / 12
    )
    assert pair.bayesian == pytest.approx(expected)
    assert (pair.bayesian[2] > 0.9) == (pair.lead > 0) == (first == "a")
    sum_up(tmp_path, verdict=VerdictConfig(reference=second))
    html = (tmp_path / REPORT).read_text(encoding="utf-8")
    headings, cells = (
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(pattern, html.rpartition("Against ")[2])]
        for pattern in (r"<th[ >].*?</th>|<th>.*?</th>", r"<td[ >].*?</td>|<td>.*?</td>")
    )
    row = dict(zip(headings, cells, strict=False))
    assert [row[name] for name in ("worse", "equal", "better")] == [f"{value:.2f}" for value in expected]


def test_the_verdict_gives_the_probability_of_the_side_that_leads(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[10, 12, 10, 10, 11], c=[6, 7, 5, 6, 7])
    comparison = compare(load_runs(tmp_path))
    assert comparison.best == "a"
    for pair in comparison.pairs[:2]:
        worse, equal, better = pair.bayesian
        assert better > worse
        of_pair = said(comparison).partition(f"{pair.second} (")[2].partition(")")[0]
        assert f"{equal:.2f}" in of_pair
        assert of_pair.endswith(f"{better:.2f}")  # the other is behind by more


RARE = {"per_class": [10, 5, 4, 1], "verdict": {"metric": "balanced_accuracy"}}


def test_balanced_accuracy_on_one_test_set(tmp_path: Path) -> None:
    for name, right in (("all", 20), ("most", 17), ("rare", 5)):
        fabricate(tmp_path / name, name, right=right, **RARE)
    comparison = compare(load_runs(tmp_path))
    assert comparison.metrics[0] == "balanced_accuracy"
    pairs = {(pair.first, pair.second): pair for pair in comparison.pairs}
    near, far = pairs["all", "most"], pairs["all", "rare"]
    assert near.difference is not None
    assert far.difference is not None
    assert near.test == far.test == near.image_test == "paired permutation test"
    assert near.difference.value == pytest.approx(3 / 10 / 4)  # three good images of ten, a class of four
    assert near.p == pytest.approx(2 / 2**3)
    assert far.difference.value == pytest.approx(0.5)
    assert far.different
    for d in (near.difference, far.difference):
        assert d.low is not None
        assert d.high is not None
        assert d.low < d.value < d.high
    best = comparison.attempts[0]
    assert comparison.best == best.name == "all"
    estimate = best.estimate()
    assert (estimate.value, round(estimate.low, 2), estimate.high) == (1, 0.68, 1)
    assert best.resolution(list(best.tests), best.metric) == pytest.approx(1 / 4)  # one image of the rarest class
    assert best.baseline == pytest.approx(0.25)
    assert near.found is not None
    assert_figures_are_said(comparison)


def test_macro_f1_on_one_test_set_is_stated_and_not_tested(tmp_path: Path) -> None:
    for name, right in (("all", 20), ("rare", 5)):
        fabricate(tmp_path / name, name, right=right, **RARE)
    comparison = compare(load_runs(tmp_path), VerdictConfig(metric="macro_f1"))  # asked for: not what the runs say
    (pair,) = comparison.pairs
    assert (pair.p, pair.different) == (None, False)
    estimate = comparison.attempts[0].estimate("macro_f1")
    assert estimate is not None
    assert (estimate.value, estimate.low) == (1, None)
    assert comparison.attempts[0].together["macro_f1"].low is None  # no resample differs: no certainty
    assert pair.refused is not None
    assert "cv.folds" in pair.refused
    assert comparison.attempts[0].baseline == pytest.approx(2 * 0.5 / 1.5 / 4)
    assert_figures_are_said(comparison)


def test_trading_a_class_for_another_is_no_difference_in_balanced_accuracy(tmp_path: Path) -> None:
    """That these two classify ten good images differently is certain, which is better is not."""
    p = statistics.permutation_test(
        statistics.balanced_accuracy,
        *(
            np.array([np.eye(2)[[label]].T @ np.eye(2)[[prediction]] for label, prediction in rows])
            for rows in (
                [*[(0, 0)] * 30, *[(1, 1)] * 2, (1, 0)],
                [*[(0, 0)] * 20, *[(0, 1)] * 10, *[(1, 1)] * 2, (1, 0)],
            )
        ),
    )
    assert p < 0.01
    interval = Estimate(0.167, -0.129, 0.455)
    assert not Pair("a", "b", difference=interval, p=p, p_holm=p).different
    assert Pair("a", "b", difference=Estimate(0.3, 0.1, 0.5), p=p, p_holm=p).different


def test_balanced_accuracy_over_folds(tmp_path: Path) -> None:
    for i, (a, b) in enumerate(((20, 9), (19, 10), (20, 8), (18, 10), (20, 10))):
        fold(tmp_path / f"a{i}", "a", i, a, **RARE)
        fold(tmp_path / f"b{i}", "b", i, b, **RARE)
    comparison = compare(load_runs(tmp_path))
    (pair,) = comparison.pairs
    a, b = ([run.metrics["test"]["balanced_accuracy"] for run in attempt.done] for attempt in comparison.attempts)
    differences = np.array(a) - b
    assert pair.test == "corrected resampled t-test"
    assert pair.p == pytest.approx(statistics.corrected_t_test(differences, 20 / 40, resolution=1 / 4))
    assert pair.p > statistics.corrected_t_test(differences, 20 / 40)  # these folds agree better than one image lets
    estimate = comparison.attempts[0].estimate("balanced_accuracy")
    assert estimate is not None
    assert (estimate.value, estimate.method) == (pytest.approx(np.mean(a)), "mean of 5 test sets")
    assert estimate.low == pytest.approx(statistics.corrected_interval(a, 20 / 40, 1 / 4)[0])
    assert_figures_are_said(comparison)


def seeds(folder: Path, **right: list[int]) -> Pair:
    """Compare two attempts of several seeds on one test set."""
    for name, counts in right.items():
        for seed, count in enumerate(counts):
            fabricate(folder / f"{name}{seed}", name, seed=seed, right=count)
    (pair,) = compare(load_runs(folder)).pairs
    return pair


def test_two_seeds_on_one_split_speak_of_the_models_trained_here(tmp_path: Path) -> None:
    pair = seeds(tmp_path, a=[20, 20], b=[20, 11])
    assert (pair.test, pair.models) == ("paired permutation test", True)


def test_the_spread_of_the_seeds_is_part_of_the_test(tmp_path: Path) -> None:
    """Image by image the means differ for certain; one of three trainings did all of it."""
    lucky = seeds(tmp_path / "lucky", a=[20] * 3, b=[20, 20, 0])
    steady = seeds(tmp_path / "steady", a=[20] * 3, b=[13] * 3)
    for pair in (lucky, steady):
        assert (pair.test, pair.models, pair.test_sets) == ("t-test over images and seeds", False, 1)
        assert pair.difference is not None
        assert pair.difference.value == pytest.approx((20 - 40 / 3) / 20, abs=0.02)
        assert pair.image_p is not None
        assert pair.image_p < 0.02
    assert not lucky.different
    assert steady.different
    assert lucky.difference is not None
    assert lucky.difference.low is not None
    assert lucky.difference.low >= -1
    comparison = compare(load_runs(tmp_path / "lucky"))
    mean = next(attempt for attempt in comparison.attempts if attempt.name == "b").estimate()
    assert mean is not None
    assert (mean.low, mean.method) == (0, "20 images and 3 runs")  # Wilson's alone would begin at 0.45
    assert not any(pair.models for pair in comparison.pairs)


def test_seeds_of_each_fold_count_by_their_mean(tmp_path: Path) -> None:
    """A second seed tests no further image: the test sets are as many as folds, with their seeds' mean."""
    right = {"a": ([18, 16, 19], [14, 18, 17]), "b": ([13, 15, 12], [14, 12, 13])}
    for name, of_seeds in right.items():
        for seed, of_folds in enumerate(of_seeds):
            for number, count in enumerate(of_folds):
                fold(tmp_path / f"{name}-{seed}-{number}", name, number, count, 20, seed=seed)
    (pair,) = compare(load_runs(tmp_path)).pairs
    change = (np.array(right["a"]) - np.array(right["b"])).mean(axis=0) / 20
    error = np.sqrt(change.var(ddof=1) * (1 / 3 + 20 / 40))  # 20 images are tested, 40 learnt from
    assert pair.test_sets == 3
    assert pair.difference is not None
    assert pair.difference.value == pytest.approx(change.mean())
    assert pair.p == pytest.approx(2 * stats.t.sf(change.mean() / error, 2))


def test_seeds_of_one_attempt_alone_do_not_tell_of_the_other(tmp_path: Path) -> None:
    seeds(tmp_path, a=[20] * 5, b=[5])
    for path in tmp_path.glob(f"*/{CONFIG}"):
        config = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(config | {"split": {**config["split"], "seed": 0}}))
    (pair,) = compare(load_runs(tmp_path)).pairs
    assert pair.models
    fixed = tmp_path / "b0" / RESULT
    fixed.write_text(fixed.read_text().replace('"luck": true', '"luck": false'))
    (pair,) = compare(load_runs(tmp_path)).pairs
    assert (pair.models, pair.test) == (False, "t-test over images and seeds")
    path = tmp_path / "b0" / CONFIG
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"split": {**config["split"], "seed": 7}}))
    (pair,) = compare(load_runs(tmp_path)).pairs
    assert pair.models  # other images to learn from are luck as well


def test_fewer_than_three_test_sets_have_no_interval(tmp_path: Path) -> None:
    """Two differences of 30 and 40 points have Student's interval [-31, +101] points, and a narrow one by chance."""
    cross_validated(tmp_path, a=[11, 12], b=[1, 12])
    comparison = compare(load_runs(tmp_path))
    (pair,) = comparison.pairs
    assert (pair.p, pair.difference) == (None, None)
    for attempt in comparison.attempts:
        estimate = attempt.estimate()
        assert estimate is not None
        assert (estimate.low, estimate.high) == (None, None)
    assert pair.test_sets == 2
    assert pair.refused is not None
    assert "cv.folds=5" in pair.refused


def test_nothing_outside_the_metrics_range_is_shown(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[12, 2, 12], b=[0, 12, 1])
    comparison = compare(load_runs(tmp_path))
    (pair,) = comparison.pairs
    assert pair.difference is not None
    assert (pair.difference.low, pair.difference.high) == (-1, 1)
    assert (pair.images, pair.test_sets, pair.found) == (36, 3, None)


def of_a_sweep(folder: Path, **settings: int) -> None:
    """Write into the runs' config.yaml which cross-validation they are part of."""
    for path in folder.glob(f"*/{CONFIG}"):
        config = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(config | {"cv": settings}))


@pytest.mark.parametrize("done", [1, 2])
def test_one_fold_of_several_judges_nobody(tmp_path: Path, done: int) -> None:
    """What an interrupted cross-validation, or one whose runs mostly failed, leaves."""
    cross_validated(tmp_path, a=[6] * FOLDS, b=[12] * done)
    comparison = compare(load_runs(tmp_path))
    (pair,) = comparison.pairs
    assert (pair.p, pair.difference, pair.different) == (None, None, False)
    assert (pair.test_sets, pair.images) == (done, 12 * done)
    assert pair.refused is not None
    assert f"{done} of 5 folds" in pair.refused
    assert f"a and b, as {pair.refused}." in said(comparison)
    assert "shown to be better than" not in said(comparison)
    assert "each pair is compared on" not in said(comparison)
    assert comparison.best == "a"  # by all of its folds; on the first one alone b is far ahead
    assert f"b ({done} of 5)" in comparison.verdict[1]


def test_folds_that_nobody_has_begun_are_missing_too(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[6], b=[12])
    (pair,) = compare(load_runs(tmp_path)).pairs
    assert pair.different  # a single fold, as somebody asked for
    of_a_sweep(tmp_path, folds=5, repeats=2)
    (pair,) = compare(load_runs(tmp_path)).pairs
    assert pair.refused is not None
    assert "1 of 10 folds" in pair.refused


def test_a_fold_that_failed_is_missing(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[6], b=[12])
    for name in ("a", "b"):
        fail(tmp_path / f"{name}1", name)
        path = tmp_path / f"{name}1" / RESULT
        path.write_text(path.read_text().replace('"fold": null', '"fold": 1'))
    (pair,) = compare(load_runs(tmp_path)).pairs
    assert pair.refused is not None
    assert "1 of 2 folds" in pair.refused


def test_a_whole_cross_validation_is_judged_as_ever(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[6, 7, 5, 6, 7])
    before = compare(load_runs(tmp_path))
    of_a_sweep(tmp_path, folds=5, repeats=1)
    after = compare(load_runs(tmp_path))
    assert (after.verdict, after.pairs) == (before.verdict, before.pairs)
    assert after.pairs[0].different


def of_folds(folder: Path, attempt: str, right: dict[int, int]) -> None:
    """Write the runs of some folds, with so many right images each."""
    for i, count in right.items():
        fold(folder / f"{attempt}-{i}", attempt, i, count)


@pytest.mark.parametrize("names", ["abc", "bca"])
def test_no_attempt_is_best_by_a_fold_that_all_happen_to_share(tmp_path: Path, names: str) -> None:
    """Each of the short ones shares three folds with the whole one, but only one with the other."""
    whole, short, lucky = names
    of_folds(tmp_path, whole, dict.fromkeys(range(FOLDS), 8))
    of_folds(tmp_path, short, dict.fromkeys((0, 1, 2), 7))
    of_folds(tmp_path, lucky, {2: 12, 3: 0, 4: 0})
    of_a_sweep(tmp_path, folds=5, repeats=1)
    comparison = compare(load_runs(tmp_path))
    assert comparison.best == whole
    unranked = ", ".join(f"{name} (3 of 5)" for name in sorted((short, lucky)))
    assert comparison.verdict[1].endswith(f"in common: {unranked}.")
    assert f"Not shown to differ from it: {short}" in said(comparison)  # the pairs that share enough are judged as ever


def test_of_attempts_that_are_left_out_the_better_one_is_not_validations_error(tmp_path: Path) -> None:
    of_folds(tmp_path, "a", dict.fromkeys(range(FOLDS), 4))
    of_folds(tmp_path, "b", dict.fromkeys((0, 1, 2), 12))
    of_folds(tmp_path, "c", dict.fromkeys((2, 3, 4), 12))
    comparison = compare(load_runs(tmp_path))
    assert "is shown to be worse on test than" in said(comparison)
    assert "which validation chose" not in said(comparison)


@pytest.mark.parametrize(("ours", "theirs"), [({0: 6}, {0: 12}), ({0: 6, 1: 6, 2: 6}, {2: 12, 3: 12, 4: 12})])
def test_nobody_is_best_where_all_share_too_few_folds(
    tmp_path: Path, ours: dict[int, int], theirs: dict[int, int]
) -> None:
    of_folds(tmp_path, "a", ours)
    of_folds(tmp_path, "b", theirs)
    of_a_sweep(tmp_path, folds=5, repeats=1)
    comparison = compare(load_runs(tmp_path))
    assert comparison.best is None
    assert "Nothing ranks these 2 attempts: only 1 of 5 folds is done by all of them." in said(comparison)
    assert "Best on validation" not in said(comparison)


def test_a_reference_that_is_not_ranked_is_named(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[6] * FOLDS, b=[12], c=[8] * FOLDS)
    comparison = compare(load_runs(tmp_path), VerdictConfig(reference="b"))
    assert comparison.best == "c"
    assert "It was not compared with b." in comparison.verdict[0]
    assert "b (1 of 5)" in comparison.verdict[1]


def test_of_splits_that_are_drawn_a_single_common_one_is_enough(tmp_path: Path) -> None:
    """No cross-validation is incomplete where one attempt has more seeds: split.seed is the seed by default."""
    of_folds(tmp_path, "a", {0: 6, 1: 6})
    of_folds(tmp_path, "b", {0: 12})
    for path in tmp_path.glob(f"*/{RESULT}"):  # what was a fold is a split of its own seed
        path.write_text(re.sub(r'"fold": \d+', '"fold": null', path.read_text()))
    comparison = compare(load_runs(tmp_path))
    (pair,) = comparison.pairs
    assert (pair.refused, pair.models, pair.different) == (None, True, True)
    assert comparison.best == "b"


def test_a_split_that_is_no_fold_needs_no_further_folds(tmp_path: Path) -> None:
    fabricate(tmp_path / "a", "a", right=6)
    fabricate(tmp_path / "b", "b", right=19)
    of_folds(tmp_path, "a", dict.fromkeys(range(FOLDS), 8))
    comparison = compare(load_runs(tmp_path))
    (pair,) = comparison.pairs
    assert (pair.refused, pair.test_sets, pair.images) == (None, 1, 20)
    assert comparison.best == "b"


def test_many_pairs_that_are_not_compared_are_named(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[6] * FOLDS, b=[6] * FOLDS, c=[7] * FOLDS, d=[8] * FOLDS, e=[12])
    assert "Not compared: e with each of a, b, c, d, as only 1 of 5 folds" in said(compare(load_runs(tmp_path)))


def test_pairs_without_two_sides_are_named_by_all_attempts(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[6], b=[6], c=[7], d=[8])
    of_a_sweep(tmp_path, folds=5, repeats=1)
    assert "Not compared: 6 pairs of a, b, c, d, as only 1 of 5 folds" in said(compare(load_runs(tmp_path)))


def test_the_table_of_pairs_has_no_zero_images(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[11, 12, 11], b=[6, 7, 5], c=[9])
    fabricate(tmp_path / "d", "d")
    sum_up(tmp_path)
    table = (tmp_path / REPORT).read_text(encoding="utf-8").rpartition("Pair by pair")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(?:<span>)?(.*?)(?:</span>)?</td>", row) for row in table.split("<tr>")[2:]]
    images = {(row[0], row[1]): row[-3:-1] for row in rows}
    assert images["a", "b"] == ["36", "3"]
    assert images["a", "c"] == ["12", "1"]
    assert images["a", "d"] == ["–", "–"]
