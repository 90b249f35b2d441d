"""Choose the pairs that a comparison is about where attempts differ in how many images they train on.

The more training images, the better: nobody asks whether one attempt with twenty images of each class beats another one
with two. Compared are attempts at the same number, and an attempt with itself at the next number, so that Holm's
correction counts these pairs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from math import inf

from mvtec_lab.reporting.attempts import THINNED, Attempt


def pairs_asked(attempts: Sequence[Attempt]) -> list[tuple[Attempt, Attempt]]:
    """Return the pairs of attempts that are compared: all, or where the training images vary, as above."""
    if not any(attempt.thinned for attempt in attempts):
        return [*combinations(attempts, 2)]
    next_to = {frozenset((a.name, b.name)) for key in THINNED for a, b in _neighbours(attempts, key)}
    return [
        (a, b)
        for a, b in combinations(attempts, 2)
        if (a.left == b.left and a.base != b.base) or frozenset((a.name, b.name)) in next_to
    ]


def _neighbours(attempts: Sequence[Attempt], key: str) -> list[tuple[Attempt, Attempt]]:
    """Return the pairs that differ in one key alone, which has the next larger value."""
    alike: dict[tuple[str, ...], list[Attempt]] = {}
    for attempt in attempts:
        if key in attempt.thinned:
            others = (f"{other}={value}" for other, value in attempt.thinned.items() if other != key)
            alike.setdefault((attempt.base, *others), []).append(attempt)
    ordered = (sorted(group, key=lambda attempt: _number(attempt.thinned[key])) for group in alike.values())
    return [pair for group in ordered for pair in pairwise(group)]


def _number(value: str) -> float:
    """Return a value as a number; without one all images train."""
    return inf if value == "null" else float(value)


def said(attempts: Sequence[Attempt]) -> str:
    """Say which pairs are compared, to follow their number; empty where all are."""
    keys = " and ".join(key for key in THINNED if any(key in attempt.thinned for attempt in attempts))
    if not keys:
        return ""
    at = f"of attempts at the same {keys}, " if len({attempt.base for attempt in attempts}) > 1 else ""
    return f": {at}{'and ' if at else ''}of one attempt at values of {keys} next to each other"
