"""Which attempt is really better: pairs of attempts tested on the images that both were tested on, and a verdict.

Every pair, or each attempt against one that ``verdict.reference`` names; in accuracy, or image AUROC of one-class
methods, or what ``verdict.metric`` names. Three designs. Attempts that share several test sets (folds, or drawn splits)
are compared by the corrected resampled t-test over those sets. Attempts that share one test set are compared over its
images and their seeds, three of each at least. With fewer seeds the images alone count, and the verdict speaks of the
models that were trained here. Holm's correction is over pairs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from mvtec_lab.config import METRICS, SCORE_METRICS, VerdictConfig
from mvtec_lab.errors import unknown
from mvtec_lab.evaluation import differences, statistics
from mvtec_lab.evaluation.anomaly import PIXEL_METRICS
from mvtec_lab.evaluation.differences import EXTRA, LEAST_RUNS, Difference
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
    models: bool = False  # one training of each, or two: this is about these models, not about the attempts
    found: float | None = (
        None  # the difference that the test finds with a probability of 80%, Holm's correction included
    )
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
    tested = [
        # The others' merits against the reference are what is asked: it stands second.
        _pair(*((second, first) if first.name == result.reference else (first, second)))
        for first, second in combinations(done, 2)
        if result.reference in (None, first.name, second.name)
    ]
    result.pairs = [pair for pair, _ in tested]
    judged = [(pair, finds) for pair, finds in tested if pair.p is not None]
    adjusted = statistics.holm([pair.p for pair, _ in judged if pair.p is not None])
    for (pair, finds), p in zip(judged, adjusted, strict=True):
        pair.p_holm, pair.found = p, finds(ALPHA / len(judged)) if finds else None  # Holm's first and hardest step
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


# The difference that a pair's test finds at some level, if any.
Finds = Callable[[float], float | None]


def _pair(a: Attempt, b: Attempt) -> tuple[Pair, Finds | None]:
    metric, pair = a.metric, Pair(a.name, b.name, a.metric)
    common = [images for images in a.tests if images in b.tests]
    pair.test_sets, pair.refused = len(common), _refused(a, b, common)
    if pair.refused:
        return pair, None
    if a.detects:
        pair.images = len({image for images in common for image in images})
        if len(common) > 1:
            return pair, _of_test_sets(pair, a, b, common)
        difference = _of_scores(pair, a, b, common[0])
    else:
        difference = _of_classes(pair, a, b, common)
        if difference is not None and len(common) > 1:
            return pair, _of_test_sets(pair, a, b, common)
    if difference is None:
        return pair, None
    groups = _luck(a, b, common[0], metric)
    pair.models = groups is None
    if groups:
        difference, pair.test = differences.with_seeds(difference, groups), "t-test over images and seeds"
    figures = float(a.values(common, metric)[0]), float(b.values(common, metric)[0])
    finds: Finds = partial(differences.found_difference, difference.noises, figures)
    if pair.test == "exact McNemar test":
        disagreement = difference.noises[0].seen * pair.images + difference.value**2  # the mean square
        finds = partial(differences.found_by_mcnemar, pair.images, disagreement, difference.value)
    pair.p, pair.difference = difference.p, Estimate(*difference[:3], pair.test or "")
    return pair, finds


def _refused(a: Attempt, b: Attempt, common: Sequence[TestSet]) -> str | None:
    """Return why two attempts cannot be compared at all; None where they can."""
    for attempt in (a, b):
        if not attempt.tests:
            return f"{attempt.name} left no test predictions"
    if a.detects != b.detects:
        return "one scores how defective an image is, the other names its class"
    if not common:
        return "they were tested on different images: give both the same data, split.seed and split settings"
    if 1 < len(common) < LEAST_RUNS:
        return f"{len(common)} test sets have no spread to go by: give {LEAST_RUNS} or more, as cv.folds=5 does"
    if len(common) == 1 and a.metric in ("macro_f1", "pixel_ap"):
        remedy = (
            "give cv.folds, or another verdict.metric" if a.metric == "macro_f1" else "give verdict.metric=pixel_aupro"
        )
        return f"no test of {NAMES[a.metric]} on a single test set is sound: {remedy}"
    return None


def _luck(a: Attempt, b: Attempt, images: TestSet, metric: str) -> list[np.ndarray] | None:
    """Return what ``with_seeds`` takes: the figures of two attempts on a test set, one a seed; None where one of them
    has luck, and too few seeds to know how much.

    A method without luck has a single figure, as long as both learnt from the same split.
    """
    ours, theirs = a.seeds(images, metric), b.seeds(images, metric)
    splits = {split for _, split in (*ours, *theirs)}
    varying = [found for attempt, found in ((a, ours), (b, theirs)) if attempt.luck or len(splits) > 1]
    if any(len(found) < LEAST_RUNS for found in varying):
        return None
    if len(varying) == 2 and ours.keys() == theirs.keys():
        return [np.array([ours[seed] - theirs[seed] for seed in ours])]
    return [np.array(list(found.values())) for found in varying]


def _of_test_sets(pair: Pair, a: Attempt, b: Attempt, common: Sequence[TestSet]) -> Finds | None:
    metric = pair.metric
    if any(len(each.values(common, metric)) < len(common) for each in (a, b)):
        pair.refused = f"not every test set has a {NAMES[metric]}"
        return None
    change = a.values(common, metric) - b.values(common, metric)
    ratio, resolution = (a.ratio() + b.ratio()) / 2, a.resolution(common, metric)
    pair.test, pair.p = "corrected resampled t-test", statistics.corrected_t_test(change, ratio, resolution)
    low, high = statistics.corrected_interval(change, ratio, resolution)
    pair.difference = Estimate(float(change.mean()), max(-1.0, low), min(1.0, high), pair.test)
    pair.worse, pair.equal, pair.better = statistics.practical_equivalence(change, ratio, ROPE, resolution)
    noise = differences.noise_of_test_sets(change, ratio, resolution)
    return partial(differences.found_difference, [noise], (0.5, 0.5))  # it does not grow, wherever the figures lie


def _of_classes(pair: Pair, a: Attempt, b: Attempt, common: Sequence[TestSet]) -> Difference | None:
    """Compare two classifiers image by image; None where they cannot be."""
    if pair.metric == "accuracy":
        ours, theirs = a.shares(common), b.shares(common)
        first, second = (np.array([shares[image] for image in ours]) for shares in (ours, theirs))
        difference, pair.image_test = differences.accuracy_difference(first, second)
    else:
        each, other = a.confusions(common), b.confusions(common)
        if each is None or other is None or a.classes != b.classes:
            pair.refused = "their classes are not the same"
            return None
        first, second = (predicted / predicted.sum(axis=(1, 2), keepdims=True) for predicted in (each, other))
        statistic = getattr(statistics, pair.metric)
        difference, pair.image_test = differences.balanced_difference(first, second, statistic)
    pair.images, pair.image_p, pair.test = len(first), difference.p, pair.image_test
    return difference


def _of_scores(pair: Pair, a: Attempt, b: Attempt, images: TestSet) -> Difference | None:
    """Compare two one-class methods on one test set; None where they cannot be."""
    ours, theirs = a.tests[images], b.tests[images]
    if pair.metric == "image_auroc":
        pair.test = "DeLong's test with one more image of each kind"
        try:
            truth = ours[0].labels > 0  # "good" comes first
            return differences.auroc_difference([t.scores for t in ours], [t.scores for t in theirs], truth)
        except ValueError:
            pair.test, pair.refused = None, "a test of image AUROC needs two good and two defective images"
            return None
    first, second = a.pixels(images), b.pixels(images)
    if first is None or second is None or first[0] != second[0]:
        pair.refused = f"without maps and masks of the same images of both there is no {NAMES[pair.metric]}"
        return None
    column, defect = PIXEL_METRICS.index(pair.metric), first[2]
    each = first[1][:, column] - second[1][:, column]
    value = float(a.values([images], pair.metric)[0] - b.values([images], pair.metric)[0])
    pair.test = "jackknife t-test over images"
    try:
        return differences.of_images(value, (each[~defect], each[defect]), EXTRA[pair.metric])
    except ValueError:
        pair.test, pair.refused = None, f"a test of {NAMES[pair.metric]} needs two good and two defective images"
        return None
