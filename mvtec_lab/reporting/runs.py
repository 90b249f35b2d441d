"""Read run directories for a comparison: runs grouped by attempt, each with its test predictions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path, PureWindowsPath
from typing import Any

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import racing
from mvtec_lab.evaluation.specs import add_means, choosing, columns_of, metrics_of
from mvtec_lab.evaluation.tested import Tested
from mvtec_lab.foreign import Share, damaged, file_of, misfit, read_yaml
from mvtec_lab.knobs import changing
from mvtec_lab.reporting.recount import require_own_metrics
from mvtec_lab.results import (
    CONFIG,
    HISTORY,
    PREDICTIONS,
    RESULT,
    ROWS,
    SAMPLES,
    RunResult,
    flatten,
    from_one,
    run_folders,
    table_of,
)

# These keys tell runs of one attempt apart, not attempts: seeds and folds, and where and how a run was made.
RUN_KEYS = changing(Config, "run", "nothing")
INNER_FOLDS = "inner folds"  # ``RunResult.validates_by`` of those that learn the images of train and val
OPTIONS = "model.options."  # how the keys of methods' options begin
UNKNOWN = "unknown"  # the product of a run of which neither result.json nor config.yaml says it

_VERSION = re.compile(r"version-\d+")  # as a review names its folders

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
    require_one(runs)
    return told_apart(sorted(runs, key=lambda run: (run.started, run.run_dir)))


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
        return replace(run, status="damaged", error=str(error), metrics={})  # none of its figures counts
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


def product_of(run: RunResult) -> tuple[str, str]:
    """Return what tells products apart, wherever their files lie: the data set, and the category."""
    return run.data, run.category


def told_apart(runs: Sequence[RunResult]) -> list[RunResult]:
    """Return runs of which those of different products in folders of one name have categories of their own.

    Folders of one name that lie in different places are one product where they share an image, as copies of a data set
    on several machines do. Others get as much of their path as tells them apart, ``line_1/bottle``. A version of a data
    set is its product, whatever its folder is called, where exactly the same images are tested.
    """
    places: dict[tuple[str, str], dict[str, RunResult]] = {}
    for run in sorted(runs, key=lambda run: file_of(run.run_dir, SAMPLES) is None):  # those that failed early: last
        places.setdefault(product_of(run), {}).setdefault(run.paths.get("data.root", ""), run)
    named: dict[tuple[str, str, str], str] = {}
    for (data, category), of_product in places.items():
        for place, name in _names_of(of_product, category).items() if len(of_product) > 1 else ():
            named[data, category, place] = name
    keys = [(*product_of(run), run.paths.get("data.root", "")) for run in runs]
    return _versions(
        [replace(run, category=named[key]) if key in named else run for run, key in zip(runs, keys, strict=True)]
    )


@dataclass
class Version(RunResult):
    """Hold a run on a version of a data set, with the very test images of another run under other names.

    ``names`` has the other run's name of each of them, by the path that it has in this run.
    """

    names: dict[str, str] = field(default_factory=dict)


def _versions(runs: Sequence[RunResult]) -> list[RunResult]:
    """Return runs of which those on a version of another run's data set are of its product, ``finetune on version-1``.

    A review writes such versions: more or other images train, and what is tested stays tested. Their test images are,
    byte by byte, those of the other run, with the same labels; their folders have other names, and so may their files.
    """
    if len({product_of(run) for run in runs}) < 2:
        return [*runs]
    first: dict[frozenset[tuple[str, str]], tuple[RunResult, dict[tuple[str, str], str]]] = {}
    others: dict[int, Version] = {}
    for place in sorted(range(len(runs)), key=lambda place: _VERSION.fullmatch(runs[place].category) is not None):
        run = runs[place]
        rows = (table_of(run.run_dir, SAMPLES) or []) if run.completed and not isinstance(run, Version) else []
        rows = [row for row in rows if row.get("split") == "test"]
        images = {(row.get("digest") or "", row.get("label") or ""): row["path"] for row in rows if row.get("path")}
        if not images or len(images) < len(rows) or any(not digest for digest, _ in images):
            continue  # without digests, or with copies among them, nobody knows which image is which
        of, names = first.setdefault(frozenset(images), (run, images))
        if product_of(of) != product_of(run):
            known = {path: names[image] for image, path in images.items()}
            others[place] = Version(**{**vars(run), "data": of.data, "category": of.category, "names": known})
    roots = {_root(runs[place]) for place in others}
    length = next((n for n in range(1, 99) if len({root.parts[-n:] for root in roots}) == len(roots)), 99)
    for version in others.values():
        version.attempt += f" on {'/'.join(_root(version).parts[-length:])}"
    return [others.get(place, run) for place, run in enumerate(runs)]


def _root(run: RunResult) -> PureWindowsPath:
    """Return the folder of a run's data set; its separators are those of every platform."""
    return PureWindowsPath(run.paths.get("data.root") or run.category)


