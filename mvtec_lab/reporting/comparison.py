"""Which attempt is really better: pairs of attempts tested on the images that both were tested on, and a verdict.

Every pair, or each attempt against one that ``verdict.reference`` names; in accuracy, or what ``verdict.metric`` names.
Two designs. Attempts that share several test sets (folds, or drawn splits) are compared by the corrected resampled
t-test over those sets. Attempts that share one test set are compared image by image. Holm's correction is over pairs.
"""

from __future__ import annotations

import json
import statistics as st
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mvtec_lab.config import METRICS, VerdictConfig
from mvtec_lab.errors import unknown
from mvtec_lab.evaluation import statistics
from mvtec_lab.reporting.runs import Settings, Tested, TestSet, by_attempt, settings_of, tested
from mvtec_lab.results import RunResult, write_whole

COMPARISON = "comparison.json"
ALPHA = 0.05  # the field's convention; intervals are its 95%
NAMES = {metric: metric.replace("_f1", " F1").replace("_", " ") for metric in METRICS}
FEW = 5  # more attempts beside the best, or pairs: a sentence says less of each, the report's tables have the rest
ROPE = 0.01  # one point of accuracy, Benavoli et al., JMLR 18, 2017: below it, two classifiers are practically equal


@dataclass
class Estimate:
    """A figure and its 95% interval; a bound is None where nothing is known of it."""

    value: float
    low: float | None = None
    high: float | None = None
    method: str = ""


@dataclass
class Pair:
    """Two attempts on the test sets that both have. Differences are the first's figure minus the second's."""

    first: str
    second: str
    test_sets: int = 0
    images: int = 0
    difference: Estimate | None = None
    test: str | None = None  # on which the verdict rests
    p: float | None = None
    p_holm: float | None = None  # p for as many comparisons as there are pairs
    image_test: str | None = None  # the same question, image by image
    image_p: float | None = None
    worse: float | None = None  # Bayesian correlated t-test: that the first is worse, practically equal, better
    equal: float | None = None
    better: float | None = None
    refused: str | None = None  # why they were not compared

    @property
    def different(self) -> bool:
        return self.p_holm is not None and self.p_holm < ALPHA


Side = tuple[str, float, Pair]  # an attempt, its lead over another one, and the pair of both


