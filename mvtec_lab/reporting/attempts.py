"""Collect all runs of one attempt, and what their test predictions say about it."""

from __future__ import annotations

import statistics as st
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mvtec_lab.evaluation import statistics
from mvtec_lab.evaluation.differences import LEAST_RUNS
from mvtec_lab.evaluation.specs import METRICS, Metric, all_metrics, choosing, deciding, metrics_of
from mvtec_lab.evaluation.tested import Tested, TestSet, confusions
from mvtec_lab.reporting.runs import Settings, tested
from mvtec_lab.results import GOOD, RunResult

THINNED = ("data.imbalance", "data.per_class")  # settings that leave out training images


@dataclass
class Estimate:
    """Hold a value and its 95% interval; a bound is None where it is not known."""

    value: float
    low: float | None = None  #: bounds of the interval
    high: float | None = None
    method: str = ""  #: the images, seeds or test sets that the interval is of, or the name of a test

    def __str__(self) -> str:
        """Return the value with its interval, ``0.698 [0.55, 0.81]``, as far as they are known."""
        bounds = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.3f}{bounds}"


class Attempt:
    """All runs of one attempt, and what their test predictions say. Copies of a run count once.

    Args:
        name: of the attempt.
        runs: its runs.
        settings: as ``settings_of`` gives them, by the runs' directories.
        metric: the key of the metric that it is judged by; None, or one that they do not state: the default.

    Attributes:
        name: of the attempt.
        base: its name without the settings of ``thinned``.
        left: the settings that leave out training images, as texts; ``null`` where all train.
        thinned: those of them that tell it from others of its name.
        runs: all of its runs.
        done: those that are completed, without copies.
        problem: what they learn.
        metric: the ``Metric`` that it is judged by.
        luck: whether another seed gives another model.
        copies: the number of completed runs that repeat another one and are not counted.
        tests: what its runs predicted, by the names of the test images.
        folds: those of its test sets that are part of a cross-validation.
        planned: the folds of its whole cross-validation, whether they are done or not; 0 where it is part of none.
        dropped: why a race left some of its runs out; None where none did.
        parts: into which a fold's images were parted; 0 where its test sets are no folds.

    Raises:
        LabError: a predictions.csv is damaged, or nobody knows the problem of the runs.
    """

    def __init__(
        self, name: str, runs: Sequence[RunResult], settings: Mapping[str, Settings], metric: str | None = None
    ) -> None:
        self.name, self.runs = name, list(runs)
        self.left = {key: settings[runs[0].run_dir].get(key) or "null" for key in THINNED}
        self.thinned = {key: value for key, value in self.left.items() if f" {key}={value} " in f"{name} "}
        self.base = " ".join(word for word in name.split(" ") if word.partition("=")[0] not in self.thinned)
        self.done = [run for run in runs if run.completed]
        self.dropped = _dropped(runs)
        self.problem = (self.done or self.runs)[0].problem
        self.luck = any(run.luck for run in self.done)
        self._split = {run.run_dir: settings[run.run_dir].get("split.seed") for run in runs}
        if self.dropped is not None:
            self.done = self._of_look(self.dropped)
        predicted = [t for run in self.done if (t := tested(run)) is not None]
        known = deciding(self.problem)
        asked = (each for each in known if each.key == metric and self._states(each))
        self.metric = next(asked, known[0])
        latest = {(t.images, t.run.seed, _drawn(settings[t.run.run_dir])): t for t in predicted}
        self.copies = len(predicted) - len(latest)
        superseded = {id(t.run) for t in predicted} - {id(t.run) for t in latest.values()}
        self.done = [run for run in self.done if id(run) not in superseded]
        self.tests: dict[TestSet, list[Tested]] = defaultdict(list)
        for (images, *_), t in latest.items():
            self.tests[images].append(t)
        self.folds = {images for images, *_ in latest if any(t.run.fold is not None for t in self.tests[images])}
        begun = {(self._split[run.run_dir], run.fold) for run in runs if run.fold is not None}
        self.planned = max(len(begun), *(_folds(settings[run.run_dir]) for run in runs))
        self.parts = max(_parts(settings[run.run_dir]) for run in runs)

    @property
    def untested(self) -> bool:
        """Tell whether none of its completed runs has test images, as their models are to be kept."""
        return bool(self.done) and all(run.untested for run in self.done)

    def _states(self, metric: Metric) -> bool:
        """Tell whether the runs have a metric: not every method states those of other problems, or probabilities.

        Of its own problem's metrics that no image has a value of, as of maps, the pairs say why one is missing.
        """
        values = (metric.of(run.metrics.get("test", {})) for run in self.done)
        own = metric.problem == self.problem and metric.of_images is None
        return own or not self.done or any(value is not None for value in values)

    def _of_look(self, dropped: Mapping[str, Any]) -> list[RunResult]:
        """Return the completed runs of the folds that dropped the attempt.

        Of runs at once one may have ended while the race decided: whether it did, must not change the figures.
        """
        order = sorted({self._place(run) for run in self.runs if run.fold is not None})[: dropped["after"]]
        return [run for run in self.done if self._place(run) in order]

    def _place(self, run: RunResult) -> tuple[int, int]:
        """Return the place of a run's fold in a race: folds of the first repeat come first."""
        seed = self._split[run.run_dir] or ""
        return int(seed) if seed.isdecimal() else -1, -1 if run.fold is None else run.fold

    def on(self, test_sets: Collection[TestSet] | None = None) -> list[Tested]:
        """Return the test predictions of all runs on some test sets; None: on all."""
        return [t for images in (self.tests if test_sets is None else test_sets) for t in self.tests[images]]

    def values(self, test_sets: Sequence[TestSet], metric: Metric, split: str = "test") -> np.ndarray:
        """Return the mean of a metric over the runs of each test set; ``split="val"``: on their validation images."""
        means = [mean(metric.of(t.run.metrics.get(split, {})) for t in self.tests[images]) for images in test_sets]
        return np.array([value for value in means if value is not None])

    def seeds(self, images: TestSet) -> dict[tuple[int, str | None], float]:
        """Return the attempt's metric of each run on a test set, by its seed and the seed of its split."""
        values = {(t.run.seed, self._split[t.run.run_dir]): t.run.metrics.get("test", {}) for t in self.tests[images]}
        return {seed: value for seed, metrics in values.items() if (value := self.metric.of(metrics)) is not None}

    def ratio(self, split: str = "test") -> float:
        """Return the images judged on over those that the learner had: for training, and for choosing if on test.

        Good images that train in every fold beside those that folds divide do not make the folds' trainings any more
        alike: what learns defects has no smaller ratio than these folds alone. What learns good images alone has the
        same ones in every fold, whose luck no ratio tells.
        """

        def ratio(run: RunResult) -> float:
            count = {name: sum(images.values()) for name, images in run.counts.items()}
            chosen = 0 if split == "val" or run.val_is_test else count.get("val", 0)
            return count.get(split, 0) / max(count.get("train", 0) + chosen, 1)

        found = st.fmean(ratio(run) for run in self.done)
        learns_defects = any(run.counts.get("train", {}).keys() - {GOOD} for run in self.done)
        return max(found, 1 / (self.parts - 1)) if split == "test" and self.parts and learns_defects else found

    @cached_property
    def one_round(self) -> int:
        """Return the test sets of a round of folds where further rounds tell no more of the metric, otherwise 0.

        Splits drawn at random test a share of their own, and as many of them as cover the images are a round.
        """
        return self._round if self.metric.inference.once else 0

    @cached_property
    def _round(self) -> int:
        return self.parts or max(2, round(1 + 1 / self.ratio()))

    def resolution(self, test_sets: Sequence[TestSet], metric: Metric, images: float | None = None) -> float:
        """Return what one image changes in a metric, on test sets of ``images`` on average (None: as predicted)."""
        images = images or float(np.mean([len(test_set) for test_set in test_sets]))
        return metric.resolution_of(images, [self.tests[test_set][0] for test_set in test_sets])

    def mean(self, metric: Metric, split: str = "test") -> float | None:
        """Return the mean of a metric over the runs that have it."""
        return mean(metric.of(run.metrics.get(split, {})) for run in self.done)

    def estimate(self, key: str | None = None, split: str = "test") -> Estimate | None:
        """Return the mean of a metric with its 95% interval; None without a completed run that has it.

        Over several test sets the interval is that of their mean, from three of them on. On a single one it is that of
        the images, and from three runs on of their seeds as well; macro F1 has none there.

        Args:
            key: of the metric; None: the attempt's.
            split: test or val.
        """
        metric = self.metric if key is None else METRICS[key]
        of_runs = [m for run in self.done if metric.of(m := run.metrics.get(split, {})) is not None]
        if not of_runs:
            return None
        values, images = self.values(list(self.tests), metric, split), of_runs[0].get("images", 0)
        if len(values) > 1:
            mean, method = float(values.mean()), f"mean of {len(values)} test sets"
            if len(values) < LEAST_RUNS:
                return Estimate(mean, method=method)
            one = self.resolution(list(self.tests), metric, images)
            one_round = self._round if metric.inference.once else 0
            interval = statistics.corrected_interval(values, self.ratio(split), one, one_round=one_round)
            return Estimate(mean, *metric.clip(*interval), method)
        of_seeds = [value for m in of_runs if (value := metric.of(m)) is not None]
        value, runs = st.fmean(of_seeds), len(of_seeds)
        if not self.tests and runs > 1:  # whether they share their images is not known
            return Estimate(value)
        bounds, method = metric.interval_of(of_runs, self.on() if split == "test" else []), f"{images} images"
        if bounds is None:
            return Estimate(value)
        if runs >= LEAST_RUNS:
            bounds = metric.clip(*statistics.interval_with_seeds(value, bounds, of_seeds))
            return Estimate(value, *bounds, f"{method} and {runs} runs")
        return Estimate(value, *bounds, method if runs == 1 else f"{method}, means of {runs} runs")

    @cached_property
    def baseline(self) -> float | None:
        """Return the value of the attempt's metric for a run that learnt nothing, the mean over the runs."""
        chance = self.metric.chance
        return mean(chance[0](run) for run in self.done) if chance else None

    @cached_property
    def learnt(self) -> bool | None:
        """Tell whether it is shown to be better than the baseline.

        None where one of the two is not known, or two test sets have no interval and show neither.
        """
        estimate, sign = self.estimate(), self.metric.sign
        if estimate is None or self.baseline is None:
            return None
        if estimate.low is None or estimate.high is None:
            beyond = sign * (estimate.value - self.baseline) > 0
            return None if beyond and len(self.tests) > 1 else beyond
        return sign * ((estimate.low if sign > 0 else estimate.high) - self.baseline) > 0

    def score(self, test_sets: Collection[TestSet] = ()) -> tuple[bool, float, float]:
        """Return what attempts are ranked by, the higher the better; -inf without validation metrics.

        A checkpoint that was not chosen on the test images comes first, then the metric on validation that chooses,
        then the lower validation loss: means over the runs on some test sets, or over all.
        """
        runs = [t.run for t in self.on(test_sets)] or self.done
        honest, metric = not any(run.val_is_test for run in runs), choosing(self.problem)
        of_runs = [m for run in runs if metric.of(m := run.metrics.get("val", {})) is not None]
        if not of_runs:
            return honest, float("-inf"), float("-inf")
        values = [value for m in of_runs if (value := metric.of(m)) is not None]
        return honest, metric.sign * st.fmean(values), -st.fmean(m.get("loss") or 0.0 for m in of_runs)

    @property
    def reported(self) -> tuple[float, str] | None:
        """Return the accuracy that a published report states for this attempt, and the split that it is of."""
        reported = next((run.reported for run in self.done if run.reported), None)
        return (reported["accuracy"], reported["split"]) if reported else None

    @cached_property
    def confusions(self) -> np.ndarray | None:
        """Return the predictions of each tested image, [N, C, C]; None where runs differ in their classes."""
        return confusions(self.on())

    @cached_property
    def recall(self) -> dict[str, Estimate]:
        """Return the recall of each class, over all tested images; empty where runs differ in their classes."""
        counts, recall = self.confusions, {}
        if counts is not None:
            total = counts.sum(axis=0)
            times = total.sum() / len(counts)  # predictions per image
            for name, row, hits in zip(self.done[0].classes, total.sum(axis=1), total.diagonal(), strict=True):
                if row:
                    interval = statistics.wilson_interval(hits / times, row / times)
                    recall[name] = Estimate(hits / row, *interval, f"{row / times:g} images")
        return recall

    @cached_property
    def together(self) -> dict[str, Estimate]:
        """Return the metrics of all tested images together, by key; empty where runs differ in their classes."""
        estimates: dict[str, Estimate] = {}
        if (counts := self.confusions) is not None:
            for metric in all_metrics():
                if metric.inference.together:
                    value, bounds, how = metric.inference.together(counts)
                    text = f"all {len(counts)} tested images together, {how}"
                    estimates[metric.key] = Estimate(value, *bounds, text) if bounds else Estimate(value)
        return estimates

    @property
    def category(self) -> str:
        """Return the product that its runs are about, or several."""
        return ", ".join(dict.fromkeys(run.category for run in self.runs))

    @property
    def described(self) -> dict[str, Any]:
        """Return the attempt's part of comparison.json."""
        own = metrics_of(self.problem)
        choose = [metric for metric in all_metrics() if metric.chooses or metric == choosing(self.problem)]
        estimates = {m.key: self.estimate(m.key) for m in all_metrics() if m.stated}
        estimates = {key: e for key, e in estimates.items() if e or METRICS[key] in own}
        return {
            "attempt": self.name,
            "category": self.category,
            "problem": self.problem,
            "metric": self.metric.key,
            "runs": len(self.runs),
            "completed": len(self.done),
            "test_sets": len(self.tests),
            **{key: asdict(estimate) if estimate else None for key, estimate in estimates.items()},
            "together": {key: asdict(estimate) for key, estimate in self.together.items()},
            "recall": {name: asdict(estimate) for name, estimate in self.recall.items()},
            "baseline": self.baseline,
            "learnt": self.learnt,
            **{f"validation_{metric.key}": self.mean(metric, "val") for metric in choose},
            "reported": dict(zip(("accuracy", "split"), self.reported, strict=True)) if self.reported else None,
        }


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; None where none is."""
    known = [value for value in values if value is not None]
    return st.fmean(known) if known else None


def shared(attempts: Sequence[Attempt]) -> list[TestSet]:
    """Return the test sets that all of some attempts have, in the order of the first."""
    first, *others = attempts
    return [images for images in first.tests if all(images in other.tests for other in others)]


def too_few(attempts: Sequence[Attempt]) -> str | None:
    """Return how many folds attempts share where these are too few to judge by; None where they are enough.

    One fold of several says less than the missing ones. A test set that is no fold stands for itself, and may be the
    only one.
    """
    common, planned = shared(attempts), max(attempt.planned for attempt in attempts)
    folds = sum(any(images in attempt.folds for attempt in attempts) for images in common)
    if not folds or len(common) >= min(LEAST_RUNS, planned):
        return None
    return f"only {folds} of {planned} folds {'is' if folds == 1 else 'are'} done by"


def _dropped(runs: Iterable[RunResult]) -> dict[str, Any] | None:
    """Return why a race left runs out, of several races the earliest look; None where none did."""
    reasons = [run.dropped for run in runs if run.left_out and run.dropped]
    return min(reasons, key=lambda reason: reason["after"], default=None)


def _folds(settings: Settings) -> int:
    """Return the folds of all repeats of a run's cross-validation; 0 where it is part of none."""
    counts = [settings.get(key, "") for key in ("cv.folds", "cv.repeats")]
    return int(counts[0]) * int(counts[1]) if all(map(str.isdecimal, counts)) else 0


def _parts(settings: Settings) -> int:
    """Return ``split.folds`` of a run whose test set is a fold; 0 of any other."""
    folds = settings.get("split.folds", "")
    return int(folds) if settings.get("split.protocol") == "kfold" and folds.isdecimal() else 0


def _drawn(settings: Settings) -> str | None:
    """Return what tells training sets apart that are tested on the same images.

    These are sets that were thinned out, and the good images of a one-class split.
    """
    thinned = any(settings.get(key, "null") != "null" for key in THINNED)
    draws = thinned or settings.get("split.protocol") == "one_class"
    return settings.get("split.seed") if draws else None
