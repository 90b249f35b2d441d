"""Simulate races: how often one drops an attempt that is not worse, and what it leaves out where attempts differ.

    python -m benchmarks.races

Every generator is fixed: the table is the same each time, and tests/test_levels.py holds the lab to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from benchmarks import common
from mvtec_lab.evaluation import racing, statistics
from mvtec_lab.evaluation.racing import Change, Lead

ALPHA = 0.05  # of the verdict
RACES = 2_000  # of a cell: a share of 5% is then known to within 1 point
FOLDS = 5  # of a repeat
RATIO = 1 / (FOLDS - 1)  # of tested images to the others
DESIGNS = ((2, 1), (5, 1), (2, 2), (5, 2), (10, 2), (5, 10))  # attempts, repeats
KINDS = ("alike", "one unsteady", "half unsteady", "learners")
IMAGES = 120  # of the learners
APART = (  # how far the features of learners are pulled apart
    (0.8, 0.8, 0.8, 0.8, 0.3),
    (0.8, 0.8, 0.8, 0.8, 0.1),
    (0.8, 0.5, 0.3, 0.2, 0.1),
    (0.5,) * 5 + (0.1,) * 5,
)


class Outcome(NamedTuple):
    """Hold the shares of races.

    Args:
        wrong: that drop an attempt which is not worse than the one that it lost to.
        either: that do, or whose verdict calls attempts different that are not.
        lost: that drop a best attempt.
        left_out: mean share of the runs that races leave out.
    """

    wrong: float
    either: float
    lost: float
    left_out: float


def spread(rng: np.random.Generator, attempts: int, folds: int, races: int) -> np.ndarray:
    """Return values of equal attempts [races, K, folds], correlated as the corrected test assumes."""
    shared = RATIO / (1 + RATIO)
    own = np.sqrt(shared) * rng.normal(size=(races, attempts, 1))
    return np.asarray(own + np.sqrt(1 - shared) * rng.normal(size=(races, attempts, folds)))


def learners(rng: np.random.Generator, advantages: Sequence[float], repeats: int, races: int) -> np.ndarray:
    """Return accuracies [races, K, folds] of nearest-centroid learners, cross-validated on the same images.

    Each sees a noisy copy of the same four features, which its advantage pulls apart.
    """
    labels = np.arange(IMAGES) % 2
    sides = (2 * labels - 1)[:, None]
    found = np.empty((races, len(advantages), FOLDS * repeats))
    for race in found:
        own = rng.normal(size=(len(advantages), IMAGES, 4))
        x = (rng.normal(size=(IMAGES, 4)) + own) / np.sqrt(2) + np.array(advantages)[:, None, None] * sides
        for repeat in range(repeats):
            for i, test in enumerate(np.array_split(rng.permutation(IMAGES), FOLDS)):
                train = np.ones(IMAGES, bool)
                train[test] = False
                centres = np.stack([x[:, train & (labels == c)].mean(axis=1) for c in (0, 1)])  # [2, K, 4]
                distance = ((x[:, test] - centres[:, :, None]) ** 2).sum(axis=-1)
                race[:, repeat * FOLDS + i] = (distance.argmin(axis=0) == labels[test]).mean(axis=1)
    return found


def tested(change: np.ndarray, resolution: float) -> np.ndarray:
    """Return the two-sided p of ``corrected_t_test`` for differences [..., n]."""
    folds = change.shape[-1]
    deviation = np.maximum(change.std(axis=-1, ddof=1), resolution / np.sqrt(folds))
    error = deviation * np.sqrt(1 / folds + RATIO)
    return np.asarray(2 * stats.t.sf(np.abs(change.mean(axis=-1)) / error, folds - 1))


def raced(values: np.ndarray, true: Sequence[float], resolution: float = 0.0) -> Outcome:
    """Run a race on the values of the attempts in each fold, [races, K, folds]; ``true``: their true values."""
    races, attempts, folds = values.shape
    pairs, looks = list(combinations(range(attempts), 2)), racing.looks(folds)
    change = np.stack([values[:, a] - values[:, b] for a, b in pairs], axis=1)  # [races, pairs, folds]
    at_looks = [change[:, :, :n] for n in looks]
    means = [each.mean(axis=-1) for each in at_looks]
    variances = [np.maximum(each.var(axis=-1, ddof=1), resolution**2 / each.shape[-1]) for each in at_looks]
    last = tested(change, resolution)
    wrong, either, lost, left_out = np.zeros((4, races))
    for race in range(races):
        out: set[int] = set()
        p = dict(zip(pairs, last[race], strict=True))
        for place, after in enumerate(looks):
            of_pairs = zip(pairs, means[place][race], variances[place][race], strict=True)
            changes = [Change(str(a), str(b), m, v, RATIO) for (a, b), m, v in of_pairs if not out & {a, b}]
            leads = racing.leads(changes, after)
            for name, lead in racing.losers(leads, len(looks), len(pairs)).items():
                worse, better = int(name), int(lead.better)
                out.add(worse)
                wrong[race] = max(wrong[race], true[worse] >= true[better])
                lost[race] = max(lost[race], true[worse] == max(true))
                left_out[race] += (folds - after) / (folds * attempts)
                p |= {_pair(each): racing.over_looks(each.p, len(looks)) for each in leads if name in each[:2]}
        called = np.array(statistics.holm(list(p.values()))) < ALPHA
        either[race] = max(wrong[race], (called & [true[a] == true[b] for a, b in p]).any())
    return Outcome(*(float(each.mean()) for each in (wrong, either, lost, left_out)))


def _pair(lead: Lead) -> tuple[int, int]:
    first, second = sorted(map(int, lead[:2]))
    return first, second


def level(kind: str, attempts: int, repeats: int, races: int = RACES) -> Outcome:
    """Return what becomes of races of equal attempts."""
    rng, true = np.random.default_rng(0), [0.0] * attempts
    if kind == "learners":
        return raced(learners(rng, [0.5] * attempts, repeats, races), true, FOLDS / IMAGES)
    values = spread(rng, attempts, FOLDS * repeats, races)
    if kind == "one unsteady":
        values[:, 0] *= 3
    elif kind == "half unsteady":
        values[:, : attempts // 2] *= 4
    return raced(values, true)


def apart(advantages: Sequence[float], repeats: int, races: int = RACES // 10) -> tuple[list[float], Outcome]:
    """Return the true accuracies of learners that differ, and what becomes of their races."""
    rng = np.random.default_rng(1)
    far = learners(np.random.default_rng(2), advantages, 1, 400).mean(axis=(0, 2)).round(2)
    true = [float(far[list(advantages).index(advantage)]) for advantage in advantages]  # equal ones are equal
    return true, raced(learners(rng, advantages, repeats, races), true, FOLDS / IMAGES)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def show_levels() -> None:
    rows = []
    for attempts, repeats in DESIGNS:
        outcomes = [level(kind, attempts, repeats) for kind in KINDS]
        rows.append(
            [f"{attempts}", f"{FOLDS} x {repeats}", *(f"{percent(o.wrong)} / {percent(o.either)}" for o in outcomes)]
        )
    notes = [
        "races of equal attempts that drop one, % / those that do or whose verdict calls two of them different",
        "alike: folds correlated as the corrected test assumes; one unsteady: one attempt varies three times as much; "
        "half unsteady: half of them vary four times as much; "
        f"learners: nearest centroids, cross-validated on {IMAGES} images",
    ]
    common.show("races", notes, ["attempts", "folds", *KINDS], rows, False)


def show_left_out() -> None:
    rows = []
    for advantages in APART:
        outcomes = [apart(advantages, repeats) for repeats in (1, 2, 10)]
        accuracies = ", ".join(f"{accuracy:.2f}" for accuracy in outcomes[0][0])
        rows.append([accuracies, *(f"{percent(o.left_out)} / {percent(o.lost)}" for _, o in outcomes)])
    notes = ["runs that races of learners leave out, % / races that drop a best one, %"]
    common.show("left_out", notes, ["accuracies", *(f"{FOLDS} x {r}" for r in (1, 2, 10))], rows, False)


def main() -> None:
    """Print both tables, and write them into README.md."""
    show_levels()
    show_left_out()


if __name__ == "__main__":
    main()
