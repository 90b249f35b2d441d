"""Run task=plan: how many images, folds, repeats or products would show a difference, from runs that exist."""

from __future__ import annotations

import logging
from pathlib import Path

from mvtec_lab.config import Config
from mvtec_lab.errors import IncompleteError, LabError, disk_full
from mvtec_lab.reporting import products_plan
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.headline import chance_of
from mvtec_lab.reporting.plan import PLAN, Plan, plan, show
from mvtec_lab.reporting.products import ProductsComparison
from mvtec_lab.reporting.products_plan import ProductsPlan, plan_over_products
from mvtec_lab.reporting.runs import load_runs

log = logging.getLogger(__name__)


def plan_runs(config: Config, run_dir: str | Path) -> Plan | ProductsPlan:
    """Plan from every run below ``config.dirs``, print the plan, and write plan.json into ``run_dir``.

    Raises:
        LabError: no directories, one without a run, or runs that nothing can be planned from.
        IncompleteError: a file of a run is damaged; the plan is from the others.
    """
    if not config.dirs:
        raise LabError("task=plan needs attempt=A,B, of which it trains a pilot, or runs that exist: dirs=[SWEEP]")
    (made, damaged), run_dir = _made(config), Path(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        made.save(run_dir)
    except OSError as error:
        reason = f"{run_dir} cannot be written ({error.strerror}): give hydra.run.dir=FOLDER"
        raise disk_full(error, run_dir) or LabError(reason) from error
    print(f"plan: {run_dir / PLAN}")
    if damaged:
        raise IncompleteError("; ".join(damaged))
    return made


def _made(config: Config) -> tuple[Plan | ProductsPlan, list[str]]:
    """Return the plan, over products where several have completed runs, and what is left out of it; print the plan."""
    comparison = compare(load_runs(*config.dirs or ()), config.verdict)
    if comparison.nothing_learnt:
        log.warning(
            "no attempt of these runs is shown to be better than %s: see that one learns before you plan by them",
            chance_of(comparison.compared[0].metric),
        )
    damaged = comparison.damaged
    if isinstance(comparison, ProductsComparison):
        usable = [part for part in comparison.products.values() if part.done]
        if len(usable) > 1:
            over = plan_over_products(comparison, config.difference)
            products_plan.show(over)
            return over, damaged
        comparison = usable[0] if usable else comparison
    made = plan(comparison, config.difference)
    show(made)
    return made, damaged
