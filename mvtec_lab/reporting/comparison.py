"""Which attempt is really better: pairs of attempts tested on the images that both were tested on, and a verdict.

Every pair, or each attempt against one that ``verdict.reference`` names; in accuracy, or image AUROC of one-class
methods, or what ``verdict.metric`` names. Two designs. Attempts that share several test sets (folds, or drawn splits)
are compared by the corrected resampled t-test over those sets. Attempts that share one test set are compared image by
image. Holm's correction is over pairs.
"""

from __future__ import annotations

import json
import statistics as st
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from mvtec_lab.config import METRICS, SCORE_METRICS, VerdictConfig
from mvtec_lab.errors import unknown
from mvtec_lab.evaluation import statistics
from mvtec_lab.evaluation.anomaly import PIXEL_METRICS, paired_difference
from mvtec_lab.reporting.attempts import Attempt, Estimate
from mvtec_lab.reporting.runs import Settings, TestSet, by_attempt, settings_of
from mvtec_lab.reporting.verdict import ALPHA, NAMES, sentences
from mvtec_lab.results import RunResult, write_whole

COMPARISON = "comparison.json"
ROPE = 0.01  # one point of accuracy, Benavoli et al., JMLR 18, 2017: below it, two classifiers are practically equal


@dataclass
class Pair:
    """Two attempts on the test sets that both have. Differences are the first's figure minus the second's."""

    first: str
    second: str
    metric: str = "accuracy"
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
        """Both have to say so: a permutation test asks whether two attempts classify alike, and finds that they do not
        where one trades a class for another and neither is better."""
        if self.p_holm is None or self.difference is None or self.p_holm >= ALPHA:
            return False
        low, high = self.difference.low, self.difference.high
        return low is None or high is None or low > 0 or high < 0


