"""Say where the figures of a page come from: images, split, backbones, settings, seeds and software of the runs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mvtec_lab.config import Config
from mvtec_lab.knobs import changing
from mvtec_lab.reporting.dataset import page_of
from mvtec_lab.reporting.grouping import OPTIONS, RUN_KEYS, said_options
from mvtec_lab.reporting.pages import describe_command, protocol
from mvtec_lab.reporting.pairs import Comparison
from mvtec_lab.reporting.runs import INNER_FOLDS, Settings, learnt_images
from mvtec_lab.reporting.words import distinct, span
from mvtec_lab.results import RESULT, RunResult

WITHOUT_RESULT = changing(Config, "nothing")  # whatever their values, the results are the same
# What a reader wants to know of a training, where it is the same for all runs.
COMMON = {
    "data.image_size": "images of {0} x {0} pixels",
    "optimizer.name": "optimizer {}",
    "optimizer.lr": "learning rate {}",
    "data.batch_size": "{} images a batch",
    "loss.name": "loss {}",
    "trainer.max_epochs": "at most {} epochs",
}


def origin_of(comparison: Comparison, runs: Sequence[RunResult]) -> dict[str, Any]:
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
        if key == "data.batch_size" and not all(run.epochs for run in runs):  # images are only read in batches
            continue
        if len(values) == 1 and values[0] != "null" and not any(key in (run.idle or ()) for run in runs):
            parts.append(words.format(values[0]))
    return ", ".join(parts)


def _sizes(runs: Sequence[RunResult]) -> str:
    """Return the images in each split, ``62 train, 8–9 val, 20 test``: a range where the runs differ.

    Some learn from those of validation as well, which inner folds judge; beside others they are named.
    """
    groups: dict[str, dict[str, set[int]]] = {}
    names: dict[str, list[str]] = {}
    for run in runs:
        images = {split: sum(counts.values()) for split, counts in run.counts.items()}
        if run.validates_by == INNER_FOLDS:
            images["train"] = learnt_images(run)
            images.pop("val", None)
        names.setdefault(run.validates_by, []).append(run.attempt)
        for split, number in images.items():
            groups.setdefault(run.validates_by, {}).setdefault(split, set()).add(number)
    texts = []
    for how, sizes in groups.items():
        text = ", ".join(
            f"{span(counts)} {split}{f' (validation by {how})' if how and split == 'train' else ''}"
            for split, counts in sizes.items()
        )
        texts.append(f"{', '.join(distinct(names[how]))}: {text}" if len(groups) > 1 else text)
    return "; ".join(texts)


def _merged(versions: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the versions by package, all of them where a package has several."""
    names = dict.fromkeys(name for of_run in versions for name in of_run)
    return {name: ", ".join(distinct(v[name] for v in versions if name in v)) for name in names}


def differences(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return the keys whose values differ among attempts (or among the runs of one), with one text per attempt.

    A dash stands where a key is missing, or has no effect on any run of the attempt.
    """
    table, settings = [], comparison.settings
    said = said_options([run for attempt in comparison.attempts for run in attempt.runs], settings)
    groups = [[run for run in attempt.runs if settings[run.run_dir]] for attempt in comparison.attempts]
    for key in dict.fromkeys(key for of_run in settings.values() for key in of_run):
        cells = [tuple(distinct(settings[run.run_dir].get(key, "–") for run in group)) for group in groups]
        foreign = key.startswith(OPTIONS) and key not in said  # that another method lacks it is no difference
        if key == "attempt" or key in WITHOUT_RESULT or not _vary(cells, key, foreign):
            continue
        cells = [
            ("–",) if group and all(_idle(run, key) for run in group) else cell
            for group, cell in zip(groups, cells, strict=True)
        ]
        if _vary(cells, key, foreign):
            table.append((key, [", ".join(cell) or "not recorded" for cell in cells]))
    return table


def _idle(run: RunResult, key: str) -> bool:
    return any(f"{key}.".startswith(f"{idle}.") for idle in run.idle or ())


def _vary(cells: Sequence[tuple[str, ...]], key: str, foreign: bool) -> bool:
    known = {cell for cell in cells if cell}  # an attempt that failed before it wrote its config has none
    if foreign:
        known.discard(("–",))
    return len(known) > 1 or (key not in RUN_KEYS and any(len(cell) > 1 for cell in known))


def data_pages(comparison: Comparison, runs: Sequence[RunResult], directory: Path) -> dict[str, Any]:
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


def common_folder(directory: Path, runs: Sequence[RunResult]) -> str:
    """Return the folder above all runs: the directory itself, unless they are from elsewhere."""
    if all(directory in Path(run.run_dir).parents or directory == Path(run.run_dir) for run in runs):
        return str(directory)
    return os.path.commonpath([Path(run.run_dir).resolve() for run in runs])
