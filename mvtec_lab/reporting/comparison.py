"""Which attempt is really better: every pair of attempts tested on the images that both were tested on, and a verdict.

Two designs. Attempts that share several test sets (folds, or drawn splits) are compared by the corrected resampled
t-test over those sets. Attempts that share one test set are compared image by image. Holm's correction is over pairs.
"""

from __future__ import annotations

import json
import statistics as st
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from mvtec_lab.evaluation import statistics
from mvtec_lab.reporting.runs import Tested, TestSet, by_attempt, tested
from mvtec_lab.results import RunResult, write_whole

COMPARISON = "comparison.json"
ALPHA = 0.05  # the field's convention; intervals are its 95%
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
    """Two attempts on the test sets that both have. Differences are the first's accuracy minus the second's."""

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

    def accuracies(self, on: Sequence[TestSet], split: str = "test") -> np.ndarray:
        """Accuracy of each test set's runs, their mean; with ``split="val"`` on their validation images."""
        runs = ([t.run.metrics.get(split, {}) for t in self.tests[images]] for images in on)
        found = [[metrics["accuracy"] for metrics in each if "accuracy" in metrics] for each in runs]
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

    def accuracy(self, split: str = "test") -> Estimate | None:
        """Mean accuracy with what is known of its uncertainty; None without a completed run."""
        found = [m for run in self.done if "accuracy" in (m := run.metrics.get(split, {}))]
        if not found:
            return None
        images = found[0]["images"]
        if len(values := self.accuracies(list(self.tests), split)) > 1:
            low, high = statistics.corrected_interval(values, self.ratio(split), 1 / images)
            return Estimate(float(values.mean()), max(0.0, low), min(1.0, high), f"mean of {len(values)} test sets")
        value = st.fmean(m["accuracy"] for m in found)
        if not self.tests and len(found) > 1:  # whether they share their images is not known
            return Estimate(value)
        return Estimate(value, *statistics.wilson_interval(value * images, images), f"{images} images")

    def confusions(self) -> np.ndarray | None:
        """Of each image that was tested, its predictions: [N, C, C]; None where runs differ in their classes."""
        found = [t for group in self.tests.values() for t in group]
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
    def described(self) -> dict[str, Any]:
        """The attempt's part of comparison.json."""
        each, recall, bootstrapped = self.confusions(), {}, {}
        if each is not None:
            total = each.sum(axis=0)
            times = total.sum() / len(each)  # predictions of an image
            for name, row, hits in zip(self.classes, total.sum(axis=1), total.diagonal(), strict=True):
                if row:
                    interval = statistics.wilson_interval(hits / times, row / times)
                    recall[name] = asdict(Estimate(hits / row, *interval, f"{row / times:g} images"))
            for name in ("balanced_accuracy", "macro_f1"):
                function = getattr(statistics, name)
                interval = statistics.bootstrap(function, each)
                method = f"all {len(each)} tested images together, bootstrap over images"
                bootstrapped[name] = asdict(Estimate(float(function(total)), *interval, method))
        accuracy = self.accuracy()
        return {
            "attempt": self.name,
            "runs": len(self.runs),
            "completed": len(self.done),
            "test_sets": len(self.tests),
            "accuracy": asdict(accuracy) if accuracy else None,
            **bootstrapped,
            "recall": recall,
            "validation_balanced_accuracy": self.score()[1] if np.isfinite(self.score()[1]) else None,
            "reported": dict(zip(("accuracy", "split"), self.reported, strict=True)) if self.reported else None,
        }


def _resolution(sets: Sequence[TestSet]) -> float:
    """What one image changes in an accuracy."""
    return 1 / float(np.mean([len(images) for images in sets]))


