"""The metrics of classification."""

from __future__ import annotations

import statistics as st
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

import numpy as np

from mvtec_lab.evaluation import differences, proper, statistics
from mvtec_lab.evaluation.differences import EXTRA, Difference
from mvtec_lab.evaluation.specs.metric import Bounds, Inference, Metric, NotComparableError, Runs, Values, Words, rarest
from mvtec_lab.evaluation.tested import Rows, confusions, means_of_images
from mvtec_lab.results import CERTAINTY, GOOD, SURE, UNSURE, RunResult


def _share_interval(key: str, metrics: Values, runs: Runs) -> Bounds:
    images = metrics[0]["images"]
    return statistics.wilson_interval(st.fmean(m[key] for m in metrics) * images, images)


def _balanced_interval(key: str, metrics: Values, runs: Runs) -> Bounds | None:
    counts = confusions(runs)
    return None if counts is None else _balanced_together(counts)[1]


def _balanced_together(counts: np.ndarray) -> tuple[float, Bounds, str]:
    total = counts.sum(axis=0)
    occur, times = total.any(axis=1), total.sum() / len(counts)  # predictions per image
    right, images = (part[occur] / times for part in (total.diagonal(), total.sum(axis=1)))
    return float(np.mean(right / images)), statistics.balanced_interval(right, images), "score interval"


def _macro_together(counts: np.ndarray) -> tuple[float, Bounds | None, str]:
    value = float(statistics.macro_f1(counts.sum(axis=0)))
    bounds = statistics.bootstrap(statistics.macro_f1, counts) if len(counts) > 1 else (value, value)
    # Where all are right no resample differs: that is no certainty.
    return value, bounds if bounds[0] < bounds[1] else None, "bootstrap over images"


def _compare_accuracy(first: Runs, second: Runs) -> tuple[Difference, str]:
    ours, theirs = (means_of_images(runs, [tested.right for tested in runs]) for runs in (first, second))
    return differences.accuracy_difference(list(ours.values()), [theirs[image] for image in ours])


def _compare_classes(
    statistic: Callable[[np.ndarray], np.ndarray], first: Runs, second: Runs
) -> tuple[Difference, str]:
    ours, theirs = confusions(first), confusions(second)
    if ours is None or theirs is None or first[0].classes != second[0].classes:
        raise NotComparableError("their classes are not the same")
    first_shares, second_shares = (counts / counts.sum(axis=(1, 2), keepdims=True) for counts in (ours, theirs))
    return differences.balanced_difference(first_shares, second_shares, statistic)


def _majority(run: RunResult, of_class: Callable[[float], float]) -> float | None:
    """Return the mean over the classes of what always naming one class reaches in it, from its share of the images."""
    share, recall = run.majority_baseline, run.metrics.get("test", {}).get("recall", {})
    classes = sum(value is not None for value in recall.values())
    return None if share is None or not classes else of_class(share) / classes