def _names_of(places: Mapping[str, RunResult], category: str) -> dict[str, str]:
    """Return the name of the product in each place of several; nothing where all are one product.

    Args:
        places: a run of each, by its ``data.root``.
        category: their name.
    """
    groups: list[tuple[set[str], list[str]]] = []  # images that are one product, and where they lie
    for place, run in places.items():
        rows: list[dict[str, str]] = []
        with suppress(LabError):  # a damaged one says as much as none
            rows = table_of(run.run_dir, SAMPLES) or []
        images = {row["digest"] for row in rows if row.get("digest")}
        same = next((group for group in groups if not images or not group[0] or images & group[0]), None)
        if same is None:
            groups.append((images, [place]))
        else:
            same[0].update(images)
            same[1].append(place)
    if len(groups) < 2:
        return {}
    parts = [PureWindowsPath(own[0]).parts for _, own in groups]  # its separators are those of every platform
    folders = [(*part, *[category] * (part[-1:] != (category,))) for part in parts]
    length = next((n for n in range(2, 99) if len({folder[-n:] for folder in folders}) == len(folders)), 99)
    return {
        place: "/".join(folder[-length:]) for folder, (_, own) in zip(folders, groups, strict=True) for place in own
    }


def by_attempt(
    runs: Iterable[RunResult],
    settings: Mapping[str, Settings],
    block: Callable[[RunResult], Any] = lambda run: None,
) -> dict[str, list[RunResult]]:
    """Group runs by their attempt, in first-seen order.

    Runs of one attempt that differ in more than seed, fold and place do not repeat each other: they are groups of their
    own, named by what differs, ``base optimizer.lr=0.1``. So are models to keep beside runs that were tested, whatever
    else their splits differ in: ``base split.test=0``.

    Args:
        runs: the runs.
        settings: the settings of each run, by its directory.
        block: what a run belongs to within which alone differences count: its product, where there are several.
    """
    runs = list(runs)
    groups: dict[str, list[RunResult]] = {}
    common = {run.run_dir: _without_own_fold(settings[run.run_dir]) for run in runs}
    unsaid = {run.run_dir: {f"{OPTIONS}{name}" for name in run.by_default} for run in runs}
    varied: dict[str, dict[str, None]] = {}
    for attempt in dict.fromkeys(run.attempt for run in runs):
        blocks: dict[Any, list[str]] = {}
        for run in runs:
            if run.attempt == attempt and settings[run.run_dir]:
                blocks.setdefault((run.untested, block(run)), []).append(run.run_dir)
        # A path that all runs share may name the fold of one of them: without own folds it would differ.
        varied[attempt] = {
            key: None
            for peers in blocks.values()
            for key in dict.fromkeys(key for peer in peers for key in common[peer])
            if key not in RUN_KEYS and all(_vary(key, peers, of, unsaid) for of in (settings, common))
        }
    tested = {run.attempt for run in runs if not run.untested}
    for run in runs:
        own = common[run.run_dir]
        differs = [f"{key}={own[key]}" for key in own if key in varied[run.attempt]]
        differs += ["split.test=0"] * (run.untested and run.attempt in tested)
        groups.setdefault(" ".join([run.attempt, *differs]), []).append(run)
    return groups


def _vary(key: str, peers: Sequence[str], of: Mapping[str, Settings], unsaid: Mapping[str, set[str]]) -> bool:
    """Tell whether the settings of some runs differ in a key; in an option, among the runs of one method.

    Args:
        of: the settings, by the runs' directories.
        unsaid: the options that have their defaults. Older runs did not write these down.
    """
    values: dict[str | None, dict[str, str | None]] = {}
    for peer in peers:
        method = of[peer].get("model.method") if key.startswith(OPTIONS) else None
        values.setdefault(method, {})[peer] = of[peer].get(key)
    for of_method in values.values():
        if None in of_method.values():
            of_method.update({peer: None for peer in of_method if key in unsaid[peer]})
    return any(len({*of_method.values()}) > 1 for of_method in values.values())


def said_options(runs: Iterable[RunResult], settings: Mapping[str, Settings]) -> set[str]:
    """Return the keys of methods' options that were given for some of the runs: tables leave out the defaults."""
    keys = ((key, run) for run in runs for key in settings[run.run_dir] if key.startswith(OPTIONS))
    return {key for key, run in keys if key.removeprefix(OPTIONS) not in run.by_default}


def _without_own_fold(settings: Settings) -> Settings:
    """Return settings with ``fold_*`` where a value names the run's own fold: a path of another sweep, fold by fold."""
    own = re.compile(rf"fold_{re.escape(settings.get('split.fold', ''))}(?!\d)")
    return {key: own.sub("fold_*", value) for key, value in settings.items()}


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
