"""Read run directories for a comparison: what each run says of itself, and its predictions."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from math import isfinite
from pathlib import Path

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import racing
from mvtec_lab.evaluation.specs import add_means, choosing, columns_of, metrics_of
from mvtec_lab.evaluation.tested import Tested
from mvtec_lab.foreign import Share, damaged, file_of, misfit, read_yaml
from mvtec_lab.reporting.product_names import Version, product_of, told_apart
from mvtec_lab.reporting.recount import require_own_metrics
from mvtec_lab.results import (
    CONFIG,
    HISTORY,
    PREDICTIONS,
    RESULT,
    ROWS,
    RunResult,
    flatten,
    from_one,
    run_folders,
    table_of,
)

INNER_FOLDS = "inner folds"  # ``RunResult.validates_by`` of those that learn the images of train and val
UNKNOWN = "unknown"  # the product of a run of which neither result.json nor config.yaml says it

Settings = dict[str, str]  # dotted key -> value as text


def load_runs(*directories: str | os.PathLike[str]) -> list[RunResult]:
    """Return every run at or below the directories, each once, in the order in which they started.

    One whose files are damaged refuses no other: it has the status ``damaged``, and ``error`` says of which file.

    Raises:
        LabError: a directory without a run, or all runs are damaged.
    """
    folders: dict[Path, Path] = {}
    for directory in directories:
        below = run_folders(directory)
        if not below:
            raise LabError(
                f"{directory} holds no run (no {RESULT} at or below it): give the directory of a sweep or a run"
            )
        folders |= {folder.resolve(): folder for folder in below}
    runs, broken = list[RunResult](), dict[Path, LabError]()
    for folder in folders.values():
        try:
            runs.append(sound(RunResult.load(folder)))
        except LabError as error:
            broken[folder] = error
    if not runs and broken:
        raise next(iter(broken.values()))
    runs += [_stand_in(folder, error, [*runs]) for folder, error in broken.items()]
    runs = told_apart(sorted(runs, key=lambda run: (run.started, run.run_dir)))
    require_one(runs)
    return runs


def require_one(runs: Sequence[RunResult]) -> None:
    """Check that not all runs are damaged.

    Raises:
        LabError: they are; the first one's reason.
    """
    if runs and all(run.damaged for run in runs):
        raise LabError(str(runs[0].error))


def sound(run: RunResult, *checks: Callable[[RunResult], object]) -> RunResult:
    """Return a run, or a copy of the status ``damaged`` where one of its files is.

    Args:
        run: the run.
        checks: what raises a LabError for a damaged file; none: those of all files but its predictions.
    """
    try:
        for check in () if run.damaged else checks or (require_metrics, require_look, settings_of, history_of):
            check(run)
    except LabError as error:
        return run.set_aside(error)
    return run


def _stand_in(folder: Path, error: LabError, others: Sequence[RunResult]) -> RunResult:
    """Return what is known of a run without its result.json: by its config.yaml, and by other runs of its product."""
    settings = Settings()
    with suppress(LabError):  # it may be damaged as well
        settings = _settings_in(folder)
    same = [run for run in others if settings and _place_of(settings_known(run)) == _place_of(settings)]
    like = [run for run in same or others if run.method == settings.get("model.method")]
    products = {product_of(run) for run in same or others}
    data, category = products.pop() if len(products) == 1 else ("", UNKNOWN)
    seed, fold = settings.get("seed", ""), settings.get("split.fold", "")
    return RunResult(
        attempt=settings.get("attempt", folder.name),
        seed=int(seed) if seed.isdecimal() else 0,
        fold=int(fold) if fold.isdecimal() and settings["split.protocol"] == "kfold" else None,
        data=data,
        category=category,
        backbone=settings.get("model.backbone", ""),
        run_dir=str(folder),
        status="damaged",
        error=str(error),
        problem=(like or others)[0].problem,
        method=settings.get("model.method", ""),
    )


def _place_of(settings: Settings) -> list[str | None]:
    return [settings.get(key) for key in ("data.name", "data.category", "data.root")]


def require_metrics(run: RunResult) -> None:
    """Check that a run has the metrics of its problem, in their range.

    Raises:
        LabError: it has not, or nobody knows its problem.
    """
    metrics, path = metrics_of(run.problem), Path(run.run_dir, RESULT)
    for split, values in run.metrics.items():
        for metric in metrics:
            kind = Share | None if metric.share else float | None
            for part, where in [(values, ""), *((v, f".by_type.{k}") for k, v in values.get("by_type", {}).items())]:
                key = metric.words.by_type if where else metric.key
                if key and (wrong := misfit(part.get(key), kind, f"metrics.{split}{where}.{key}")):
                    raise damaged(path, wrong)
    needed = [("test", metric) for metric in metrics if metric.needed]
    if needed:  # other problems count by defects, of which validation may have none
        needed.append(("val", choosing(run.problem)))
    for split, metric in needed:
        values = run.metrics.get(split, {})
        lacks = values or (split == "test" and not run.untested)
        if run.completed and metric.of(values) is None and lacks:
            raise damaged(path, f"metrics.{split} has no {metric.key}: write_run counts them from predictions")
    if run.completed and not run.untested and not isinstance(run.metrics.get("test", {}).get("images"), int):
        raise damaged(path, "metrics.test has no images, their number: write_run counts them")


def settings_of(run: RunResult) -> Settings:
    """Return a run's config.yaml as dotted keys and texts; empty where it has none.

    Keys that are younger than the run have today's defaults.

    Raises:
        LabError: it is damaged.
    """
    settings = _settings_in(run.run_dir)
    if run.completed and settings and settings["model.method"] != run.method:
        path = Path(run.run_dir, CONFIG)
        raise damaged(path, f"model.method is {settings['model.method']}, in {RESULT} {run.method}")
    return settings


def settings_known(run: RunResult) -> Settings:
    """Return ``settings_of`` a run; of a damaged one those that can be read."""
    if not run.damaged:
        return settings_of(run)
    with suppress(LabError):
        return _settings_in(run.run_dir)
    return {}


def _settings_in(run_dir: str | os.PathLike[str]) -> Settings:
    path = file_of(run_dir, CONFIG)
    return {} if path is None else flatten(asdict(Config())) | flatten(read_yaml(path))


def require_look(run: RunResult) -> None:
    """Check that a race takes the look that a run says it was dropped at.

    Raises:
        LabError: none does.
    """
    if run.left_out and run.dropped and run.dropped["after"] not in racing.looks(run.dropped["folds"]):
        no = f"no race of {run.dropped['folds']} folds looks after {run.dropped['after']}"
        raise damaged(Path(run.run_dir, RESULT), no)


def history_of(run: RunResult) -> list[dict[str, str]]:
    """Return the rows of a run's history.csv, with epochs counted from 1; none where it left none.

    Raises:
        LabError: it is damaged.
    """
    rows = table_of(run.run_dir, HISTORY, "epoch") or []
    try:
        for row in rows:
            int(row["epoch"]), [float(cell) for cell in row.values() if cell]
            if not 0 <= int(row["epoch"]) < ROWS:
                raise ValueError(f"epoch {row['epoch']}")
    except (TypeError, ValueError) as error:
        raise damaged(Path(run.run_dir, HISTORY), error) from error
    return from_one(rows)


def tested(run: RunResult) -> Tested | None:
    """Return a run's test predictions, and add means over images that its result.json lacks; None without predictions.

    Raises:
        LabError: its predictions.csv is damaged, or gives other metrics than its result.json.
    """
    path = Path(run.run_dir) / PREDICTIONS
    all_rows = predictions_of(run)
    if all_rows is None:
        return None
    names = run.names if isinstance(run, Version) else {}
    rows = sorted((r for r in all_rows if r["split"] == "test"), key=lambda r: names.get(r["path"], r["path"]))
    if not rows and run.untested:
        return None
    if not rows:
        raise damaged(path, "no test image")
    images = tuple(f"{run.data}/{run.category}/{names.get(row['path'], row['path'])}" for row in rows)
    predictions = Tested(run, images, rows, run.classes if "prediction" in columns_of(run) else ())
    try:
        if predictions.classes:
            _ = predictions.right  # labels and predictions are known classes
        require_own_metrics(run, all_rows)
        add_means(run.problem, run.metrics, all_rows)  # those that are younger than the run
    except KeyError as error:
        raise damaged(path, f"no column or class {error}") from error
    except (TypeError, ValueError) as error:
        raise damaged(path, error) from error
    return predictions


def learnt_images(run: RunResult) -> int:
    """Return how many images a run learnt from: those of validation as well where inner folds judge them."""
    splits = ("train", "val") if run.validates_by == INNER_FOLDS else ("train",)
    return sum(sum(run.counts.get(split, {}).values()) for split in splits)


def held_out(run: RunResult) -> Tested | None:
    """Return the predictions of the images that validated a run, as of test images; None where it left none.

    Raises:
        LabError: its predictions.csv is damaged.
    """
    rows = sorted((row for row in predictions_of(run) or () if row["split"] == "val"), key=lambda row: row["path"])
    images = tuple(f"{run.data}/{run.category}/{row['path']}" for row in rows)
    return Tested(run, images, rows, run.classes if "prediction" in columns_of(run) else ()) if rows else None


def predictions_of(run: RunResult) -> list[dict[str, str]] | None:
    """Return the rows of a completed run's predictions.csv; None where it left none.

    Raises:
        LabError: it is damaged.
    """
    if not run.completed:
        return None
    rows, path = table_of(run.run_dir, PREDICTIONS, *columns_of(run)), Path(run.run_dir, PREDICTIONS)
    seen: set[str] = set()
    for line, row in enumerate(rows or (), start=2):
        if row["split"] == "test" and row["path"] in seen:
            raise damaged(path, f"line {line} names {row['path']} again")
        seen |= {row["path"]} if row["split"] == "test" else set()
        for key in (key for key in row if key == "score" or (key or "").startswith("prob_")):
            with suppress(TypeError, ValueError):
                if isfinite(float(row[key])):
                    continue
            raise damaged(path, f"line {line} has the {key} {row[key]!r}")
    return rows


def failure(run: RunResult) -> str:
    """Return the reason of a failure, on one line."""
    text = " ".join((run.error or "no reason recorded: the process was ended from outside").split())
    if not run.stopped:
        return text
    return f"{text.removeprefix('KeyboardInterrupt: ')}; the same command with resume=true goes on"
