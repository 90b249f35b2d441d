"""Choose operating points: thresholds of a score that say which images are accepted, reviewed and rejected.

Pure functions on arrays and on rows of predictions.csv. A higher score is less like good: an image above ``reject`` is
rejected, one at or below ``accept`` is accepted, and one between the two is reviewed by a person. Thresholds come from
held-out images: none that the model was fitted to, and none that tests it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mvtec_lab.results import GOOD, SYNTHETIC

OK, REVIEW, REJECT, UNKNOWN = "OK", "REVIEW", "REJECT", "UNKNOWN"  # decisions on an image
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of good images that are rejected, in the table of operating points
ASKING = (UNKNOWN, REVIEW)  # decisions that ask for a person, the first one most: it is unlike all that was learnt
_OF_GOOD = f"prob_{GOOD}"


def decide(score: float, reject: float, accept: float | None = None) -> str:
    """Return OK, REVIEW or REJECT for a score; without ``accept`` nothing is reviewed."""
    if score > reject:
        return REJECT
    return REVIEW if accept is not None and score > accept else OK


def score_of(row: Mapping[str, Any]) -> float | None:
    """Return how little an image is like a good one, by its row of predictions; None: the row does not say.

    It is the row's ``score``; of a classifier 1 - p(good), summed from the other classes' probabilities, since 1 minus
    a rounded number near 1 is no longer exact.
    """
    if row.get("score") not in (None, ""):
        return float(row["score"])
    if _OF_GOOD not in row:
        return None
    return sum(float(value) for key, value in row.items() if key.startswith("prob_") and key != _OF_GOOD)


def doubt(row: Mapping[str, Any], label: str) -> tuple[int, float]:
    """Return a key by which images are sorted, the most doubtful first, from a row of predictions and a label.

    First what the decision leaves to a person, then by ``margin``.
    """
    decision = row.get("decision")
    return ASKING.index(decision) if decision in ASKING else len(ASKING), margin(row, label)


def margin(row: Mapping[str, Any], label: str) -> float:
    """Return how far an image is from getting another label; below 0, the model contradicts the label.

    It is the distance of the score from the nearest threshold, positive on the label's side. A classifier's is in
    log-odds, as 0.01 is nearer to 0.3 than 0.99 is, and at most those of the label against the likeliest of its rivals:
    where a threshold says what is good, the other kinds of defect, else all other classes. 0 where the row does not say
    it.

    Args:
        row: of predictions.csv; its columns score, threshold, accept and prob_<class> are numbers where they are.
        label: that of the data set; of a new image the prediction.
    """
    shares = {key[5:]: float(value) for key, value in row.items() if key.startswith("prob_")}
    limits = [float(row[key]) for key in ("threshold", "accept") if row.get(key) not in (None, "")]
    distances, score = list[float](), score_of(row)
    if limits and score is not None:
        scale: Callable[[float], float] = _log_odds if shares else float
        side = -1 if label == GOOD else 1
        distances = [side * (scale(score) - scale(limit)) for limit in limits]
        shares.pop(GOOD, None)
    if label in shares and len(shares) > 1:
        rival = max(share for name, share in shares.items() if name != label)
        distances.append(_log(shares[label]) - _log(rival))
    return min(distances, default=0.0)


def _log_odds(share: float) -> float:
    return _log(share) - _log(1 - share)


def _log(share: float) -> float:
    return math.log(max(share, 1e-12))  # probabilities are rounded: 0 is no certainty


@dataclass(frozen=True)
class Scores:
    """Hold the scores of good images [n] and of defects [m], each in ascending order."""

    good: np.ndarray
    defects: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """Return all scores, each value once, in ascending order."""
        return np.union1d(self.good, self.defects)


def scores_of(rows: Iterable[Mapping[str, Any]], split: str) -> Scores:
    """Return the scores of the images of a split; defects that were made up are left out, as they are no images."""
    good: list[float] = []
    defects: list[float] = []
    for row in rows:
        kind, made_up = row.get("type") or row.get("label"), split == "val" and row.get("type") == SYNTHETIC
        if row["split"] == split and not made_up and (score := score_of(row)) is not None:
            (good if kind == GOOD else defects).append(score)
    return Scores(np.sort(np.array(good, dtype=np.float64)), np.sort(np.array(defects, dtype=np.float64)))


def least_share(images: int) -> float:
    """Return the smallest rate that a threshold can be chosen for by so many images: 1 / (n + 1).

    A new image exceeds the highest of n scores with that probability, whatever their distribution.
    """
    return 1 / (images + 1)


def images_for(share: float) -> int:
    """Return how many images a threshold for this rate needs."""
    return math.ceil(1 / share - 1e-9) - 1


def limit_of_false_rejects(scores: Scores, share: float) -> float:
    """Return the lowest threshold above which at most ``share`` of new good images is expected.

    Of n held-out good images, k may lie above it, with (k + 1) / (n + 1) at most ``share``: so many new ones lie above
    the (k + 1)-th highest score on average, whatever the distribution. It is the highest score where ``share`` is below
    ``least_share``. The threshold lies halfway to the next higher held-out score, so that it sits on no image.
    """
    value = scores.good[::-1][_allowed(len(scores.good), share)]
    above = scores.both[scores.both > value]
    return _between(value, above[0]) if above.size else float(value)


def limit_of_escapes(scores: Scores, share: float) -> float:
    """Return the highest threshold at or below which at most ``share`` of new defects is expected, as above."""
    value = scores.defects[_allowed(len(scores.defects), share)]
    below = scores.both[scores.both < value]
    return _between(below[-1], value) if below.size else float(np.nextafter(value, -np.inf))


def limit_of_cost(scores: Scores, escape: float, false_reject: float, defects: float) -> float:
    """Return the threshold of the lowest mean cost of an image; of equal ones the lowest, which passes fewer defects.

    Args:
        escape, false_reject: costs of one.
        defects: their share among the images of the line.
    """
    rejected, passed = curve(scores)
    costs = (1 - defects) * false_reject * rejected + defects * escape * passed
    values, place = scores.both, int(np.flatnonzero(costs <= costs.min() * (1 + 1e-12))[0])
    if place == 0:
        return float(np.nextafter(values[0], -np.inf))
    return _between(values[place - 1], values[place]) if place < len(values) else float(values[-1])


def curve(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of good images above, and of defects at or below, each threshold: [T] each.

    The thresholds are one below all scores, and then each score of ``both``.
    """
    at = np.concatenate([[-np.inf], scores.both])
    rejected = 1 - np.searchsorted(scores.good, at, side="right") / max(len(scores.good), 1)
    return rejected, np.searchsorted(scores.defects, at, side="right") / max(len(scores.defects), 1)


