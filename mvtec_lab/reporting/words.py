"""Write figures for tables and sentences, the same everywhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mvtec_lab.reporting.attempts import Estimate


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def span(numbers: Collection[int]) -> str:
    """Return ``8`` of equal numbers, ``8–9`` of others."""
    return "–".join(map(str, sorted({min(numbers), max(numbers)})))


def p_value(value: float | None) -> str:
    """Return a p for a table, which is never 0; a dash where there is none."""
    return number(value) if value is None or value >= 0.001 else "<0.001"


def interval(estimate: Estimate | None) -> str:
    """Return a value with its interval for a table; a dash where there is none."""
    return number(None) if estimate is None else str(estimate)


def distinct(texts: Iterable[str]) -> list[str]:
    """Return the texts, each once, in first-seen order."""
    return list(dict.fromkeys(texts))
