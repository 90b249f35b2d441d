"""One attempt: all of its runs, and what their test predictions say about it."""

from __future__ import annotations

import statistics as st
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mvtec_lab.config import METRICS, SCORE_METRICS
from mvtec_lab.evaluation import statistics
from mvtec_lab.evaluation.anomaly import PRO_LIMIT, PixelScores
from mvtec_lab.evaluation.differences import LEAST_RUNS
from mvtec_lab.foreign import file_of
from mvtec_lab.reporting.runs import Settings, Tested, TestSet, has_luck, tested
from mvtec_lab.results import PIXELS, RunResult

STATED = (*SCORE_METRICS, "image_ap")  # of one-class methods, with the intervals that their runs found
# What scores and maps reach that know nothing; a random map finds as much of a region as of the sound pixels.
CHANCE = {"image_auroc": 0.5, "pixel_auroc": 0.5, "pixel_aupro": PRO_LIMIT / 2}


@dataclass
class Estimate:
    """A figure and its 95% interval; a bound is None where nothing is known of it."""

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""


class Attempt:
    """All runs of one attempt, and what their test predictions say. Copies of a run count once.

    ``detects``: it is a one-class method, which scores images. ``metric``: what it is judged by, one of ``metrics``.

    Args:
        settings: as ``settings_of`` gives them, by the runs' directories.
    """

    def __init__(self, name: str, runs: Sequence[RunResult], settings: Mapping[str, Settings]) -> None:
        self.name, self.runs = name, list(runs)
        self.done = [run for run in runs if run.completed]
        self.classes = self.done[0].classes if self.done else []
        methods = [run.method or settings[run.run_dir].get("model.method", "classifier") for run in runs]
        self.detects = any(method != "classifier" for method in methods)
        self.metrics = SCORE_METRICS if self.detects else METRICS
        self.metric = self.metrics[0]
        self.luck = any(map(has_luck, self.done))
        self._pixels: dict[TestSet, tuple[list[str], np.ndarray, np.ndarray] | None] = {}
        self._split = {run.run_dir: settings[run.run_dir].get("split.seed") for run in runs}
        found = [t for run in self.done if (t := tested(run)) is not None]
        latest = {(t.images, t.run.seed, _drawn(settings[t.run.run_dir])): t for t in found}
        self.copies = len(found) - len(latest)
        superseded = {id(t.run) for t in found} - {id(t.run) for t in latest.values()}
        self.done = [run for run in self.done if id(run) not in superseded]
        self.tests: dict[TestSet, list[Tested]] = defaultdict(list)
        for (images, *_), t in latest.items():
            self.tests[images].append(t)

    def values(self, on: Sequence[TestSet], metric: str = "accuracy", split: str = "test") -> np.ndarray:
        """A metric of each test set's runs, their mean; with ``split="val"`` on their validation images."""
        runs = ([t.run.metrics.get(split, {}) for t in self.tests[images]] for images in on)
        found = [[metrics[metric] for metrics in each if metrics.get(metric) is not None] for each in runs]
        return np.array([st.fmean(values) for values in found if values])

    def seeds(self, images: TestSet, metric: str) -> dict[tuple[int, str | None], float]:
        """Return a metric of each run on a test set, by its seed and the seed of its split."""
        runs = [t.run for t in self.tests[images]]
        return {
            (run.seed, self._split[run.run_dir]): value
            for run in runs
            if (value := run.metrics.get("test", {}).get(metric)) is not None
        }

    def shares(self, on: Sequence[TestSet]) -> dict[str, float]:
        """Of each image, the share of predictions that were right."""
        found: dict[str, list[float]] = defaultdict(list)
        for t in (t for images in on for t in self.tests[images]):
            for image, right in zip(t.images, t.right, strict=True):
                found[image].append(right)
        return {image: float(np.mean(values)) for image, values in found.items()}

    def ratio(self, split: str = "test") -> float:
        """Images judged on over those that the learner had: for training, and for choosing where test is judged."""

        def ratio(run: RunResult) -> float:
            count = {name: sum(images.values()) for name, images in run.counts.items()}
            chosen = 0 if split == "val" or run.val_is_test else count.get("val", 0)
            return count.get(split, 0) / max(count.get("train", 0) + chosen, 1)

        return st.fmean(ratio(run) for run in self.done)

    def estimate(self, metric: str = "accuracy", split: str = "test") -> Estimate | None:
        """Return the mean of a metric with what is known of its uncertainty; None without a completed run.

        Over several test sets the interval is that of their mean, from three of them on. On a single one it is that of
        the images, and from three runs on of their seeds as well; macro F1 has none there.
        """
        found = [m for run in self.done if (m := run.metrics.get(split, {})).get(metric) is not None]
        if not found:
            return None
        images = found[0]["images"]
        values = self.values(list(self.tests), metric, split)
        if 1 < len(values) < LEAST_RUNS:
            return Estimate(float(values.mean()), method=f"mean of {len(values)} test sets")
        if len(values) > 1:
            one = 1 / images if metric == "accuracy" else self.resolution(list(self.tests), metric)
            low, high = statistics.corrected_interval(values, self.ratio(split), one)
            return Estimate(float(values.mean()), max(0.0, low), min(1.0, high), f"mean of {len(values)} test sets")
        each = [m[metric] for m in found]
        value = st.fmean(each)
        if not self.tests and len(found) > 1:  # whether they share their images is not known
            return Estimate(value)
        bounds, method = self._of_images(metric, split, found), f"{images} images"
        if bounds is None or len(each) == 1:
            return Estimate(value, *bounds, method) if bounds else Estimate(value)
        if len(each) < LEAST_RUNS:
            return Estimate(value, *bounds, f"{method}, means of {len(each)} runs")
        return Estimate(value, *statistics.interval_with_seeds(value, bounds, each), f"{method} and {len(each)} runs")

    def _of_images(self, metric: str, split: str, found: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
        """Return the interval of a metric over the images of a single test set, from its runs' metrics."""
        if metric in STATED:
            bounds = [interval for m in found if (interval := m["intervals"].get(metric))]
            return (st.fmean(b[0] for b in bounds), st.fmean(b[1] for b in bounds)) if bounds else None
        if metric == "accuracy":
            images = found[0]["images"]
            return statistics.wilson_interval(st.fmean(m[metric] for m in found) * images, images)
        together = self.together.get(metric) if split == "test" and metric == "balanced_accuracy" else None
        return (
            None if together is None or together.low is None or together.high is None else (together.low, together.high)
        )

    def resolution(self, on: Sequence[TestSet], metric: str) -> float:
        """What a single image changes in a metric of one of these test sets.

        In balanced accuracy an image counts the more the rarer its class is, so it depends on which one falls the
        other way. Here it is one of the rarest class, which changes most: that is where luck has most room, and the
        smaller steps would make splits that agree by chance look surer than they are. Macro F1 takes about such a step.
        """
        if metric == "accuracy":
            return 1 / float(np.mean([len(images) for images in on]))
        # Of AUROC, which compares pairs, an image of the rarer kind is its share of that kind.
        return (1 + self.detects) * float(
            np.mean([statistics.image_weights(self.tests[images][0].labels).max() for images in on])
        )

    def baseline(self, metric: str) -> float | None:
        """What always naming training's most frequent class reaches on the test images, the mean over the runs; of
        scores what those reach that know nothing."""
        if self.detects:
            return CHANCE.get(metric) if self.done else None
        values = []
        for run in self.done:
            share, recall = run.majority_baseline, run.metrics.get("test", {}).get("recall", {})
            classes = sum(value is not None for value in recall.values())
            if share is not None and (classes or metric == "accuracy"):
                f1 = 2 * share / (1 + share)  # precision is the share, recall 1
                of_class = {"balanced_accuracy": float(share > 0), "macro_f1": f1}
                values.append(share if metric == "accuracy" else of_class[metric] / classes)
        return st.fmean(values) if values else None

    def confusions(self, on: Collection[TestSet] | None = None) -> np.ndarray | None:
        """Of each image that was tested, on some test sets or on all, its predictions: [N, C, C]; None where runs
        differ in their classes."""
        found = [t for images in (self.tests if on is None else on) for t in self.tests[images]]
        if not found or any(t.run.classes != self.classes for t in found):
            return None
        place: dict[str, int] = {}
        for image in (image for t in found for image in t.images):
            place.setdefault(image, len(place))
        each = np.zeros((len(place), len(self.classes), len(self.classes)))
        for t in found:
            np.add.at(each, (np.array([place[image] for image in t.images]), t.labels, t.predictions), 1)
        return each

    def pixels(self, images: TestSet) -> tuple[list[str], np.ndarray, np.ndarray] | None:
        """Return the images that count in pixel metrics, sorted, and their ``PixelScores.contributions``, the means
        over the runs on a test set; None where one of them has none.

        Raises:
            LabError: a pixels.npz is damaged.
        """
        if images not in self._pixels:
            self._pixels[images] = self._contributions(images)
        return self._pixels[images]

    def _contributions(self, images: TestSet) -> tuple[list[str], np.ndarray, np.ndarray] | None:
        values, names, defect = [], set(), np.zeros(0, dtype=bool)
        for t in self.tests[images]:
            path = file_of(t.run.run_dir, PIXELS)
            if path is None:
                return None
            scores = PixelScores.load(path)  # which was found to be whole when the run's figures were counted again
            names.add(tuple(sorted(scores.names)))
            of_images, defect = scores.contributions()
            values.append(of_images)
        if len(names) != 1 or np.isnan(values).any():
            return None
        return list(names.pop()), np.mean(values, axis=0), defect

    def score(self, on: Collection[TestSet] = ()) -> tuple[bool, float, float]:
        """What attempts are ranked by: a checkpoint not chosen on the test images, balanced validation accuracy, the
        lower validation loss; the means over the runs on some test sets, or over all. -inf where there are none.

        Of a one-class method the image AUROC of validation's made-up defects, where it has such.
        """
        runs = [t.run for images in on for t in self.tests[images]] or self.done
        honest = not any(run.val_is_test for run in runs)
        found = [run.metrics["val"] for run in runs if run.metrics.get("val")]
        if not found:
            return honest, float("-inf"), float("-inf")
        if self.detects:
            return honest, st.fmean(m["image_auroc"] for m in found), 0.0
        return honest, st.fmean(m["balanced_accuracy"] for m in found), -st.fmean(m["loss"] for m in found)

    @property
    def reported(self) -> tuple[float, str] | None:
        """The accuracy that a published report states for this attempt, and the split that it was measured on."""
        found = next((run.reported for run in self.done if run.reported), None)
        return (found["accuracy"], found["split"]) if found else None

    @cached_property
    def recall(self) -> dict[str, Estimate]:
        """Of each class among the tested images, all of them together; empty where runs differ in their classes."""
        each, recall = self.confusions(), {}
        if each is not None:
            total = each.sum(axis=0)
            times = total.sum() / len(each)  # predictions of an image
            for name, row, hits in zip(self.classes, total.sum(axis=1), total.diagonal(), strict=True):
                if row:
                    interval = statistics.wilson_interval(hits / times, row / times)
                    recall[name] = Estimate(hits / row, *interval, f"{row / times:g} images")
        return recall

    @cached_property
    def together(self) -> dict[str, Estimate]:
        """Balanced accuracy and macro F1 of all tested images together; empty where runs differ in their classes."""
        each = self.confusions()
        if each is None:
            return {}
        total, method = each.sum(axis=0), f"all {len(each)} tested images together"
        occur, times = total.any(axis=1), total.sum() / len(each)  # predictions of an image
        right, images = (counts[occur] / times for counts in (total.diagonal(), total.sum(axis=1)))
        interval = statistics.balanced_interval(right, images)
        balanced = Estimate(float(np.mean(right / images)), *interval, f"{method}, score interval")
        macro = Estimate(float(statistics.macro_f1(total)))
        # Where all are right no resample differs: that is no certainty.
        if len(each) > 1 and (bounds := statistics.bootstrap(statistics.macro_f1, each))[0] < bounds[1]:
            macro = Estimate(macro.value, *bounds, f"{method}, bootstrap over images")
        return {"balanced_accuracy": balanced, "macro_f1": macro}

    @property
    def described(self) -> dict[str, Any]:
        """The attempt's part of comparison.json."""
        estimates = {metric: self.estimate(metric) for metric in (*METRICS, *(STATED if self.detects else ()))}
        return {
            "attempt": self.name,
            "metric": self.metric,
            "runs": len(self.runs),
            "completed": len(self.done),
            "test_sets": len(self.tests),
            **{metric: asdict(estimate) if estimate else None for metric, estimate in estimates.items()},
            "together": {metric: asdict(estimate) for metric, estimate in self.together.items()},
            "recall": {name: asdict(estimate) for name, estimate in self.recall.items()},
            "validation_balanced_accuracy": self.score()[1] if np.isfinite(self.score()[1]) else None,
            "reported": dict(zip(("accuracy", "split"), self.reported, strict=True)) if self.reported else None,
        }


def _drawn(settings: Settings) -> str | None:
    """Return what tells training sets apart that are tested on the same images: those that were thinned out to a tail,
    and the good images of a one-class split."""
    draws = settings.get("data.imbalance", "null") != "null" or settings.get("split.protocol") == "one_class"
    return settings.get("split.seed") if draws else None
