"""Two attempts on the images that both were tested on: their difference, its interval, and the test.

There are three designs. Attempts that share several test sets (folds, or drawn splits) are compared by the corrected
resampled t-test over those sets. Attempts that share one test set are compared over its images and their seeds, three
of each at least. With fewer seeds only the images count, and the result is about the models that were trained here.
Of a cross-validation that was interrupted one fold is no single test set: it says less than the folds that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mvtec_lab.evaluation import differences, racing, statistics
from mvtec_lab.evaluation.differences import LEAST_RUNS, Difference
from mvtec_lab.evaluation.planning import Evidence, OnOneTestSet, OverTestSets
from mvtec_lab.evaluation.specs import METRICS, NotComparableError
from mvtec_lab.evaluation.tested import TestSet
from mvtec_lab.reporting.attempts import Attempt, Estimate, shared, too_few
from mvtec_lab.reporting.ranking import Ranking
from mvtec_lab.reporting.runs import Settings
from mvtec_lab.results import write_whole

COMPARISON = "comparison.json"
ALPHA = 0.05  # the field's convention; intervals are its 95%
ROPE = 0.01  # of a share; below it two classifiers are practically equal: Benavoli et al., JMLR 18, 2017


_NOT_WRITTEN = ("bayesian", "evidence", "alpha")  # of a pair, into comparison.json as it is


@dataclass
class Pair:
    """Hold how two attempts compare on the test sets that both have.

    Differences are the first's value minus the second's: of a share, 0.1 is ten points.
    """

    first: str  #: names of the two attempts
    second: str
    metric: str = "accuracy"  #: the key of the metric that they are compared in
    test_sets: int = 0  #: that both have
    images: int = 0  #: in these test sets, each counted once
    difference: Estimate | None = None  #: with its 95% interval; its ``method`` names the test
    p: float | None = None  #: of this pair by itself
    p_holm: float | None = None  #: p for the number of pairs; the verdict goes by it
    models: bool = False  #: one or two trainings of each: this is about these models, not about the attempts
    #: the smallest difference that is found with a probability of 80%, Holm's correction included; estimated
    found: float | None = None
    image_test: str | None = None  #: the same question, image by image
    image_p: float | None = None  #: of ``image_test``, not corrected
    #: the probabilities that the first is worse, practically equal (within 0.01), and better, in this order, from the
    #: Bayesian correlated t-test over the test sets; None on a single test set, or if the metric is no share
    bayesian: tuple[float, float, float] | None = None
    refused: str | None = None  #: why they were not compared
    raced: bool = False  #: a race dropped one of them: p and interval count all of its looks
    category: str = ""  #: the product that they were tested on
    error: float | None = None  #: the standard error of the difference, as its noises seem
    #: what says which other designs would show a difference, and the level at which: that of Holm's first step
    evidence: Evidence | None = field(default=None, repr=False)
    alpha: float = ALPHA

    @property
    def test(self) -> str | None:
        """Return the name of the test on which the verdict rests."""
        return self.difference.method if self.difference else None

    @property
    def different(self) -> bool:
        """Tell whether test and interval both say that one is better; McNemar's test says it alone.

        A permutation test asks whether two attempts classify alike, and finds that they do not where one trades a class
        for another and neither is better.
        """
        if self.p_holm is None or self.difference is None or self.p_holm >= ALPHA:
            return False
        if self.test == statistics.MCNEMAR:
            return True
        low, high = self.difference.low, self.difference.high
        return low is None or high is None or low > 0 or high < 0

    @property
    def by_image_beside(self) -> bool:
        """Tell whether ``image_p`` is another one than p: on a single test set it may be the very test that decides."""
        return self.image_p is not None and self.image_test != self.test

    @property
    def lead(self) -> float:
        """Return how much better the first is, in the metric; negative where it is worse."""
        return 0.0 if self.difference is None else METRICS[self.metric].sign * self.difference.value

    @property
    def described(self) -> dict[str, Any]:
        """Return the pair's part of comparison.json."""
        worse, equal, better = self.bayesian or (None, None, None)
        further = {"test": self.test, "worse": worse, "equal": equal, "better": better, "different": self.different}
        mine = replace(self, evidence=None)
        return {key: value for key, value in asdict(mine).items() if key not in _NOT_WRITTEN} | further

    def lead_of(self, name: str) -> float:
        """Return how much better one of the two is than the other."""
        return self.lead if name == self.first else -self.lead


