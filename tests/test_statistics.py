"""Intervals and tests against library and published values, and by simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score

from mvtec_lab.evaluation import differences, statistics


@pytest.mark.parametrize(
    ("correct", "total", "interval"),
    [(30, 43, (0.55, 0.81)), (14, 20, (0.48, 0.85)), (26, 32, (0.65, 0.91)), (0, 10, (0.0, 0.28))],
)
def test_wilson_interval(correct: int, total: int, interval: tuple[float, float]) -> None:
    assert statistics.wilson_interval(correct, total) == pytest.approx(interval, abs=0.005)


def test_wilson_narrows_with_less_confidence() -> None:
    low, high = statistics.wilson_interval(14, 20, confidence=0.5)
    assert 0.6 < low < 0.7 < high < 0.8


VALUES = np.array([0.02, 0.05, -0.01, 0.04, 0.03, 0.00, 0.06, 0.02, 0.01, 0.03])


def test_without_a_correction_it_is_students_t() -> None:
    student = stats.ttest_1samp(VALUES, 0)
    assert statistics.corrected_t_test(VALUES, 0) == pytest.approx(student.pvalue)
    interval = student.confidence_interval()
    assert statistics.corrected_interval(VALUES, 0) == pytest.approx((interval.low, interval.high))


def test_the_correction_is_nadeau_and_bengios() -> None:
    # t = mean / sqrt((1/J + n2/n1) * variance): for J = 10, n2/n1 = 1/4 it shrinks by sqrt(0.1 / 0.35).
    student = stats.ttest_1samp(VALUES, 0).statistic
    expected = 2 * stats.t.sf(student * np.sqrt(0.1 / 0.35), 9)
    assert statistics.corrected_t_test(VALUES, 0.25) == pytest.approx(expected)
    assert statistics.corrected_t_test(-VALUES, 0.25) == pytest.approx(expected)


def test_of_scores_ten_folds_count_as_the_five_of_one_round() -> None:
    student = stats.ttest_1samp(VALUES, 0).statistic
    expected = 2 * stats.t.sf(student * np.sqrt(0.1 / 0.45), 9)
    assert statistics.corrected_t_test(VALUES, 0.25, one_round=5) == pytest.approx(expected)
    low, high = statistics.corrected_interval(VALUES, 0.25, one_round=5)
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 9) * VALUES.std(ddof=1) * np.sqrt(0.45))
    assert statistics.of_mean(3, 0.25, 5) == pytest.approx(1 / 3 + 0.25)  # of a round that is not complete


def test_the_bayesian_test_agrees_with_the_frequentist_one() -> None:
    # Without a region of equivalence the posterior is the t-distribution of the frequentist test (Corani & Benavoli).
    worse, equal, better = statistics.practical_equivalence(VALUES, 0.25, 1e-9)
    assert better == pytest.approx(1 - statistics.corrected_t_test(VALUES, 0.25) / 2, abs=1e-6)
    assert worse + equal + better == pytest.approx(1)
    # baycomp 1.0.3's two_on_single(zeros, VALUES, rope=0.01, runs=2): two repeats of five folds, ratio 1/4
    expected = (0.011756553060990394, 0.12488780995684146, 0.8633556369821681)
    assert statistics.practical_equivalence(VALUES, 0.25, 0.01) == pytest.approx(expected, rel=1e-12)
    assert statistics.practical_equivalence(np.full(3, 0.2), 0.25, 0.01) == pytest.approx(
        (0, 0, 1)
    )  # all but no spread
    flipped = statistics.practical_equivalence(-VALUES, 0.25, 1e-9)
    assert flipped[0] == pytest.approx(better)
    assert statistics.practical_equivalence(VALUES, 0.25, 0.5)[1] > 0.99


def test_splits_that_agree_by_chance_prove_little() -> None:
    both = np.full(2, 1 / 16)  # one image in each of two test sets of sixteen
    assert statistics.corrected_t_test(both, 0.25, resolution=1 / 16) > 0.3
    assert statistics.corrected_t_test(np.full(10, 1 / 8), 0.25, resolution=1 / 8) < 0.01  # ten images, all one way
    assert statistics.corrected_t_test(np.zeros(10), 0.25, resolution=1 / 8) == pytest.approx(1)
    low, high = statistics.corrected_interval(np.ones(10), 0.25, resolution=1 / 8)
    assert 0.9 < low < 1 < high
    assert max(statistics.practical_equivalence(np.zeros(10), 0.25, 0.01, 1 / 8)) < 0.6
    with pytest.raises(ValueError, match="two or more"):
        statistics.corrected_t_test([0.1], 0.25)


def test_holm() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.03, 0.03]) == pytest.approx([0.6, 0.09, 0.09])
    assert statistics.holm([0.7, 0.6]) == [1, 1]
    assert statistics.holm([]) == []


def test_mcnemar_is_the_sign_test_of_the_images_that_differ() -> None:
    first = [1] * 9 + [0] * 2 + [1] * 20
    second = [0] * 9 + [1] * 2 + [1] * 20
    name, p = statistics.paired_test(first, second)
    assert name == "mid-p McNemar test"
    assert p == pytest.approx((2 * (1 + 11) + 55) / 2**11)  # half of what is as likely as what was seen
    assert statistics.paired_test([1, 1], [1, 1])[1] == 1
    assert statistics.paired_test([1, 0, 1], [0, 1, 1])[1] == 1
    assert statistics.paired_test([1] * 5, [0] * 5)[1] == pytest.approx(1 / 32)


def test_the_permutation_test_generalises_the_exact_mcnemar_test() -> None:
    first, second = np.array([1] * 9 + [0] * 2), np.array([0] * 9 + [1] * 2)
    name, p = statistics.paired_test(first * 0.5, second * 0.5)
    assert name == "paired permutation test"
    assert p == pytest.approx(stats.binomtest(9, 11).pvalue, abs=0.01)


@pytest.mark.parametrize(("images", "disagreement", "alpha"), [(83, 0.2, 0.05), (83, 0.3, 0.05 / 6), (16, 0.2, 0.05)])
def test_the_difference_that_mcnemar_finds_is_found_in_eight_of_ten_cases(
    images: int, disagreement: float, alpha: float
) -> None:
    found = differences.found_by_mcnemar(images, disagreement, 0, alpha)
    assert found is not None
    share = (max(disagreement, found) + np.hypot(disagreement, found)) / 2
    rng, called = np.random.default_rng(0), 0
    for _ in range(2_000):
        ours, theirs, _ = rng.multinomial(images, [(share + found) / 2, (share - found) / 2, 1 - share])
        called += statistics.mcnemar_mid_p(ours, ours + theirs) < alpha
    assert called / 2_000 == pytest.approx(0.8, abs=0.03)
    assert differences.found_by_mcnemar(4, 0, 0, 0.05) is None  # four images, all one way: p is 0.0625
    assert differences.found_by_mcnemar(5, 0, 0, 0.05) is not None


def test_the_difference_that_a_t_test_finds() -> None:
    (noise,) = differences.accuracy_difference([1] * 900 + [0] * 100, [0] * 100 + [1] * 900)[0].noises
    normal = noise._replace(variance=noise.seen, freedom=1e6, grows=False)
    assert differences.found_difference([normal], (0.9, 0.9), 0.05) == pytest.approx(
        (1.96 + 0.8416) * np.sqrt(noise.seen), rel=0.01
    )
    few = [differences.Noise(0.01, 0.01, 4.0, grows=False)]
    found = differences.found_difference(few, (0.5, 0.5), 0.05)
    assert found is not None
    true = 0.01 * 4 / stats.chi2.median(4)  # its median is what was seen
    rng = np.random.default_rng(1)
    t = rng.normal(found, np.sqrt(true), 4_000) / np.sqrt(true * rng.chisquare(4, 4_000) / 4)
    assert np.mean(stats.t.sf(np.abs(t), 4) < 0.025) == pytest.approx(0.8, abs=0.03)
    assert differences.found_difference([noise._replace(variance=1.0)], (0.9, 0.9), 0.05) is None
    none = noise._replace(variance=1e-18, seen=1e-18)  # of two methods that say the same of every image
    assert differences.found_difference([none], (0.5, 0.5), 0.05) == pytest.approx(0, abs=1e-5)


def test_paired_interval_covers() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        shared = rng.random((2, 50)) < 0.5
        first, second = rng.random(50) < 0.8, rng.random(50) < 0.6
        first[shared[0]] = second[shared[0]] = True  # images that are easy for both
        low, high = statistics.paired_interval(first, second)
        covered += low <= 0.5 * 0.2 <= high
    assert 0.93 <= covered / 1000 <= 0.98
    low, high = statistics.paired_interval([1, 1, 0], [1, 0, 0])
    assert statistics.paired_interval([1, 0, 0], [1, 1, 0]) == pytest.approx((-high, -low))


def test_bootstrap_over_images() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 80)
    predictions = np.where(rng.random(80) < 0.7, labels, rng.integers(0, 3, 80))
    each = np.zeros((80, 3, 3))
    each[np.arange(80), labels, predictions] = 1
    assert statistics.balanced_accuracy(each.sum(0)) == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert statistics.macro_f1(each.sum(0)) == pytest.approx(f1_score(labels, predictions, average="macro"))
    drawn = [balanced_accuracy_score(labels[i], predictions[i]) for i in rng.integers(0, 80, (1000, 80))]
    interval = statistics.bootstrap(statistics.balanced_accuracy, each)
    assert interval == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.02)
    assert statistics.bootstrap(statistics.macro_f1, 2 * each) == statistics.bootstrap(statistics.macro_f1, each)


def _classified(labels: np.ndarray, predictions: np.ndarray, classes: int = 3) -> np.ndarray:
    each = np.zeros((len(labels), classes, classes))
    each[np.arange(len(labels)), labels, predictions] = 1
    return each


def test_swapping_predictions_of_equal_classes_is_mcnemars_test() -> None:
    labels = np.repeat([0, 1, 2], 10)
    first, second = labels.copy(), labels.copy()
    second[[0, 1, 2, 3, 11, 12, 21]] = (labels[[0, 1, 2, 3, 11, 12, 21]] + 1) % 3
    first[25] = 0
    both = [_classified(labels, predictions) for predictions in (first, second)]
    p = statistics.permutation_test(statistics.balanced_accuracy, *both)
    assert p == pytest.approx(2 * 9 / 2**8)
    assert statistics.permutation_test(statistics.balanced_accuracy, *both[::-1]) == pytest.approx(p)
    assert statistics.permutation_test(statistics.macro_f1, both[0], both[0]) == 1
    second[1:] = first[1:]
    one = _classified(labels, second)
    assert statistics.permutation_test(statistics.balanced_accuracy, both[0], one) == 1  # a single image


@pytest.mark.parametrize("statistic", [statistics.balanced_accuracy, statistics.macro_f1])
def test_equal_predictions_of_imbalanced_classes_are_rarely_called_different(statistic: Any) -> None:
    rng, labels = np.random.default_rng(0), np.repeat([0, 1, 2], [30, 8, 3])
    p = []
    for _ in range(200):
        drawn = [np.where(rng.random(41) < 0.9 - 0.2 * labels, labels, 0) for _ in range(2)]
        p.append(statistics.permutation_test(statistic, *(_classified(labels, d) for d in drawn)))
    assert np.mean(np.array(p) < 0.05) <= 0.06
    good, bad = _classified(labels, labels), _classified(labels, np.zeros_like(labels))
    assert statistics.permutation_test(statistic, good, bad) < 0.01


def test_interval_of_a_mean() -> None:
    rng, counts, truth = np.random.default_rng(0), (20, 10, 6, 3), np.array([0.95, 0.9, 0.8, 0.7])
    covered = 0
    for _ in range(500):
        right = rng.binomial(counts, truth)
        each = [statistics.wilson_interval(hits, n) for hits, n in zip(right, counts, strict=True)]
        low, high = statistics.mean_interval(right / counts, each)
        covered += low <= truth.mean() <= high
    assert 0.85 <= covered / 500 <= 0.95  # too short: balanced accuracy has an interval of its own
    assert statistics.mean_interval([0.7], [(0.6, 0.9)]) == pytest.approx((0.6, 0.9))
    low, high = statistics.mean_interval([1, 1], [(0.3, 1), (0.6, 1)])  # all right, and yet not certain
    assert (low, high) == pytest.approx((1 - np.hypot(0.7, 0.4) / 2, 1))


def test_interval_of_balanced_accuracy() -> None:
    assert statistics.balanced_interval([14], [20]) == pytest.approx(statistics.wilson_interval(14, 20), abs=0.03)
    low, high = statistics.balanced_interval([20, 20, 3], [20, 20, 3])
    assert 0.6 < low < 0.9
    assert high == 1
    assert statistics.balanced_interval([0, 0], [5, 5])[0] == 0
    mirrored = statistics.balanced_interval([6, 1], [8, 5])
    assert statistics.balanced_interval([2, 4], [8, 5]) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))
    for images in (1, 2, 10_000):  # however few or many
        low, high = statistics.balanced_interval([images] * 15, [images] * 15)
        assert 0 < low < high == 1


def test_an_image_weighs_the_more_the_rarer_its_class() -> None:
    weights = statistics.image_weights([2, 2, 2, 2, 0, 5, 5])
    assert weights == pytest.approx([1 / 12] * 4 + [1 / 3] + [1 / 6] * 2)


def _folds(rng: np.random.Generator, advantage: float, images: int = 60, repeats: int = 2) -> np.ndarray:
    """Accuracy differences, fold by fold, of two nearest-centroid learners that see different noise of one truth."""
    labels = np.arange(images) % 2
    signal = (2 * labels - 1)[:, None]
    features = [rng.normal(size=(images, 4)) + strength * signal for strength in (0.3 + advantage, 0.3)]
    differences = []
    for _ in range(repeats):
        for test in np.array_split(rng.permutation(images), 5):
            train = np.setdiff1d(np.arange(images), test)
            right = []
            for x in features:
                centres = np.stack([x[train][labels[train] == c].mean(axis=0) for c in (0, 1)])
                distance = ((x[test, None] - centres) ** 2).sum(axis=2)
                right.append(np.mean(distance.argmin(axis=1) == labels[test]))
            differences.append(right[0] - right[1])
    return np.array(differences)


def _long_tailed_folds(rng: np.random.Generator, advantage: float = 0) -> tuple[np.ndarray, float]:
    """Differences in balanced accuracy over 2 x 5 stratified folds of the same two learners, on classes of 40, 15 and 5
    images, and what one image of the rarest class changes."""
    labels = np.repeat([0, 1, 2], [40, 15, 5])
    places = np.eye(3)[labels]
    features = [strength * places + rng.normal(size=(60, 3)) for strength in (1 + advantage, 1)]
    differences = []
    for _ in range(2):
        fold = np.concatenate([rng.permutation(np.arange(n) % 5) for n in (40, 15, 5)])
        for test in (fold == k for k in range(5)):
            found = []
            for x in features:
                centres = np.stack([x[~test & (labels == c)].mean(axis=0) for c in range(3)])
                named = ((x[test, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
                found.append(balanced_accuracy_score(labels[test], named))
            differences.append(found[0] - found[1])
    return np.array(differences), float(statistics.image_weights(labels[test]).max())


@pytest.mark.slow
def test_equal_learners_are_rarely_called_different_in_balanced_accuracy() -> None:
    rng, p = np.random.default_rng(0), []
    for _ in range(1000):
        differences, one = _long_tailed_folds(rng)
        p.append(statistics.corrected_t_test(differences, 0.25, resolution=one))
    assert np.mean(np.array(p) < 0.05) <= 0.06


def test_a_better_learner_of_rare_classes_is_called_so() -> None:
    rng = np.random.default_rng(0)
    found = [_long_tailed_folds(rng, advantage=3) for _ in range(20)]
    p = [statistics.corrected_t_test(differences, 0.25, resolution=one) for differences, one in found]
    assert np.mean(np.array(p) < 0.05) > 0.5


@pytest.mark.slow
def test_equal_learners_are_rarely_called_different() -> None:
    rng = np.random.default_rng(0)
    p = [statistics.corrected_t_test(_folds(rng, 0), 0.25, resolution=1 / 12) for _ in range(2000)]
    assert np.mean(np.array(p) < 0.05) <= 0.06


def test_better_learners_are_called_so() -> None:
    rng = np.random.default_rng(0)
    p = [statistics.corrected_t_test(_folds(rng, 0.8), 0.25, resolution=1 / 12) for _ in range(50)]
    assert np.mean(np.array(p) < 0.05) > 0.8
