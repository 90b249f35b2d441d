"""Write report.html: one self-contained page on the runs of a sweep, without scripts or addresses outside the page."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from mvtec_lab.config import VerdictConfig
from mvtec_lab.evaluation.confidence import coverage_curve
from mvtec_lab.evaluation.metrics import top_confusions
from mvtec_lab.evaluation.specs import METRICS, Metric, all_metrics
from mvtec_lab.evaluation.statistics import wilson_interval
from mvtec_lab.foreign import damaged, file_of
from mvtec_lab.locks import held
from mvtec_lab.reporting import figures, summary
from mvtec_lab.reporting.attempts import Attempt, Estimate, mean
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.dataset import PAGE, page_of
from mvtec_lab.reporting.pages import describe_command, protocol, write_page
from mvtec_lab.reporting.pairs import COMPARISON, Comparison
from mvtec_lab.reporting.runs import RUN_KEYS, Settings, failure, load_runs, predictions_of
from mvtec_lab.reporting.summary import distinct
from mvtec_lab.reporting.verdict import FEW
from mvtec_lab.results import (
    CERTAINTY,
    EXPLANATIONS,
    GOOD,
    HISTORY,
    MISTAKES,
    RESULT,
    ROWS,
    SURE,
    RunResult,
    from_one,
    remove_leftovers,
    table_of,
)

REPORT = "report.html"
PIXELS_OF_PAGE = 1 << 25  # a sheet of pictures has a million or two at most
TITLES = {MISTAKES: "Test images, worst mistakes first", EXPLANATIONS: "Explanations"}  # where a run says none
RULES = {
    "quantile": "a quantile of the good validation images' scores",
    "synthetic": "of best F1 on validation's good images and made-up defects",
    "best_f1": "of best F1 on the test images, defects included",
}

# What a reader wants to know of a training, where it is the same for all runs.
COMMON = {
    "data.image_size": "images of {0} x {0} pixels",
    "optimizer.name": "optimizer {}",
    "optimizer.lr": "learning rate {}",
    "data.batch_size": "{} images a batch",
    "loss.name": "loss {}",
    "trainer.max_epochs": "at most {} epochs",
}


@dataclass
class Part:
    """Place a picture or a table on the page, of one attempt.

    Args:
        title: of the part.
        source: the picture, as a ``data:`` address.
        about: a sentence above the picture.
        headings: of the table.
        rows: a cell is text, a number or an Estimate, which is drawn as a share with its interval.
    """

    title: str
    source: str = ""
    about: str = ""
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()


def sum_up(
    directory: Path,
    *sources: str | os.PathLike[str],
    verdict: VerdictConfig | None = None,
    show: Callable[[Sequence[summary.Row], Sequence[str]], None] | None = None,
    notes: Sequence[str] = (),
) -> tuple[list[summary.Row], Comparison]:
    """Compare runs and write summary.csv, comparison.json and report.html into a directory.

    Args:
        directory: where the files go.
        sources: every run below them is compared; none: below the directory itself.
        verdict: metric and reference, which go before those of the runs.
        show: takes rows and verdict before anything is written, so that a full disk does not lose them.
        notes: sentences that follow the verdict.

    Raises:
        LabError: a source without a run, or a damaged file of a run's.
    """
    comparison = compare(load_runs(*(sources or [directory])), verdict)
    comparison.verdict += notes
    rows = summary.summarise(comparison)
    if show is not None:
        show(rows, comparison.verdict)
    with held(directory, wait=True):
        remove_leftovers(directory, (summary.SUMMARY, COMPARISON, REPORT))
        summary.write_summary(rows, directory)
        comparison.save(directory)
        write_report(comparison, rows, directory)
    return rows, comparison


def show_results(rows: Sequence[summary.Row], verdict: Sequence[str]) -> None:
    """Print the table and the verdict, and that the report, which takes seconds, is next."""
    summary.print_table(rows, verdict)
    print(f"drawing {REPORT} ...", flush=True)


def write_report(comparison: Comparison, rows: Sequence[summary.Row], directory: Path) -> Path:
    """Write report.html, complete or not at all, and return its path.

    The page leaves out what a run has not (a history, predictions, a picture sheet), and says so.
    """
    runs = [run for attempt in comparison.attempts for run in attempt.runs]
    path = directory / REPORT
    write_page(
        path,
        "report.html.j2",
        **_origin(comparison, runs),
        **_curves(comparison.attempts),
        rows=rows,
        tables=[_table(part) for part in summary.parts(rows)],
        titles=distinct(row["data"] for row in rows),
        marks=summary.remarks(rows, "marks"),
        warnings=summary.remarks(rows, "warnings"),
        verdict=comparison.verdict,
        coverage=_coverage(comparison.done),
        compared=[part for metric in comparison.metrics if (part := _compared(comparison, METRICS[metric]))],
        reported=[row for row in rows if row["reported_accuracy"] is not None],
        measured=summary.measured,
        reproduced=summary.reproduced,
        judged=summary.judged,
        cell=summary.cell,
        counted=summary.counted,
        attempts=[attempt.name for attempt in comparison.attempts],
        differences=_differences(comparison),
        details=[_detail(attempt) for attempt in comparison.done],
        failures=[(run, failure(run)) for run in runs if not (run.completed or run.running)],
        data_page=PAGE,
        **_data_pages(comparison, runs, directory),
        logdir=shlex.quote(common_folder(directory, runs)),
    )
    return path


def _origin(comparison: Comparison, runs: Sequence[RunResult]) -> dict[str, Any]:
    """Return what the page says of the images, backbones, seeds and software of the runs."""
    settings = comparison.settings
    protocols: dict[str, list[str]] = {}
    for run in runs:
        if text := protocol(settings[run.run_dir], run.counts, run.drawn_from_all):
            protocols.setdefault(text, []).append(run.attempt)
    finished = max((Path(run.run_dir) / RESULT).stat().st_mtime for run in runs)
    return {
        "protocols": [
            f"{text} ({', '.join(distinct(names))})" if len(protocols) > 1 else text
            for text, names in protocols.items()
        ],
        "common": _common([run for run in runs if run.completed], settings),
        "sizes": _sizes(runs),
        "backbones": distinct(run.backbone for run in runs if run.backbone != "none"),
        "seeds": sorted({run.seed for run in runs}),
        "finished": datetime.fromtimestamp(finished).strftime("%Y-%m-%d %H:%M"),
        "versions": _merged([run.versions for run in runs]),
        "revisions": sorted({run.git_revision for run in runs if run.git_revision}),
    }


def _common(runs: Sequence[RunResult], settings: Mapping[str, Settings]) -> str:
    """Return the settings of training that all runs share, in words; empty where a run does not say what it used."""
    if not runs or not all(settings[run.run_dir] and run.idle is not None for run in runs):
        return ""
    weights = distinct(f"{run.backbone}, weights {run.weights or 'not recorded'}" for run in runs)
    parts = [f"backbone {weights[0]}"] if len(weights) == 1 and runs[0].backbone != "none" else []
    for key, words in COMMON.items():
        values = distinct(settings[run.run_dir].get(key, "null") for run in runs)
        if len(values) == 1 and values[0] != "null" and not any(key in (run.idle or ()) for run in runs):
            parts.append(words.format(values[0]))
    return ", ".join(parts)


def _curves(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Return the training curves as a picture, and the names of the attempts that should have left some."""
    runs = {a.name: [(run, rows) for run in a.runs if (rows := _history(run))] for a in attempts}
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


