"""The metrics of anomaly scores: those of images, and those of the pixels of maps."""

from __future__ import annotations

import statistics as st
from collections.abc import Callable
from functools import partial

import numpy as np

from mvtec_lab.evaluation import differences
from mvtec_lab.evaluation.anomaly import PIXEL_METRICS, PRO_LIMIT
from mvtec_lab.evaluation.differences import EXTRA, Difference
from mvtec_lab.evaluation.specs.metric import (
    Inference,
    Metric,
    NotComparableError,
    Runs,
    Words,
    interval_of_runs,
    rarest,
)


def _compare_scores(first: Runs, second: Runs) -> tuple[Difference, str]:
    truth = first[0].labels > 0  # "good" comes first
    try:
        difference = differences.auroc_difference([t.scores for t in first], [t.scores for t in second], truth)
    except ValueError as error:
        raise NotComparableError("a test of image AUROC needs two good and two defective images") from error
    return difference, "DeLong's test (made careful by one more image of each kind)"


def _compare_pixels(key: str, title: str, first: Runs, second: Runs) -> tuple[Difference, str]:
    maps = [[tested.contributions for tested in runs] for runs in (first, second)]
    known = [of_run for of_attempt in maps for of_run in of_attempt if of_run is not None]
    names = {tuple(of_run[0]) for of_run in known}
    if len(known) < len(first) + len(second) or len(names) != 1 or any(np.isnan(of_run[1]).any() for of_run in known):
        raise NotComparableError(f"without maps and masks of the same images of both there is no {title}")
    ours, theirs = (np.mean([of_run[1] for of_run in of_attempt if of_run], axis=0) for of_attempt in maps)
    value, other = (st.fmean(tested.run.metrics["test"][key] for tested in runs) for runs in (first, second))
    change, defect = (ours - theirs)[:, PIXEL_METRICS.index(key)], known[0][2]
    try:
        difference = differences.of_images(value - other, (change[~defect], change[defect]), EXTRA[key])
    except ValueError as error:
        raise NotComparableError(f"a test of {title} needs two good and two defective images") from error
    return difference, "jackknife t-test over images"


_anomaly = partial(Metric, problem="anomaly", also=("segmentation",))
_deciding_anomaly = partial(_anomaly, decides=True)
_PIXELS_OR_BOXES = ("segmentation", "detection")  # an image's score is its highest pixel's, or its best box's
_of_images = partial(_anomaly, also=_PIXELS_OR_BOXES)
_SCORED = ("label", "prediction", "type", "score")
# Folds divide what is tested; what learns good images alone learns the same ones in all of them, in every round.
_scores = partial(Inference, _SCORED, interval_of_runs, once=True)
_called = _scores  # one of its two metrics every run has, and so these columns
_paired_scores = partial(_scores, pooled=False, resolution=partial(rarest, times=2))
_HALF = (lambda run: 0.5, "chance")
_REGIONS = (lambda run: PRO_LIMIT / 2, "chance")  # a random map finds the same share of a region as of the sound pixels
_AUROC = Words(made_up="made-up defects", by_type="image_auroc")
_AUPRO = Words(by_type="pixel_aupro", about=f"AUPRO is integrated to a false-positive rate of {PRO_LIMIT}.")
_RECALL = Words(
    aside="defects found at the threshold",
    by_type="recall",
    bounded=True,
    mistake="escapes",
    about="Defects found and false rejects are the shares of the defects and of the good images above the threshold, "
    "with their 95% intervals.",
)


def _one_of(defects: bool) -> Callable[[float, Runs], float]:
    """Return what gives the share that one image is of the defects, or of the good images."""
    return lambda images, runs: float(np.mean([1 / max(1, ((t.labels > 0) == defects).sum()) for t in runs]))


def _pixels(key: str, title: str, single: str = "") -> Inference:
    # Pixels are summed in single precision.
    return _paired_scores(paired=partial(_compare_pixels, key, title), single=single, tolerance=1e-3)


METRICS = (
    _deciding_anomaly(
        "image_auroc",
        title="image AUROC",
        heading="image\nAUROC",
        words=_AUROC,
        also=_PIXELS_OR_BOXES,
        chance=_HALF,
        inference=_paired_scores(paired=_compare_scores),
    ),
    _deciding_anomaly(
        "pixel_auroc",
        title="pixel AUROC",
        heading="pixel\nAUROC",
        words=Words(by_type="pixel_auroc", wide=True),
        chance=_HALF,
        inference=_pixels("pixel_auroc", "pixel AUROC"),
    ),
    _deciding_anomaly(
        "pixel_ap",
        title="pixel AP",
        heading="pixel\nAP",
        words=Words(by_type="pixel_ap", wide=True),
        inference=_pixels("pixel_ap", "pixel AP", single="give verdict.metric=pixel_aupro"),
    ),
    _deciding_anomaly(
        "pixel_aupro",
        title="AUPRO",
        heading="AUPRO",
        words=_AUPRO,
        chance=_REGIONS,
        inference=_pixels("pixel_aupro", "AUPRO"),
    ),
    _of_images("image_ap", title="image AP", inference=_scores()),
    _of_images("f1", title="F1", heading="F1", words=Words(wide=True)),
    _of_images("precision", title="precision"),
    _of_images(
        "recall_of_defects",
        title="defects found",
        heading="defects\nfound",
        words=_RECALL,
        inference=_called(resolution=_one_of(True)),
    ),
    _of_images(
        "false_alarm_rate",
        title="false rejects",
        heading="false\nrejects",
        words=Words(aside="false rejects", bounded=True, mistake="false rejects"),
        better="lower",
        inference=_called(resolution=_one_of(False)),
    ),
)
