"""Show one attempt: its scores, confusions, recall, picture sheets, and what its runs have not left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.confidence import reservation
from mvtec_lab.evaluation.metrics import top_confusions
from mvtec_lab.evaluation.operating import scores_of
from mvtec_lab.evaluation.specs import METRICS, all_metrics
from mvtec_lab.evaluation.statistics import wilson_interval
from mvtec_lab.foreign import damaged, file_of
from mvtec_lab.reporting import figures, operating
from mvtec_lab.reporting.attempts import Attempt, Estimate, mean
from mvtec_lab.reporting.runs import predictions_of
from mvtec_lab.reporting.words import interval
from mvtec_lab.results import CERTAINTY, EXPLANATIONS, GOOD, MISTAKES, RunResult

PIXELS_OF_PAGE = 1 << 25  # a sheet of pictures has a million or two at most
TITLES = {MISTAKES: "Test images, worst mistakes first", EXPLANATIONS: "Explanations"}  # where a run says none
RULES = {
    "quantile": "a quantile of the good validation images' scores",
    "synthetic": "of best F1 on validation's good images and made-up defects",
    "best_f1": "of best F1 on the test images, defects included",
}


@dataclass
class Part:
    """Place a picture or a table on the page, of one attempt.

    Args:
        title: of the part.
        source: the picture, as a ``data:`` address.
        about: a sentence above the picture, or below the table.
        headings: of the table.
        rows: a cell is text, a number or an Estimate, which is drawn as a share with its interval.
    """

    title: str
    source: str = ""
    about: str = ""
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()


def detail_of(attempt: Attempt) -> dict[str, Any]:
    """Return what the page shows of one attempt, as far as its runs have left it."""
    return {
        "attempt": attempt.name,
        "first": attempt.done[0],
        "runs": len(attempt.done),
        "beside": [part for section in BESIDE if (part := section(attempt))],
        "notes": [note for section in NOTES for note in section(attempt)],
        "below": [part for section in BELOW if (part := section(attempt))],
        "missing": _missing(attempt),
    }


def _confusion(attempt: Attempt) -> Part | None:
    """Return the confusion matrix as a picture, or of many classes the most frequent mistakes as a table."""
    if (matrix := _matrix(attempt)) is None:
        return None
    classes, runs = attempt.done[0].classes, len(attempt.on())
    together = f", test images of {runs} runs together" if runs > 1 else ", test images"
    if len(classes) <= figures.MOST:
        return Part(f"Confusion matrix{together}", figures.to_data_uri(figures.confusion_figure(matrix, classes)))
    rows: Sequence[Sequence[Any]] = top_confusions(matrix, classes) or [("none", "", "", "")]
    return Part(f"Most frequent mistakes{together}", headings=["class", "taken for", "how often", "of"], rows=rows)


def _matrix(attempt: Attempt) -> np.ndarray | None:
    """Return the confusion matrix of all runs; None without one, or where scores and their threshold show more."""
    counts = None if attempt.done[0].threshold else attempt.confusions
    return None if counts is None else counts.sum(axis=0).astype(int)


def by_type(attempt: Attempt) -> Part | None:
    """Return the metrics of each defect type, the means over the runs, and its images, each of them counted once."""
    of_runs = [types for run in attempt.done if (types := run.metrics.get("test", {}).get("by_type"))]
    keys = {key for types in of_runs for values in types.values() for key in values}
    metrics = {m.words.by_type: m.title for m in all_metrics() if m.words.by_type in keys}
    kind_of = {image: row.get("type") for t in attempt.on() for image, row in zip(t.images, t.rows, strict=True)}
    images = Counter(kind_of.values())

    def row(kind: str) -> list[Any]:
        of_kind = [types[kind] for types in of_runs if kind in types]
        means = [mean(values.get(key) for values in of_kind) for key in metrics]
        return [kind, images[kind] or of_kind[0]["images"], *means]

    rows = [row(kind) for kind in dict.fromkeys(kind for types in of_runs for kind in types)]
    title = "By defect type" + (f", means of {len(of_runs)} runs" if len(of_runs) > 1 else "")
    return Part(title, headings=["type", "images", *metrics.values()], rows=rows) if rows else None


def _recall(attempt: Attempt) -> Part | None:
    if (matrix := _matrix(attempt)) is None:
        return None
    counts = zip(attempt.done[0].classes, matrix.diagonal(), matrix.sum(axis=1), strict=True)
    rows = [[name, right, total, attempt.recall.get(name)] for name, right, total in counts]
    images = "images" if len(attempt.on()) == 1 else "of"
    return Part("Recall by class", headings=["class", "right", images, "recall", "95% interval"], rows=rows)


def _threshold(attempt: Attempt) -> list[str]:
    threshold = attempt.done[0].threshold
    return (
        [f"Threshold {threshold['value']:.4g}, {RULES.get(threshold['rule'], threshold['rule'])}."] if threshold else []
    )


def _together(attempt: Attempt) -> list[str]:
    known = attempt.together if _matrix(attempt) is not None else {}
    images = len({image for test_set in attempt.tests for image in test_set})
    figures_of = {METRICS[key].title: interval(estimate) for key, estimate in known.items()}
    return [
        f"{title[0].upper()}{title[1:]} of {images} tested images together: {f}." for title, f in figures_of.items()
    ]


def _scores(attempt: Attempt) -> Part | None:
    """Return the first run's scores: a row for validation, the good images and each defect type; None without any."""
    run = attempt.done[0]
    rows = predictions_of(run)
    if rows is None or run.threshold is None:
        return None
    scores: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: (row["split"] != "val", row["type"] != GOOD, row["type"])):
        kind = f"{row['type']}, validation" if row["split"] == "val" else row["type"]
        scores.setdefault(kind, []).append(float(row["score"]))
    chart = figures.scores_figure(scores, run.threshold["value"], (GOOD, f"{GOOD}, validation"))
    return Part(f"Scores{_of_first(attempt)}", figures.to_data_uri(chart))


