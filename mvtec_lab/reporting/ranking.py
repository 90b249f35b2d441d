"""Choose the best of some attempts by their validation images, of which they may have different numbers.

Of a dozen images luck gets more right than of several dozen: where the numbers differ, an attempt is worth the middle
between its value and the worse end of its 95% interval, about one standard error less than the value. Where they are
equal the value ranks. ``python -m benchmarks.ranking`` simulates this rule beside others.
"""

from __future__ import annotations

import statistics as st
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from typing import Any, Literal, TypeAlias

from mvtec_lab.evaluation.specs import METRICS, Metric, choosing
from mvtec_lab.evaluation.tested import TestSet
from mvtec_lab.reporting.attempts import Attempt
from mvtec_lab.reporting.runs import held_out

Score: TypeAlias = tuple[bool, float, float]  # not chosen on the test images, the metric, the negative loss
ONE = 1.0  # image: by less the means over folds differ where an attempt lacks one of the folds, which are not all equal
NEAR = 0.01  # of a share: below one point two classifiers are practically equal (Benavoli et al., JMLR 18, 2017)


@dataclass
class Ranking:
    """Hold how validation ranks some attempts.

    Args:
        best: the name of the best one.
        metric: the key of what chooses on validation; None: attempts have none in common, or lack it, and nothing
            chooses.
        by: ``interval``: the middle between the value and the worse end of its 95% interval, as the numbers of
            validation images differ.
        values: of the metric, by attempt.
        images: that validated a run, the mean over runs and products.
        ends: the worse ends, where they are known.
        unequal: the attempts were validated on different numbers of images, of one product at least.
        several: the attempts have several runs each.
    """

    best: str
    metric: str | None = None
    by: Literal["value", "interval"] = "value"
    values: dict[str, float] = field(default_factory=dict)
    images: dict[str, float] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    unequal: bool = False
    several: bool = False

    @property
    def value(self) -> float | None:
        """Return the best attempt's metric on validation; None where nothing chooses."""
        return None if self.metric is None else self.values[self.best]

    @property
    def middles(self) -> dict[str, float]:
        """Return the middle between value and worse end, by attempt, where the ends are known."""
        return {name: _middle(self.values[name], end) for name, end in self.ends.items()}

    @property
    def sentence(self) -> str:
        """Say how attempts that were validated on different numbers of images are ranked; empty of others."""
        if self.metric is None or not self.unequal:
            return ""
        metric, counts = METRICS[self.metric], sorted({f"{count:.0f}" for count in self.images.values()}, key=float)
        numbers = " and on ".join(counts) if len(counts) < 3 else f"{counts[0]} to {counts[-1]}"
        if len(counts) == 1:  # in the mean over products
            numbers = "different numbers of"
        text = f"The attempts were validated on {numbers} images{' in each run' if self.several else ''}"
        if self.by == "value":
            none = [name for name in self.values if name not in self.ends]
            return (
                f"{text}, and the value ranks them all the same: {metric.title} on validation has no interval for "
                f"{', '.join(none)}."
            )
        end, middles = "lower" if metric.sign > 0 else "upper", self.middles
        text += f", so the middle between the value and the {end} end of its 95% interval names the best"
        others = sorted(middles, key=lambda name: (name != self.best, -metric.sign * middles[name]))
        highest = max(self.values, key=lambda name: metric.sign * self.values[name])
        shown = (self.best, highest if highest != self.best else others[1])
        return f"{text}: {', '.join(f'{name} {middles[name]:.3f} on {self.images[name]:.0f}' for name in shown)}."

    @property
    def close(self) -> str:
        """Name the attempts that validation hardly tells from the best; empty where there is none."""
        if self.metric is None or not METRICS[self.metric].share:
            return ""
        ranked = self.middles if self.by == "interval" else self.values
        names = [n for n, value in ranked.items() if n != self.best and abs(value - ranked[self.best]) <= NEAR]
        if not names:
            return ""
        who = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        return f"On validation {who} came within one point of {self.best}: that it was named is luck."

    @property
    def described(self) -> dict[str, Any]:
        """Return what comparison.json says of it."""
        known = asdict(self) | {"middles": self.middles}
        return {key: known[key] for key in ("best", "metric", "by", "values", "images", "ends", "middles")}