@dataclass
class Comparison:
    """The attempts of some runs, the pairs of them that were compared, and what may be concluded, in sentences."""

    attempts: list[Attempt]
    settings: dict[str, Settings] = field(default_factory=dict)  # run_dir -> its config.yaml
    reference: str | None = None  # the attempt that every pair has
    pairs: list[Pair] = field(default_factory=list)
    best: str | None = None  # by validation
    verdict: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> list[str]:
        """What pairs and verdict are about: two metrics where classifiers stand beside one-class methods."""
        return list(dict.fromkeys(attempt.metric for attempt in self.attempts))

    def save(self, directory: Path) -> None:
        """Write comparison.json."""
        described = [attempt.described for attempt in self.attempts]
        pairs = [asdict(pair) | {"different": pair.different} for pair in self.pairs]
        content = {
            "best": self.best,
            "metric": ", ".join(self.metrics),
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
    attempts = [Attempt(name, group, settings) for name, group in by_attempt(runs, settings).items()]
    result = Comparison(attempts, settings)
    asked = verdict or VerdictConfig()
    metric, metric_note = _agreed("verdict.metric", asked.metric, settings.values())
    reference, note = _agreed("verdict.reference", asked.reference, settings.values())
    if metric is not None:
        if metric not in (known := (*METRICS, *SCORE_METRICS)):
            raise unknown("verdict.metric", metric, known)
        if not any(metric in attempt.metrics for attempt in attempts):
            found = " and ".join(NAMES[other] for other in result.metrics)
            metric_note = f"verdict.metric={metric} is not what these attempts are judged by: {found} instead."
        for attempt in attempts:
            attempt.metric = metric if metric in attempt.metrics else attempt.metric
    done = [attempt for attempt in attempts if attempt.done]
    if reference in [attempt.name for attempt in done]:
        result.reference = reference
    elif reference is not None and len(done) > 1:
        note = f"verdict.reference={reference} is none of the completed attempts in the table: all pairs are compared."
    result.pairs = [
        # The others' merits against the reference are what is asked: it stands second.
        _pair(*((second, first) if first.name == result.reference else (first, second)))
        for first, second in combinations(done, 2)
        if result.reference in (None, first.name, second.name)
    ]
    judged = [pair for pair in result.pairs if pair.p is not None]
    for pair, p in zip(judged, statistics.holm([pair.p for pair in judged if pair.p is not None]), strict=True):
        pair.p_holm = p
    going_on = [attempt.name for attempt in attempts if any(run.running for run in attempt.runs)]
    still = f"Still running, and no part of this yet: {', '.join(going_on)}." if going_on else None
    result.verdict = [*sentences(result), *filter(None, (still, metric_note, note))]
    return result


def _agreed(key: str, asked: str | None, settings: Iterable[Settings]) -> tuple[str | None, str | None]:
    """What is asked for, or else what those runs say that say anything; and a remark where they do not agree."""
    if asked is not None:
        return asked, None
    said = list(dict.fromkeys(value for found in settings if (value := found.get(key, "null")) != "null"))
    if len(said) > 1:
        return None, f"The runs do not agree on {key} ({', '.join(said)}): task=compare with {key}=NAME decides."
    return (said[0] if said else None), None


def _pair(a: Attempt, b: Attempt) -> Pair:
    metric, pair = a.metric, Pair(a.name, b.name, a.metric)
    for attempt in (a, b):
        if not attempt.tests:
            pair.refused = f"{attempt.name} left no test predictions"
            return pair
    if a.detects != b.detects:
        pair.refused = "one scores how defective an image is, the other names its class"
        return pair
    common = [images for images in a.tests if images in b.tests]
    pair.test_sets = len(common)
    if not common:
        pair.refused = "they were tested on different images: give both the same data, split.seed and split settings"
        return pair
    if metric == "macro_f1" and len(common) == 1:
        pair.refused = "no test of macro F1 on a single test set is sound: give cv.folds, or another verdict.metric"
        return pair
    if a.detects:
        pair.images = len({image for images in common for image in images})
        if len(common) == 1:
            return _of_scores(pair, a, b, common[0])
        return _of_test_sets(pair, a, b, common)
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
    return _of_test_sets(pair, a, b, common)


def _of_test_sets(pair: Pair, a: Attempt, b: Attempt, common: Sequence[TestSet]) -> Pair:
    metric = pair.metric
    if any(len(each.values(common, metric)) < len(common) for each in (a, b)):
        pair.refused = f"not every test set has a {NAMES[metric]}"
        return pair
    differences = a.values(common, metric) - b.values(common, metric)
    ratio, resolution = (a.ratio() + b.ratio()) / 2, a.resolution(common, metric)
    pair.test, pair.p = "corrected resampled t-test", statistics.corrected_t_test(differences, ratio, resolution)
    interval = statistics.corrected_interval(differences, ratio, resolution)
    pair.difference = Estimate(float(differences.mean()), *interval, pair.test)
    pair.worse, pair.equal, pair.better = statistics.practical_equivalence(differences, ratio, ROPE, resolution)
    return pair


def _of_scores(pair: Pair, a: Attempt, b: Attempt, images: TestSet) -> Pair:
    """Two one-class methods on one test set."""
    ours, theirs = a.tests[images], b.tests[images]
    if pair.metric == "image_auroc":
        truth = ours[0].labels > 0  # "good" comes first
        try:
            found = statistics.delong_test([t.scores for t in ours], [t.scores for t in theirs], truth)
        except ValueError:
            pair.refused = "a test of image AUROC needs two good and two defective images"
            return pair
        pair.test = method = "DeLong's test"
    else:
        first, second = a.pixels(images), b.pixels(images)
        if first is None or second is None or first[0] != second[0]:
            pair.refused = f"without maps and masks of the same images of both there is no {NAMES[pair.metric]}"
            return pair
        column = PIXEL_METRICS.index(pair.metric)
        found = paired_difference(first[1][:, column], second[1][:, column])
        pair.test = method = "paired bootstrap over images"
    pair.p, pair.difference = found.p, Estimate(*found[:3], method)
    return pair


def _paired(metric: str, first: np.ndarray, second: np.ndarray) -> Estimate:
    """The difference of two attempts on one test set, from the share of right predictions of each image, [N], or for
    balanced accuracy how each was classified, [N, C, C]."""
    if metric == "accuracy":
        interval = statistics.paired_interval(first, second)
        return Estimate(float(np.mean(first - second)), *interval, "Bonett and Price")
    truth, right = first.sum(axis=2).argmax(axis=1), [np.trace(each, axis1=1, axis2=2) for each in (first, second)]
    classes = [(right[0][truth == c], right[1][truth == c]) for c in np.unique(truth)]
    values = [float(np.mean(ours - theirs)) for ours, theirs in classes]
    interval = statistics.mean_interval(values, [statistics.paired_interval(*shares) for shares in classes])
    return Estimate(st.fmean(values), *interval, "from Bonett and Price's of each recall")