def _held_out_rows(attempt: Attempt) -> Sequence[Mapping[str, Any]]:
    """Return the first run's predictions; none where its validation images are the test images."""
    run = attempt.done[0]
    return [] if run.val_is_test else predictions_of(run) or []


def _points(attempt: Attempt) -> Part | None:
    """Return the table of operating points; None without held-out good images."""
    rows = _held_out_rows(attempt)
    headings, cells = operating.table(scores_of(rows, "val"), scores_of(rows, "test"))
    if not cells:
        return None
    about = f"{operating.ABOUT} task=threshold sets one."
    return Part(f"Operating points{_of_first(attempt)}", about=about, headings=headings, rows=cells)


def _escapes(attempt: Attempt) -> Part | None:
    """Return the curve of escapes against false rejects; None without defects and good images of one set."""
    if not (sets := operating.curves_of(_held_out_rows(attempt))):
        return None
    source = figures.to_data_uri(operating.operating_figure(sets))
    return Part(f"Escapes against false rejects{_of_first(attempt)}", source)


def _in_their_set(attempt: Attempt) -> Part | None:
    """Return how many test images of each class have it in their set, and what was aimed at; None without sets."""
    of_runs = [run.sets for run in attempt.done if run.sets]
    rows: list[list[Any]] = []
    for name in attempt.done[0].classes if of_runs else ():
        tested = [
            (image, name in row["set"].split("|"))
            for t in attempt.on()
            for image, row in zip(t.images, t.rows, strict=True)
            if row["label"] == name and row.get(CERTAINTY)
        ]
        share, images = mean(float(held) for _, held in tested), len({image for image, _ in tested})
        bounds = (None, None) if share is None else wilson_interval(share * images, images)
        held_out, alpha = (mean(of_run[key][name] for of_run in of_runs) for key in ("held_out", "alpha"))
        covered = Estimate(share, *bounds) if share is not None else None
        rows.append([name, f"{held_out:.3g}", f"{1 - (alpha or 0):.3g}", images, covered])
    headings = ["class", "held out", "aim", "tested", "has it", "95% interval"]
    if not rows:
        return None
    images = max(round(sum(of_run["held_out"].values())) for of_run in of_runs)
    about = f"The aim {reservation(images, attempt.done[0].validates_by)}."
    return Part("Own class in the set", about=about, headings=headings, rows=rows)


