"""Plan how to show a difference of a given size: from runs that exist, the designs that show it, and their time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Generic, TypeVar

from rich.console import Console

from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.differences import POWER
from mvtec_lab.evaluation.planning import MOST_IMAGES, MOST_REPEATS, Design, rounded, ways
from mvtec_lab.evaluation.specs import METRICS, Metric
from mvtec_lab.reporting.advice import closest_rival, way_of
from mvtec_lab.reporting.pairs import ALPHA, Comparison, Pair
from mvtec_lab.reporting.terminal import print_columns
from mvtec_lab.results import RunResult, write_whole

PLAN = "plan.json"
POINTS = 10.0  # where nobody says which difference matters: the four reports' attempts lie 7.5 to 17 points apart


D = TypeVar("D")  # Design, or ProductsDesign


@dataclass(frozen=True)
class Way(Generic[D]):
    """Hold a design that shows the difference, and what it costs.

    Args:
        design: of each attempt.
        runs: of all attempts.
        seconds: for the runs that are not there yet; None: not known.
    """

    design: D
    runs: int
    seconds: float | None


@dataclass(frozen=True)
class PlanOf(Generic[D]):
    """Hold what it takes to show a difference between attempts.

    Args:
        attempts: their names.
        metric: by which they are compared.
        difference: which is to be shown, in the metric.
        comparisons: the number of tests that Holm's correction is for.
        seen: the design of the runs that are there.
        found: the difference that these show in eight of ten cases; None: none.
        shown: how often the difference is shown with what is there.
        ways: the designs that show it; empty: none that is within reach.
        jobs: trainings that ran at once.
        machines: that they ran on.
    """

    attempts: list[str]
    metric: Metric
    difference: float
    comparisons: int
    seen: D
    found: float | None
    shown: float
    ways: list[Way[D]]
    jobs: int
    machines: list[str]

    @property
    def enough(self) -> bool:
        """Tell whether what is there shows the difference."""
        return self.shown >= POWER

    def save(self, directory: Path) -> None:
        """Write plan.json."""
        known = {field.name: getattr(self, field.name) for field in fields(PlanOf)}
        designs = {"seen": asdict(self.seen), "ways": [asdict(way) for way in self.ways]}  # type: ignore[call-overload]
        content = known | {"metric": self.metric.key, "alpha": ALPHA, "power": POWER} | designs
        write_whole(directory / PLAN, f"{json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)}\n")


@dataclass(frozen=True)
class Plan(PlanOf[Design]):
    """Hold a plan on one product.

    ``pair`` is that of the best attempt and its closest rival, as in the verdict; where there is none, the pair in the
    middle: half of the pairs show a smaller difference.
    """

    pair: Pair


def plan(comparison: Comparison, difference: float | None) -> Plan:
    """Return what it takes to show a difference between the attempts of a comparison.

    Args:
        comparison: of runs that exist.
        difference: in points of a metric that is a share, in the unit of any other; None: ten points.

    Raises:
        LabError: nothing can be planned from these runs, or a difference that the metric cannot have.
    """
    if len(products := dict.fromkeys(attempt.category for attempt in comparison.done)) > 1:
        raise LabError(f"these runs are of several products ({', '.join(products)}): plan for one, dirs=[RUNS_OF_ONE]")
    names = [attempt.name for attempt in comparison.done]
    if len(names) < 2:
        which = f"holds one, {names[0]}" if names else "holds no completed one"
        raise LabError(f"a plan is about two attempts or more, and dirs {which}: name directories with others as well")
    if len(comparison.metrics) > 1:
        titles = " and ".join(METRICS[key].title for key in comparison.metrics)
        raise LabError(
            f"these attempts are judged by different metrics ({titles}): give verdict.metric=NAME, one that all have"
        )
    metric = METRICS[comparison.metrics[0]]
    size = size_of(metric, difference)
    judged = [pair for pair in comparison.pairs if pair.evidence is not None]
    if not judged:
        reasons = "; ".join(dict.fromkeys(pair.refused for pair in comparison.pairs if pair.refused))
        reasons = reasons or "a race left out one of every two: give runs without race=true"
        raise LabError(f"no two of these attempts can be compared, so there is nothing to plan from: {reasons}")
    varied = [pair for pair in judged if pair.evidence and not pair.evidence.alike]
    if not varied:
        raise LabError(
            f"{', '.join(names)} do not differ on any test image, so nothing says how large luck is: give other "
            "attempts, or more images"
        )
    middle = sorted(varied, key=lambda pair: inf if pair.found is None else pair.found)[len(varied) // 2]
    pair = closest_rival(comparison.best, varied) or middle
    assert pair.evidence is not None
    seen, shown = pair.evidence.design, pair.evidence.power(pair.evidence.design, pair.alpha)(size)
    runs = [run for attempt in comparison.done for run in attempt.done]
    seconds = seconds_of_a_run(runs)
    designs = [] if shown >= POWER else ways(pair.evidence, size, pair.alpha)
    costs = [Way(design, design.runs * len(names), _seconds(design, seen, len(names), seconds)) for design in designs]
    known = (names, metric, size, len(judged), seen, pair.found, shown, costs, at_once(runs), machines_of(runs))
    return Plan(*known, pair)


def size_of(metric: Metric, difference: float | None) -> float:
    """Return the difference in the metric."""
    if not metric.share:
        if difference is None:
            raise LabError(f"{metric.title} is no share whose difference is points: give difference=NUMBER in its unit")
        return difference
    points = POINTS if difference is None else difference
    if points > 100:
        raise LabError(f"difference={points:g} is out of range: {metric.title} differs by 100 points at most")
    return points / 100


def seconds_of_a_run(runs: Sequence[RunResult]) -> float | None:
    """Return how long a run takes, as the clock on the wall says: several at once take less each.

    The distances of their starts say so, and hold loading, testing and pictures as well. A pause between two sweeps
    counts no more than twice the longest run.
    """
    starts = sorted(start for run in runs if (start := _start(run)) is not None)
    own = [run.startup_seconds + run.seconds for run in runs]
    if len(starts) < 2 or not max(own):
        return None
    apart = [min(later - earlier, 2 * max(own)) for earlier, later in pairwise(starts)]
    return sum(apart) / len(apart)


def at_once(runs: Sequence[RunResult]) -> int:
    """Return how many of the runs were trained at the same time, on average: their seconds over those of the clock."""
    spans = sorted(
        (start, start + run.startup_seconds + run.seconds) for run in runs if (start := _start(run)) is not None
    )
    clock, reached = 0.0, -inf
    for start, end in spans:
        clock += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return max(1, round(sum(end - start for start, end in spans) / clock)) if clock else 1


def _start(run: RunResult) -> float | None:
    with suppress(ValueError):  # of a run that others wrote
        return datetime.fromisoformat(run.started).timestamp()
    return None


def _seconds(design: Design, seen: Design, attempts: int, seconds: float | None) -> float | None:
    """Return how long the runs take that a design needs and that are not there yet."""
    if seconds is None:
        return None
    if design.folds != seen.folds:  # which learn from about as many images
        return seconds * design.runs * attempts
    there = seen.runs if design.images == seen.images else 0
    return seconds * design.images / seen.images * (design.runs - there) * attempts


def show(plan: Plan) -> None:
    """Print a plan."""
    console, rows = Console(), [_row(way, plan.seen) for way in plan.ways]
    for line in said(plan):
        console.print(line, markup=False, highlight=False)
    if not rows:
        return
    console.print()
    print_columns(
        console, ["what shows it", "images\nin all", "folds x\nrepeats", "runs\nin all", "time for\nnew runs"], rows
    )
    if plan.ways[0].seconds is not None:
        console.print(of_time(plan.jobs, plan.machines), markup=False, highlight=False)


def of_100(share: float) -> str:
    """Return a share of cases in words: ``no case of 100``, ``12 cases of 100``."""
    cases = round(100 * share)
    return f"{cases or 'no'} case{'s' if cases > 1 else ''} of 100"


def of_time(jobs: int, machines: Sequence[str]) -> str:
    """Say what the time of a plan rests on: how many trainings ran at once, and where; older runs do not say where."""
    where = f" on {len(machines)} machines ({'; '.join(machines)})" if machines else ""
    where = f" on {machines[0]}" if len(machines) == 1 else where
    how = f"{jobs} at once" if jobs > 1 else "one after the other"
    return f"Time: as these runs took, {how}{where}; with more images a run takes longer in proportion."


def machines_of(runs: Sequence[RunResult]) -> list[str]:
    """Return the machines that runs were made on; older runs do not say."""
    return list(dict.fromkeys(run.machine for run in runs if run.machine))


def said(plan: Plan) -> list[str]:
    """Return in sentences what can be shown with the runs that are there, and what cannot."""
    metric, pair, many = plan.metric, plan.pair, plan.comparisons > 1
    wanted = metric.difference_of(plan.difference)
    names = f"{len(plan.attempts)} attempts" if many else " and ".join(plan.attempts)
    corrected = f", with Holm's correction for {plan.comparisons} comparisons" if many else ""
    lines = [f"To show that {names} differ by {wanted} in {metric.title}, in eight of ten cases{corrected}:"]
    there = f"With {_described(plan.seen)}, as they are there, "
    if plan.found is None:
        there += "no difference is shown in eight of ten cases"
    else:
        between = f" between {pair.first} and {pair.second}" if many else ""
        there += f"a difference of {metric.difference_of(plan.found)}{between} is shown in eight of ten cases"
    lines.append(f"{there}, and one of {wanted} in {of_100(plan.shown)}.")
    if plan.enough:
        return [*lines, "That is enough."]
    if pair.models:
        lines.append(
            "With one training of each this is about the models trained here, and not about the attempts: a pilot over "
            "folds (cv.folds=5) counts the luck of training as well."
        )
    if not plan.ways:
        lines.append(
            f"Neither {MOST_IMAGES:,} images nor {MOST_REPEATS} repeats show it: plan for a larger difference, or "
            "choose by time and memory."
        )
    elif all(way.design.images > plan.seen.images for way in plan.ways):
        lines.append(f"More trainings on the same images do not show it, not even {MOST_REPEATS} repeats.")
    return lines


def _described(design: Design) -> str:
    if design.folds > 1:
        return f"{design.images} images in {design.folds} folds x {design.repeats}"
    return f"{design.images} test images" + (f" and {design.repeats} seeds" if design.repeats > 1 else "")


def _row(way: Way[Design], seen: Design) -> list[str]:
    design, more = way.design, way.design.images - seen.images
    folds = f"{design.folds} x {design.repeats}"
    images = f"{seen.images + rounded(more):,}" if more else f"{seen.images}"
    return [way_of(design, seen), images, folds, f"{way.runs}", duration(way.seconds)]


def duration(seconds: float | None) -> str:
    """Return seconds as a plan shows them."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
