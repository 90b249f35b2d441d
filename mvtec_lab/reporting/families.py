"""Choose the pairs that a comparison is about where attempts differ in how many images they train on.

The more training images, the better: nobody asks whether one attempt with twenty images of each class beats another one
with two. Compared are attempts at the same number, and an attempt with itself at the next number, so that Holm's
correction counts these pairs alone. A number beyond the images that are there trains on all of them, as the one before
it: these are the same runs, and count once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from math import inf

from mvtec_lab.reporting.attempts import THINNED, Attempt, mean


def pairs_asked(attempts: Sequence[Attempt], reference: str | None = None) -> list[tuple[Attempt, Attempt]]:
    """Return the pairs of attempts that are compared: all, or where the training images vary, as above.

    Args:
        attempts: of which pairs are asked for.
        reference: the attempt that every pair has; one that stands beside the others at each number (``at_each``) is
            compared at the same number alone.
    """
    pairs = [*combinations(attempts, 2)]
    if any(attempt.thinned for attempt in attempts):
        next_to = {frozenset((a.name, b.name)) for key in THINNED for a, b in _neighbours(attempts, key)}
        again = {attempt.name for attempt in repeats(attempts)}
        pairs = [
            (a, b)
            for a, b in pairs
            if (a.left == b.left and a.base != b.base and not {a.name, b.name} <= again)
            or frozenset((a.name, b.name)) in next_to
        ]
    if at_each(attempts, reference):
        return [(a, b) for a, b in pairs if a.base != b.base and reference in (a.base, b.base)]
    return pairs


def at_each(attempts: Sequence[Attempt], reference: str | None) -> bool:
    """Tell whether a reference is no attempt by itself, but one at several numbers of training images."""
    return all(attempt.name != reference for attempt in attempts) and any(
        attempt.thinned and attempt.base == reference for attempt in attempts
    )


def repeats(attempts: Sequence[Attempt]) -> dict[Attempt, Attempt]:
    """Return the attempts that train on the same images as another value of their key does, each with that one."""
    firsts: dict[tuple[str, str], Attempt] = {}
    again = {}
    for attempt in (attempt for attempt in attempts if attempt.thinned and attempt.done):
        trained = sorted((run.seed, run.fold or 0, sorted(run.counts.get("train", {}).items())) for run in attempt.done)
        first = firsts.setdefault((attempt.base, str(trained)), attempt)
        if first is not attempt:
            again[attempt] = first
    return again


def outdone(attempt: Attempt, others: Sequence[Attempt]) -> bool:
    """Tell whether one of some others is the same attempt with more training images: nobody chooses to learn less."""
    mine = _trained(attempt)
    return bool(attempt.thinned) and any(each.base == attempt.base and _trained(each) > mine for each in others)


def _trained(attempt: Attempt) -> float:
    """Return the training images of a run, the mean over the runs; those whose counts are not known have none."""
    return mean(sum(run.counts.get("train", {}).values()) for run in attempt.done) or 0.0


def _neighbours(attempts: Sequence[Attempt], key: str) -> list[tuple[Attempt, Attempt]]:
    """Return the pairs that differ in one key alone, which has the next larger value, and in what they train on."""
    alike: dict[tuple[str, ...], list[Attempt]] = {}
    again = repeats(attempts)
    for attempt in attempts:
        if key in attempt.thinned and attempt not in again:
            others = (f"{other}={value}" for other, value in attempt.thinned.items() if other != key)
            alike.setdefault((attempt.base, *others), []).append(attempt)
    ordered = (sorted(group, key=lambda attempt: _number(attempt.thinned[key])) for group in alike.values())
    return [pair for group in ordered for pair in pairwise(group)]


def _number(value: str) -> float:
    """Return a value as a number; without one all images train."""
    return inf if value == "null" else float(value)


def said(attempts: Sequence[Attempt], reference: str | None = None) -> str:
    """Say which pairs are compared, to follow their number; empty where all are."""
    keys = " and ".join(key for key in THINNED if any(key in attempt.thinned for attempt in attempts))
    if not keys:
        return ""
    if at_each(attempts, reference):
        return f": with {reference} at the same {keys}"
    at = f"of attempts at the same {keys}, " if len({attempt.base for attempt in attempts}) > 1 else ""
    return f": {at}{'and ' if at else ''}of one attempt at values of {keys} next to each other"
