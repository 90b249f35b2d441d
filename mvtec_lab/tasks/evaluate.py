"""task=evaluate: a checkpoint on the validation and test images of a configuration."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from rich.console import Console

from mvtec_lab.checks import validate
from mvtec_lab.config import Config, untested
from mvtec_lab.data.contents import Contents, contents_listed, require_same
from mvtec_lab.data.images import digests
from mvtec_lab.data.splits import pool_of
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.origin import checkpoint_of, origin_of
from mvtec_lab.engine.run import Run
from mvtec_lab.engine.setup import build_data, claim, set_up
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.operating import Rate, rates, scores_of
from mvtec_lab.evaluation.specs import add_means, intervals, metrics_of
from mvtec_lab.evaluation.tested import Tested
from mvtec_lab.foreign import damaged
from mvtec_lab.problems import problem_of
from mvtec_lab.problems.model import load_model
from mvtec_lab.reporting.terminal import LONGEST, print_columns, width_of
from mvtec_lab.results import CONFIG, DEFECT, GOOD, SAMPLES, RunResult, table_of, write_whole

log = logging.getLogger(__name__)

METRICS = "metrics.json"


def evaluate(config: Config, run_dir: str | Path, own: bool = False) -> dict[str, Any]:
    """Judge ``config.ckpt`` on the split of a configuration: metrics.json, predictions.csv, sheets of pictures.

    An anomaly model is judged on the whole test folder, by its own threshold; of its maps there is pixels.npz too.
    Size, fit and tiles of the images are the checkpoint's. Images that it was trained on are named in a warning, as far
    as the samples.csv beside it says.

    Args:
        own: the images have to be those of the checkpoint's run.

    Raises:
        LabError: no checkpoint, one that cannot be read, or one of other classes than the data's; other images than
            the run's own.
    """
    began = time.perf_counter()
    validate(config)
    ckpt = Path(checkpoint_of(config))
    model = load_model(ckpt)
    problem = problem_of(model.method)
    sized = replace(config.data, image_size=model.image_size, fit=model.fit, tile=model.tile, white=model.white)
    config = problem.to_judge(replace(config, data=sized), model)
    if untested(config.split):
        raise LabError(_untested(ckpt, config))
    data = build_data(config, (model.mean, model.std), problem.targets_of(model.method))
    if own:  # first: a class that is gone is one whose files are
        _require_own(ckpt, data.folder, data.contents())
    if (classes := problem.classes(data)) != model.classes:
        raise LabError(
            f"{ckpt} knows the classes {', '.join(model.classes)}, but {data.folder} has {', '.join(classes)}: "
            f"{remedy(model.classes, classes)}"
        )
    # Nothing is chosen here, on whichever images: what chose the checkpoint is a question of its own run.
    findings = problem.findings(replace(config, split=replace(config.split, val_is_test=False)))
    set_up(config, data, findings, chosen="every figure of it")
    judged = {split: [data.folder / s.path for s in data.samples if s.split == split] for split in ("val", "test")}
    warnings = [*data.warnings, *_seen_before(ckpt, judged)]
    could = len(pool_of([replace(s, split="") for s in data.samples], "test"))  # without train/good of a test folder
    its_own = own or ((run := run_of(ckpt)) is not None and run[0] == data.folder.resolve())
    if (images := sum(map(len, judged.values()))) < could and not its_own:
        warnings.append(f"{images} of {could} images are judged: split.protocol=test_only judges all")
    place, d = str(claim(run_dir, METRICS)), config.data
    result = RunResult(config.attempt, config.seed, d.name, data.folder.name, config.model.backbone, place)
    result.problem, result.method, result.warnings = problem.name, model.method, warnings
    result.classes = model.classes
    for warning in warnings:
        log.warning(warning)
    judgement = problem.judge(Run(config, data, model, result, began))
    add_means(problem.name, judgement.metrics, judgement.rows)
    bounds = _intervals(result, judgement.metrics["test"], judgement.rows)
    if model.accept is not None:
        judgement.rows = [{**row, "decision": model.decision(row)} for row in judgement.rows]
    judgement.write(Path(run_dir))
    decisions = _decisions(model, judgement.rows)
    facts = {
        "ckpt": config.ckpt,
        "data": config.data.name,
        "category": data.folder.name,
        "method": model.method,
        "threshold": result.threshold,
        "decisions": {key: None if rate is None else asdict(rate) for key, rate in decisions.items()},
        "sets": result.sets,
        "device": str(model.module.device),
        "threads": torch.get_num_threads(),
        "validates_by": result.validates_by,
        "metrics": judgement.metrics,
        "intervals": bounds,
        "explained": result.explained,
        "warnings": result.warnings,
    }
    write_whole(Path(run_dir) / METRICS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    _print(f"{config.ckpt} on {config.data.name}/{data.folder.name}", result, judgement.metrics, bounds)
    for key, rate in decisions.items():
        if rate is not None:
            print(f"{key.replace('_', ' ')}: {rate}")
    print(f"written to {run_dir}")
    return facts


def _intervals(
    result: RunResult, metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[float, float]]:
    """Return the 95% intervals of the metrics of test, by key: those that the table of a run has.

    Args:
        metrics: of the test images.
        rows: of predictions.csv.
    """
    texts = ({key: "" if value is None else str(value) for key, value in row.items()} for row in rows)
    tested = [row for row in texts if row["split"] == "test"]
    classes = result.classes if "prediction" in tested[0] else ()
    predicted = Tested(result, tuple(row["path"] for row in tested), tested, classes)
    return intervals(result.problem, metrics, predicted)


def _decisions(model: Model, rows: Sequence[Mapping[str, Any]]) -> dict[str, Rate | None]:
    """Return the rates of test images at a chosen operating point; empty where none was chosen."""
    if model.threshold is None or model.accept is None:
        return {}
    return rates(scores_of(rows, "test"), model.threshold, model.accept)


def _print(
    title: str,
    result: RunResult,
    metrics: Mapping[str, Mapping[str, Any]],
    bounds: Mapping[str, tuple[float, float]],
) -> None:
    """Print the metrics of validation and test, the test's intervals last, and those of every defect type."""
    test, console = metrics["test"], Console()
    splits = {split: metrics[split] for split in ("val", "test") if split in metrics}
    by = {"val": f", {result.validates_by}" if result.validates_by else ""}
    headers = ["metric", *(f"{split}{by.get(split, '')}\n{v['images']} images" for split, v in splits.items())]
    specs = metrics_of(result.problem)
    rows = [
        [spec.title, *(_figure(spec.of(values)) for values in splits.values()), _interval(bounds.get(spec.key))]
        for spec in specs
    ]
    rows.append(["loss", *(_figure(values.get("loss")) for values in splits.values()), ""])
    print(title)
    _print_known(console, [*headers, "95% interval\nof test"], rows)
    if types := test.get("by_type"):
        of_types = [spec for spec in specs if spec.words.by_type]
        titles = [spec.title.replace(" ", "\n") for spec in of_types]
        rows = [
            [kind, str(values["images"]), *(_figure(values.get(spec.words.by_type)) for spec in of_types)]
            for kind, values in types.items()
        ]
        _print_known(console, ["defect type", "images", *titles], rows)


