"""Leave a run of a race out whose attempt was dropped, instead of training it."""

from __future__ import annotations

import logging
import os
from datetime import datetime, timezone
from pathlib import Path

from mvtec_lab.config import Config
from mvtec_lab.engine.resume import as_yaml, clear
from mvtec_lab.errors import LabError
from mvtec_lab.locks import held
from mvtec_lab.problems import METHODS
from mvtec_lab.reporting.race import advance
from mvtec_lab.results import CONFIG, RESULT, RunResult, write_whole

log = logging.getLogger(__name__)


def left_out(config: Config, run_dir: Path, sweep_dir: Path) -> RunResult | None:
    """Return the result of a run that a race leaves out, which says why; None where it is to be trained.

    It takes every look that is due, and leaves config.yaml and result.json. What is completed stays so. Where a file
    that a look needs is damaged, the run is trained: the report names the file.
    """
    if (run_dir / RESULT).exists() and RunResult.load(run_dir).completed:
        return None
    directory = Path(os.path.relpath(run_dir, sweep_dir)).as_posix()
    try:
        race = advance(sweep_dir, directory)
    except LabError as error:
        log.warning("the race goes on without a look: %s", error)
        return None
    reason = race.reason(directory)
    if reason is None:
        return None
    product = RunResult.load(sweep_dir / race.attempts[reason["than"]][0][0])  # a folder's name is not in the settings
    result = RunResult(
        attempt=config.attempt,
        seed=config.seed,
        data=product.data,
        category=product.category,
        backbone=config.model.backbone if METHODS[config.model.method].backbone else "none",
        run_dir=str(run_dir),
        started=datetime.now(timezone.utc).isoformat(),
        status="dropped",
        fold=config.split.fold,
        problem=METHODS[config.model.method].problem,
        method=config.model.method,
        dropped=reason,
    )
    with held(run_dir):
        clear(run_dir)  # what an interrupted run left
        write_whole(run_dir / CONFIG, as_yaml(config))
        result.save()
    after, folds = reason["after"], reason["folds"]
    name = next(name for name, why in race.dropped.items() if why is reason)
    log.info("left out: %s was dropped after %d of %d folds, worse than %s", name, after, folds, reason["than"])
    return result
