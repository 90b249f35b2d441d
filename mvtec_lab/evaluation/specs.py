"""One table of all metrics: every table, report, verdict and comparison reads it.

A problem of your own gives four things, and is compared, ranked and reported from its run directories alone:
1. ``register_metric(Metric(key, problem, title, ...))`` per metric; the first with ``decides=True`` is the default;
2. ``better="lower"`` for errors, ``share=False`` and ``unit`` for values that are no share of 1;
3. ``of_images``: the values per image, from rows of predictions.csv (columns split, path and your own, as text); their
   mean over the test images is the metric in result.json, and interval and paired test follow from them;
4. result.json with ``problem``, ``counts`` of train, val and test, and ``metrics.test`` and ``metrics.val`` with the
   keys and ``images``; validation chooses by the first metric that decides, or by the one with ``chooses=True``.
"""

from __future__ import annotations

import itertools
import statistics as st
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from mvtec_lab.errors import LabError, unknown
from mvtec_lab.evaluation import differences, statistics
from mvtec_lab.evaluation.anomaly import PIXEL_METRICS, PRO_LIMIT
from mvtec_lab.evaluation.differences import EXTRA, Difference
from mvtec_lab.evaluation.tested import Rows, Tested, confusions, means_of_images
from mvtec_lab.registry import Registry
from mvtec_lab.results import RunResult

Runs: TypeAlias = Sequence[Tested]
Bounds: TypeAlias = tuple[float, float]
Values: TypeAlias = Sequence[Mapping[str, Any]]  # the metrics of a split, one mapping per run


class NotComparableError(Exception):
    """Say why two attempts cannot be compared in a metric."""


@dataclass(frozen=True)
class Words:
    """Say how verdict and tables speak of a metric.

    Args:
        implied: sentences do not name it.
        aside: the verdict states it for every attempt, in these words.
        step: how sentences name one image, of which they say what it changes.
        made_up: what its value on validation is of, where that is not the validation images.
        by_type: its key in ``by_type`` of result.json.
        wide: the terminal shows its column only where it has room.
        aspect: the title of a further table of the report that it stands in.
        about: a sentence below the report's table.
    """

    implied: bool = False
    aside: str = ""
    step: str = ""
    made_up: str = ""
    by_type: str = ""
    wide: bool = False
    aspect: str = ""
    about: str = ""


