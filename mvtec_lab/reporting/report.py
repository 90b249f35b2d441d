"""report.html: one self-contained page on the runs of a sweep. No script, and no address outside the page."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from mvtec_lab.config import VerdictConfig
from mvtec_lab.evaluation.metrics import GROUPS, top_confusions
from mvtec_lab.foreign import damaged, file_of
from mvtec_lab.locks import held
from mvtec_lab.reporting import figures, summary
from mvtec_lab.reporting.attempts import Attempt
from mvtec_lab.reporting.comparison import COMPARISON, Comparison, Pair, compare
from mvtec_lab.reporting.runs import RUN_KEYS, Settings, failure, load_runs, predictions_of
from mvtec_lab.reporting.verdict import FEW, NAMES
from mvtec_lab.results import (
    EXPLANATIONS,
    HISTORY,
    MISTAKES,
    RESULT,
    ROWS,
    RunResult,
    remove_leftovers,
    table_of,
    write_whole,
)

REPORT = "report.html"
PIXELS_OF_PAGE = 1 << 25  # a sheet of pictures has at most a million or two
GOOD = "good"
TYPE_FIGURES = {  # of each defect type, in a one-class run's table
    "recall": "found",
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_aupro": "AUPRO",
}


def sum_up(
    directory: Path,
    *sources: str | os.PathLike[str],
    verdict: VerdictConfig | None = None,
    show: Callable[[Sequence[summary.Row], Sequence[str]], None] | None = None,
) -> tuple[list[summary.Row], Comparison]:
    """Compare every run below the sources (the directory itself where there are none), and write summary.csv,
    comparison.json and report.html into the directory. ``verdict`` goes before what the runs say of it. ``show`` takes
    rows and verdict before anything is written: a full disk does not take them away.

    Raises:
        LabError: a source without a run, or a damaged file of a run's.
    """
    comparison = compare(load_runs(*(sources or [directory])), verdict)
    rows = summary.summarise(comparison)
    if show is not None:
        show(rows, comparison.verdict)
    with held(directory, wait=True):
        remove_leftovers(directory, (summary.SUMMARY, COMPARISON, REPORT))
        summary.write_summary(rows, directory)
        comparison.save(directory)
        write_report(comparison, rows, directory)
    return rows, comparison


def write_report(comparison: Comparison, rows: Sequence[summary.Row], directory: Path) -> Path:
    """Write report.html, whole or not at all, and return its path.

    What a run lacks (a history, predictions, a picture sheet) is left out, and the page says so.
    """
    groups = {attempt.name: attempt.runs for attempt in comparison.attempts}
    runs = [run for group in groups.values() for run in group]
    settings = comparison.settings
    pairs, other_pairs = _parted(comparison)
    histories = {name: [history for run in group if (history := _history(run))] for name, group in groups.items()}
    finished = max((Path(run.run_dir) / RESULT).stat().st_mtime for run in runs)

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # class names, paths and error texts come from files
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = summary.number
    environment.filters["digits"] = summary.digits
    html = environment.get_template("report.html.j2").render(
        rows=rows,
        tables=[_table(part) for part in summary.parts(rows)],
        titles=list(dict.fromkeys(row["data"] for row in rows)),
        protocols=list(dict.fromkeys(text for found in settings.values() if (text := _protocol(found)))),
        sizes=_sizes(runs),
        backbones=list(dict.fromkeys(run.backbone for run in runs if run.backbone != "none")),
        seeds=sorted({run.seed for run in runs}),
        finished=datetime.fromtimestamp(finished).strftime("%Y-%m-%d %H:%M"),
        marks=summary.remarks(rows, "marks"),
        warnings=summary.remarks(rows, "warnings"),
        verdict=comparison.verdict,
        pairs=pairs,
        other_pairs=other_pairs,
        reference=comparison.reference,
        names=NAMES,
        metrics=" or ".join(NAMES[metric] for metric in comparison.metrics),
        groups=[group for group in GROUPS if any(row[f"test_{group}_recall"] is not None for row in rows)],
        reported=[row for row in rows if row["reported_accuracy"] is not None],
        measured=summary.measured,
        reproduced=summary.reproduced,
        judged=summary.judged,
        counted=summary.counted,
        curves=figures.to_data_uri(figures.curves_figure(histories)) if any(histories.values()) else None,
        curveless=[a.name for a in comparison.attempts if not histories[a.name] and not _fit_once(a)],
        attempts=list(groups),
        differences=_differences(groups, settings),
        details=[_detail(attempt) for attempt in comparison.attempts if attempt.done],
        failures=[(run, failure(run)) for run in runs if not (run.completed or run.running)],
        logdir=shlex.quote(common_folder(directory, runs)),
        versions=_merged([run.versions for run in runs]),
        revisions=sorted({run.git_revision for run in runs if run.git_revision}),
    )
    path = directory / REPORT
    write_whole(path, html)
    return path


def _table(rows: Sequence[summary.Row]) -> dict[str, Any]:
    """One of ``summary.parts``, with its columns after the verdict's metric, and that metric's figure."""
    name = NAMES[rows[0]["metric"]]
    done = any(row["completed"] for row in rows)
    return {
        "rows": rows,
        "metric": name,
        "detects": rows[0]["detects"],
        "shown": summary.figures_of(rows),
        "figure": figures.to_data_uri(figures.verdict_figure(rows, name)) if done else None,
    }


def _fit_once(attempt: Attempt) -> bool:
    """There is no curve to miss: it trains no epoch."""
    return attempt.detects and any(run.completed and not run.epochs for run in attempt.runs)


def common_folder(directory: Path, runs: Sequence[RunResult]) -> str:
    """The folder above all runs: the directory itself, unless they were gathered from elsewhere."""
    if all(directory in Path(run.run_dir).parents or directory == Path(run.run_dir) for run in runs):
        return str(directory)
    return os.path.commonpath([Path(run.run_dir).resolve() for run in runs])


def _detail(attempt: Attempt) -> dict[str, Any]:
    """What the page shows of one attempt: the test predictions of all its completed runs, the first one's pictures."""
    if attempt.detects:
        return _detector_detail(attempt)
    first, each = attempt.done[0], attempt.confusions()
    matrix = None if each is None else each.sum(axis=0).astype(int)
    counts = [] if matrix is None else zip(first.classes, matrix.diagonal(), matrix.sum(axis=1), strict=True)
    many = len(first.classes) > figures.MOST
    return {
        "attempt": attempt.name,
        "detects": False,
        "first": first,
        "runs": len(attempt.done),
        "counted": sum(map(len, attempt.tests.values())),
        "judged": matrix is not None,
        "confusion": None if matrix is None or many else _confusion(matrix, first.classes),
        "confusions": top_confusions(matrix, first.classes) if matrix is not None and many else [],
        "many": many,
        "recall": [(name, right, images, attempt.recall.get(name)) for name, right, images in counts],
        "together": [(NAMES[metric], estimate) for metric, estimate in attempt.together.items()],
        "images": 0 if each is None else len(each),
        "mistakes": _picture(first, MISTAKES),
        "explanations": _picture(first, EXPLANATIONS),
        "explained": _explained(attempt.done),
    }