def by_validation(groups: Mapping[str, Sequence[Attempt]], test_sets: Sequence[TestSet] = ()) -> Ranking:
    """Rank attempts by validation.

    A checkpoint that was not chosen on the test images comes first, then the metric that chooses, or the middle between
    it and the worse end of its interval, then the lower validation loss: means over the runs on some test sets, and
    over products.

    Args:
        groups: the attempts by name; of several products one for each.
        test_sets: those whose runs count; none: all.
    """
    scores = {name: _score(of, test_sets) for name, of in groups.items()}
    metrics = {choosing(attempt.problem) for of in groups.values() for attempt in of}
    if len({metric.key for metric in metrics}) > 1 or not all(isfinite(value) for _, value, _ in scores.values()):
        return Ranking(choose(scores))
    metric = metrics.pop()
    counts = {name: [_images(attempt, test_sets) for attempt in of] for name, of in groups.items()}
    result = Ranking(
        choose(scores),
        metric.key,
        values={name: metric.sign * value for name, (_, value, _) in scores.items()},
        images={name: round(st.fmean(of), 3) for name, of in counts.items()},
        several=any(len(attempt.done) > 1 for of in groups.values() for attempt in of),
    )
    result.unequal = any(max(of) - min(of) >= ONE for of in zip(*counts.values(), strict=True))  # by product
    if result.unequal:
        known = {name: _end(of, metric, test_sets) for name, of in groups.items()}
        ends = result.ends = {name: end for name, end in known.items() if end is not None}
        if len(ends) == len(groups):
            result.by = "interval"
            result.best = choose(scores, {name: metric.sign * end for name, end in ends.items()})
    return result


def choose(scores: Mapping[str, Score], ends: Mapping[str, float] | None = None) -> str:
    """Return the name of the best attempt.

    Args:
        scores: ``Attempt.score`` by name, the higher the better.
        ends: the worse ends of the intervals, the higher the better; given where the numbers of images differ.
    """

    def worth(name: str) -> tuple[float, ...]:
        honest, value, loss = scores[name]
        return honest, *([_middle(value, ends[name])] if ends else []), value, loss

    return max(scores, key=worth)


def _middle(value: float, end: float) -> float:
    """Return the middle between a value and the worse end of its interval.

    In simulations the end itself named attempts with many images too readily, and the value those with few.
    """
    return (value + end) / 2


def _score(attempts: Sequence[Attempt], test_sets: Sequence[TestSet]) -> Score:
    """Return ``Attempt.score``, the mean over products."""
    honest, values, losses = zip(*(attempt.score(test_sets) for attempt in attempts), strict=True)
    return (
        all(honest),
        st.fmean(values) if -inf not in values else -inf,
        st.fmean(losses) if -inf not in losses else -inf,
    )


def _images(attempt: Attempt, test_sets: Sequence[TestSet]) -> float:
    """Return the images that validated a run of an attempt, the mean over its runs."""
    runs = [tested.run for tested in attempt.on(test_sets)] or attempt.done
    of_runs = [run.metrics.get("val", {}).get("images", sum(run.counts.get("val", {}).values())) for run in runs]
    return round(st.fmean(of_runs), 3)  # sums of equal numbers in another order are equal


def _end(attempts: Sequence[Attempt], metric: Metric, test_sets: Sequence[TestSet]) -> float | None:
    """Return the worse end of the 95% interval of an attempt's metric on validation, of the mean over products.

    Products are independent of each other, so that the squares of their distances add up (MOVER; Zou and Donner,
    Statistics in Medicine 27, 2008). None where one has no interval.
    """
    known = [_validated(attempt, metric, test_sets) for attempt in attempts]
    if None in known:
        return None
    values, ends = zip(*(each for each in known if each), strict=True)
    distance = sum((value - end) ** 2 for value, end in zip(values, ends, strict=True)) ** 0.5 / len(known)
    return float(st.fmean(values) - metric.sign * distance)


def _validated(attempt: Attempt, metric: Metric, test_sets: Sequence[TestSet]) -> tuple[float, float] | None:
    """Return the mean of a metric on validation over the runs, and the worse end of its 95% interval over the images.

    Where runs have several validation sets, each image counts once. An interval over the sets would rest on as many
    numbers as there are folds, and those of an attempt that validates on what it learns have most images in common.
    """
    runs = [tested.run for tested in attempt.on(test_sets)] or attempt.done
    known = [(run, value) for run in runs if (value := metric.of(run.metrics.get("val", {}))) is not None]
    held = [rows for run, _ in known if (rows := held_out(run)) is not None]
    bounds = metric.interval_of([run.metrics["val"] for run, _ in known], held if len(held) == len(known) else [])
    if bounds is None:
        return None
    low, high = metric.clip(*bounds)
    return st.fmean(value for _, value in known), low if metric.sign > 0 else high