def _allowed(images: int, share: float) -> int:
    """Return how many of so many images may lie beyond a threshold for a rate."""
    return max(math.floor(share * (images + 1) + 1e-9) - 1, 0)


def _between(low: float, high: float) -> float:
    middle = (float(low) + float(high)) / 2
    return middle if middle < high else float(low)  # neighbours among the floats have nothing between them


@dataclass(frozen=True)
class Rate:
    """Hold how many of some images fall on the wrong side, and what rate to expect of new ones.

    ``expected`` is (count + 1) / (of + 1), which a threshold that was chosen by these images has on average. ``low``
    and ``high`` are the exact 95% interval (Clopper and Pearson, Biometrika 26, 1934); its upper bound is exact for
    such a threshold, too.
    """

    count: int
    of: int
    expected: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.count} of {self.of} ({interval(self.low, self.high)})"


def rate_of(count: int, of: int) -> Rate | None:
    """Return the rate of a count; None where there are no images."""
    from scipy.stats import binomtest

    if not of:
        return None
    interval = binomtest(count, of).proportion_ci(0.95, method="exact")
    return Rate(count, of, (count + 1) / (of + 1), float(interval.low), float(interval.high))


def rates(scores: Scores, reject: float, accept: float) -> dict[str, Rate | None]:
    """Return the rates of false rejects and escapes at an operating point, and of what is reviewed of either kind."""

    def reviewed(of: np.ndarray) -> Rate | None:
        return rate_of(int(((of > accept) & (of <= reject)).sum()), len(of))

    return {
        "false_rejects": rate_of(int((scores.good > reject).sum()), len(scores.good)),
        "escapes": rate_of(int((scores.defects <= accept).sum()), len(scores.defects)),
        "good_reviewed": reviewed(scores.good),
        "defects_reviewed": reviewed(scores.defects),
    }


def interval(low: float, high: float) -> str:
    """Return the bounds of a 95% interval in words, ``95%: 0.08 to 16%``: one digit of those below 1% is enough."""
    first, second = (f"{100 * bound:.1g}" if bound < 0.00995 else percent(bound) for bound in (low, high))
    return f"95%: {first} to {second}%"


def percent(share: float) -> str:
    """Return a share as a percentage of two digits, without its sign: ``0.48``, ``12``, ``100``."""
    return f"{100 * share:.2g}" if share < 0.995 else "100"