def _detector_detail(attempt: Attempt) -> dict[str, Any]:
    """The same of a one-class method: scores and pictures of the first run, figures of each defect type over all."""
    first = attempt.done[0]
    found = [run.metrics["test"]["by_type"] for run in attempt.done]
    columns = [key for key in TYPE_FIGURES if any(key in values for types in found for values in types.values())]
    types = {
        kind: [
            found[0][kind]["images"],
            *(summary.mean([t[kind].get(key) for t in found if kind in t]) for key in columns),
        ]
        for kind in found[0]
    }
    return {
        "attempt": attempt.name,
        "detects": True,
        "first": first,
        "runs": len(attempt.done),
        "columns": [TYPE_FIGURES[key] for key in columns],
        "types": types,
        "scores": _scores(first),
        "mistakes": _picture(first, MISTAKES),
        "explanations": _picture(first, EXPLANATIONS),
    }


def _confusion(matrix: np.ndarray, classes: Sequence[str]) -> str:
    return figures.to_data_uri(figures.confusion_figure(matrix, classes))


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


def _scores(run: RunResult) -> str | None:
    """The scores of a run's images, a row for validation's, the good ones' and each defect type's."""
    rows = predictions_of(run)
    if rows is None or run.threshold is None:
        return None
    scores: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: (row["split"] != "val", row["type"] != GOOD, row["type"])):
        kind = f"{row['type']}, validation" if row["split"] == "val" else row["type"]
        scores.setdefault(kind, []).append(float(row["score"]))
    good = (GOOD, f"{GOOD}, validation")
    return figures.to_data_uri(figures.scores_figure(scores, run.threshold["value"], good))