@dataclass(frozen=True)
class Inference:
    """Say how certain a metric is, and how two attempts are compared by it.

    Args:
        columns: of predictions.csv that it is computed from; label and prediction are names of classes.
        interval: the 95% interval over the images of one test set, from the runs' metrics and predictions.
        together: value and interval of all tested images together, from their confusions [N, C, C].
        paired: the difference of two attempts on the same images, and the name of the test.
        pooled: ``paired`` may take the images of several test sets together.
        single: the remedy where no paired test on a single test set is sound.
        resolution: what one image changes, from the number of images and one run per test set.
        folds: cross-validation is possible.
        tolerance: how far the value in result.json may be from the one in predictions.csv.
    """

    columns: tuple[str, ...] = ()
    interval: Callable[[str, Values, Runs], Bounds | None] | None = None
    together: Callable[[np.ndarray], tuple[float, Bounds | None, str]] | None = None
    paired: Callable[[Runs, Runs], tuple[Difference, str]] | None = None
    pooled: bool = True
    single: str = ""
    resolution: Callable[[float, Runs], float] | None = None
    folds: bool = True
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Metric:
    """Say all that tables, verdict and report need to know of a metric.

    Args:
        key: in ``metrics`` of result.json; the column of summary.csv is ``test_<key>``.
        problem: the problem whose runs are judged by it.
        title: in sentences and in the report.
        heading: of its column in the terminal; empty: no column in the tables of results.
        better: which values are better.
        share: it lies in [0, 1], and differences are given in points.
        unit: of other values.
        decides: attempts can be compared by it.
        chooses: its value on validation chooses the best attempt; the default is the first metric that decides.
        needed: every completed run has it.
        of_images: the values of the images, [N], from rows of predictions.csv, whose mean is the metric.
        value: how it is found in the metrics of a split; None: by its key.
        chance: the value of a run that learnt nothing, and what reaches it; None: not known.
        inference: interval and test; the default takes ``of_images``.
        words: how it is spoken of.
    """

    key: str
    problem: str
    title: str
    heading: str = ""
    better: Literal["higher", "lower"] = "higher"
    share: bool = True
    unit: str = ""
    decides: bool = False
    chooses: bool = False
    needed: bool = False
    of_images: Callable[[Rows], np.ndarray] | None = None
    value: Callable[[Mapping[str, Any]], float | None] | None = None
    chance: tuple[Callable[[RunResult], float | None], str] | None = None
    inference: Inference = Inference()
    words: Words = Words()
    order: int = field(default_factory=itertools.count().__next__, init=False, compare=False)

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise LabError(f"better of the metric {self.key!r} is {self.better!r}: give higher or lower")
        if self.decides and not (self.inference.paired or self.of_images):
            raise LabError(f"the metric {self.key!r} cannot decide without a paired test: give of_images or paired")

    @property
    def sign(self) -> int:
        """Return 1 where higher values are better, -1 where lower ones are."""
        return 1 if self.better == "higher" else -1

    @property
    def limit(self) -> float:
        """Return the largest difference that there can be."""
        return 1.0 if self.share else float("inf")

    @property
    def stated(self) -> bool:
        """Tell whether it is given with an interval."""
        return self.decides or self.inference.interval is not None or self.of_images is not None

    @property
    def phrase(self) -> str:
        """Return " in <title>", to stand in a sentence."""
        return "" if self.words.implied else f" in {self.title}"

    def of(self, metrics: Mapping[str, Any]) -> float | None:
        """Return its value among the metrics of a split."""
        return self.value(metrics) if self.value else metrics.get(self.key)

    def clip(self, low: float, high: float, change: bool = False) -> Bounds:
        """Return an interval within the range of the metric, or of a ``change`` of it."""
        return (max(-1.0 if change else 0.0, low), min(1.0, high)) if self.share else (low, high)

    def step_of(self, difference: float, sign: bool = False) -> str:
        """Return a difference as text: ``12.5`` (points) of a share, else the value with the unit."""
        value = (
            f"{100 * difference:{'+' if sign else ''}.1f}" if self.share else f"{difference:{'+' if sign else ''}.3g}"
        )
        return value if self.share or not self.unit else f"{value} {self.unit}"

    def difference_of(self, difference: float, sign: bool = False) -> str:
        """Return a difference as text with its unit, ``12.5 points``."""
        return self.step_of(difference, sign) + (" points" if self.share else "")

    def interval_of(self, metrics: Values, runs: Runs) -> Bounds | None:
        """Return the 95% interval over the images of one test set, of the mean over the runs."""
        if self.inference.interval:
            return self.inference.interval(self.key, metrics, runs)
        if self.of_images is None or not runs:
            return None
        bounds = statistics.mean_t_interval(list(self._means(runs).values()))
        return bounds and self.clip(*bounds)

    def resolution_of(self, images: float, runs: Runs) -> float:
        """Return what one image changes in the metric; ``runs``: one run per test set, of ``images`` on average."""
        if self.inference.resolution:
            return self.inference.resolution(images, runs)
        if self.of_images:
            return float(np.mean([np.ptp(self.of_images(tested.rows)) / len(tested.images) for tested in runs]))
        return 1 / images if self.share else 0.0

    def compare(self, first: Runs, second: Runs) -> tuple[Difference, str]:
        """Return the difference of two attempts on the same images, and the name of the test.

        Raises:
            NotComparableError: the images or the files of the runs do not allow it.
        """
        if self.inference.paired:
            return self.inference.paired(first, second)
        ours, theirs = self._means(first), self._means(second)
        pairs = np.array([(ours[image], theirs[image]) for image in ours])
        if len(pairs) < 2:
            raise NotComparableError("a test needs two images")
        return differences.mean_difference(pairs[:, 0], pairs[:, 1], self.limit)

    def _means(self, runs: Runs) -> dict[str, float]:
        assert self.of_images is not None
        return means_of_images(runs, [self.of_images(tested.rows) for tested in runs])


def _share_interval(key: str, metrics: Values, runs: Runs) -> Bounds:
    images = metrics[0]["images"]
    return statistics.wilson_interval(st.fmean(m[key] for m in metrics) * images, images)


def _interval_of_runs(key: str, metrics: Values, runs: Runs) -> Bounds | None:
    """Return the mean of the intervals that the runs found themselves."""
    bounds = [interval for m in metrics if (interval := m.get("intervals", {}).get(key))]
    return (st.fmean(b[0] for b in bounds), st.fmean(b[1] for b in bounds)) if bounds else None


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