def _table(rows: Sequence[summary.Row]) -> dict[str, Any]:
    """Return a table of results that one metric judges, the further tables of its aspects, and the metric's figure."""
    further = summary.shown(rows)
    aspects = dict.fromkeys(column.aspect for column in summary.columns() if column.aspect)
    tables = {aspect: summary.shown(rows, aspect=aspect) for aspect in aspects}
    judge: Metric = rows[0]["metric"]  # its column is none of ``further``
    about = dict.fromkeys(filter(None, [judge.words.about, *(column.about for column in further if not column.aspect)]))
    return {
        "rows": rows,
        "metric": judge.title,
        "shown": further,
        "about": " ".join(about),
        "aspects": {aspect: columns for aspect, columns in tables.items() if columns},
        "figure": figures.to_data_uri(figures.verdict_figure(rows)) if any(row["completed"] for row in rows) else None,
    }


def common_folder(directory: Path, runs: Sequence[RunResult]) -> str:
    """Return the folder above all runs: the directory itself, unless they are from elsewhere."""
    if all(directory in Path(run.run_dir).parents or directory == Path(run.run_dir) for run in runs):
        return str(directory)
    return os.path.commonpath([Path(run.run_dir).resolve() for run in runs])


def _detail(attempt: Attempt) -> dict[str, Any]:
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


