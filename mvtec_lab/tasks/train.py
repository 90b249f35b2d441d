"""task=train: one attempt, one seed, one fold, one directory."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from mvtec_lab.config import Config
from mvtec_lab.data.contents import Contents
from mvtec_lab.data.splits import division
from mvtec_lab.engine.devices import check_devices, process_restored
from mvtec_lab.engine.hardware import machine
from mvtec_lab.engine.loggers import require_loggers
from mvtec_lab.engine.resume import as_begun, clear, earlier_run
from mvtec_lab.engine.run import Run, git_revision, versions
from mvtec_lab.engine.setup import absolute_paths, claim, digests_of, set_up, training_seed
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.specs import add_means, metrics_of
from mvtec_lab.locks import held
from mvtec_lab.problems import METHODS, check, files_of, in_full, problem_of, without_effect
from mvtec_lab.problems.model import build_data, build_model
from mvtec_lab.results import CONFIG, FILES, IN_TABLE, RunResult, remove_leftovers

log = logging.getLogger(__name__)


@process_restored()
def run_attempt(
    config: Config | None = None,
    run_dir: str | Path = "outputs/run",
    checked: Mapping[str, Contents] | None = None,
    varied: Sequence[str] | None = None,
) -> RunResult:
    """Train one attempt and judge it on validation and test images.

    ``run_dir`` is left complete in itself: config.yaml, result.json, samples.csv, predictions.csv, history.csv,
    mistakes.jpg, explanations.jpg, best.ckpt, last.ckpt and TensorBoard's events. A run that fails on the way leaves
    result.json with its error, and raises. With ``resume``, a run that lies there completed is returned, one that was
    stopped continues from its last.ckpt, to the same result as if it had not been, and any other starts again.

    Args:
        checked: the files that a sweep's check read, by product folder; others are refused.
        varied: the keys that vary in its sweep, for the loggers' tables of runs.

    Raises:
        LabError: a mistake in the configuration or the data; raised before anything is written.
    """
    began = time.perf_counter()
    config, run_dir = config or Config(), Path(run_dir)
    check(config)
    require_loggers(config)
    if config.resume:
        config = as_begun(run_dir, config)
    earlier = earlier_run(run_dir, config) if config.resume else None
    if earlier is not None and earlier.completed:
        log.info("%s is completed: nothing to do", run_dir)
        return earlier
    given = config.model.options
    if earlier is None:  # one that was begun has the options that it wrote down
        config = in_full(config)
    problem = problem_of(config.model.method)
    metrics_of(problem.name)  # raises where nothing could judge the run
    if check_devices(config) > 1 and (reason := problem.single_device(config)):
        raise LabError(f"{reason}: give trainer.devices=1")
    data = build_data(config)
    if config.split.protocol != data.split.protocol:
        config = replace(config, split=data.split)
        if own := division(data.listed.samples):
            log.info("split.protocol=%s: the data are divided already, into %s", data.split.protocol, ", ".join(own))
    pl.seed_everything(training_seed(config), verbose=False)
    model, notes = build_model(config, data)
    set_up(config, data, problem.findings(config), problem.chosen_on_val(config), checked)
    paths = absolute_paths(config, files_of(config))
    result = RunResult(
        attempt=config.attempt,
        seed=config.seed,
        fold=config.split.fold if config.split.protocol == "kfold" else None,
        data=config.data.name,
        category=data.folder.name,
        problem=problem.name,
        method=config.model.method,
        backbone=config.model.backbone if METHODS[config.model.method].backbone else "none",
        weights=model.weights,
        idle=sorted(without_effect(config)),
        by_default=[name for name in config.model.options if name not in given]
        if earlier is None
        else earlier.by_default,
        classes=problem.classes(data),
        counts=problem.counts(data),
        val_is_test=data.val_is_test,
        drawn_from_all=data.drawn_from_all,
        reported=None if config.reported.accuracy is None else asdict(config.reported),
        warnings=[*data.warnings, *notes, *problem.marks(config, data)],
        versions=versions(),
        threads=torch.get_num_threads(),
        machine=machine(),
        git_revision=git_revision(),
        paths=paths,
        digests=digests_of(paths),
        run_dir=str(run_dir),
        started=datetime.now(timezone.utc).isoformat(),
    )
    run = Run(config, data, model, result, began, varied=varied)
    if getattr(rank_zero_only, "rank", 0) != 0:  # Lightning starts this command again for each further device
        logging.disable(logging.WARNING)  # it trains along and leaves everything else to the first process
        run.resume()
        problem.fit(run)
        raise SystemExit(0)
    with held(run_dir):
        remove_leftovers(run_dir, FILES)
        if not (resumed := run.resume()):
            if config.resume:
                clear(run_dir)
            claim(run_dir, CONFIG)
        with result.recorded(), run.logged():
            for warning in result.warnings:
                log.warning(warning, extra=IN_TABLE)
            if not resumed:
                run.write_inputs()
            problem.fit(run)
            judgement = problem.judge(run)
            add_means(problem.name, judgement.metrics, judgement.rows)
            result.metrics = judgement.metrics
            judgement.write(run_dir)
            run.show(judgement)
            result.total_seconds = time.perf_counter() - began
            log.info("%s: %s; %s", config.attempt, judgement.summary, run_dir)
    return result
