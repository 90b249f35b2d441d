"""One table of all metrics: every table, report, verdict and comparison reads it.

A problem of your own gives four things, and is compared, ranked and reported from its run directories alone:
1. ``register_metric(Metric(key, problem, title, ...))`` per metric; the first with ``decides=True`` is the default;
2. ``better="lower"`` for errors, ``unit`` for values that are no share of 1;
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
from mvtec_lab.evaluation import detection, differences, segmentation, statistics
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
        of_rows: the metric from the rows of predictions.csv of a split, where it is no mean over images.
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
    of_rows: Callable[[Rows], float | None] | None = None
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
        unit: of its values; None: a share of 1, whose differences are given in points.
        decides: attempts can be compared by it.
        chooses: its value on validation chooses the best attempt; the default is the first metric that decides.
        needed: every completed run has it.
        of_images: the values of the images, [N], from rows of predictions.csv, whose mean is the metric; NaN of an
            image that does not count, such as a good one where a defect's mask is judged.
        value: how it is found in the metrics of a split; None: by its key.
        chance: the value of a run that learnt nothing, and what reaches it; None: not known.
        inference: interval and test; the default takes ``of_images``.
        words: how it is spoken of.
        also: further problems whose runs are judged by it.
    """

    key: str
    problem: str
    title: str
    heading: str = ""
    better: Literal["higher", "lower"] = "higher"
    unit: str | None = None
    decides: bool = False
    chooses: bool = False
    needed: bool = False
    of_images: Callable[[Rows], np.ndarray] | None = None
    value: Callable[[Mapping[str, Any]], float | None] | None = None
    chance: tuple[Callable[[RunResult], float | None], str] | None = None
    inference: Inference = Inference()
    words: Words = Words()
    also: tuple[str, ...] = ()
    order: int = field(default_factory=itertools.count().__next__, init=False, compare=False)

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise LabError(f"better of the metric {self.key!r} is {self.better!r}: give higher or lower")
        if self.decides and not (self.inference.paired or self.of_images):
            raise LabError(f"the metric {self.key!r} cannot decide without a paired test: give of_images or paired")

    def judges(self, problem: str) -> bool:
        """Tell whether runs of a problem are judged by it."""
        return problem == self.problem or problem in self.also

    @property
    def share(self) -> bool:
        """Return whether the metric lies in [0, 1]."""
        return self.unit is None

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

    def mean_of(self, rows: Rows) -> float | None:
        """Return its value from rows of predictions.csv; None where no image counts, or without ``of_images``."""
        values = _counted(self.of_images(rows)) if self.of_images else np.zeros(0)
        return float(np.mean(values)) if len(values) else None

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
        means = list(self._means(runs).values())
        return self.clip(*statistics.corrected_interval(means, 0.0)) if len(means) > 1 else None

    def resolution_of(self, images: float, runs: Runs) -> float:
        """Return what one image changes in the metric; ``runs``: one run per test set, of ``images`` on average."""
        if self.inference.resolution:
            return self.inference.resolution(images, runs)
        if self.of_images:
            values = [_counted(self.of_images(tested.rows)) for tested in runs]
            return float(np.mean([np.ptp(of_run) / len(of_run) for of_run in values if len(of_run)] or [1.0]))
        return 1 / images if self.share else 0.0

    def compare(self, first: Runs, second: Runs) -> tuple[Difference, str]:
        """Return the difference of two attempts on the same images, and the name of the test.

        Raises:
            NotComparableError: the images or the files of the runs do not allow it.
        """
        if self.inference.paired:
            return self.inference.paired(first, second)
        ours, theirs = self._means(first), self._means(second)
        pairs = np.array([(ours[image], theirs[image]) for image in ours if image in theirs])
        if len(pairs) < 2:
            raise NotComparableError("a test needs two images")
        return differences.mean_difference(pairs[:, 0], pairs[:, 1], self.limit)

    def _means(self, runs: Runs) -> dict[str, float]:
        assert self.of_images is not None
        return means_of_images(runs, [self.of_images(tested.rows) for tested in runs])


def _counted(values: np.ndarray) -> np.ndarray:
    """Return the values of those images that count."""
    return values[~np.isnan(values)]


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


def _compare_boxes(key: str, first: Runs, second: Runs) -> tuple[Difference, str]:
    """Compare two attempts on one test set: both take the same draws of its images."""
    parts = [[detection.of_rows(tested.rows) for tested in runs] for runs in (first, second)]
    values = [np.mean([detection.box_metrics(matches)[key] or 0.0 for matches in part]) for part in parts]
    drawn = [np.mean([detection.drawn(matches, key) for matches in part], axis=0) for part in parts]
    if np.isnan([*drawn[0], *drawn[1]]).any() or len(first[0].images) < 2:
        raise NotComparableError(f"a test of {METRICS[key].title} needs two images, and true boxes among them")
    return differences.resampled_difference(float(values[0] - values[1]), drawn[0] - drawn[1], len(first[0].images))


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


