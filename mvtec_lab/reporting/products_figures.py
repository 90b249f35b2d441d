"""Charts over several products: the critical-difference diagram, and the differences of a pair on each product."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvtec_lab.evaluation.specs import Metric
from mvtec_lab.reporting.attempts import Estimate
from mvtec_lab.reporting.figures import GREY, INK, MOST, PALETTE, RULE, label_of, quiet
from mvtec_lab.reporting.fonts import lettered

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Line:
    """Hold a row of ``differences_figure``: a product, or the mean of all.

    Args:
        name: of the product.
        difference: with its interval.
        weight: of the product in the mean, in [0, 1]; None: it is the mean.
    """

    name: str
    difference: Estimate
    weight: float | None = None


def groups(order: Sequence[str], different: Collection[frozenset[str]]) -> list[tuple[int, int]]:
    """Return the first and last place of each longest run of attempts none of which is shown to differ from another.

    Args:
        order: the attempts, by rank.
        different: the pairs that are shown to differ.
    """
    found: list[tuple[int, int]] = []
    for first in range(len(order)):
        last = first
        while last + 1 < len(order) and not any(
            frozenset((order[last + 1], order[place])) in different for place in range(first, last + 1)
        ):
            last += 1
        if last > first and not (found and found[-1][1] >= last):
            found.append((first, last))
    return found


def ranks_figure(ranks: Mapping[str, float], different: Collection[frozenset[str]]) -> Figure:
    """Draw the critical-difference diagram of Demsar: mean ranks, the best left, bars over those not shown to differ.

    Of more than MOST attempts the best are drawn.

    Args:
        ranks: the mean rank of each attempt.
        different: the pairs that are shown to differ.
    """
    from matplotlib.figure import Figure

    order = sorted(ranks, key=lambda name: ranks[name])[:MOST]
    bars, left = groups(order, different), (len(order) + 1) // 2
    high = max(len(order), round(max(ranks[name] for name in order) + 0.5))
    below = 0.35 + 0.22 * len(bars)  # where the names begin, in rows of text
    figure = Figure(figsize=(5.6, 0.7 + 0.3 * (left + below)), layout="constrained")
    ax = figure.add_subplot()
    ax.plot([1, high], [0, 0], color=INK, linewidth=1)
    for tick in range(1, high + 1):
        ax.plot([tick, tick], [0, 0.18], color=INK, linewidth=1)
        ax.text(tick, 0.3, str(tick), ha="center", va="bottom", fontsize=9, color=GREY)
    margin = 0.06 * (high - 1)
    for place, name in enumerate(order):
        first = place < left
        y = -below - (place if first else len(order) - 1 - place) - 0.4
        end = 1 - margin if first else high + margin
        ax.plot([ranks[name], ranks[name], end], [0, y, y], color=PALETTE[0], linewidth=1)
        text = f"{label_of(name, 24, 1)}  {ranks[name]:.2f}" if first else f"{ranks[name]:.2f}  {label_of(name, 24, 1)}"
        ax.text(end, y, f" {text} ", ha="right" if first else "left", va="center", fontsize=9)
    for row, (begin, last) in enumerate(bars):
        y, reach = -0.3 - 0.22 * row, 0.015 * (high - 1)
        ends = [ranks[order[begin]] - reach, ranks[order[last]] + reach]
        ax.plot(ends, [y, y], color=INK, linewidth=4, solid_capstyle="butt")
    ax.set_xlim(1 - 0.45 * (high - 1), high + 0.45 * (high - 1))
    ax.set_ylim(-below - left, 1.2)
    ax.set_axis_off()
    return lettered(figure)


def differences_figure(lines: Sequence[Line], metric: Metric, title: str) -> Figure:
    """Draw the difference of two attempts on each product with its 95% interval, and below them the mean: a diamond.

    A square is the larger the more its product weighs. Of more than MOST products those that weigh most are drawn.
    """
    from matplotlib.figure import Figure

    heaviest = sorted((line for line in lines if line.weight is not None), key=lambda line: -(line.weight or 0))[:MOST]
    shown = [line for line in lines if line.weight is None or line in heaviest]
    scale = 100 if metric.share else 1
    figure = Figure(figsize=(5.6, 1.1 + 0.3 * len(shown)), layout="constrained")
    ax = figure.add_subplot()
    ax.axvline(0, color=GREY, linestyle=(0, (3, 3)), linewidth=1)
    for y, line in enumerate(shown):
        colour, difference = PALETTE[0] if line.weight is not None else INK, line.difference
        if difference.low is not None and difference.high is not None:
            ax.plot([scale * difference.low, scale * difference.high], [y, y], color=colour, linewidth=1.5)
        size = 9.0 if line.weight is None else 3 + 9 * line.weight**0.5
        marker = "D" if line.weight is None else "s"
        ax.plot(scale * difference.value, y, marker, color=colour, markersize=size)
    ax.set_yticks(range(len(shown)), [label_of(line.name, 28) for line in shown])
    ax.set_ylim(len(shown) - 0.5, -0.5)
    unit = "points" if metric.share else metric.unit or ""
    ax.set_xlabel(f"difference in {metric.title}" + (f", {unit}" if unit else ""), color=GREY)
    ax.set_title(label_of(title, 60, 2), fontsize=10)
    quiet(ax)
    ax.grid(axis="x", color=RULE)
    return lettered(figure)
