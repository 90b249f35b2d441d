"""Show operating points: a table of thresholds and what to expect of each, and escapes against false rejects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvtec_lab.evaluation.operating import (
    SHARES,
    Rate,
    Scores,
    curve,
    least_share,
    limit_of_false_rejects,
    percent,
    rates,
    scores_of,
)
from mvtec_lab.reporting.figures import PALETTE, finish_curves, to_data_uri
from mvtec_lab.reporting.fonts import lettered
from mvtec_lab.reporting.pages import write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
LEAST_SHOWN = 0.1  # of either rate in the chart
HELD_OUT, TESTED = "held-out images", "test images"
ABOUT = (
    "Each threshold is chosen by held-out good images alone: the lowest above which no more new ones than so many are "
    "expected. The test images had no part in it. Do not pick a row by its test figures: they would then be too good."
)


def points(held_out: Scores, tested: Scores) -> list[dict[str, Any]]:
    """Return the table of operating points: false rejects asked for, threshold, and the rates of both sets of images.

    A rate that is too small for the held-out images is replaced by the least that they show.
    """
    if not len(held_out.good):
        return []
    first = max(SHARES[0], least_share(len(held_out.good)))
    shares = [first, *(share for share in SHARES if share > first * (1 + 1e-9))]
    found = []
    for share in shares:
        limit = limit_of_false_rejects(held_out, share)
        found.append({"asked": share, "threshold": limit, "held_out": rates(held_out, limit, limit)})
        found[-1]["test"] = rates(tested, limit, limit)
    return found


def table(held_out: Scores, tested: Scores) -> tuple[list[str], list[list[str]]]:
    """Return the headings and rows of the table, without the columns of images that there are none of."""
    columns = {
        f"{kind}, {title}": [_shown(point[part][key]) for point in points(held_out, tested)]
        for part, title in (("held_out", "held out"), ("test", "test"))
        for key, kind in (("false_rejects", "false rejects"), ("escapes", "escapes"))
    }
    known = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [
        [f"{percent(point['asked'])}%", f"{point['threshold']:.4g}", *(cells[i] for cells in known.values())]
        for i, point in enumerate(points(held_out, tested))
    ]
    return ["false rejects asked for", "threshold", *known], rows


def _shown(rate: Rate | None) -> str:
    return "" if rate is None else str(rate)


def curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Scores]:
    """Return the sets of images of predictions.csv that have a curve: both good images and defects."""
    sets = {HELD_OUT: scores_of(rows, "val"), TESTED: scores_of(rows, "test")}
    return {name: scores for name, scores in sets.items() if len(scores.good) and len(scores.defects)}


def apart(sets: Mapping[str, Scores]) -> list[str]:
    """Return the names of the sets whose good images and defects some threshold tells apart without a mistake."""
    return [name for name, scores in sets.items() if scores.good[-1] < scores.defects[0]]


def operating_figure(
    sets: Mapping[str, Scores], chosen: Mapping[str, Mapping[str, Rate | None]] | None = None
) -> Figure:
    """Draw the share of defects that escape against that of good images that are rejected, by threshold.

    The axes end a little beyond the useful corner, where both rates are low, and beyond the chosen points.

    Args:
        sets: of ``curves_of``.
        chosen: the rates at an operating point, by the same names: a dot each.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(4.2, 3.6), layout="constrained")  # 368 pixels wide on a phone: letters of 9 points are 11
    ax = figure.add_subplot()
    across_to = up_to = LEAST_SHOWN
    for index, (name, scores) in enumerate(sets.items()):
        rejected, passed = curve(scores)
        colour, dashes, width = PALETTE[index], ("solid", "dashed")[index], (4, 1.8)[index]  # one lies on the other
        label = f"{name} ({len(scores.good)} good, {len(scores.defects)} defects)"
        (line,) = ax.plot(rejected, passed, color=colour, linestyle=dashes, drawstyle="steps-pre", label=label)
        line.set(linewidth=width, alpha=(0.6, 1)[index])
        level = 2 * float(np.maximum(rejected, passed).min())  # twice where both rates are alike: the useful corner
        across_to, up_to = max(across_to, level), max(up_to, level)
        at = (chosen or {}).get(name, {})
        if (across := at.get("false_rejects")) is not None and (up := at.get("escapes")) is not None:
            dot = across.count / across.of, up.count / up.of
            ax.plot(*dot, "o", color=colour, markersize=8, clip_on=False)
            across_to, up_to = max(across_to, 1.2 * dot[0]), max(up_to, 1.2 * dot[1])
    for axis, limit in ((ax.xaxis, min(across_to, 1)), (ax.yaxis, min(up_to, 1))):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_view_interval(-0.05 * limit, 1.02 * limit, ignore=True)  # a curve at 0 is seen beside the axis
    finish_curves(figure, ax, "false rejects: share of the good images", "escapes: share of the defects", columns=1)
    return lettered(figure)


def write_operating_page(
    directory: Path,
    lines: Sequence[str],
    warnings: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Mapping[str, Rate | None]],
) -> None:
    """Write report.html, complete or not at all.

    Args:
        lines: what was chosen and what to expect of it.
        warnings: what it cannot carry.
        rows: of predictions.csv.
        chosen: the rates at the chosen point, by the names of ``curves_of``.
    """
    headings, cells = table(scores_of(rows, "val"), scores_of(rows, "test"))
    sets = curves_of(rows)
    write_page(
        directory / PAGE,
        "operating.html.j2",
        lines=lines,
        warnings=warnings,
        headings=headings,
        table=cells,
        about=ABOUT,
        curve=to_data_uri(operating_figure(sets, chosen)) if sets else None,
        apart=apart(sets),
    )