def _of_group(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda metrics: metrics.get("group_recall", {}).get(name)


def _metric(problem: str, key: str, title: str, heading: str = "", words: Words = Words(), **own: Any) -> Metric:
    return Metric(key, problem, title, heading, words=words, **own)


# Classification.
_MAJORITY = "always naming the most frequent class"
_class = partial(_metric, "classification")
_deciding_class = partial(_class, decides=True)
_classes = partial(Inference, ("label", "prediction"))
_ACCURACY = _classes(interval=_share_interval, paired=_compare_accuracy, resolution=lambda images, runs: 1 / images)
_BALANCED = _classes(
    interval=_balanced_interval,
    together=_balanced_together,
    paired=partial(_compare_classes, statistics.balanced_accuracy),
    resolution=_rarest,
)
_MACRO = _classes(
    together=_macro_together,
    paired=partial(_compare_classes, statistics.macro_f1),
    single="give cv.folds, or another verdict.metric",
    resolution=_rarest,
)
_SHARE = (lambda run: run.majority_baseline, _MAJORITY)
_ONE_CLASS = (partial(_majority, of_class=lambda share: float(share > 0)), _MAJORITY)
_ONE_F1 = (partial(_majority, of_class=lambda share: 2 * share / (1 + share)), _MAJORITY)  # recall is 1
_ALL = Words(implied=True, step="one image", aside="accuracy on all images")
_RARE = "Rare classes, and calibration"
_GROUPS = Words(
    aspect=_RARE,
    about="Head, middle, tail: mean recall on test images of the classes with at least half as many training images as "
    "the most frequent one (head), at most a fifth (tail), or between.",
    wide=True,
)
_CALIBRATION = Words(
    aspect=_RARE,
    about="Calibration error: how far the predicted class's probability is from the share of right predictions; on a "
    "few dozen images some of it is luck.",
)
# Detection.
_detection = partial(_metric, "detection")


def _boxes(key: str, **own: Any) -> Inference:
    return Inference(
        ("label", "found", "truth"),
        _interval_of_runs,
        of_rows=lambda rows: detection.box_metrics(detection.of_rows(rows))[key],
        resolution=_rarest,
        pooled=False,
        **own,
    )


_FALSE_BOXES = Words(
    by_type="box_recall",
    about="Boxes found: the share of the true boxes that are found at IoU 0.5 with their type, where one good image in "
    "ten has a false box.",
)
# Segmentation; its images' scores are judged by the anomaly metrics below.
_segmentation = partial(_metric, "segmentation")
_masks = partial(Inference, ("type", "overlap", "union"))
_PER_IMAGE = "IoU and Dice are means over the defect images; pooled ones count all pixels, those of good images too."


# Anomaly.
_anomaly = partial(_metric, "anomaly", also=("segmentation",))
_deciding_anomaly = partial(_anomaly, decides=True)
_PIXELS_OR_BOXES = ("segmentation", "detection")  # an image's score is its highest pixel's, or its best box's
_of_images = partial(_anomaly, also=_PIXELS_OR_BOXES)
_scores = partial(Inference, ("label", "prediction", "type", "score"), _interval_of_runs, folds=False)
_paired_scores = partial(_scores, pooled=False, resolution=partial(_rarest, times=2))
_HALF = (lambda run: 0.5, "chance")
_REGIONS = (lambda run: PRO_LIMIT / 2, "chance")  # a random map finds the same share of a region as of the sound pixels
_AUROC = Words(made_up="made-up defects", by_type="image_auroc")
_AUPRO = Words(by_type="pixel_aupro", about=f"AUPRO is integrated to a false-positive rate of {PRO_LIMIT}.")
_RECALL = Words(
    aside="defects found at the threshold",
    by_type="recall",
    about="Defects found and false alarms are the shares of the defects and of the good images above the threshold.",
)


def _pixels(key: str, single: str = "") -> Inference:
    # Pixels are summed in single precision.
    return _paired_scores(paired=partial(_compare_pixels, key), single=single, tolerance=1e-3)


_PIXEL_AP = _pixels("pixel_ap", "give verdict.metric=pixel_aupro")
_BUILT_IN = (
    _deciding_class("accuracy", "accuracy", "acc.", _ALL, needed=True, chance=_SHARE, inference=_ACCURACY),
    _deciding_class(
        "balanced_accuracy",
        "balanced accuracy",
        "bal.\nacc.",
        Words(step="one image of the rarest class"),
        chooses=True,
        chance=_ONE_CLASS,
        inference=_BALANCED,
    ),
    _deciding_class("macro_f1", "macro F1", "macro\nF1", chance=_ONE_F1, inference=_MACRO),
    _class("defect_accuracy", "defects only", "defect\nonly", Words(aside="on defects alone")),
    _class("head_recall", "head recall", "", _GROUPS, value=_of_group("head")),
    _class("middle_recall", "middle recall", "", _GROUPS, value=_of_group("middle")),
    _class("tail_recall", "tail recall", "tail", _GROUPS, value=_of_group("tail")),
    _class("calibration_error", "calibration error", "", _CALIBRATION, better="lower"),
    _detection(
        "map50",
        "mAP50",
        "mAP50",
        Words(by_type="map50"),
        decides=True,
        inference=_boxes("map50", paired=partial(_compare_boxes, "map50")),
    ),
    _detection(
        "map",
        "mAP50-95",
        "mAP\n50-95",
        Words(by_type="map"),
        decides=True,
        inference=_boxes("map", paired=partial(_compare_boxes, "map")),
    ),
    _detection("box_recall", "boxes found", "boxes\nfound", _FALSE_BOXES, inference=_boxes("box_recall")),
    _segmentation(
        "iou",
        "IoU",
        "IoU",
        Words(by_type="iou", about=_PER_IMAGE),
        decides=True,
        of_images=segmentation.ious,
        inference=_masks(),
    ),
    _segmentation(
        "dice", "Dice", "Dice", Words(by_type="dice"), decides=True, of_images=segmentation.dices, inference=_masks()
    ),
    _segmentation("pooled_iou", "pooled IoU", inference=_masks(interval=_interval_of_runs)),
    _segmentation("pooled_dice", "pooled Dice", inference=_masks(interval=_interval_of_runs)),
    _deciding_anomaly(
        "image_auroc",
        "image AUROC",
        "image\nAUROC",
        _AUROC,
        also=_PIXELS_OR_BOXES,
        chance=_HALF,
        inference=_paired_scores(paired=_compare_scores),
    ),
    _deciding_anomaly(
        "pixel_auroc",
        "pixel AUROC",
        "pixel\nAUROC",
        Words(by_type="pixel_auroc"),
        chance=_HALF,
        inference=_pixels("pixel_auroc"),
    ),
    _deciding_anomaly("pixel_ap", "pixel AP", "", Words(by_type="pixel_ap"), inference=_PIXEL_AP),
    _deciding_anomaly("pixel_aupro", "AUPRO", "AUPRO", _AUPRO, chance=_REGIONS, inference=_pixels("pixel_aupro")),
    _of_images("image_ap", "image AP", inference=_scores()),
    _of_images("f1", "F1", "F1", Words(wide=True)),
    _of_images("precision", "precision"),
    _of_images("recall_of_defects", "defects found", "defects\nfound", _RECALL),
    _of_images("false_alarm_rate", "false alarms", "false\nalarms", Words(aside="false alarms"), better="lower"),
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
    metrics = [metric for metric in all_metrics() if metric.judges(problem)]
    metrics.sort(key=lambda metric: metric.problem != problem)  # its own first
    if not any(metric.decides for metric in metrics):
        known = {metric.problem for metric in all_metrics() if metric.decides}
        raise LabError(f"{unknown('problem', problem, known)}; a new one registers a metric that decides")
    return metrics


def add_means(problem: str, metrics: Mapping[str, dict[str, Any]], rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the metrics of a problem that are means over images, where the problem did not compute them itself.

    Args:
        metrics: of each split, which are added to.
        rows: of predictions.csv.
    """
    for metric in (m for m in all_metrics() if m.judges(problem) and m.of_images):
        for split, values in metrics.items():
            of_split = [{key: str(value) for key, value in row.items()} for row in rows if row["split"] == split]
            if metric.key not in values and of_split and (mean := metric.mean_of(of_split)) is not None:
                values[metric.key] = mean


def deciding(problem: str) -> list[Metric]:
    """Return the metrics that attempts of a problem can be compared by, the default first."""
    return [metric for metric in metrics_of(problem) if metric.decides]


def require_deciding(key: str) -> None:
    """Check a value of ``verdict.metric``.

    Raises:
        LabError: no metric of any problem that decides has this key.
    """
    known = [metric.key for metric in all_metrics() if metric.decides]
    if key not in known:
        raise unknown("verdict.metric", key, known)


def choosing(problem: str) -> Metric:
    """Return the metric whose value on validation chooses the best attempt."""
    return next((metric for metric in metrics_of(problem) if metric.chooses), deciding(problem)[0])


def columns_of(problem: str) -> list[str]:
    """Return the columns that predictions.csv of a problem has: split, path, and those of its metrics."""
    columns = [column for metric in metrics_of(problem) for column in metric.inference.columns]
    return list(dict.fromkeys(["split", "path", *columns]))