@dataclass
class Comparison:
    """The attempts of some runs, every pair of them, and what may be concluded, in sentences."""

    attempts: list[Attempt]
    pairs: list[Pair] = field(default_factory=list)
    best: str | None = None  # by validation
    verdict: list[str] = field(default_factory=list)

    def save(self, directory: Path) -> None:
        """Write comparison.json."""
        described = [attempt.described for attempt in self.attempts]
        pairs = [asdict(pair) | {"different": pair.different} for pair in self.pairs]
        content = {
            "best": self.best,
            "verdict": self.verdict,
            "alpha": ALPHA,
            "practically_equal_within": ROPE,
            "attempts": described,
            "pairs": pairs,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(directory / COMPARISON, f"{text}\n")


def compare(runs: Sequence[RunResult]) -> Comparison:
    """Compare the attempts of some runs pair by pair.

    Raises:
        LabError: a predictions.csv is damaged.
    """
    attempts = [Attempt(name, group) for name, group in by_attempt(runs).items()]
    result = Comparison(attempts)
    done = [attempt for attempt in attempts if attempt.done]
    result.pairs = [_pair(first, second) for first, second in combinations(done, 2)]
    judged = [pair for pair in result.pairs if pair.p is not None]
    for pair, p in zip(judged, statistics.holm([pair.p for pair in judged if pair.p is not None]), strict=True):
        pair.p_holm = p
    result.verdict = _verdict(result)
    return result


def _groups(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """The attempts in groups that share test sets: those of different groups do not compare."""
    groups: list[list[Attempt]] = []
    for attempt in attempts:
        touching = [g for g in groups if any(attempt.tests.keys() & other.tests.keys() for other in g)]
        groups = [g for g in groups if g not in touching] + [[*(a for g in touching for a in g), attempt]]
    return groups


def _pair(a: Attempt, b: Attempt) -> Pair:
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
    ours, theirs = a.shares(common), b.shares(common)
    pair.images = len(ours)
    first, second = (np.array([shares[image] for image in ours]) for shares in (ours, theirs))
    pair.image_test, pair.image_p = statistics.paired_test(first, second)
    if len(common) == 1:
        pair.test, pair.p = pair.image_test, pair.image_p
        interval = statistics.paired_interval(first, second)
        pair.difference = Estimate(float(np.mean(first - second)), *interval, "Bonett and Price")
        return pair
    differences = a.accuracies(common) - b.accuracies(common)
    ratio, resolution = (a.ratio() + b.ratio()) / 2, _resolution(common)
    pair.test, pair.p = "corrected resampled t-test", statistics.corrected_t_test(differences, ratio, resolution)
    interval = statistics.corrected_interval(differences, ratio, resolution)
    pair.difference = Estimate(float(differences.mean()), *interval, pair.test)
    pair.worse, pair.equal, pair.better = statistics.practical_equivalence(differences, ratio, ROPE, resolution)
    return pair


def _verdict(comparison: Comparison) -> list[str]:
    done = [attempt for attempt in comparison.attempts if attempt.done]
    if not done:
        return ["No run was completed: there is nothing to compare."]
    lines = []
    for group in (groups := _groups(done)):
        common = set.intersection(*(set(attempt.tests) for attempt in group))
        best = max(group, key=lambda attempt: attempt.score(common))
        if len(groups) == 1:
            comparison.best = best.name
        lines.append(_stated(best, best.score(common)[1], len(group), len(groups) > 1))
        if len(group) > 1:
            names = {attempt.name for attempt in group}
            lines += _against(best, [pair for pair in comparison.pairs if {pair.first, pair.second} <= names])
    judged = [pair.test for pair in comparison.pairs if pair.test]
    if judged:
        tests = " or ".join(sorted(set(judged)))
        lines.append(f"p: {tests}, Holm's correction for {len(judged)} comparison{_s(len(judged))}.")
    lines += _limits(done, comparison.pairs) + _baselines(done) + _runs(comparison)
    return lines


def _stated(best: Attempt, score: float, of: int, several: bool) -> str:
    accuracy = best.accuracy()
    where = "validation, which is the test set" if any(run.val_is_test for run in best.done) else "validation"
    if of == 1:
        text = best.name
    elif np.isfinite(score):
        among = f", of {of} attempts on the same test images" if several else ""
        text = f"Best on {where}{among}: {best.name} (balanced accuracy {score:.3f})"
    else:
        text = f"No validation figures to choose by: {best.name} stands first"
    if accuracy is None:
        return f"{text}; it has no test accuracy."
    interval = "" if accuracy.low is None else f" [{accuracy.low:.2f}, {accuracy.high:.2f}]"
    text += f"; test accuracy {accuracy.value:.3f}{interval}"
    return text + (f", {accuracy.method}." if accuracy.method else ".")


def _against(best: Attempt, pairs: Sequence[Pair]) -> list[str]:
    """What is known of the best by validation against each other attempt, and of the others among themselves."""
    beaten: list[str] = []
    level: list[str] = []
    lost: list[str] = []
    for pair in (pair for pair in pairs if best.name in (pair.first, pair.second) and pair.difference):
        assert pair.difference is not None
        sign, other = (1, pair.second) if pair.first == best.name else (-1, pair.first)
        points = sign * pair.difference.value
        where = "level" if abs(points) < 5e-4 else "behind" if points > 0 else "ahead"
        by = "" if where == "level" else f" by {abs(100 * points):.1f} points"
        text = f"{other} ({where}{by}, p {_p(pair.p_holm)}"
        if pair.better is not None and pair.worse is not None and pair.equal is not None:
            so = pair.better if pair.difference.value > 0 else pair.worse
            text += f"; within one point with probability {pair.equal:.2f}"
            text += "" if where == "level" else f", {where} by more {so:.2f}"
        text += ")"
        (level if not pair.different else beaten if points > 0 else lost).append(text)
    lines = []
    if beaten:
        lines.append(f"Shown to be better than {', '.join(beaten)}.")
    if level:
        lines.append(f"Cannot be told from it: {', '.join(level)}.")
    if lost:
        lines.append(f"Shown to be worse on test than {', '.join(lost)}: validation chose the wrong one.")
    others = [pair for pair in pairs if pair.different and best.name not in (pair.first, pair.second)]
    for pair in others:
        assert pair.difference is not None
        high, low = (pair.first, pair.second) if pair.difference.value > 0 else (pair.second, pair.first)
        points = 100 * abs(pair.difference.value)
        lines.append(f"{high} is shown to be better than {low} ({points:.1f} points, p {_p(pair.p_holm)}).")
    judged = [pair for pair in pairs if pair.p is not None]
    if judged and not any(pair.different for pair in judged):
        lines.append("No attempt is shown to be better than another.")
    return lines


def _limits(done: Sequence[Attempt], pairs: Sequence[Pair]) -> list[str]:
    """What differences the test images can show at all."""
    lines = []
    for images in sorted({pair.images for pair in pairs if pair.test == "exact McNemar test"}):
        least = statistics.smallest_difference(images, ALPHA)
        what = "cannot tell any two attempts apart" if least is None else _points(least)
        lines.append(f"{images} test images {what}; one image is {100 / images:.1f} points.")
    for images, sets in sorted({(pair.images, pair.test_sets) for pair in pairs if pair.test_sets > 1}):
        found = [pair.difference for pair in pairs if (pair.images, pair.test_sets) == (images, sets)]
        halves = [(d.high - d.low) / 2 for d in found if d and d.high is not None and d.low is not None]
        lines.append(f"{images} images in {sets} test sets {_points(st.median(halves))}, at the spread seen here.")
    return lines


def _points(least: float) -> str:
    return f"can only tell apart differences of {100 * least:.1f} points or more"


def _baselines(done: Sequence[Attempt]) -> list[str]:
    """Always naming the most frequent class, and what the good images add to an accuracy."""
    lines, known = [], []
    for attempt in done:
        majority = [run.majority_baseline for run in attempt.done if run.majority_baseline is not None]
        accuracy = attempt.accuracy()
        if majority and accuracy is not None:
            known.append((attempt.name, st.fmean(majority), accuracy))
    values = sorted({f"{majority:.3f}" for _, majority, _ in known})
    if values:
        chance = [n for n, majority, a in known if (a.value if a.low is None else a.low) <= majority]
        text = f"Always naming the most frequent class is right in {' or '.join(values)} of test images"
        lines.append(text + (f"; not shown to be better: {', '.join(chance)}." if chance else "; all are above."))
    defects = {
        a.name: (st.fmean(found), st.fmean(r.metrics["test"]["accuracy"] for r in a.done))
        for a in done
        if (found := [v for r in a.done if (v := r.metrics.get("test", {}).get("defect_accuracy")) is not None])
    }
    if defects:
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