def _by_type(attempt: Attempt) -> Part | None:
    """Return the metrics of each defect type, the means over the runs, and its images, each of them counted once."""
    of_runs = [types for run in attempt.done if (types := run.metrics["test"].get("by_type"))]
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
    figures_of = {METRICS[key].title: summary.interval(estimate) for key, estimate in known.items()}
    return [
        f"{title[0].upper()}{title[1:]} of {images} tested images together: {f}." for title, f in figures_of.items()
    ]


def _mistakes(attempt: Attempt) -> Part | None:
    return _sheet(attempt, MISTAKES)


def _explanation(attempt: Attempt) -> Part | None:
    return _sheet(attempt, EXPLANATIONS, _explained(attempt.done))


def _sheet(attempt: Attempt, name: str, more: str | None = None) -> Part | None:
    """Return a picture of the first run, with what the run says of it and a further sentence; None: it left none."""
    first = attempt.done[0]
    source, (title, about) = _picture(first, name), _caption(attempt, name)
    title = (title or TITLES[name]) + _of_first(attempt, ", ")
    return Part(title, source, " ".join(filter(None, (about, more)))) if source else None


def _caption(attempt: Attempt, name: str) -> Sequence[str]:
    """Return the title and the sentence of a picture, of the first run that says any: older ones do not."""
    return next((run.captions[name] for run in attempt.done if name in run.captions), ("", ""))


def _missing(attempt: Attempt) -> list[str]:
    """Return what the runs have not left, one sentence each."""
    first = attempt.done[0]
    missing = {
        "No test predictions were left: there is no confusion matrix.": not attempt.tests,
        "No picture sheet was left.": _mistakes(attempt) is None,
    }
    title, about = _caption(attempt, EXPLANATIONS)
    if _picture(first, EXPLANATIONS) is None and about:
        missing[f"The pictures “{title}” were not left." if title else about] = True
    return [text for text, applies in missing.items() if applies]


def _of_first(attempt: Attempt, joint: str = " ") -> str:
    return f"{joint}of the first run" if len(attempt.done) > 1 else ""


def _picture(run: RunResult, name: str) -> str | None:
    """Return a run's picture as a ``data:`` address; None where it left none.

    Raises:
        LabError: it is no JPEG, or leads out of the run's directory.
    """
    path = file_of(run.run_dir, name)
    if path is None:
        return None
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            if image.width * image.height > PIXELS_OF_PAGE:
                raise ValueError(f"{image.width} x {image.height} pixels are more than any sheet has")
            image.load()
    except Exception as error:  # damage makes decoders raise nearly anything
        raise damaged(path, error) from error
    return figures.to_data_uri(path)


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


def _in_their_set(attempt: Attempt) -> Part | None:
    """Return how many test images of each class have it in their set, and what was promised; None without sets."""
    of_runs = [run.sets for run in attempt.done if run.sets]
    rows: list[list[Any]] = []
    for name in attempt.done[0].classes if of_runs else ():
        tested = [
            (image, name in row["set"].split("|"))
            for t in attempt.on()
            for image, row in zip(t.images, t.rows, strict=True)
            if row["label"] == name and row.get("set") is not None
        ]
        share, images = mean(float(held) for _, held in tested), len({image for image, _ in tested})
        bounds = (None, None) if share is None else wilson_interval(share * images, images)
        held_out, promised = (mean(of_run[key][name] for of_run in of_runs) for key in ("held_out", "alpha"))
        covered = Estimate(share, *bounds) if share is not None else None
        rows.append([name, f"{held_out:.3g}", f"{1 - (promised or 0):.3g}", images, covered])
    headings = ["class", "held out", "promised", "tested", "has it", "95% interval"]
    return Part("Own class in the set", headings=headings, rows=rows) if rows else None


