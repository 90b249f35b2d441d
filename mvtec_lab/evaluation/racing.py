"""Drop attempts of a cross-validation while it runs: when to look, and what a look shows. Pure functions on numbers.

A test that is made again and again finds a difference by luck sooner or later. So the level is divided by the number of
looks and of pairs (Bonferroni). That holds whatever the looks have in common, which for folds that share their training
images nobody knows exactly, and wherever the race stops.

Three folds know little of how much two attempts differ from fold to fold. So the attempts share what they know of it,
as in an analysis of variance. An attempt that varies more than others would be called worse too easily by what these
know: no pair counts as less variable than it looks itself, nor than the pairs of either attempt are on average.
"""

from __future__ import annotations

import statistics as st
from collections.abc import Iterable, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np

from mvtec_lab.evaluation.differences import LEAST_RUNS
from mvtec_lab.evaluation.statistics import of_mean

# Each look has so many times the folds of the one before. Rare looks come late, and frequent ones cost level: between
# 1.2 and 2 the share of runs that simulated races of 10 to 50 folds leave out changes by two points at most.
FACTOR = 1.5
# This share of races may drop an attempt that is not worse. The verdict has 5% of its own: one of both says something
# wrong of a pair in 6.4% of simulated sweeps at most (``python -m benchmarks.races``).
LEVEL = 0.02
# So many attempts at most lend their degrees of freedom. With all of ten, of which one varies ten times as much as the
# others, 5.4% of simulated races drop an attempt that is not worse, with four 2.9%.
LENDERS = 4


class Change(NamedTuple):
    """Hold how two attempts differ over the same folds.

    Args:
        first, second: their names.
        value: the mean difference in the metric, above zero where the first is better.
        variance: of the differences of the folds, that of one image falling the other way at least.
        ratio: of the images judged on to those that the learner had.
    """

    first: str
    second: str
    value: float
    variance: float
    ratio: float


class Lead(NamedTuple):
    """Hold a pair of attempts at one look.

    Args:
        better, worse: their names.
        value: the mean difference in the metric, not below zero.
        error: its standard error, with ``freedom`` degrees of freedom.
        p: two-sided, of this look alone.
    """

    better: str
    worse: str
    value: float
    error: float
    freedom: int
    p: float


def looks(folds: int) -> list[int]:
    """Return after how many of all ``folds`` a race looks: 3, 5, 8, 12 and so on, each half as many again.

    Two folds have too little spread, and after the last one there is nothing to leave out.
    """
    found, after = [], LEAST_RUNS
    while after < folds:
        found.append(after)
        after = ceil(FACTOR * after)
    return found


def over_looks(p: float, number: int) -> float:
    """Return a p that holds at whichever of ``number`` looks it is taken."""
    return min(1.0, p * number)


def leads(changes: Sequence[Change], after: int, *, one_round: int = 0) -> list[Lead]:
    """Test every pair at one look: the corrected resampled t-test, with the variance that the attempts share.

    Args:
        changes: of all pairs of the attempts that are still in.
        after: the number of folds.
        one_round: see ``statistics.of_mean``.
    """
    from scipy import stats

    if not changes:
        return []
    names = {name for change in changes for name in change[:2]}
    common = st.fmean(change.variance for change in changes)
    own = {name: st.fmean(change.variance for change in changes if name in change[:2]) for name in names}
    variances = np.array([max(c.variance, common, own[c.first], own[c.second]) for c in changes])
    errors = np.sqrt(variances * np.array([of_mean(after, change.ratio, one_round) for change in changes]))
    freedom, values = (after - 1) * min(len(names) - 1, LENDERS), np.array([change.value for change in changes])
    with np.errstate(divide="ignore", invalid="ignore"):  # without any spread
        p = np.where(values == 0, 1.0, 2 * stats.t.sf(np.abs(values) / errors, freedom))
    return [
        Lead(*(c[:2] if c.value > 0 else (c.second, c.first)), abs(c.value), float(error), freedom, float(of_pair))
        for c, error, of_pair in zip(changes, errors, p, strict=True)
    ]


def losers(found: Iterable[Lead], number: int, pairs: int, reference: str | None = None) -> dict[str, Lead]:
    """Return the attempts that a look shows to be worse than another one, each with its most certain lead.

    The attempt with the highest mean is never among them.

    Args:
        found: the leads of the pairs that the verdict compares, as far as both are still in.
        number: the looks of the whole race.
        pairs: those that the verdict compares, of all attempts.
        reference: an attempt that is not dropped; None: there is none.
    """
    shown: dict[str, Lead] = {}
    for lead in sorted(found, key=lambda lead: lead.p):
        if over_looks(lead.p, number) * pairs < LEVEL and lead.worse != reference:
            shown.setdefault(lead.worse, lead)
    return shown


def at_any_look(value: float, error: float, freedom: int, number: int) -> tuple[float, tuple[float, float]]:
    """Return p and the 95% interval of a difference, which hold at whichever of ``number`` looks they are taken.

    Args:
        value, error, freedom: the difference, its standard error and the degrees of freedom of that.
        number: the looks of the whole race.
    """
    from scipy import stats

    if error == 0:
        return float(value == 0), (value, value)
    half = float(stats.t.ppf(1 - 0.025 / number, freedom)) * error
    return over_looks(float(2 * stats.t.sf(abs(value) / error, freedom)), number), (value - half, value + half)


def spared(seconds: Sequence[float], left_out: int) -> float:
    """Return the seconds that the runs an attempt left out would have taken, as long as those that it has."""
    return left_out * sum(seconds) / len(seconds) if seconds else 0.0