def _of_group(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    """Return what finds the recall of a group; where every class is frequent there are no groups."""

    def value(metrics: Mapping[str, Any]) -> float | None:
        groups = metrics.get("group_recall", {})
        return groups.get(name) if any(groups.get(other) is not None for other in ("middle", "tail")) else None

    return value


_MAJORITY = "always naming the most frequent class"
_class = partial(Metric, problem="classification")
_deciding_class = partial(_class, decides=True)
_classes = partial(Inference, ("label", "prediction"))
_ACCURACY = _classes(interval=_share_interval, paired=_compare_accuracy, resolution=lambda images, runs: 1 / images)
_BALANCED = _classes(
    interval=_balanced_interval,
    together=_balanced_together,
    paired=partial(_compare_classes, statistics.balanced_accuracy),
    resolution=rarest,
)
_MACRO = _classes(
    together=_macro_together,
    paired=partial(_compare_classes, statistics.macro_f1),
    single="give cv.folds, or another verdict.metric",
    resolution=rarest,
)
_SHARE = (lambda run: run.majority_baseline, _MAJORITY)
_ONE_CLASS = (partial(_majority, of_class=lambda share: float(share > 0)), _MAJORITY)
_ONE_F1 = (partial(_majority, of_class=lambda share: 2 * share / (1 + share)), _MAJORITY)  # recall is 1
_ALL = Words(implied=True, step="one image", aside="accuracy on all images")
_GROUPS = Words(
    aspect="Frequent and rare classes",
    about="The mean recall of three groups of classes. Head: the frequent classes, with at least half as many training "
    "images as the most frequent one. Tail: the rare ones, with at most a fifth as many. Middle: those between.",
    wide=True,
)
_PROBABILITIES = Words(
    aspect="Calibration",
    about="Log loss (nats) and Brier score (0 to 2) judge the probabilities: how likely the true class was said to be, "
    "right or wrong. A model that is too sure has worse ones than its accuracy would give.",
    chance=("The probabilities say nothing", "It is not shown that the probabilities say anything"),
)
# 22% of simulated attempts of equal log loss were called different on 16 images, where one is better and too sure.
_ONE_IMAGE = (
    "one image that a model is sure of, and wrong, outweighs the others: give cv.folds, or verdict.metric=brier"
)
_CALIBRATION = Words(
    aspect="Calibration",
    about="Calibration error: how far the predicted class's probability is from the share of right predictions. On a "
    "few dozen images some of it is luck.",
)

_GOOD_OR_DEFECT = Words(
    aspect="Escapes and false rejects",
    about="Escapes: the share of the defects that are called good. False rejects: the share of the good images that "
    "are called a defect, of whatever type.",
    bounded=True,
)
_SURE = Words(
    aspect="When the model is not sure",
    about="Sure: the share of the images whose set of possible classes is the prediction alone. Accuracy where sure: "
    "that of these images. AURC: the mean error rate where only the most confident images are answered, over all their "
    "shares.",
)


def _right(rows: Rows) -> np.ndarray:
    return np.array([float(row["label"] == row["prediction"]) for row in rows])


def _sure(rows: Rows) -> np.ndarray:
    return np.array([_OF_CERTAINTY.get(row.get(CERTAINTY) or "", np.nan) for row in rows])


def _right_where_sure(rows: Rows) -> np.ndarray:
    return np.where(_sure(rows) == 1, _right(rows), np.nan)


def _escaped(rows: Rows) -> np.ndarray:
    # Where no class is good, nothing can pass as good: 0 escapes would be no merit.
    known = any(f"prob_{GOOD}" in row or GOOD in (row["label"], row["prediction"]) for row in rows)
    return np.array([float(row["prediction"] == GOOD) if known and row["label"] != GOOD else np.nan for row in rows])


def _rejected(rows: Rows) -> np.ndarray:
    return np.array([float(row["prediction"] != GOOD) if row["label"] == GOOD else np.nan for row in rows])


def _counted_interval(of_images: Callable[[Rows], np.ndarray], key: str, metrics: Values, runs: Runs) -> Bounds | None:
    """Return Wilson's interval of a mean of zeros and ones, over the images that count in a mean run."""
    values = [of_images(tested.rows) for tested in runs]
    counted = np.concatenate([of_run[~np.isnan(of_run)] for of_run in values]) if values else np.zeros(0)
    images = len(counted) / max(len(values), 1)
    return statistics.wilson_interval(counted.mean() * images, images) if len(counted) else None


def _one_counted(of_images: Callable[[Rows], np.ndarray], images: float, runs: Runs) -> float:
    """Return what one of the images that count changes: folds that agree by chance, all at 0, are no certainty."""
    counted = [int((~np.isnan(of_images(tested.rows))).sum()) for tested in runs]
    return float(np.mean([1 / max(1, count) for count in counted]))


def _counted(key: str, of_images: Callable[[Rows], np.ndarray], title: str) -> Metric:
    inference = Inference(interval=partial(_counted_interval, of_images), resolution=partial(_one_counted, of_images))
    return _class(key, title=title, of_images=of_images, inference=inference, words=replace(_SURE, bounded=True))


def _mistaken(key: str, of_images: Callable[[Rows], np.ndarray], title: str) -> Metric:
    """Return a metric of good or defect alone, whatever the defect is called; without good images it has no value."""
    words = replace(_GOOD_OR_DEFECT, mistake=title)
    return replace(_counted(key, of_images, title), better="lower", words=words)


def _proper(
    key: str, title: str, unit: str, most: float, of_images: Callable[..., np.ndarray], single: str = ""
) -> Metric:
    """Return a metric of the probabilities that a run states; without any its images do not count."""

    def of_rows(rows: Rows) -> np.ndarray:
        stated = proper.stated(rows)
        return np.full(len(rows), np.nan) if stated is None else of_images(*stated)

    def chance(run: RunResult) -> float | None:
        return proper.of_shares(run.counts.get("train", {}), run.counts.get("test", {}), key)

    return _deciding_class(
        key,
        title=title,
        words=_PROBABILITIES,
        better="lower",
        unit=unit,
        span=(0.0, most),
        of_images=of_rows,
        chance=(chance, "stating for every image how frequent the classes are in training"),
        # Folds whose losses agree to the last digit do not occur by chance, as shares of a few images do.
        inference=Inference(resolution=lambda images, runs: 0.0, extra=EXTRA.get(key, 0.0), single=single, once=True),
    )


_OF_CERTAINTY = {SURE: 1.0, UNSURE: 0.0}

METRICS = (
    _deciding_class(
        "accuracy",
        title="accuracy",
        heading="acc.",
        words=_ALL,
        needed=True,
        of_images=_right,
        chance=_SHARE,
        inference=_ACCURACY,
    ),
    _deciding_class(
        "balanced_accuracy",
        title="balanced accuracy",
        heading="bal.\nacc.",
        words=Words(step="one image of the rarest class"),
        chooses=True,
        chance=_ONE_CLASS,
        inference=_BALANCED,
    ),
    _deciding_class("macro_f1", title="macro F1", heading="macro\nF1", chance=_ONE_F1, inference=_MACRO),
    replace(
        _proper("log_loss", "log loss", "nats", inf, proper.log_losses, _ONE_IMAGE),
        value=lambda metrics: metrics.get("loss"),
    ),
    _proper("brier", "Brier score", "", 2.0, proper.brier_scores),
    _class("defect_accuracy", title="defects only", heading="defect\nonly", words=Words(aside="on defects alone")),
    _mistaken("escapes", _escaped, "escapes"),
    _mistaken("false_rejects", _rejected, "false rejects"),
    _class("head_recall", title="head recall", words=_GROUPS, value=_of_group("head")),
    _class("middle_recall", title="middle recall", words=_GROUPS, value=_of_group("middle")),
    _class("tail_recall", title="tail recall", heading="rare\nclasses", words=_GROUPS, value=_of_group("tail")),
    _class("calibration_error", title="calibration error", words=_CALIBRATION, better="lower"),
    _counted("sure", _sure, "sure"),
    _counted("sure_accuracy", _right_where_sure, "accuracy where sure"),
    _class("aurc", title="AURC", words=_SURE, better="lower"),
)