# What the page shows of an attempt: side by side, in words, and below.
BESIDE: Sequence[Callable[[Attempt], Part | None]] = (_scores, _confusion, _by_type, _recall, _in_their_set)
NOTES: Sequence[Callable[[Attempt], list[str]]] = (_threshold, _together)
BELOW: Sequence[Callable[[Attempt], Part | None]] = (_mistakes, _explanation)


def _coverage(attempts: Sequence[Attempt]) -> str | None:
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


def _compared(comparison: Comparison, metric: Metric) -> dict[str, Any] | None:
    """Return the table of the pairs that a metric judges; None without any.

    ``further`` are those to show on demand: with many attempts, all pairs without the best.
    """
    names = [attempt.name for attempt in comparison.done if attempt.metric == metric]
    pairs = [pair for pair in comparison.pairs if pair.first in names and pair.second in names]
    if not pairs:
        return None
    reference, best = comparison.reference if comparison.reference in names else None, comparison.best
    many = len(names) > FEW + 1 and reference is None and best is not None
    mine = [pair for pair in pairs if best in (pair.first, pair.second)] if many else pairs
    further = [pair for pair in pairs if pair not in mine]
    return {"metric": metric, "reference": reference, "all": pairs, "pairs": mine, "further": further}


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


def _history(run: RunResult) -> list[dict[str, str]]:
    rows = table_of(run.run_dir, HISTORY, "epoch") or []
    try:
        for row in rows:
            int(row["epoch"]), [float(cell) for cell in row.values() if cell]
            if not 0 <= int(row["epoch"]) < ROWS:
                raise ValueError(f"epoch {row['epoch']}")
    except (TypeError, ValueError) as error:
        raise damaged(Path(run.run_dir, HISTORY), error) from error
    return from_one(rows)


def _differences(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return the keys whose values differ among attempts (or among the runs of one), with one text per attempt."""
    table, settings = [], comparison.settings
    groups = [[own for run in attempt.runs if (own := settings[run.run_dir])] for attempt in comparison.attempts]
    for key in dict.fromkeys(key for of_run in settings.values() for key in of_run):
        cells = [tuple(distinct(values.get(key, "–") for values in group)) for group in groups]
        known = {cell for cell in cells if cell}  # an attempt that failed before it wrote its config has none
        varies = len(known) > 1 or (key not in RUN_KEYS and any(len(cell) > 1 for cell in known))
        if key != "attempt" and varies:
            table.append((key, [", ".join(cell) or "not recorded" for cell in cells]))
    return table


def _data_pages(comparison: Comparison, runs: Sequence[RunResult], directory: Path) -> dict[str, Any]:
    """Return the addresses of the pages that describe the images, and the commands that write those which are missing.

    A sweep writes its page before its report. Elsewhere, for runs of other days and machines, the images may be gone,
    and decoding all would take longer than the comparison: the command does it.
    """
    pages: dict[str, None] = {}
    commands: dict[tuple[str, str], str] = {}
    for run in {(run.data, run.category, Path(run.run_dir).parent): run for run in runs}.values():
        page, settings = page_of(run, directory), comparison.settings[run.run_dir]
        if page is not None:
            pages[quote(Path(os.path.relpath(page, directory)).as_posix())] = None
        elif settings:
            command = f"{describe_command(settings)} {shlex.quote(f'hydra.run.dir={directory}')}"
            commands.setdefault((run.data, run.category), command)
    return {"data_pages": [*pages], "data_commands": [*commands.values()]}


def _sizes(runs: Sequence[RunResult]) -> str:
    """Return the images in each split, ``62 train, 8–9 val, 20 test``: a range where the runs differ."""
    sizes: dict[str, set[int]] = {}
    for run in runs:
        for split, counts in run.counts.items():
            sizes.setdefault(split, set()).add(sum(counts.values()))
    return ", ".join(f"{summary.span(counts)} {split}" for split, counts in sizes.items())


def _merged(versions: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the versions by package, all of them where a package has several."""
    names = dict.fromkeys(name for of_run in versions for name in of_run)
    return {name: ", ".join(distinct(v[name] for v in versions if name in v)) for name in names}
