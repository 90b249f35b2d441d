"""Say whether new images are like the known ones: sentences, figures, and the page of task=monitor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvtec_lab.evaluation.drift import Tested, shift_of
from mvtec_lab.reporting.figures import GREY, PALETTE, label_of, quiet, to_data_uri
from mvtec_lab.reporting.fonts import lettered
from mvtec_lab.reporting.pages import write_page
from mvtec_lab.reporting.verdict import p_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
BINS = 20
NONE, SMALL = "NO CHANGE SHOWN", "NO CHANGE THAT MATTERS"
BRIGHTNESS, SHARPNESS, COLOUR, SIZE = "brightness", "sharpness", "colour", "size"
FEATURES, LAYOUT, SCORE = "features", "layout", "score"
# Test -> what the axis of its histogram says, and what the page says of the test.
ABOUT = {
    BRIGHTNESS: ("mean grey level", "mean grey level of an image"),
    SHARPNESS: ("sharpness", "second derivative of the grey levels, as a share of the first"),
    COLOUR: ("distance from the usual shares of red and blue", "means of red and blue, as shares of that of green"),
    SIZE: ("", "width and height in pixels"),
    FEATURES: ("distance to the nearest known good image", "features of the model's frozen layers"),
    LAYOUT: (
        "distance to the nearest known good image",
        "grey levels at 16 x 16 pixels: the model has no features",
    ),
    SCORE: ("score", "the model's score of an image; of known ones, of those that it has not learnt"),
}

PLACES = {FEATURES: "the model's features", LAYOUT: "what they show at 16 x 16 pixels"}


@dataclass(frozen=True)
class Pair:
    """Hold a new image beside the known one that is most like it: pictures [H, W, 3], and the names.

    Args:
        part: train, val or test, to which the known one belongs.
    """

    new: np.ndarray = field(repr=False)
    old: np.ndarray = field(repr=False)
    path: str
    like: str
    part: str
    why: str


def told(test: Tested, tests: int) -> str:
    """Return what a test found, in a clause."""
    sample = test.sample
    if sample.name in (BRIGHTNESS, SHARPNESS):
        shift = shift_of(sample, tests)
        more, less = ("brighter", "darker") if sample.name == BRIGHTNESS else ("sharper", "less sharp")
        if shift.low <= 0 <= shift.high:
            return f"the {sample.name} is spread otherwise: {_range(sample.new)}, not {_range(sample.reference)}"
        first, second = sorted((_percent(shift.low), _percent(shift.high)))
        word = more if shift.difference > 0 else less
        return f"images are {_percent(shift.difference):.2g}% {word} (95%: {first:.2g} to {second:.2g}%)"
    if sample.name == COLOUR:
        red, blue = 100 * np.expm1(sample.new.mean(axis=0) - sample.reference.mean(axis=0))
        return f"colours are shifted: red by {red:+.1f}%, blue by {blue:+.1f}%, beside green"
    if sample.name == SIZE:
        return f"images have other sizes: {_sizes(sample.new)}, the known ones {_sizes(sample.reference)} pixels"
    if sample.name == SCORE:
        old, new = float(np.median(sample.reference)), float(np.median(sample.new))
        word = "higher" if new > old else "lower" if new < old else "spread otherwise"
        return f"the model's scores are {word}: median {new:.3g}, of held-out images {old:.3g}"
    what = f"images differ in {PLACES[sample.name]}"
    if not test.changed:
        return what
    return f"{what}: {_whole(test.unusual)}% are farther from all known ones than 95% of these are from each other"


def counted(parts: Mapping[str, int]) -> str:
    """Return how many known images there are, and of which parts of the run."""
    each = ", ".join(f"{count} {part}" for part, count in parts.items())
    return f"{sum(parts.values())} known good images ({each})"


def sentences(tests: Sequence[Tested], new: int, known: str) -> list[str]:
    """Return what was found beside ``known`` images, as counted() has them, the most important first."""
    changed = [test for test in tests if test.changed]
    said = [f"CHANGED: {told(test, len(tests))}, p {p_text(test.p_holm)}" for test in changed]
    small = [test for test in tests if test.shown and not test.changed]
    if not changed:
        p = min(test.p_holm for test in tests)
        word = f"{SMALL if small else NONE}: {new} new images beside {known}"
        said = [word if small else f"{word}, {len(tests)} tests, smallest p {p_text(p).removeprefix('= ')}"]
    said += [f"small, no alarm: {told(t, len(tests))}, p {p_text(t.p_holm)}, and {_usual(t)}" for t in small]
    return said


def _usual(test: Tested) -> str:
    return f"{_whole(test.unusual)}% of new images are unusual in that; it is an alarm from {_whole(test.alarm)}%"


def facts_of(tests: Sequence[Tested]) -> list[dict[str, Any]]:
    """Return the tests as monitor.json has them."""
    facts = []
    for test in tests:
        sample = test.sample
        of: dict[str, Any] = {"name": sample.name, "p": test.p, "p_holm": test.p_holm}
        of |= {"unusual": test.unusual, "alarm": test.alarm, "shown": test.shown, "changed": test.changed}
        of["told"] = told(test, len(tests))
        of["images"] = {"reference": len(sample.reference), "new": len(sample.new)}
        if sample.reference.shape[1] == 1 and min(len(sample.reference), len(sample.new)) > 1:
            of["shift"] = {"logarithm": sample.relative, **asdict(shift_of(sample, len(tests)))}
        facts.append(of)
    return facts


def histogram(test: Tested) -> Figure:
    """Draw the values of both sides, as shares of the images of each."""
    from matplotlib.figure import Figure

    old, new = test.sample.axis()
    if test.sample.relative:
        old, new = np.exp(old), np.exp(new)
    low, high = min(old.min(), new.min()), max(old.max(), new.max())
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    figure = Figure(figsize=(4.4, 2.5), layout="constrained")
    ax = figure.add_subplot()
    for values, label, colour, style in ((old, "known good", PALETTE[0], "-"), (new, "new", PALETTE[1], "--")):
        counts, _ = np.histogram(values, edges)
        shares = counts / len(values)
        ax.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.8, label=f"{label} ({len(values)})")
        ax.stairs(shares, edges, color=colour, fill=True, alpha=0.15)
    ax.set_xlabel(label_of(ABOUT[test.sample.name][0], 50), color=GREY, fontsize=9)
    ax.set_ylabel("share of the images", color=GREY, fontsize=9)
    ax.set_ylim(0)
    quiet(ax)
    ax.legend(frameon=False, fontsize=9)
    return lettered(figure)


def write_monitored(
    directory: Path,
    said: Sequence[str],
    notes: Sequence[str],
    tests: Sequence[Tested],
    pairs: Sequence[Pair],
    reference: str,
    predictions: str,
    known: str,
) -> None:
    """Write report.html, complete or not at all."""
    changed, small = any(test.changed for test in tests), any(test.shown for test in tests)
    rows = [
        {
            "name": test.sample.name,
            "about": ABOUT[test.sample.name][1],
            "p": p_text(test.p_holm).removeprefix("= "),
            "found": "changed" if test.changed else "small" if test.shown else "not shown",
            "unusual": f"{_whole(test.unusual)}% ({_whole(test.alarm)}%)",
            "new": len(test.sample.new),
            "reference": len(test.sample.reference),
            "shown": _shown(test, len(tests)),
            "picture": None if test.sample.name == SIZE else to_data_uri(histogram(test)),
            "told": told(test, len(tests)),
        }
        for test in tests
    ]
    write_page(
        directory / PAGE,
        "monitored.html.j2",
        light="red" if changed else "green",
        word="Changed" if changed else SMALL.capitalize() if small else NONE.capitalize(),
        said=[re.sub("^[A-Z ]+: ", "", line) for line in said],
        notes=notes,
        tests=rows,
        nearest=next((PLACES[test.sample.name] for test in tests if test.sample.name in PLACES), "what they show"),
        pairs=[{**asdict(pair), "new": to_data_uri(pair.new), "old": to_data_uri(pair.old)} for pair in pairs],
        reference=reference,
        predictions=predictions,
        known=known,
    )


def _shown(test: Tested, tests: int) -> str:
    """Return the difference that would be found in eight of ten cases; a dash where it is none of one number."""
    sample = test.sample
    if sample.reference.shape[1] > 1 or min(len(sample.reference), len(sample.new)) < 2:
        return "–"
    shown = shift_of(sample, tests).shown
    return f"{_percent(shown):.2g}%" if sample.relative else f"{shown:.2g} in {sample.name}"


def _whole(share: float) -> int:
    """Return the whole percent of a share, never rounded up to an alarm that it does not reach."""
    return int(100 * share + 1e-9)


def _percent(logarithm: float) -> float:
    return abs(100 * (exp(logarithm) - 1))


def _range(values: np.ndarray) -> str:
    low, high = np.exp(np.quantile(values, [0.05, 0.95]))
    return f"{low:.3g} to {high:.3g}"


def _sizes(values: np.ndarray) -> str:
    found = [f"{int(width)} x {int(height)}" for width, height in np.unique(values, axis=0)]
    return " and ".join(found) if len(found) <= 2 else f"{found[0]} to {found[-1]}"