def _mistakes(attempt: Attempt) -> Part | None:
    return _sheet(attempt, MISTAKES)


def _explanation(attempt: Attempt) -> Part | None:
    return _sheet(attempt, EXPLANATIONS, _explained(attempt.done))


def _sheet(attempt: Attempt, name: str, more: str | None = None) -> Part | None:
    """Return a picture of the first run, with what the run says of it and a further sentence; None: it left none."""
    first = attempt.done[0]
    source, (title, about) = _picture(first, name)[0], _caption(attempt, name)
    title = (title or TITLES[name]) + _of_first(attempt, ", ")
    return Part(title, source, " ".join(filter(None, (about, more)))) if source else None


def _caption(attempt: Attempt, name: str) -> Sequence[str]:
    """Return the title and the sentence of a picture, of the first run that says any: older ones do not."""
    return next((run.captions[name] for run in attempt.done if name in run.captions), ("", ""))


def _picture(run: RunResult, name: str) -> tuple[str | None, str | None]:
    """Return a run's picture as a ``data:`` address; else None, and why a picture that is there cannot be shown."""
    try:
        path = file_of(run.run_dir, name)
        return (None if path is None else _drawn(path)), None
    except LabError as error:
        return None, str(error)


def _drawn(path: Path) -> str:
    """Return a picture as a ``data:`` address.

    Raises:
        LabError: it is no JPEG, or has too many pixels.
    """
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            if image.width * image.height > PIXELS_OF_PAGE:
                raise ValueError(f"{image.width} x {image.height} pixels are more than any sheet has")
            image.load()
    except Exception as error:  # damage makes decoders raise nearly anything
        raise damaged(path, error) from error
    return figures.to_data_uri(path)


def _of_first(attempt: Attempt, joint: str = " ") -> str:
    return f"{joint}of the first run" if len(attempt.done) > 1 else ""


def _explained(runs: Sequence[RunResult]) -> str | None:
    """Return where the class-activation maps of all runs peak, in a sentence; None where no image has a mask."""
    explained = [run.explained for run in runs if run.explained and run.explained["images"]]
    if not explained:
        return None
    keys = ("images", "peak_in_mask", "mistakes", "mistakes_peak_in_mask")
    images, inside, mistakes, mistaken = (sum(of_run[key] for of_run in explained) for key in keys)
    chance = sum(of_run["chance"] * of_run["images"] for of_run in explained) / images
    text = f"The map's peak lies inside the defect's mask in {inside} of {images} images"
    text += f" of {len(explained)} runs together" if len(explained) > 1 else ""
    text += f" (a random point would in {chance:.1%})"
    if 0 < mistakes < images:
        right = images - mistakes
        text += f": {inside - mistaken} of the {right} classified rightly, {mistaken} of the {mistakes} mistaken"
    return f"{text}."


def _missing(attempt: Attempt) -> list[str]:
    """Return what the runs have not left, one sentence each."""
    first = attempt.done[0]
    sheet, explanations = (_picture(first, name) for name in (MISTAKES, EXPLANATIONS))
    missing = {
        "No test predictions were left: there is no confusion matrix.": not attempt.tests,
        "No picture sheet was left.": sheet == (None, None),
        **{f"{why}.": True for _, why in (sheet, explanations) if why},
    }
    title, about = _caption(attempt, EXPLANATIONS)
    if explanations == (None, None) and about:
        missing[f"The pictures “{title}” were not left." if title else about] = True
    return [text for text, applies in missing.items() if applies]


# What the page shows of an attempt: side by side, in words, and below.
BESIDE: Sequence[Callable[[Attempt], Part | None]] = (
    _scores,
    _confusion,
    by_type,
    _recall,
    _in_their_set,
    _points,
    _escapes,
)
NOTES: Sequence[Callable[[Attempt], list[str]]] = (_threshold, _together)
BELOW: Sequence[Callable[[Attempt], Part | None]] = (_mistakes, _explanation)