def _compare_scores(first: Runs, second: Runs) -> tuple[Difference, str]:
    truth = first[0].labels > 0  # "good" comes first
    try:
        difference = differences.auroc_difference([t.scores for t in first], [t.scores for t in second], truth)
    except ValueError as error:
        raise NotComparableError("a test of image AUROC needs two good and two defective images") from error
    return difference, "DeLong's test with one more image of each kind"


def _compare_pixels(key: str, first: Runs, second: Runs) -> tuple[Difference, str]:
    title = METRICS[key].title
    contributions = [[tested.contributions for tested in runs] for runs in (first, second)]
    known = [found for of_attempt in contributions for found in of_attempt if found is not None]
    names = {tuple(found[0]) for found in known}
    if len(known) < len(first) + len(second) or len(names) != 1 or any(np.isnan(found[1]).any() for found in known):
        raise NotComparableError(f"without maps and masks of the same images of both there is no {title}")
    ours, theirs = (np.mean([found[1] for found in of_attempt if found], axis=0) for of_attempt in contributions)
    value, other = (st.fmean(tested.run.metrics["test"][key] for tested in runs) for runs in (first, second))
    change, defect = (ours - theirs)[:, PIXEL_METRICS.index(key)], known[-1][2]
    try:
        difference = differences.of_images(value - other, (change[~defect], change[defect]), EXTRA[key])
    except ValueError as error:
        raise NotComparableError(f"a test of {title} needs two good and two defective images") from error
    return difference, "jackknife t-test over images"


def _rarest(images: float, runs: Runs, times: int = 1) -> float:
    """Return what one image of the rarest class changes, which changes most.

    In balanced accuracy an image counts the more the rarer its class is. Luck has most room in the rarest class, and
    smaller steps would make splits that agree by chance look more certain than they are. Macro F1 takes about such a
    step. In AUROC, which compares pairs, an image of the rarer kind is its share of that kind: ``times=2``.
    """
    return times * float(np.mean([statistics.image_weights(tested.labels).max() for tested in runs]))


def _majority(run: RunResult, of_class: Callable[[float], float]) -> float | None:
    """Return the mean over the classes of what always naming one class reaches in it, from its share of the images."""
    share, recall = run.majority_baseline, run.metrics.get("test", {}).get("recall", {})
    classes = sum(value is not None for value in recall.values())
    return None if share is None or not classes else of_class(share) / classes


def _group(name: str, heading: str = "") -> Metric:
    about = (
        "Head, middle, tail: mean recall on test images of the classes with at least half as many training images as "
        "the most frequent one (head), at most a fifth (tail), or between."
    )
    words = Words(aspect=_RARE, about=about, wide=True)
    return _CLASSIFIED(
        f"{name}_recall", title=f"{name} recall", heading=heading, value=partial(_of_group, name), words=words
    )


def _of_group(name: str, metrics: Mapping[str, Any]) -> float | None:
    value: float | None = metrics.get("group_recall", {}).get(name)
    return value


_RARE = "Rare classes, and calibration"
_MAJORITY = "always naming the most frequent class"
_CLASSIFIED = partial(Metric, problem="classification")
_SCORED = partial(Metric, problem="anomaly")
_classes = partial(Inference, ("label", "prediction"))
_scores = partial(Inference, ("label", "prediction", "type", "score"), _interval_of_runs, folds=False)
_paired_scores = partial(_scores, pooled=False, resolution=partial(_rarest, times=2))
_pixels = partial(_paired_scores, tolerance=1e-3)  # pixels are summed in single precision
_HALF = (lambda run: 0.5, "chance")

