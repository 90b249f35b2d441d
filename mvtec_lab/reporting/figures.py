"""Charts of runs and reports, as Matplotlib's Figure objects: without pyplot nothing leaks and threads are safe."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

import numpy as np
from PIL import Image

from mvtec_lab.evaluation.specs import Metric, all_metrics
from mvtec_lab.reporting.fonts import lettered, readable

if TYPE_CHECKING:  # matplotlib is imported where it draws: a third of a second that the rest need not pay
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mvtec_lab.reporting.spread import Spread

# Okabe and Ito's palette, safe for colour-blind readers, without its yellow, which is lost on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", "dashed", "dotted")  # tell attempts apart once the colours are used up
PAPER, FIELD, RULE, INK, SOFT, GREY = "#ffffff", "#eef1f4", "#e4e8ec", "#1f2933", "#5f6b76", "#8a94a0"
LOSSES = {"train/loss": "training loss", "val/loss": "validation loss"}
FIRST_COVERAGE = 0.1  # from which on the axis of accuracy follows a curve: before it a few images swing it
_HALF = "\x00"  # stands for the second half of a letter that is two wide; in no text of its own
FAR = 5  # times as high as most attempts' highest loss: what lies above is cut, or the axis becomes a logarithm's
MOST = 30  # classes, kinds or attempts in one figure: drawn in a second, on a page that a screen shows


def confusion_figure(matrix: np.ndarray, classes: Sequence[str], title: str | None = None) -> Figure:
    """Draw a confusion matrix [C, C] (rows truth): counts as text, each row's shares as shading.

    Raises:
        ValueError: more than MOST classes; ``metrics.top_confusions`` gives the most frequent mistakes.
    """
    if len(classes) > MOST:
        raise ValueError(f"{len(classes)} classes are too many to draw, at most {MOST}")
    from matplotlib.figure import Figure

    size = 1.7 + 0.44 * len(classes)  # inches: room for the labels, and a cell that holds three digits
    figure = Figure(figsize=(size, size), layout="constrained")
    ax = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1.15)  # beyond 1: the darkest blue would swallow the text
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = "white" if shares[row, column] > 0.7 else INK
            weight = "bold" if row == column else "normal"
            ax.text(column, row, str(count), ha="center", va="center", color=colour, weight=weight)
    ticks = range(len(classes))
    oblique = [label_of(name, 26, 1) for name in classes]  # two lines of oblique text would run into the next label
    ax.set_xticks(ticks, oblique, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    ax.set_yticks(ticks, [label_of(name) for name in classes], fontsize=9)
    ax.set_xlabel("predicted", color=GREY)
    ax.set_ylabel("true", color=GREY)
    ax.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color=RULE, linewidth=1)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(label_of(title, 60), fontsize=11)
    return lettered(figure)


def curves_figure(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    best: Mapping[str, Sequence[int | None]] | None = None,
    columns: int = 2,
) -> Figure:
    """Draw every attempt's training curves in one figure: the losses and up to two metrics that decide.

    Where the loss of some epochs of an attempt is far above what the others have, the axis ends with the others, and
    says so.

    Args:
        histories: attempt -> its runs -> the rows of a history.csv (numbers or text; an empty cell is a gap). Several
            runs are thin lines beside their mean, which ends with the shortest of them. An attempt without runs is left
            out but keeps its colour. Of more than MOST attempts the first ones are drawn.
        best: attempt -> the epoch of each run whose weights were kept, counted as in its history; a dot marks it.
        columns: charts side by side, each 4.5 inches wide.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    histories = dict(islice(histories.items(), MOST))
    thin = sum(map(len, histories.values())) <= 4 * MOST  # more lines take seconds, and hide each other
    metrics = _judged_by([rows for runs in histories.values() for rows in runs])
    panels = [*LOSSES, *metrics]
    rows, names = -(-len(panels) // columns), 2 * columns  # the names in a row of the legend
    height = 3.1 * rows + 0.22 * (sum(map(any, histories.values())) // names)
    figure = Figure(figsize=(4.5 * columns, height if metrics else height + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False, gridspec_kw={"hspace": 0.08, "wspace": 0.06})
    for unused in axes.flat[len(panels) :]:
        unused.set_visible(False)
    for ax, key in zip(axes.flat, panels, strict=False):
        for index, (name, runs) in enumerate(histories.items()):
            lines = [_series(rows, key) for rows in runs]
            _draw_runs(ax, [line for line in lines if line], index, label_of(name, 40), thin)
            _mark(ax, lines, (best or {}).get(name, ()), index, thin)
        ax.set_title(f"validation {metrics[key].title}" if key in metrics else LOSSES[key], fontsize=10)
        quiet(ax)
        ax.grid(color=RULE)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key in metrics and metrics[key].share:
            ax.set_ylim(0, 1)
        if key in panels[-columns:]:
            ax.set_xlabel("epoch", color=GREY)
            ax.tick_params(labelbottom=True)  # of three the second one has none below it
        if key in LOSSES:
            _scale(
                ax,
                {name: [y for rows in runs for y in _series(rows, key).values()] for name, runs in histories.items()},
                bool(metrics),
            )
    if {epoch for ax in figure.axes for line in ax.lines for epoch in np.asarray(line.get_xdata())} == {1}:
        axes.flat[0].set_xticks([1])  # one epoch: Matplotlib itself writes 0.96, 0.98 ...; the panels share the axis
    named = {label: handle for ax in figure.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    if named:
        figure.legend(
            named.values(), named.keys(), loc="outside lower center", ncols=min(names, len(named)), frameon=False
        )
    return lettered(figure)


def _wide(losses: Sequence[float]) -> bool:
    """Return whether losses differ by sizes, as those of several methods do; a logarithm's axis has ticks enough then.

    Some methods' losses are below zero.
    """
    sizes = np.abs(losses)
    return min(losses) < 0 or sizes.max() > 100 * max(float(sizes.min()), 0.01)


def _scale(ax: Axes, values: Mapping[str, Sequence[float]], linear: bool) -> None:
    """Choose the axis of a loss, so that what one attempt has far above the others does not flatten these.

    Args:
        ax: with the curves.
        values: of each attempt.
        linear: whether the losses are those of one kind of network, which a plain axis can compare.
    """
    from matplotlib.ticker import SymmetricalLogLocator

    known = {name: v for name, of in values.items() if (v := [value for value in of if np.isfinite(value)])}
    together = [value for of in known.values() for value in of]
    if not together:
        return
    low, tops = min(together), {name: max(of) for name, of in known.items()}
    usual = sorted(tops.values())[(len(tops) - 1) // 2]
    limit = low + FAR * (usual - low)
    far = [name for name, top in tops.items() if top > limit > low]
    whole = any(np.median(known[name]) > limit for name in far)  # most of a curve, not some epochs
    if whole or (not linear and _wide(together)):
        ax.set_yscale("symlog", linthresh=0.01)
        if 0 < low < max(together) < 1000 * low:  # powers of ten alone would be one tick or two
            ax.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.01, subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
    elif far:
        high = max(top for name, top in tops.items() if name not in far)
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        who = label_of(far[0], 30, 1) if len(far) == 1 else f"{len(far)} attempts"
        what = f"↑ cut: {who}, up to {max(tops.values()):.3g}"
        ax.text(0.99, 0.98, what, ha="right", va="top", fontsize=8, color=INK, transform=ax.transAxes)


def _judged_by(histories: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Metric]:
    """Return the metrics that decide and have values on validation, by their columns: two at most.

    They are the first two of one problem, or the first one of two problems.
    """
    decide = {f"val/{metric.key}": metric for metric in all_metrics() if metric.decides}
    known = {key: m for key, m in decide.items() if any(_series(rows, key) for rows in histories)}
    problems = [metric.problem for metric in known.values()]
    several = len(set(problems)) > 1
    shown = ((key, m) for i, (key, m) in enumerate(known.items()) if not several or m.problem not in problems[:i])
    return dict(islice(shown, 2))


def _draw_runs(ax: Axes, lines: Sequence[Mapping[int, float]], index: int, label: str, thin: bool) -> None:
    """Draw a column of the histories of one attempt: its only run, or thin lines (if ``thin``) and their mean."""
    style: dict[str, Any] = dict(zip(("color", "linestyle"), style_of(index), strict=True))
    if len(lines) > 1:
        for line in lines if thin else ():
            ax.plot(list(line), list(line.values()), linewidth=0.7, alpha=0.45, **style)
        common = sorted(set.intersection(*map(set, lines)))
        lines = [{epoch: float(np.mean([line[epoch] for line in lines])) for epoch in common}]
    for line in lines:
        marker = "o" if len(line) == 1 else None  # one epoch makes no line
        ax.plot(list(line), list(line.values()), marker=marker, label=label, **style)


def _mark(ax: Axes, lines: Sequence[Mapping[int, float]], best: Sequence[int | None], index: int, thin: bool) -> None:
    """Mark the epoch of each run whose weights were kept; nothing where its own line is not drawn."""
    if len(lines) > 1 and not thin:
        return
    places = [
        (epoch, line[epoch]) for line, epoch in zip(lines, best, strict=False) if epoch is not None and epoch in line
    ]
    size = 40 if len(lines) == 1 else 14
    if places:
        epochs, values = zip(*places, strict=True)
        ax.scatter(epochs, values, size, style_of(index)[0], edgecolor=PAPER, linewidth=0.8, zorder=3)


def verdict_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the metric that judges these rows, for each of them: a dot and its 95% interval.

    Pale dots are the test sets, where there are several; a diamond is a reported accuracy; dashed is the baseline. Of
    more than MOST rows the best are drawn.

    Args:
        rows: of ``summary.summarise``.
    """
    from matplotlib.figure import Figure

    metric: Metric = rows[0]["metric"]
    total = len(rows)
    if total > MOST:
        values = [-np.inf if row["estimate"] is None else metric.sign * row["estimate"].value for row in rows]
        rows = [rows[i] for i in sorted(sorted(range(total), key=lambda i: -values[i])[:MOST])]
    figure = Figure(figsize=(5, 0.9 + 0.3 * len(rows)), layout="constrained")
    ax = figure.add_subplot()
    for y, row in enumerate(rows):
        _draw_row(ax, y, row, metric)
    if metric.share:
        ax.set_xlim(0, 1)
    best = f", the best {MOST} of {total} attempts" if total > MOST else ""
    what = f"test {metric.title}" + (f", {metric.unit}" if metric.unit else "") + best
    finish_rows(figure, ax, [label_of(row["attempt"], 28) for row in rows], what)
    return lettered(figure)


def _draw_row(ax: Axes, y: int, row: Mapping[str, Any], metric: Metric) -> None:
    estimate, (colour, _) = row["estimate"], style_of(y)
    if estimate is None:
        ax.text(0.01, y, "no result", va="center", color=GREY, fontsize=9, transform=ax.get_yaxis_transform())
    else:
        if len(values := row["test_values"]) > 1:
            ax.plot(values, [y] * len(values), "o", color=colour, alpha=0.3, clip_on=False)
        if estimate.low is not None:
            ax.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=2)
        ax.plot(estimate.value, y, "o", color=colour, markersize=8, clip_on=False)  # whole at 0 and 1
    named = ax.get_legend_handles_labels()[1]
    if metric.needed and row["reported_accuracy"] is not None and row["reported_split"] == "test":
        label = "" if "reported" in named else "reported"
        ax.plot(row["reported_accuracy"], y, "D", color=INK, markerfacecolor="none", markersize=7, label=label)
    if row["baseline"] is not None and metric.chance:  # a piece per row: attempts on other data have another baseline
        label = "" if metric.chance[1] in named else metric.chance[1]
        ax.vlines(row["baseline"], y - 0.5, y + 0.5, color=GREY, linestyle=(0, (3, 3)), label=label)


def finish_rows(figure: Figure, ax: Axes, labels: Sequence[str], what: str) -> None:
    """Name the rows of a chart and what its axis shows, and add the legend if there is anything to name."""
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_xlabel(what, color=GREY)
    quiet(ax)
    ax.grid(axis="x", color=RULE)
    if ax.get_legend_handles_labels()[1]:
        figure.legend(loc="outside upper right", frameon=False, fontsize=9)


def spread_figure(spread: Spread) -> Figure:
    """Draw the standard deviation of each part, with its 95% interval."""
    from matplotlib.figure import Figure

    scale = 100 if spread.metric.share else 1
    figure = Figure(figsize=(5, 0.9 + 0.3 * len(spread.named)), layout="constrained")
    ax = figure.add_subplot()
    for y, (part, colour) in enumerate(zip(spread.named.values(), PALETTE, strict=False)):
        bounds = [scale * bound for bound in part.interval(spread.most)]
        ax.plot(bounds, [y, y], color=colour, linewidth=2)
        ax.plot(scale * part.variance**0.5, y, "o", color=colour, markersize=8, clip_on=False)
    ax.set_xlim(left=0)
    unit = "points" if spread.metric.share else spread.metric.unit
    what = f"standard deviation of a single run's {spread.metric.title}" + (f", {unit}" if unit else "")
    finish_rows(figure, ax, list(spread.named), what)
    return lettered(figure)


def coverage_figure(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]], points: Mapping[str, tuple[float, float]]
) -> Figure:
    """Draw accuracy against coverage, the share of the images that are answered, the most confident ones first.

    Args:
        curves: coverage and accuracy of each attempt, at most MOST of which are drawn.
        points: of some attempts: the share of the images that the model is sure of, and the accuracy there: a dot.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.2 + 0.2 * ((min(len(curves), MOST) + 1) // 2)), layout="constrained")
    ax = figure.add_subplot()
    lowest = 1.0
    for index, (name, (coverage, accuracy)) in enumerate(islice(curves.items(), MOST)):
        colour, dashes = style_of(index)
        ax.plot(coverage, accuracy, color=colour, linestyle=dashes, label=label_of(name, 40))
        lowest = min([lowest, *accuracy[coverage >= FIRST_COVERAGE]])
        if name in points:
            ax.plot(*points[name], "o", color=colour, markersize=7, clip_on=False)
            lowest = min(lowest, points[name][1])
    ax.set_xlim(0, 1)
    ax.set_ylim(max(0.0, np.floor(10 * lowest) / 10), 1.005)  # a line at 1 is seen whole
    first = f", the first {MOST} of {len(curves)} attempts" if len(curves) > MOST else ""
    finish_curves(figure, ax, f"coverage: share of the test images that are answered{first}", "accuracy on them")
    return lettered(figure)


def finish_curves(figure: Figure, ax: Axes, across: str, upwards: str, columns: int = 2) -> None:
    """Name the axes of a chart of curves, and add the legend below."""
    ax.set_xlabel(across, color=GREY)
    ax.set_ylabel(upwards, color=GREY)
    quiet(ax)
    ax.grid(color=RULE)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def counts_figure(by_split: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw the images of each class as a bar of its splits; of more than MOST classes the most frequent.

    Args:
        by_split: split -> class -> images; every split has the same classes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    classes = [*next(iter(by_split.values()))]
    totals = {name: sum(counts[name] for counts in by_split.values()) for name in classes}
    most = {*sorted(classes, key=lambda name: -totals[name])[:MOST]}
    shown = [name for name in classes if name in most]
    figure = Figure(figsize=(5.6, 0.9 + 0.34 * len(shown)), layout="constrained")
    ax = figure.add_subplot()
    left = np.zeros(len(shown))
    for index, (split, counts) in enumerate(by_split.items()):
        widths = np.array([counts[name] for name in shown])
        ax.barh(range(len(shown)), widths, 0.66, left, color=PALETTE[index], label=split if len(by_split) > 1 else None)
        left += widths
    for y, name in enumerate(shown):
        ax.annotate(str(totals[name]), (left[y], y), (4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    what = "images" if len(shown) == len(classes) else f"images, the {MOST} most frequent of {len(classes)} classes"
    finish_rows(figure, ax, [label_of(name, 30) for name in shown], what)
    return lettered(figure)


def scores_figure(scores: Mapping[str, Sequence[float]], threshold: float, good: Collection[str]) -> Figure:
    """Draw the scores of images, one dot per image, in a row for each kind of image; dashed is the threshold.

    Of more than MOST kinds with defects those with the lowest scores are drawn, which are the hardest to find, and the
    rest in one row.

    Args:
        scores: kind of image -> scores.
        threshold: above which an image is called a defect.
        good: the kinds without a defect, which have a colour of their own.
    """
    from matplotlib.figure import Figure

    defects = sorted((name for name in scores if name not in good), key=lambda name: float(np.median(scores[name])))
    if further := defects[MOST:]:
        rest = [value for name in further for value in scores[name]]
        scores = {k: v for k, v in scores.items() if k not in further} | {f"{len(further)} further types": rest}
    figure = Figure(figsize=(5.6, 0.9 + 0.34 * len(scores)), layout="constrained")
    ax = figure.add_subplot()
    for y, (name, values) in enumerate(scores.items()):
        shift = 0.22 * np.linspace(-1, 1, len(values))[np.random.default_rng(0).permutation(len(values))]
        colour = PALETTE[0] if name in good else PALETTE[1]
        ax.plot(values, y + shift, "o", color=colour, markersize=4, alpha=0.6, markeredgewidth=0)
    ax.axvline(threshold, color=INK, linestyle=(0, (3, 3)), linewidth=1, label="threshold")
    finish_rows(
        figure, ax, [label_of(f"{name} ({len(values)})", 30) for name, values in scores.items()], "score of an image"
    )
    return lettered(figure)


def to_data_uri(source: Figure | Path | np.ndarray) -> str:
    """Return a figure (as SVG), a PNG or JPEG file, or a picture (as JPEG), as a ``data:`` address to embed in HTML."""
    if isinstance(source, Path):
        content, kind = source.read_bytes(), "png" if source.suffix == ".png" else "jpeg"
    elif isinstance(source, np.ndarray):
        content, kind = to_jpeg(source), "jpeg"
    else:
        buffer = io.BytesIO()
        source.savefig(buffer, format="svg")
        content, kind = buffer.getvalue(), "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def to_jpeg(picture: np.ndarray) -> bytes:
    """Return a picture, uint8 RGB [H, W, 3], as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "jpeg", quality=85)  # 85: no visible artefacts at a third of the size of 95
    return buffer.getvalue()


def style_of(index: int) -> tuple[str, str]:
    """Return colour and dashes of the attempt at a place, the same in every chart."""
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """Return one column of a history by epoch, without its empty cells."""
    return {int(row["epoch"]): float(row[key]) for row in rows if row.get(key) not in (None, "")}


def wrap(text: str, width: int, most: int | None = None) -> list[str]:
    """Return the lines of a text, broken at spaces and after underscores: class names are long and have no spaces.

    A letter of Chinese, Japanese or Korean takes the width of two.
    """
    lines = []
    for line in text.splitlines() or [""]:
        wide = "".join(letter + _HALF * (east_asian_width(letter) in "WF") for letter in line)
        lines += [part.replace("_ ", "_") for part in textwrap.wrap(wide.replace("_", "_ "), width)] or [""]
    if most and len(lines) > most:
        last = lines[most - 1]
        lines = [*lines[: most - 1], last[: width - 1 - last.startswith(_HALF, width - 1)] + "…"]
    return [line.replace(_HALF, "") for line in lines]


def label_of(name: str, width: int = 14, most: int = 3) -> str:
    """Return a name in lines that a chart has room for, in letters that its font has."""
    return readable("\n".join(wrap(name, width, most))).replace("$", r"\$")  # a bare $ would start a formula


def quiet(ax: Axes) -> None:
    """Take the frame and the ticks off a chart, which say nothing."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#c5ccd3")
    ax.tick_params(length=0, labelsize=9)
    ax.set_axisbelow(True)