class Attempt:
    """All runs of one attempt, and what their test predictions say. Copies of a run count once."""

    def __init__(self, name: str, runs: Sequence[RunResult]) -> None:
        self.name, self.runs = name, list(runs)
        self.done = [run for run in runs if run.completed]
        self.classes = self.done[0].classes if self.done else []
        found = [t for run in self.done if (t := tested(run)) is not None]
        latest = {(t.images, t.run.seed): t for t in found}
        self.copies = len(found) - len(latest)
        superseded = {id(t.run) for t in found} - {id(t.run) for t in latest.values()}
        self.done = [run for run in self.done if id(run) not in superseded]
        self.tests: dict[TestSet, list[Tested]] = defaultdict(list)
        for (images, _), t in latest.items():
            self.tests[images].append(t)

    def values(self, on: Sequence[TestSet], metric: str = "accuracy", split: str = "test") -> np.ndarray:
        """A metric of each test set's runs, their mean; with ``split="val"`` on their validation images."""
        runs = ([t.run.metrics.get(split, {}) for t in self.tests[images]] for images in on)
        found = [[metrics[metric] for metrics in each if metric in metrics] for each in runs]
        return np.array([st.fmean(values) for values in found if values])

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
        """Mean of a metric with what is known of its uncertainty; None without a completed run.

        On a single test set, balanced accuracy and macro F1 have an interval on the test images alone.
        """
        found = [m for run in self.done if metric in (m := run.metrics.get(split, {}))]
        if not found:
            return None
        images = found[0]["images"]
        if len(values := self.values(list(self.tests), metric, split)) > 1:
            one = 1 / images if metric == "accuracy" else self.resolution(list(self.tests), metric)
            low, high = statistics.corrected_interval(values, self.ratio(split), one)
            return Estimate(float(values.mean()), max(0.0, low), min(1.0, high), f"mean of {len(values)} test sets")
        value = st.fmean(m[metric] for m in found)
        if not self.tests and len(found) > 1:  # whether they share their images is not known
            return Estimate(value)
        if metric == "accuracy":
            return Estimate(value, *statistics.wilson_interval(value * images, images), f"{images} images")
        together = self.together.get(metric) if split == "test" else None
        return Estimate(value, together.low, together.high, f"{images} images") if together else Estimate(value)

    def resolution(self, on: Sequence[TestSet], metric: str) -> float:
        """What a single image changes in a metric of one of these test sets.

        In balanced accuracy an image counts the more the rarer its class is, so it depends on which one falls the
        other way. Here it is one of the rarest class, which changes most: that is where luck has most room, and the
        smaller steps would make splits that agree by chance look surer than they are. Macro F1 takes about such a step.
        """
        if metric == "accuracy":
            return 1 / float(np.mean([len(images) for images in on]))
        return float(np.mean([statistics.image_weights(self.tests[images][0].labels).max() for images in on]))

    def baseline(self, metric: str) -> float | None:
        """What always naming training's most frequent class reaches on the test images, the mean over the runs."""
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

    def score(self, on: Collection[TestSet] = ()) -> tuple[bool, float, float]:
        """What attempts are ranked by: a checkpoint not chosen on the test images, balanced validation accuracy, the
        lower validation loss; the means over the runs on some test sets, or over all. -inf where there are none."""
        runs = [t.run for images in on for t in self.tests[images]] or self.done
        honest = not any(run.val_is_test for run in runs)
        found = [run.metrics["val"] for run in runs if run.metrics.get("val")]
        if not found:
            return honest, float("-inf"), float("-inf")
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
        recalls, method = list(self.recall.values()), f"all {len(each)} tested images together"
        bounds = np.array([(r.low, r.high) for r in recalls], dtype=np.float64)
        interval = statistics.mean_interval([r.value for r in recalls], bounds)
        balanced = Estimate(st.fmean(r.value for r in recalls), *interval, f"{method}, from Wilson's of each recall")
        interval = statistics.bootstrap(statistics.macro_f1, each)
        macro = float(statistics.macro_f1(each.sum(axis=0)))
        return {
            "balanced_accuracy": balanced,
            "macro_f1": Estimate(macro, *interval, f"{method}, bootstrap over images"),
        }

    @property
    def described(self) -> dict[str, Any]:
        """The attempt's part of comparison.json."""
        estimates = {metric: self.estimate(metric) for metric in METRICS}
        return {
            "attempt": self.name,
            "runs": len(self.runs),
            "completed": len(self.done),
            "test_sets": len(self.tests),
            **{metric: asdict(estimate) if estimate else None for metric, estimate in estimates.items()},
            "together": {metric: asdict(estimate) for metric, estimate in self.together.items()},
            "recall": {name: asdict(estimate) for name, estimate in self.recall.items()},
            "validation_balanced_accuracy": self.score()[1] if np.isfinite(self.score()[1]) else None,
            "reported": dict(zip(("accuracy", "split"), self.reported, strict=True)) if self.reported else None,
        }