_BUILT_IN = (
    _CLASSIFIED(
        "accuracy",
        title="accuracy",
        heading="acc.",
        decides=True,
        needed=True,
        chance=(lambda run: run.majority_baseline, _MAJORITY),
        inference=_classes(
            interval=_share_interval, paired=_compare_accuracy, resolution=lambda images, runs: 1 / images
        ),
        words=Words(implied=True, step="one image", aside="accuracy on all images"),
    ),
    _CLASSIFIED(
        "balanced_accuracy",
        title="balanced accuracy",
        heading="bal.\nacc.",
        decides=True,
        chooses=True,
        chance=(partial(_majority, of_class=lambda share: float(share > 0)), _MAJORITY),
        inference=_classes(
            interval=_balanced_interval,
            together=_balanced_together,
            paired=partial(_compare_classes, statistics.balanced_accuracy),
            resolution=_rarest,
        ),
        words=Words(step="one image of the rarest class"),
    ),
    _CLASSIFIED(
        "macro_f1",
        title="macro F1",
        heading="macro\nF1",
        decides=True,
        chance=(partial(_majority, of_class=lambda share: 2 * share / (1 + share)), _MAJORITY),  # recall is 1
        inference=_classes(
            together=_macro_together,
            paired=partial(_compare_classes, statistics.macro_f1),
            single="give cv.folds, or another verdict.metric",
            resolution=_rarest,
        ),
    ),
    _CLASSIFIED("defect_accuracy", title="defects only", heading="defect\nonly", words=Words(aside="on defects alone")),
    _group("head"),
    _group("middle"),
    _group("tail", "tail"),
    _CLASSIFIED(
        "calibration_error",
        title="calibration error",
        better="lower",
        words=Words(
            aspect=_RARE,
            about="Calibration error: how far the predicted class's probability is from the share of right predictions"
            "; on a few dozen images some of it is luck.",
        ),
    ),
    _SCORED(
        "image_auroc",
        title="image AUROC",
        heading="image\nAUROC",
        decides=True,
        chance=_HALF,
        inference=_paired_scores(paired=_compare_scores),
        words=Words(made_up="made-up defects", by_type="image_auroc"),
    ),
    _SCORED(
        "pixel_auroc",
        title="pixel AUROC",
        heading="pixel\nAUROC",
        decides=True,
        chance=_HALF,
        inference=_pixels(paired=partial(_compare_pixels, "pixel_auroc")),
        words=Words(by_type="pixel_auroc"),
    ),
    _SCORED(
        "pixel_ap",
        title="pixel AP",
        decides=True,
        inference=_pixels(paired=partial(_compare_pixels, "pixel_ap"), single="give verdict.metric=pixel_aupro"),
        words=Words(by_type="pixel_ap"),
    ),
    _SCORED(
        "pixel_aupro",
        title="AUPRO",
        heading="AUPRO",
        decides=True,
        chance=(lambda run: PRO_LIMIT / 2, "chance"),  # a random map finds as much of a region as of the sound pixels
        inference=_pixels(paired=partial(_compare_pixels, "pixel_aupro")),
        words=Words(by_type="pixel_aupro", about=f"AUPRO is integrated to a false-positive rate of {PRO_LIMIT}."),
    ),
    _SCORED("image_ap", title="image AP", inference=_scores()),
    _SCORED("f1", title="F1", heading="F1", words=Words(wide=True)),
    _SCORED("precision", title="precision"),
    _SCORED(
        "recall_of_defects",
        title="defects found",
        heading="defects\nfound",
        words=Words(
            aside="defects found at the threshold",
            by_type="recall",
            about="Defects found and false alarms are the shares of the defects and of the good images above the "
            "threshold.",
        ),
    ),
    _SCORED(
        "false_alarm_rate",
        title="false alarms",
        heading="false\nalarms",
        better="lower",
        words=Words(aside="false alarms"),
    ),
)
METRICS: Registry[Metric] = Registry("metric", {m.key: m for m in _BUILT_IN}, ("key", "problem", "title"))


def register_metric(metric: Metric) -> Metric:
    """Add a metric to the table and return it; an installed package gives it as an entry point of mvtec_lab.metrics.

    Raises:
        LabError: the key is taken by another metric.
    """
    return METRICS.register(metric.key, metric)


def all_metrics() -> list[Metric]:
    """Return every metric, in the order in which they were made."""
    return sorted((METRICS[key] for key in METRICS.names()), key=lambda metric: metric.order)


def metrics_of(problem: str) -> list[Metric]:
    """Return the metrics of a problem; the first one that decides is its default.

    Raises:
        LabError: there is none, or none of them decides.
    """
    metrics = [metric for metric in all_metrics() if metric.problem == problem]
    if not any(metric.decides for metric in metrics):
        known = {metric.problem for metric in all_metrics() if metric.decides}
        raise LabError(f"{unknown('problem', problem, known)}; a new one registers a metric that decides")
    return metrics


def deciding(problem: str) -> list[Metric]:
    """Return the metrics that attempts of a problem can be compared by, the default first."""
    return [metric for metric in metrics_of(problem) if metric.decides]


def choosing(problem: str) -> Metric:
    """Return the metric whose value on validation chooses the best attempt."""
    return next((metric for metric in metrics_of(problem) if metric.chooses), deciding(problem)[0])


def columns_of(problem: str) -> list[str]:
    """Return the columns that predictions.csv of a problem has: split, path, and those of its metrics."""
    columns = [column for metric in metrics_of(problem) for column in metric.inference.columns]
    return list(dict.fromkeys(["split", "path", *columns]))