def _parted(comparison: Comparison) -> tuple[list[Pair], list[Pair]]:
    """The pairs, and those that the page shows on demand alone: with many attempts, all without the best of them."""
    pairs, best = comparison.pairs, comparison.best
    if len(comparison.attempts) <= FEW + 1 or comparison.reference or best is None:
        return pairs, []
    mine = [pair for pair in pairs if best in (pair.first, pair.second)]
    return mine, [pair for pair in pairs if pair not in mine]


def _explained(runs: Sequence[RunResult]) -> str | None:
    """Where the class-activation maps of all runs peak, in a sentence; None where no image has a mask."""
    found = [run.explained for run in runs if run.explained and run.explained["images"]]
    if not found:
        return None
    keys = ("images", "peak_in_mask", "mistakes", "mistakes_peak_in_mask")
    images, inside, mistakes, mistaken = (sum(f[key] for f in found) for key in keys)
    chance = sum(f["chance"] * f["images"] for f in found) / images
    text = f"The map's peak lies inside the defect's mask in {inside} of {images} images"
    text += f" of {len(found)} runs together" if len(found) > 1 else ""
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
    return rows


def _differences(
    groups: Mapping[str, Sequence[RunResult]], settings: Mapping[str, Settings]
) -> list[tuple[str, list[str]]]:
    """The keys whose values differ among attempts (or among the runs of one), with one text an attempt."""
    table = []
    for key in dict.fromkeys(key for found in settings.values() for key in found):
        cells = []
        for group in groups.values():
            found = [settings[run.run_dir] for run in group if settings[run.run_dir]]
            cells.append(tuple(dict.fromkeys(values.get(key, "–") for values in found)))
        known = {cell for cell in cells if cell}  # an attempt that failed before it wrote its config says nothing
        varies = len(known) > 1 or (key not in RUN_KEYS and any(len(cell) > 1 for cell in known))
        if key != "attempt" and varies:
            table.append((key, [", ".join(cell) or "not recorded" for cell in cells]))
    return table


def _protocol(settings: Settings) -> str | None:
    """How a run's images were split, in words; None where its config is missing."""
    split = {key.removeprefix("split."): value for key, value in settings.items() if key.startswith("split.")}
    match split.get("protocol"):
        case None:
            return None
        case "kfold":
            text = f"{split['folds']}-fold cross-validation, validation {split['val']}"
        case "one_class":
            return f"Learnt from train/good, {split['val']} of it held out for validation; tested on the test folder"
        case "file":
            return f"Split by {split['file']}"
        case _:
            text = f"Holdout, validation {split['val']}, test {split['test']}"
    pool = "the test folder" if split["pool"] == "test" else "all images"
    return f"{text} of {pool}" + ("" if split["per_class"] == "null" else f", {split['per_class']} images a class")


def _sizes(runs: Sequence[RunResult]) -> str:
    """Images in each split, ``62 train, 8–9 val, 20 test``; several numbers where the runs differ."""
    found: dict[str, set[int]] = {}
    for run in runs:
        for split, counts in run.counts.items():
            found.setdefault(split, set()).add(sum(counts.values()))
    return ", ".join("–".join(map(str, sorted({min(n), max(n)}))) + f" {split}" for split, n in found.items())


def _merged(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Versions by package; several of one package are named all."""
    names = dict.fromkeys(name for versions in found for name in versions)
    return {name: ", ".join(dict.fromkeys(v[name] for v in found if name in v)) for name in names}
