"""Draw what grows: the training curves by epoch, the accuracy by the share of images that are answered, and a test
figure by the training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvtec_lab.evaluation.confidence import coverage_curve
from mvtec_lab.reporting import figures
from mvtec_lab.reporting.attempts import Attempt
from mvtec_lab.reporting.fonts import lettered
from mvtec_lab.reporting.runs import history_of
from mvtec_lab.reporting.shots import Curve
from mvtec_lab.results import CERTAINTY, SURE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_curves(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Return the training curves as a picture, and the names of the attempts that should have left some."""
    runs = {a.name: [(run, rows) for run in a.runs if not run.damaged and (rows := history_of(run))] for a in attempts}
    histories = {name: [rows for _, rows in of] for name, of in runs.items()}
    best = {name: [run.best_epoch for run, _ in of] for name, of in runs.items()}
    drawn = any(histories.values())
    return {
        # Side by side, and below each other for a phone.
        "curves": [figures.to_data_uri(figures.curves_figure(histories, best, n)) for n in (2, 1) if drawn],
        "marked": any(epoch is not None for epochs in best.values() for epoch in epochs),
        "own_losses": drawn and len({run.method for a in attempts for run in a.runs if run.epochs}) > 1,
        # A run that is completed without an epoch fits once, and has no curve.
        "curveless": [
            a.name for a in attempts if not histories[a.name] and not any(r.completed and not r.epochs for r in a.runs)
        ],
    }


def coverage(attempts: Sequence[Attempt]) -> str | None:
    """Return accuracy against coverage of the attempts as a picture; None where none has left its confidences."""
    curves, points = {}, {}
    for attempt in attempts:
        rows = [row for t in attempt.on() if t.classes for row in t.rows]
        if not rows or any(f"prob_{row['prediction']}" not in row for row in rows):
            continue
        right = np.array([row["label"] == row["prediction"] for row in rows])
        curves[attempt.name] = coverage_curve([float(row[f"prob_{row['prediction']}"]) for row in rows], right)
        certain = np.array([row.get(CERTAINTY) == SURE for row in rows])
        if certain.any():
            points[attempt.name] = float(certain.mean()), float(right[certain].mean())
    return figures.to_data_uri(figures.coverage_figure(curves, points)) if curves else None


def shots_figure(curves: Sequence[Curve]) -> Figure:
    """Draw the figure of every attempt over its training images a class, with its intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.4 + 0.2 * ((len(curves) + 1) // 2)), layout="constrained")
    ax = figure.add_subplot()
    for index, curve in enumerate(curves):
        colour, dashes = figures.style_of(index)
        images, estimates = zip(*curve.points, strict=True)
        places = [each * 1.02**index for each in images]  # side by side: intervals would hide each other
        values = [estimate.value for estimate in estimates]
        name = figures.label_of(curve.name, 40)
        ax.plot(places, values, "o", color=colour, linestyle=dashes, markersize=5, label=name)
        for place, estimate in zip(places, estimates, strict=True):
            if estimate.low is not None and estimate.high is not None:
                ax.plot([place, place], [estimate.low, estimate.high], color=colour, linewidth=1.5, alpha=0.6)
    ax.set_xscale("log")
    ticks = sorted({images for curve in curves for images, _ in curve.points})
    ax.set_xticks(ticks, [f"{images:.3g}" for images in ticks])
    ax.set_xticks([], minor=True)
    metric = curves[0].metric
    figures.finish_curves(figure, ax, "training images of each class", f"test {metric.title}")
    return lettered(figure)