def _print_known(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table without the rows and columns that are empty behind their names."""
    rows = [row for row in rows if any(row[1:])]
    known = [0, *(column for column in range(1, len(headers)) if any(row[column] for row in rows))]
    cells = [[row[column] for column in known] for row in rows]
    names = min(width_of([headers[0], *(row[0] for row in rows)]), LONGEST)
    print_columns(console, [headers[column] for column in known], cells, name=names)


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else "[{:.3f}, {:.3f}]".format(*bounds)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def run_of(ckpt: Path) -> tuple[Path, list[dict[str, str]]] | None:
    """Return the product folder of a checkpoint's run and the rows of its samples.csv; None without these files."""
    run = origin_of(ckpt)
    rows = table_of(ckpt.parent, SAMPLES, "path", "split", "digest", "mask", "mask_digest")
    if run is None or rows is None:
        return None
    for path in (path for row in rows for path in (row["path"], row["mask"])):
        if PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts:
            raise damaged(ckpt.parent / SAMPLES, f"{path!r} leads out of the data")
    return _folder(run), rows


def _require_own(ckpt: Path, folder: Path, now: Contents) -> None:
    run = run_of(ckpt)
    if run is not None:
        remedy = f"restore them, or give data.root=FOLDER: that of the run, or of other images to judge {ckpt.name} on"
        require_same(folder, now, contents_listed(run[1]), f"the run of {ckpt}", remedy)


def _untested(ckpt: Path, config: Config) -> str:
    """Say why a split that tests nothing leaves nothing to judge: it was asked for, or is that of a model to keep."""
    origin, run = origin_of(ckpt), run_of(ckpt)
    if origin is None or not untested(origin.split):
        return "split.test=0 leaves no image to judge: leave it out"
    folder = _folder(config)
    keeps = f"the run of {ckpt} tests no image (split.test=0), and so there is none to judge"
    if run is None or run[0] == folder:
        return f"{keeps}: give data.root=NEW_IMAGES split.protocol=test_only"
    return f"{keeps} in {folder}: give split.protocol=test_only as well, which takes all of them"


def _folder(config: Config) -> Path:
    return Path(config.data.root or "", config.data.category or "").expanduser().resolve()


def _seen_before(ckpt: Path, judged: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return warnings where judged images trained the checkpoint or chose it or its threshold, as its run's files say.

    Where learnt images validate, what judges them has not seen them (``validates_by``): as val they are not counted.

    Args:
        judged: the images of val and test.
    """
    run, origin = run_of(ckpt), origin_of(ckpt)
    if run is None or origin is None:
        return [f"no {SAMPLES} and {CONFIG} beside {ckpt}: whether it was trained on these images is not known"]
    problem = problem_of(origin.model.method)
    learnt = problem.learns_from(origin)
    # By contents, wherever the images lie now. Of two images with the same contents the one that trained counts.
    known = {row["digest"]: row["split"] for row in sorted(run[1], key=lambda row: row["split"] in learnt)}
    splits = [known.get(digest) for digest in digests([*judged["test"], *judged["val"]])]
    tested, validating = splits[: len(judged["test"])], splits[len(judged["test"]) :]
    flattered = 0 if problem.validates_by(origin) else validating.count("train")
    warnings = []
    if seen := sum(split in learnt for split in tested) + flattered:
        what = f"{seen} of these images trained this checkpoint (another seed or split?)"
        warnings.append(f"{what}: the figures are too good")
    chose = "test" if origin.split.val_is_test else "val"
    if problem.chosen_on_val(origin) and chose not in learnt and (validated := tested.count(chose)):
        where = "validation = test in its run" if chose == "test" else "its run's validation images"
        what = f"{validated} of the test images chose this checkpoint or its threshold ({where})"
        warnings.append(f"{what}: the figures are too good")
    if "test" in splits:
        warnings += problem.chosen_on_test(origin)
    return warnings


def remedy(known: Sequence[str], classes: Sequence[str]) -> str:
    """Return what to give where the classes of a folder are not those that a checkpoint knows."""
    good = [name for name in classes if name not in known]
    settings = []
    if GOOD in known and GOOD not in classes:
        settings.append(f"data.good=[{good[0] if len(good) == 1 else 'NAME'}], the folder of the good images")
    if list(known) == [GOOD, DEFECT]:
        settings.append("data.defects=merged, as it learnt all defects as one class")
    return "give " + (" and ".join(settings) or "the data= and split= settings that it was trained with")
