"""One-class evaluation: made-up scores and maps whose answers are worked out by hand, and slow exact references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import anomaly, differences, statistics
from mvtec_lab.evaluation.anomaly import PixelScores

# Images


def test_image_metrics_by_hand() -> None:
    kinds = ["good", "good", "good", "crack", "crack", "dent"]
    found = anomaly.image_metrics([1, 2, 6, 5, 7, 3], kinds, threshold=4)
    assert found["image_auroc"] == pytest.approx(7 / 9)  # of nine pairs the 6 beats the 5 and the 3
    assert found["image_ap"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert (found["f1"], found["precision"], found["recall"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert found["false_alarm_rate"] == pytest.approx(1 / 3)
    assert (found["accuracy"], found["balanced_accuracy"]) == pytest.approx((2 / 3, 2 / 3))
    assert found["by_type"]["crack"] == {"images": 2, "image_auroc": pytest.approx(5 / 6), "recall": 1.0}
    assert found["by_type"]["dent"] == {"images": 1, "image_auroc": pytest.approx(2 / 3), "recall": 0.0}


def test_a_score_at_the_threshold_is_no_alarm() -> None:
    found = anomaly.image_metrics([1, 1, 1, 1], ["good", "good", "hole", "hole"], threshold=1)
    assert (found["image_auroc"], found["image_ap"]) == (0.5, 0.5)
    assert (found["false_alarm_rate"], found["recall"], found["f1"], found["precision"]) == (0, 0, 0, None)


def test_what_cannot_be_said_is_none() -> None:
    good = anomaly.image_metrics([1, 2], ["good", "good"], threshold=1.5)
    assert [good[k] for k in ("image_auroc", "image_ap", "f1", "recall", "balanced_accuracy")] == [None] * 5
    assert (good["false_alarm_rate"], good["accuracy"], good["by_type"]) == (0.5, 0.5, {})
    defects = anomaly.image_metrics([1, 2], ["hole", "hole"], threshold=1.5)
    assert [defects[k] for k in ("image_auroc", "image_ap", "precision", "false_alarm_rate")] == [None] * 4
    assert (defects["recall"], defects["by_type"]["hole"]["image_auroc"]) == (0.5, None)
    assert anomaly.image_metrics([1, 2], ["good", "hole"])["f1"] is None  # no threshold
    assert anomaly.image_intervals([1, 2], ["good", "good"]) == {"image_auroc": None, "image_ap": None}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite(bad: float) -> None:
    for call in (
        lambda: anomaly.image_metrics([1, bad], ["good", "hole"]),
        lambda: anomaly.quantile_threshold([1, bad], 0.95),
        lambda: PixelScores([np.full((2, 2), bad)]),
        lambda: PixelScores([np.ones((2, 2))]).add("a", np.full((2, 2), bad), None, "good"),
    ):
        with pytest.raises(LabError, match="not finite"):
            call()


def test_the_quantile_threshold_keeps_its_promise_of_new_images() -> None:
    rng = np.random.default_rng(0)
    scores = rng.gamma(2, size=(4000, 42))  # 42 good validation images, as of bottle
    alarms = [stats.gamma.sf(anomaly.quantile_threshold(row, 0.95), 2) for row in scores]
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.002)
    assert stats.gamma.sf(np.quantile(scores, 0.95, axis=1), 2).mean() > 0.065  # NumPy's default
    assert anomaly.quantile_threshold(scores[0], 0.999) == scores[0].max()
    with pytest.raises(LabError, match="no good images"):
        anomaly.quantile_threshold([], 0.95)


def test_best_f1_threshold() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, truth = rng.integers(0, 12, 15).astype(float), rng.random(15) < 0.4
        truth[0] = True
        f1 = _f1(scores, truth, anomaly.best_f1_threshold(scores, truth))
        assert f1 == pytest.approx(max(_f1(scores, truth, cut) for cut in np.arange(-1, 12) + 0.5))
    assert anomaly.best_f1_threshold([1, 2, 5, 9], [False, False, True, True]) == 3.5
    assert anomaly.best_f1_threshold([1, 1], [False, True]) < 1
    with pytest.raises(LabError, match="needs defects"):
        anomaly.best_f1_threshold([1, 2], [False, False])


def _f1(scores: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    called = scores > threshold
    return 2 * (called & truth).sum() / (called.sum() + truth.sum())


# Pixels


def _pixels(maps: Any, masks: Any, kinds: Any = None) -> PixelScores:
    found = PixelScores(maps)
    for k, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        kind = kinds[k] if kinds else "good" if mask is None else "hole"
        found.add(f"{k}", scores, mask, kind)
    return found


def _figures(found: dict[str, Any]) -> list[float]:
    return [found[name] for name in anomaly.PIXEL_METRICS]


def _two_regions() -> np.ndarray:
    """90 pixels in one region, 10 in another, of 1,000."""
    mask = np.zeros((20, 50), dtype=bool)
    mask[2:11, 2:12] = mask[15:17, 30:35] = True
    return mask


def test_perfect_inverted_and_constant_maps() -> None:
    mask = _two_regions()
    scores = mask.astype(float)
    assert _figures(_pixels([scores], [mask]).metrics()) == pytest.approx([1, 1, 1])
    assert _figures(_pixels([1 - scores], [mask]).metrics()) == pytest.approx([0, 0.1, 0])
    for limit in (0.05, 0.3, 1):  # overlap and false-positive rate rise together: the area is half the limit
        constant = _pixels([np.full((20, 50), 0.7)] * 2, [mask, None]).metrics(limit)
        assert _figures(constant) == pytest.approx([0.5, 0.05, limit / 2])


def test_a_small_region_that_is_missed_weighs_as_much_as_a_large_one() -> None:
    mask = _two_regions()
    scores = np.zeros(mask.shape)
    scores[2:11, 2:12] = 1
    found = _pixels([scores], [mask]).metrics(limit=0.3)
    assert found["pixel_auroc"] == pytest.approx(0.95)  # from (0, 0.9) straight to (1, 1)
    assert found["pixel_ap"] == pytest.approx(0.9 + 0.1 * 0.1)
    assert found["pixel_aupro"] == pytest.approx((0.5 + 0.65) / 2)  # from (0, 0.5) straight to (1, 1), cut at 0.3


def test_regions_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[2, 2] = mask[3, 3] = mask[8, 8] = True
    scores = np.zeros((10, 10))
    scores[2, 2] = 1
    aupro = _pixels([scores], [mask]).metrics(limit=1)["pixel_aupro"]
    assert aupro == pytest.approx((0.25 + 1) / 2)  # half of one of two regions


def test_maps_are_spread_over_the_masks_as_torch_does() -> None:
    """A map of 2 x 1, 0 and 1, over 8 x 4 pixels: rows at 0, 0, 1/8, 3/8, 5/8, 7/8, 1, 1."""
    mask = np.zeros((8, 4), dtype=bool)
    mask[3] = True
    scores = np.array([[0.0], [1.0]])
    assert _pixels([scores], [mask]).metrics()["pixel_auroc"] == pytest.approx(3 / 7)


def test_good_images_are_all_negative_and_a_missing_mask_leaves_its_image_out() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((4, 8, 8))
    mask = np.zeros((32, 32), dtype=bool)
    mask[5:9, 5:20] = True
    found = PixelScores(maps)
    found.add("a", maps[0], mask, "hole")
    found.add("b", maps[1], None, "good", size=(32, 32))
    found.add("c", maps[2], np.roll(mask, 9, axis=0), "crack")
    found.add("d", maps[3], None, "crack")
    metrics = found.metrics()
    assert (metrics["images"], metrics["missing_masks"], found.missing) == (3, 1, ["d"])
    masks = [mask, np.zeros_like(mask), np.roll(mask, 9, axis=0)]
    assert _figures(metrics) == pytest.approx(_exact(maps[:3], masks, 0.3), abs=1e-3)
    assert list(metrics["by_type"]) == ["crack", "hole"]
    assert _figures(metrics["by_type"]["hole"]) == pytest.approx(_exact(maps[:2], masks[:2], 0.3), abs=1e-3)


@pytest.mark.slow
def test_a_tiny_defect_in_large_maps_is_measured_as_finely() -> None:
    rng = np.random.default_rng(1)
    maps = np.stack([cv2.GaussianBlur(noise, (0, 0), 4) for noise in rng.standard_normal((2, 1500, 1500), np.float32)])
    masks = np.zeros(maps.shape, dtype=bool)
    masks[0, 300:320, 500:520] = True  # one pixel in 11,000
    maps = maps / maps.std() + 10 * np.stack([cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 8) for mask in masks])
    found = _pixels(maps, [masks[0], None]).metrics()["pixel_ap"]
    assert found == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=3e-5)


def test_nothing_defective_or_nothing_at_all() -> None:
    none = dict.fromkeys(anomaly.PIXEL_METRICS)
    for maps in ([], [np.ones((4, 4))]):
        found = PixelScores([np.ones((4, 4))])
        for scores in maps:
            found.add("a", scores, None, "good")
        assert found.metrics().items() >= none.items()
        assert found.intervals() == none
    full = _pixels([np.ones((4, 4))], [np.ones((4, 4))])  # no sound pixel
    assert full.metrics().items() >= none.items()


def _exact(maps: Any, masks: Any, limit: float) -> list[float]:
    """By scikit-learn and, at each of its thresholds, the share found of each of SciPy's regions."""
    maps = [
        cv2.resize(m.astype(np.float32), k.shape[::-1], interpolation=cv2.INTER_LINEAR)
        for m, k in zip(maps, masks, strict=True)
    ]
    scores, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([k.ravel() for k in masks])
    fpr, _, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    regions = []
    for scored, mask in zip(maps, masks, strict=True):
        labels, number = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [np.sort(scored[labels == k + 1]) for k in range(number)]
    pro = np.mean([1 - np.searchsorted(region, thresholds) / len(region) for region in regions], axis=0)
    inside = fpr <= limit
    x, y = np.append(fpr[inside], limit), np.append(pro[inside], np.interp(limit, fpr, pro))
    aupro = ((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum() / limit
    return [roc_auc_score(truth, scores), average_precision_score(truth, scores), aupro]


def _toy(
    rng: np.random.Generator, images: int, shape: str, side: int = 32
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Noisy maps of low resolution of masks with several blobs; the first image is good."""
    masks = [
        ndimage.gaussian_filter(rng.normal(size=(side, side)), 2) > 0.15 * (k > 0) + 9 * (k == 0) for k in range(images)
    ]
    maps = []
    for mask in masks:
        seen = cv2.resize(mask.astype(np.float32), (9, 7), interpolation=cv2.INTER_AREA) + 0.3 * rng.normal(size=(7, 9))
        if shape == "relu":  # half of the scores are the same
            seen = np.maximum(seen - 0.2, 0)
        elif shape == "saturated":  # at both ends
            seen = 1 / (1 + np.exp(-60 * (seen - 0.4)))
        elif shape == "skewed":
            seen = np.exp(6 * seen)
        elif shape == "coarse":
            seen = np.round(2 * seen)
        maps.append(seen.astype(np.float32))
    return maps, masks


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("shape", ["plain", "relu", "saturated", "skewed", "coarse"])
def test_agrees_with_the_exact_computation(shape: str, limit: float) -> None:
    maps, masks = _toy(np.random.default_rng(0), 4, shape, side=64)
    found = _pixels(maps, masks).metrics(limit)
    assert _figures(found) == pytest.approx(_exact(maps, masks, limit), abs=5e-4)


def test_a_bootstrap_of_images_is_a_bootstrap_of_their_pixels() -> None:
    rng = np.random.default_rng(0)
    maps, masks = _toy(rng, 5, "plain")
    pixels = _pixels(maps, masks, ["good", "a", "a", "b", "b"])
    weights = np.array([[1, 2, 0, 1, 1], [1, 0, 3, 1, 0]])
    for row, values in zip(weights, pixels._values(weights, 0.3), strict=True):
        drawn = np.repeat(np.arange(5), row)
        assert values == pytest.approx(_exact([maps[k] for k in drawn], [masks[k] for k in drawn], 0.3), abs=1e-3)


def test_pixel_intervals_and_their_paired_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly, "RESAMPLES", 200)
    rng = np.random.default_rng(0)
    maps, masks = _toy(rng, 12, "plain")
    kinds = ["good"] + ["hole"] * 11
    better = _pixels(maps, masks, kinds)
    for name, interval in better.intervals().items():
        assert interval is not None
        low, high = interval
        assert low < better.metrics()[name] < high
    better.save(tmp_path / "pixels.npz")
    again = PixelScores.load(tmp_path / "pixels.npz")
    assert (again.metrics(), again.names, again.missing) == (better.metrics(), better.names, better.missing)
    back = _pixels(maps[::-1], masks[::-1], kinds[::-1])  # the same images in another order
    back.names.reverse()
    assert back.draws() == pytest.approx(better.draws(), abs=1e-3)
    for ours, theirs in ((again, better), (back, better)):
        assert ours.contributions()[0] == pytest.approx(theirs.contributions()[0], abs=1e-2)


def test_what_an_image_contributes_is_a_jackknife(tmp_path: Path) -> None:
    maps, masks = _toy(np.random.default_rng(0), 8, "plain")
    masks[1][:] = False
    pixels = _pixels(maps, masks, ["good"] * 2 + ["hole"] * 6)
    values, defect = pixels.contributions()
    assert defect.tolist() == [False] * 2 + [True] * 6
    (whole,) = pixels._values(np.ones((1, 8)), 0.3)
    for i, number in ((1, 2), (5, 6)):
        weights = np.where(defect == defect[i], number / (number - 1), 1.0)
        weights[i] = 0
        (without,) = pixels._values(weights[None], 0.3)
        assert values[i] == pytest.approx(number * whole - (number - 1) * without, abs=1e-4)
    assert values[:2].mean(axis=0) == pytest.approx(whole, abs=0.1)
    empty = PixelScores(maps)
    assert empty.contributions()[0].shape == (0, 3)


# Intervals and tests of images


def test_image_intervals() -> None:
    rng = np.random.default_rng(0)
    kinds = ["good"] * 20 + ["hole"] * 63
    scores = np.concatenate([rng.normal(0, 1, 20), rng.normal(2, 1, 63)])
    metrics, intervals = anomaly.image_metrics(scores, kinds), anomaly.image_intervals(scores, kinds)
    assert intervals == anomaly.image_intervals(scores, kinds)
    for name, interval in intervals.items():
        assert interval is not None
        assert 0.5 < interval[0] < metrics[name] < interval[1] <= 1
    constant = anomaly.image_intervals(np.ones(83), kinds)["image_auroc"]
    assert constant is not None
    assert constant[0] < 0.5 < constant[1]


def test_perfect_separation_has_a_lower_bound_below_one() -> None:
    few = anomaly.image_intervals(np.arange(10), ["good"] * 5 + ["hole"] * 5)
    many = anomaly.image_intervals(np.arange(83), ["good"] * 20 + ["hole"] * 63)
    for name in ("image_auroc", "image_ap"):
        (low, top), (higher, also_top) = few[name] or (0, 0), many[name] or (0, 0)
        assert 0.5 < low < higher < 0.96
        assert top == also_top == 1


def test_the_score_interval_solves_its_equation() -> None:
    for auroc in (0.0, 0.3, 0.9, 1.0):
        good, defects = 20, 63
        for bound in statistics.mann_whitney_interval(auroc, good, defects):
            if bound in (0, 1):
                assert bound == auroc
                continue
            q1, q2 = bound / (2 - bound), 2 * bound**2 / (1 + bound)  # Hanley and McNeil's
            variance = bound * (1 - bound) + ((good + defects) / 2 - 1) * (q1 + q2 - 2 * bound**2)
            assert abs(auroc - bound) == pytest.approx(1.959964 * np.sqrt(variance / (good * defects)))


@pytest.mark.slow
@pytest.mark.parametrize(("auroc", "wide"), [(0.9, 0.4), (0.98, 1), (0.995, 3)])
def test_image_intervals_cover(auroc: float, wide: float) -> None:
    rng, covered, kinds = np.random.default_rng(0), np.zeros(2), ["good"] * 20 + ["hole"] * 63
    away = stats.norm.ppf(auroc) * np.hypot(1, wide)
    defects = np.sort(rng.normal(away, wide, 1_000_000))[::-1]
    recall, alarms = np.linspace(0, 1, len(defects) + 1)[1:], stats.norm.sf(defects)
    ap = float(np.mean(63 * recall / (63 * recall + 20 * alarms)))
    for _ in range(100):
        scores = np.concatenate([rng.normal(size=20), rng.normal(away, wide, 63)])
        for k, (interval, value) in enumerate(
            zip(anomaly.image_intervals(scores, kinds).values(), (auroc, ap), strict=True)
        ):
            assert interval is not None
            covered[k] += interval[0] <= value <= interval[1]
    assert (covered / 100).min() > 0.9, covered


def _slow_delong(scores: np.ndarray, truth: np.ndarray, extra: float) -> tuple[float, float]:
    """Difference and its variance, placement by placement."""
    beats = [[[float(d > g) + (d == g) / 2 for g in row[~truth]] for d in row[truth]] for row in scores]
    first, second = np.array(beats)
    difference = first - second
    variance = 0.0
    for part in (difference.mean(axis=1), difference.mean(axis=0)):
        total = len(part) + extra  # half of the extra images at +1, half at -1
        mean = part.sum() / total
        variance += (((part - mean) ** 2).sum() + extra / 2 * ((1 - mean) ** 2 + (1 + mean) ** 2)) / total**2
    return float(difference.mean()), float(variance)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_with_one_more_image_is_its_definition(ties: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = rng.permutation(np.arange(30) < 9)
        scores = rng.normal(size=30) + truth + rng.normal(size=(2, 30))
        scores = np.round(scores) if ties else scores
        value, variance = _slow_delong(scores, truth, 1)
        found = differences.auroc_difference(*scores, truth)
        assert found.value == pytest.approx(value)
        assert found.value == pytest.approx(roc_auc_score(truth, scores[0]) - roc_auc_score(truth, scores[1]))
        assert sum(noise.variance for noise in found.noises) == pytest.approx(variance)
        assert found.p > 2 * stats.norm.sf(abs(value) / np.sqrt(variance))  # Student's
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_auroc_of_several_runs_is_of_their_means() -> None:
    scores, truth = _twins(np.random.default_rng(0), 0.5)
    one = differences.auroc_difference(*scores, truth)
    assert differences.auroc_difference([scores[0], scores[0]], scores[1], truth)[:4] == pytest.approx(one[:4])
    both = differences.auroc_difference(scores, scores[1], truth)
    assert both.value == pytest.approx(one.value / 2)
    assert both.noises[0].seen == pytest.approx(one.noises[0].seen / 4)


def test_auroc_without_spread() -> None:
    truth = np.arange(83) >= 20
    perfect = np.arange(83.0)
    same = differences.auroc_difference(perfect, perfect**3, truth)  # the same on every pair
    assert (same.value, same.p) == (0, 1)
    assert same.low < -0.05
    constant = differences.auroc_difference(perfect, np.zeros(83), truth)
    assert constant.value == 0.5
    assert constant.p < 1e-6
    few = differences.auroc_difference([0, 1, 2, 3], [0, 0, 0, 0], [False, False, True, True])
    assert few.p > 0.1  # of four images nothing can be known
    with pytest.raises(ValueError, match="two good images"):
        differences.auroc_difference([0, 1], [0, 1], [False, True])


def test_a_few_good_images_above_all_defects_are_luck() -> None:
    """One of 20 outscores all defects in truth; this sample holds none, so that AUROC is 1 beside an honest 0.95."""
    rng, truth = np.random.default_rng(6), np.arange(83) >= 20
    honest = rng.normal(size=83) + truth * np.sqrt(2) * stats.norm.ppf(0.95)
    lucky = np.arange(83.0)
    plain = _slow_delong(np.stack([lucky, honest]), truth, 0)
    assert 2 * stats.norm.sf(plain[0] / np.sqrt(plain[1])) < 0.01  # DeLong's
    assert differences.auroc_difference(lucky, honest, truth).p > 0.05


def _twins(rng: np.random.Generator, advantage: float, away: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Two correlated scores of 20 good images and 63 defects."""
    truth = np.arange(83) >= 20
    return rng.normal(size=83) + rng.normal(size=(2, 83)) + truth * (away + np.array([[advantage], [0]])), truth


def test_a_real_difference_in_auroc_is_found() -> None:
    rng = np.random.default_rng(0)
    called = [differences.auroc_difference(*(t := _twins(rng, 1.5, 0.5))[0], t[1]).p < 0.05 for _ in range(100)]
    assert np.mean(called) > 0.8