@dataclass
class Block:
    """Hold attempts that share test images and a metric, so that they compare with each other.

    Args:
        attempts: all of them.
        ranked: those that share enough test sets to be ranked; of one attempt at several numbers of training images
            that with the most.
        best: of these; None where none is ranked.
        ranking: how validation ranks them; None where none is ranked.
    """

    attempts: list[Attempt]
    ranked: list[Attempt]
    best: Attempt | None = None
    ranking: Ranking | None = None

    @property
    def value(self) -> float | None:
        """Return what chose the best, on validation; None where the test figure did."""
        return self.ranking.value if self.ranking else None


@dataclass
class Comparison:
    """Hold the attempts of some runs, the pairs of them that were compared, and the conclusions."""

    attempts: list[Attempt]  #: in the order in which their first runs came, failed ones included
    settings: dict[str, Settings] = field(default_factory=dict)  #: run_dir -> its config.yaml: dotted key -> text
    reference: str | None = None  #: the attempt that every pair has; None: all pairs are compared
    asked: str | None = None  #: ``verdict.reference``, which may stand beside others at each number of training images
    pairs: list[Pair] = field(default_factory=list)  #: those that were compared or refused
    best: str | None = None  #: the attempt that is best by validation
    headline: list[str] = field(default_factory=list)  #: which attempt to use, how sure, what next: for a terminal
    verdict: list[str] = field(default_factory=list)  #: the conclusions, in sentences
    #: what would tell the best attempt from its closest rival, as the verdict's last sentence says; empty: nothing
    advice: str = ""
    blocks: list[Block] = field(default_factory=list)  #: the attempts that compare with each other

    def add(self, sentences: Sequence[str]) -> None:
        """Add sentences to the verdict, whose last one stays the advice."""
        end = len(self.verdict) - bool(self.advice)
        self.verdict[end:end] = sentences

    @property
    def done(self) -> list[Attempt]:
        """Return the attempts with a completed run."""
        return [attempt for attempt in self.attempts if attempt.done]

    @property
    def damaged(self) -> list[str]:
        """Return why runs are left out of which a file is damaged, a line each."""
        return [str(run.error) for attempt in self.attempts for run in attempt.runs if run.damaged]

    def rivals(self, name: str) -> set[str]:
        """Return the attempts that one is to be compared with, whether they could be compared or not."""
        mine = [{pair.first, pair.second} for pair in self.pairs if name in (pair.first, pair.second)]
        return set[str]().union(*mine) - {name}

    @property
    def compared(self) -> list[Attempt]:
        """Return those of them that have test images: models to keep stand aside, unless there are no others."""
        return [attempt for attempt in self.done if not attempt.untested] or self.done

    @property
    def nothing_learnt(self) -> bool:
        """Tell whether of no attempt, on no product, it is shown that it learnt anything: then none is to be used."""
        return bool(self.compared) and all(attempt.learnt is False for attempt in self.compared)

    @property
    def metrics(self) -> list[str]:
        """Return the keys of the metrics that pairs and verdict are about: mostly one per problem."""
        return list(dict.fromkeys(attempt.metric.key for attempt in self.attempts))

    @property
    def rankings(self) -> list[Ranking]:
        """Return how validation ranks the attempts that compare with each other."""
        return [block.ranking for block in self.blocks if block.ranking]

    @property
    def described(self) -> dict[str, Any]:
        """Return what comparison.json says."""
        return {
            "best": self.best,
            "metric": ", ".join(self.metrics),
            "reference": self.reference,
            "ranked_by": [ranking.described for ranking in self.rankings],
            "headline": self.headline,
            "verdict": self.verdict,
            "alpha": ALPHA,
            "practically_equal_within": ROPE,
            "damaged": self.damaged,
            "attempts": [attempt.described for attempt in self.attempts],
            "pairs": [pair.described for pair in self.pairs],
        }

    def save(self, directory: Path) -> None:
        """Write comparison.json."""
        text = json.dumps(self.described, indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(directory / COMPARISON, f"{text}\n")


def pair_of(a: Attempt, b: Attempt) -> Pair:
    """Return the comparison of two attempts, before Holm's correction."""
    metric, pair, test = a.metric, Pair(a.name, b.name, a.metric.key, category=a.category), ""
    common = shared((a, b))
    pair.test_sets, pair.images = len(common), len({image for images in common for image in images})
    pair.refused = refused(a, b, common)
    if pair.refused:
        return pair
    difference: Difference | None = None
    if metric.inference.pooled or len(common) == 1:
        try:
            difference, test = metric.compare(a.on(common), b.on(common))
        except NotComparableError as error:
            pair.refused = str(error)
            return pair
    if difference is not None and metric.inference.pooled:
        pair.image_test, pair.image_p = test, difference.p
    if difference is None or len(common) > 1:
        _over_test_sets(pair, a, b, common)
        return pair
    groups, of_images = _luck(a, b, common[0]), difference.noises
    pair.models = groups is None
    if groups:
        difference, test = differences.with_seeds(difference, groups), "t-test over images and seeds"
    pair.p, pair.difference = difference.p, Estimate(*difference[:3], test)
    pair.error = sum(noise.seen for noise in difference.noises) ** 0.5
    pair.evidence = OnOneTestSet(
        pair.images,
        of_images,
        difference.noises[len(of_images) :],
        seeds=max(len(group) for group in groups) if groups else 1,
        difference=difference.value,
        figures=(float(a.values(common, metric)[0]), float(b.values(common, metric)[0])),
        most=metric.limit,
        # the mean square
        disagreement=of_images[0].seen * pair.images + difference.value**2 if test == statistics.MCNEMAR else None,
        labelled=_labelled(a) if metric.inference.pooled else 0,
        once=metric.inference.once,
    )
    return pair


def _labelled(attempt: Attempt) -> int:
    """Return the images of a run that folds could test as well; 0 where it learns from others than it is tested on."""
    run = attempt.done[0]
    alike = {frozenset(of_split) for of_split in run.counts.values() if of_split}
    return sum(sum(of_split.values()) for of_split in run.counts.values()) if len(alike) == 1 else 0


def refused(a: Attempt, b: Attempt, common: Sequence[TestSet]) -> str | None:
    """Return why two attempts cannot be compared at all; None where they can."""
    for attempt in (a, b):
        if not attempt.tests:
            return f"{attempt.name} left no test predictions"
    if a.metric != b.metric:
        return f"they are judged by different metrics ({' and '.join(sorted((a.metric.title, b.metric.title)))})"
    if not common:
        return "they were tested on different images: give both the same data, split.seed and split settings"
    if few := too_few((a, b)):
        return f"{few} both, too few to judge by: run the others as well (resume=true continues a sweep)"
    if 1 < len(common) < LEAST_RUNS:
        return f"{len(common)} test sets have no spread to go by: give {LEAST_RUNS} or more, as cv.folds=5 does"
    if len(common) == 1 and a.metric.inference.single:
        return f"no test of {a.metric.title} on a single test set is sound: {a.metric.inference.single}"
    return None


def _luck(a: Attempt, b: Attempt, images: TestSet) -> list[np.ndarray] | None:
    """Return the groups of values that ``with_seeds`` takes; None where seeds are needed and there are too few.

    A method without luck has a single value, as long as both learnt from the same split.
    """
    ours, theirs = a.seeds(images), b.seeds(images)
    splits = {split for _, split in (*ours, *theirs)}
    varying = [values for attempt, values in ((a, ours), (b, theirs)) if attempt.luck or len(splits) > 1]
    if any(len(values) < LEAST_RUNS for values in varying):
        return None
    if len(varying) == 2 and ours.keys() == theirs.keys():
        return [np.array([ours[seed] - theirs[seed] for seed in ours])]
    return [np.array(list(values.values())) for values in varying]


def changes(a: Attempt, b: Attempt, common: Sequence[TestSet]) -> tuple[np.ndarray, float, float] | None:
    """Return how two attempts differ in each test set, [n], with what ``corrected_t_test`` takes beside them.

    None where the metric of a test set is missing.
    """
    ours, theirs = a.values(common, a.metric), b.values(common, a.metric)
    if min(len(ours), len(theirs)) < len(common):
        return None
    return ours - theirs, (a.ratio() + b.ratio()) / 2, a.resolution(common, a.metric)


def _over_test_sets(pair: Pair, a: Attempt, b: Attempt, common: Sequence[TestSet]) -> None:
    metric = a.metric
    known = changes(a, b, common)
    if known is None:
        pair.refused = f"not every test set has a {metric.title}"
        return
    change, ratio, resolution = known
    one_round = max(a.one_round, b.one_round)
    if metric.share:
        pair.bayesian = statistics.practical_equivalence(
            metric.sign * change, ratio, ROPE, resolution, one_round=one_round
        )
    noise = differences.noise_of_test_sets(change, ratio, resolution, one_round=one_round)
    test, value, pair.error = "corrected resampled t-test", float(change.mean()), noise.seen**0.5
    if dropped := [attempt for attempt in (a, b) if attempt.dropped]:
        pair.raced, own = True, statistics.corrected_error(change, ratio, resolution, one_round=one_round)
        pair.p, interval, test = _at_its_look(min(dropped, key=_when), a, b, value, own, len(change))
        pair.difference = Estimate(value, *metric.clip(*interval, change=True), test)
        return  # which difference another race would find is another question
    pair.p = statistics.corrected_t_test(change, ratio, resolution, one_round=one_round)
    interval = statistics.corrected_interval(change, ratio, resolution, one_round=one_round)
    low, high = metric.clip(*interval, change=True)
    pair.difference = Estimate(value, low, high, test)
    pair.evidence = OverTestSets(
        variance=differences.variance_of_test_sets(change, ratio, resolution, one_round=one_round),
        sets=len(common),
        tested=float(np.mean([len(images) for images in common])),
        ratio=ratio,
        folds=max(a.parts, b.parts) or max(2, round(1 + 1 / ratio)),  # splits drawn at random test a share of their own
        most=metric.limit,
        alike=not change.any(),
        once=metric.inference.once,
    )


def _when(attempt: Attempt) -> int:
    """Return after how many folds a race dropped an attempt."""
    assert attempt.dropped is not None
    return int(attempt.dropped["after"])


def _at_its_look(
    dropped: Attempt, a: Attempt, b: Attempt, value: float, own: float, folds: int
) -> tuple[float, tuple[float, float], str]:
    """Return p, interval and test of a pair of which a race dropped one: these folds did it, so they count all looks.

    The error is that of the look, which other attempts had a part in, and never below the ``own`` of these folds.
    """
    why, other = dropped.dropped, b if dropped is a else a
    assert why is not None
    error, freedom = why["errors"].get(other.name, 0.0), min(why["freedom"], (folds - 1) * racing.LENDERS)
    test = "the race's t-test for all its looks, by the spread of all its attempts"
    if error < (1 - 1e-9) * own or why["metric"] != a.metric.key:
        error, freedom, test = own, folds - 1, "corrected resampled t-test for all looks of the race"
    return *racing.at_any_look(value, error, freedom, len(racing.looks(why["folds"]))), test