@dataclass
class Comparison:
    """The attempts of some runs, the pairs of them that were compared, and what may be concluded, in sentences."""

    attempts: list[Attempt]
    settings: dict[str, Settings] = field(default_factory=dict)  # run_dir -> its config.yaml
    metric: str = "accuracy"  # what pairs and verdict are about
    reference: str | None = None  # the attempt that every pair has
    pairs: list[Pair] = field(default_factory=list)
    best: str | None = None  # by validation
    verdict: list[str] = field(default_factory=list)

    def save(self, directory: Path) -> None:
        """Write comparison.json."""
        described = [attempt.described for attempt in self.attempts]
        pairs = [asdict(pair) | {"different": pair.different} for pair in self.pairs]
        content = {
            "best": self.best,
            "metric": self.metric,
            "reference": self.reference,
            "verdict": self.verdict,
            "alpha": ALPHA,
            "practically_equal_within": ROPE,
            "attempts": described,
            "pairs": pairs,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(directory / COMPARISON, f"{text}\n")


def compare(runs: Sequence[RunResult], verdict: VerdictConfig | None = None) -> Comparison:
    """Compare the attempts of some runs pair by pair.

    Metric and reference are ``verdict``'s; where it names none, what the runs' own config.yaml say, where they agree.

    Raises:
        LabError: a predictions.csv or config.yaml is damaged.
    """
    settings = {run.run_dir: settings_of(run) for run in runs}
    attempts = [Attempt(name, group) for name, group in by_attempt(runs, settings).items()]
    result = Comparison(attempts, settings)
    asked = verdict or VerdictConfig()
    metric, metric_note = _agreed("verdict.metric", asked.metric, settings.values())
    reference, note = _agreed("verdict.reference", asked.reference, settings.values())
    result.metric = metric or "accuracy"
    if result.metric not in METRICS:
        raise unknown("verdict.metric", result.metric, METRICS)
    done = [attempt for attempt in attempts if attempt.done]
    if reference in [attempt.name for attempt in done]:
        result.reference = reference
    elif reference is not None and len(done) > 1:
        note = f"verdict.reference={reference} is none of the completed attempts in the table: all pairs are compared."
    result.pairs = [
        # The others' merits against the reference are what is asked: it stands second.
        _pair(*((second, first) if first.name == result.reference else (first, second)), result.metric)
        for first, second in combinations(done, 2)
        if result.reference in (None, first.name, second.name)
    ]
    judged = [pair for pair in result.pairs if pair.p is not None]
    for pair, p in zip(judged, statistics.holm([pair.p for pair in judged if pair.p is not None]), strict=True):
        pair.p_holm = p
    result.verdict = [*_verdict(result), *filter(None, (metric_note, note))]
    return result


def _agreed(key: str, asked: str | None, settings: Iterable[Settings]) -> tuple[str | None, str | None]:
    """What is asked for, or else what those runs say that say anything; and a remark where they do not agree."""
    if asked is not None:
        return asked, None
    said = list(dict.fromkeys(value for found in settings if (value := found.get(key, "null")) != "null"))
    if len(said) > 1:
        return None, f"The runs do not agree on {key} ({', '.join(said)}): task=compare with {key}=NAME decides."
    return (said[0] if said else None), None


def _groups(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """The attempts in groups that share test sets: those of different groups do not compare."""
    groups: list[list[Attempt]] = []
    for attempt in attempts:
        touching = [g for g in groups if any(attempt.tests.keys() & other.tests.keys() for other in g)]
        groups = [g for g in groups if g not in touching] + [[*(a for g in touching for a in g), attempt]]
    return groups


def _pair(a: Attempt, b: Attempt, metric: str) -> Pair:
    pair = Pair(a.name, b.name)
    for attempt in (a, b):
        if not attempt.tests:
            pair.refused = f"{attempt.name} left no test predictions"
            return pair
    common = [images for images in a.tests if images in b.tests]
    pair.test_sets = len(common)
    if not common:
        pair.refused = "they were tested on different images: give both the same data, split.seed and split settings"
        return pair
    if metric == "accuracy":
        ours, theirs = a.shares(common), b.shares(common)
        first, second = (np.array([shares[image] for image in ours]) for shares in (ours, theirs))
        pair.image_test, pair.image_p = statistics.paired_test(first, second)
    else:
        each, other = a.confusions(common), b.confusions(common)
        if each is None or other is None or a.classes != b.classes:
            pair.refused = "their classes are not the same"
            return pair
        first, second = (predicted / predicted.sum(axis=(1, 2), keepdims=True) for predicted in (each, other))
        pair.image_test = "paired permutation test"
        pair.image_p = statistics.permutation_test(getattr(statistics, metric), first, second)
    pair.images = len(first)
    if len(common) == 1:
        pair.test, pair.p = pair.image_test, pair.image_p
        pair.difference = _paired(metric, first, second)
        return pair
    differences = a.values(common, metric) - b.values(common, metric)
    ratio, resolution = (a.ratio() + b.ratio()) / 2, a.resolution(common, metric)
    pair.test, pair.p = "corrected resampled t-test", statistics.corrected_t_test(differences, ratio, resolution)
    interval = statistics.corrected_interval(differences, ratio, resolution)
    pair.difference = Estimate(float(differences.mean()), *interval, pair.test)
    pair.worse, pair.equal, pair.better = statistics.practical_equivalence(differences, ratio, ROPE, resolution)
    return pair


def _paired(metric: str, first: np.ndarray, second: np.ndarray) -> Estimate:
    """The difference of two attempts on one test set: of each image, the share of right predictions, [N], or for other
    metrics than accuracy how it was classified, [N, C, C]."""
    if metric == "accuracy":
        interval = statistics.paired_interval(first, second)
        return Estimate(float(np.mean(first - second)), *interval, "Bonett and Price")
    if metric == "macro_f1":

        def difference(both: np.ndarray) -> np.ndarray:
            return statistics.macro_f1(both[..., 0, :, :]) - statistics.macro_f1(both[..., 1, :, :])

        both = np.stack([first, second], axis=1)
        interval = statistics.bootstrap(difference, both)
        return Estimate(float(difference(both.sum(axis=0))), *interval, "paired bootstrap over images")
    truth, right = first.sum(axis=2).argmax(axis=1), [np.trace(each, axis1=1, axis2=2) for each in (first, second)]
    classes = [(right[0][truth == c], right[1][truth == c]) for c in np.unique(truth)]
    values = [float(np.mean(ours - theirs)) for ours, theirs in classes]
    interval = statistics.mean_interval(values, [statistics.paired_interval(*shares) for shares in classes])
    return Estimate(st.fmean(values), *interval, "from Bonett and Price's of each recall")


def _verdict(comparison: Comparison) -> list[str]:
    done, metric, reference = [a for a in comparison.attempts if a.done], comparison.metric, comparison.reference
    if not done:
        return ["No run was completed: there is nothing to compare."]
    lines = []
    for group in (groups := _groups(done)):
        common = set.intersection(*(set(attempt.tests) for attempt in group))
        best = max(group, key=lambda attempt: attempt.score(common))
        if len(groups) == 1:
            comparison.best = best.name
        lines.append(_stated(best, best.score(common)[1], len(group), len(groups) > 1, metric))
        if reference is not None and len(done) > 1:
            lines[-1] += _beside(best.name, reference, comparison.pairs)
        elif len(group) > 1:
            names = {attempt.name for attempt in group}
            lines += _against(best, [pair for pair in comparison.pairs if {pair.first, pair.second} <= names], metric)
    if reference is not None:
        lines += _against_reference(next(a for a in done if a.name == reference), comparison.pairs, metric)
    judged = [pair.test for pair in comparison.pairs if pair.test]
    if judged:
        tests = " or ".join(sorted(set(judged)))
        lines.append(f"p: {tests} on {NAMES[metric]}, Holm's correction for {len(judged)} comparison{_s(len(judged))}.")
    lines += _limits(done, comparison.pairs, metric) + _baselines(done, metric) + _runs(comparison)
    return lines


def _stated(best: Attempt, score: float, of: int, several: bool, metric: str) -> str:
    where = "validation, which is the test set" if any(run.val_is_test for run in best.done) else "validation"
    if of == 1:
        text = best.name
    elif np.isfinite(score):
        among = f", of {of} attempts on the same test images" if several else ""
        text = f"Best on {where}{among}: {best.name} (balanced accuracy {score:.3f})"
    else:
        text = f"No validation figures to choose by: {best.name} stands first"
    estimate = best.estimate(metric)
    if estimate is None:
        return f"{text}; it has no test {NAMES[metric]}."
    text += f"; test {_figure(estimate, metric)}"
    return text + (f", {estimate.method}." if estimate.method else ".")


def _figure(estimate: Estimate, metric: str) -> str:
    interval = "" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{NAMES[metric]} {estimate.value:.3f}{interval}"


def _beside(best: str, reference: str, pairs: Sequence[Pair]) -> str:
    """What is known of the best by validation against the reference, as a sentence that follows another."""
    if best == reference:
        return " It is the reference."
    sides = _sides(reference, [pair for pair in pairs if best in (pair.first, pair.second)])
    if not sides:
        return f" It was not compared with {reference}."
    _, lead, pair = sides[0]
    if not pair.different:
        return f" It cannot be told from {reference}."
    return f" It is shown to be {'better' if lead > 0 else 'worse'} than {reference}."


def _sides(name: str, pairs: Sequence[Pair]) -> list[Side]:
    """Each attempt that was compared with one of them, and by how much it is ahead: the farthest first."""
    found = []
    for pair in pairs:
        if pair.difference is not None and name in (pair.first, pair.second):
            value = pair.difference.value
            found.append((pair.second, -value, pair) if pair.first == name else (pair.first, value, pair))
    return sorted(found, key=lambda side: -side[1])


def _sorted_out(sides: Sequence[Side]) -> tuple[list[Side], list[Side], list[Side]]:
    """Those that are shown to be better, those that cannot be told apart, those that are shown to be worse."""
    different = [side for side in sides if side[2].different]
    level = [side for side in sides if not side[2].different]
    return [side for side in different if side[1] > 0], level, [side for side in different if side[1] <= 0]


def _against_reference(reference: Attempt, pairs: Sequence[Pair], metric: str) -> list[str]:
    """What is known of each attempt against the reference; of the others among themselves nothing is."""
    sides = _sides(reference.name, pairs)
    if not sides:
        return []
    better, level, worse = _sorted_out(sides)
    estimate = reference.estimate(metric)
    text = f"Compared with {reference.name}" + (f" ({_figure(estimate, metric)})" if estimate else "")
    lines = [f"{text}: shown to be better: {_listed(better)}." if better else f"{text}: none is shown to be better."]
    if worse:
        lines.append(f"Shown to be worse: {_listed(worse)}.")
    if level:
        lines.append(f"Cannot be told from it: {_listed(level)}.")
    return lines


def _listed(sides: Sequence[Side]) -> str:
    """Names, leads and p; in a long list those whose p is 1 come last, without it."""
    told = [side for side in sides if len(sides) <= FEW or side[2].p_holm is None or side[2].p_holm < 0.9995]
    text = ", ".join(f"{name} ({100 * lead:+.1f} points, p {_p(pair.p_holm)})" for name, lead, pair in told)
    rest = ", ".join(f"{side[0]} ({100 * side[1]:+.1f})" for side in sides if side not in told)
    return text + ("; " if text and rest else "") + (f"with p = 1: {rest}" if rest else "")


def _told(side: Side) -> str:
    """All that is known of an attempt beside another one."""
    other, lead, pair = side
    where = "level" if abs(lead) < 5e-4 else "behind" if lead < 0 else "ahead"
    by = "" if where == "level" else f" by {abs(100 * lead):.1f} points"
    text = f"{other} ({where}{by}, p {_p(pair.p_holm)}"
    if pair.better is not None and pair.worse is not None and pair.equal is not None:
        so = pair.better if (pair.first == other) == (where == "ahead") else pair.worse
        text += f"; within one point with probability {pair.equal:.2f}"
        text += "" if where == "level" else f", {where} by more {so:.2f}"
    return f"{text})"


def _against(best: Attempt, pairs: Sequence[Pair], metric: str) -> list[str]:
    """What is known of the best by validation against each other attempt, and of the others among themselves."""
    sides, of = _sides(best.name, pairs), _in(metric)
    lost, level, beaten = _sorted_out(sides)

    def listed(some: Sequence[Side]) -> str:
        return ", ".join(map(_told, some)) if len(sides) <= FEW else _listed(some)

    lines = []
    if beaten:
        lines.append(f"Shown to be better{of} than {listed(beaten)}.")
    if level:
        lines.append(f"Cannot be told from it{of}: {listed(level)}.")
    if lost:
        lines.append(f"Shown to be worse on test{of} than {listed(lost)}: validation chose the wrong one.")
    others = [pair for pair in pairs if best.name not in (pair.first, pair.second)]
    different = [pair for pair in others if pair.different]
    for pair in different if len(different) <= FEW else ():
        assert pair.difference is not None
        high, low = (pair.first, pair.second) if pair.difference.value > 0 else (pair.second, pair.first)
        points = 100 * abs(pair.difference.value)
        lines.append(f"{high} is shown to be better{of} than {low} ({points:.1f} points, p {_p(pair.p_holm)}).")
    if len(different) > FEW:
        lines.append(f"Of the {len(others)} pairs of the others, {len(different)} are shown to differ{of}.")
    judged = [pair for pair in pairs if pair.p is not None]
    if judged and not any(pair.different for pair in judged):
        lines.append(f"No attempt is shown to be better{of} than another.")
    return lines


def _limits(done: Sequence[Attempt], pairs: Sequence[Pair], metric: str) -> list[str]:
    """What differences the test images can show at all."""
    lines, of = [], _in(metric)
    for images in sorted({pair.images for pair in pairs if pair.test == "exact McNemar test"}):
        least = statistics.smallest_difference(images, ALPHA)
        what = "cannot tell any two attempts apart" if least is None else _points(least)
        lines.append(f"{images} test images {what}; one image is {100 / images:.1f} points.")
    if metric != "accuracy":
        lines += _limits_of_images(done, pairs, metric)
    for images, sets in sorted({(pair.images, pair.test_sets) for pair in pairs if pair.test_sets > 1}):
        found = [pair.difference for pair in pairs if (pair.images, pair.test_sets) == (images, sets)]
        halves = [(d.high - d.low) / 2 for d in found if d and d.high is not None and d.low is not None]
        if halves:
            least_seen = f"{_points(st.median(halves))}{of}, at the spread seen here"
            lines.append(f"{images} images in {sets} test sets {least_seen}.")
    return lines


def _limits_of_images(done: Sequence[Attempt], pairs: Sequence[Pair], metric: str) -> list[str]:
    """The same of the permutation test on a single test set where nobody was asked twice: as with McNemar's, so many
    images must differ, all of them one way. In balanced accuracy those of the largest classes make the least of it."""
    compared = {name for pair in pairs if pair.test_sets == 1 and pair.test for name in (pair.first, pair.second)}
    asked: dict[TestSet, list[list[Tested]]] = defaultdict(list)
    for images, group in (item for a in done if a.name in compared for item in a.tests.items()):
        asked[images].append(group)
    lines, least = [], statistics.images_to_differ(ALPHA)
    for images, groups in asked.items():
        if len(groups) == 1 or any(len(group) > 1 for group in groups):
            continue
        weights = np.sort(statistics.image_weights(groups[0][0].labels))
        if len(images) < least:
            what = "cannot tell any two attempts apart"
        elif metric == "balanced_accuracy":
            what = f"{_points(float(weights[:least].sum()))}{_in(metric)}"
        else:
            what = f"can only tell apart attempts that classify {least} of them or more differently"
        about = "" if metric == "balanced_accuracy" else "about "
        rarest = f"one image of the rarest class is {about}{100 * weights[-1]:.1f} points"
        lines.append(f"{len(images)} test images {what}; {rarest}.")
    return lines


def _in(metric: str) -> str:
    """The metric where it is not the usual one, to stand in a sentence."""
    return "" if metric == "accuracy" else f" in {NAMES[metric]}"


def _points(least: float) -> str:
    return f"can only tell apart differences of {100 * least:.1f} points or more"


def _baselines(done: Sequence[Attempt], metric: str) -> list[str]:
    """Always naming the most frequent class, and what the good images add to an accuracy."""
    lines, known = [], []
    for attempt in done:
        baseline, estimate = attempt.baseline(metric), attempt.estimate(metric)
        if baseline is not None and estimate is not None:
            known.append((attempt.name, baseline, estimate))
    values = sorted({f"{baseline:.3f}" for _, baseline, _ in known})
    if values:
        chance = [n for n, baseline, e in known if (e.value if e.low is None else e.low) <= baseline]
        figures = " or ".join(values)
        reaches = f"is right in {figures} of test images" if metric == "accuracy" else f"has {NAMES[metric]} {figures}"
        text = f"Always naming the most frequent class {reaches}"
        lines.append(text + (f"; not shown to be better: {', '.join(chance)}." if chance else "; all are above."))
    defects = {
        a.name: (st.fmean(found), st.fmean(r.metrics["test"]["accuracy"] for r in a.done))
        for a in done
        if (found := [v for r in a.done if (v := r.metrics.get("test", {}).get("defect_accuracy")) is not None])
    }
    if len(defects) > FEW + 1:
        alone = [value for value, _ in defects.values()]
        lines.append(f"On defects alone, accuracy is {min(alone):.3f} to {max(alone):.3f}: the table has each.")
    elif defects:
        texts = [f"{name} {alone:.3f} ({with_good:.3f} with good)" for name, (alone, with_good) in defects.items()]
        lines.append(f"On defects alone: {', '.join(texts)}.")
    return lines


def _runs(comparison: Comparison) -> list[str]:
    """What was left out, and why."""
    lines = []
    refused: dict[str, list[str]] = defaultdict(list)
    for pair in comparison.pairs:
        if pair.refused:
            refused[pair.refused].append(f"{pair.first} and {pair.second}")
    for why, pairs in refused.items():
        named = "; ".join(pairs) if len(pairs) <= 3 else f"{len(pairs)} pairs"  # the report's table has them all
        lines.append(f"Not compared: {named}: {why}.")
    sets = {attempt.name: len(attempt.tests) for attempt in comparison.attempts if attempt.tests}
    partial = [p for p in comparison.pairs if p.test_sets and p.test_sets < max(sets[p.first], sets[p.second])]
    if partial:
        counts = ", ".join(f"{name} {n}" for name, n in sets.items())
        lines.append(f"Test sets differ in number ({counts}): each pair is compared on those that both have.")
    lines += [
        f"{a.name}: {a.copies} run{_s(a.copies)} of the same seed and images left out, the newest counts."
        for a in comparison.attempts
        if a.copies
    ]
    return lines


def _p(value: float | None) -> str:
    return "unknown" if value is None else "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _s(n: int) -> str:
    return "" if n == 1 else "s"
