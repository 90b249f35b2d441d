"""Make the jobs of a sweep: unfold a cross-validation, name directories by what the grid varies, share out cores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from mvtec_lab.arguments import as_typed
from mvtec_lab.composing import searches, to_config
from mvtec_lab.errors import LabError, redacted
from mvtec_lab.problems import deciding

# The keys that a cross-validation sets itself.
_OF_FOLDS = {"split.protocol", "split.folds", "split.fold", "split.test", "split.file", "split.val_is_test"}
_DRAWN = ("split.seed", "split.fold")  # of these it makes a grid


def cross_validate(config: DictConfig) -> None:
    """Turn ``cv.folds`` and ``cv.repeats`` into values of the grid: ordinary runs, the same folds for every attempt."""
    folds, repeats = config.cv.folds, config.cv.repeats
    given = {o.lstrip("+").split("=")[0]: o.partition("=")[2] for o in _given(config)}
    for key in ("cv.folds", "cv.repeats"):
        if not given.get(key, "1").isdigit() and given[key] != "null":
            raise LabError(f"{key}={given[key]} must be one whole number: the whole sweep shares its folds")
    if folds is None:
        if repeats != 1:
            raise LabError(f"cv.repeats={repeats} repeats a cross-validation: give cv.folds as well")
        return
    if folds < 2 or repeats < 1:
        raise LabError(
            f"cv.folds={folds} cv.repeats={repeats} is no cross-validation: give 2 folds or more, 1 repeat or more"
        )
    if taken := sorted(_OF_FOLDS & given.keys()):
        raise LabError(f"cv.folds={folds} decides on {taken[0]} itself: leave it out")
    first = given.get("split.seed", str(config.split.seed))
    if not first.strip().isdigit():
        raise LabError(f"cv.folds={folds} draws its own folds from one split.seed: give one number, or cv.repeats")
    seeds = ",".join(str(int(first) + repeat) for repeat in range(repeats))
    OmegaConf.set_readonly(config.hydra.overrides.task, False)
    config.hydra.overrides.task.extend(
        [
            "split.protocol=kfold",
            f"split.folds={folds}",
            f"split.seed={seeds}",
            f"split.fold={','.join(map(str, range(folds)))}",
            "split.val_is_test=false",  # inside a fold the checkpoint is chosen on images of its own
        ]
    )
    if given.get("race", "false").lower() not in ("true", "false"):
        raise LabError(f"race={given['race']} must be true or false: the whole sweep is one race")
    if config.race:  # what comes first in a grid varies last: all attempts run a fold before any runs the next one
        OmegaConf.set_readonly(config.hydra.sweeper, False)
        drawn = dict(zip(_DRAWN, (seeds, ",".join(map(str, range(folds)))), strict=True))
        config.hydra.sweeper.params = drawn | dict(config.hydra.sweeper.get("params") or {})


def _given(config: DictConfig) -> list[str]:
    """Return the overrides of a sweep, a study's before those of the command line."""
    params = config.hydra.sweeper.get("params") or {}
    return [*(f"{key}={value}" for key, value in params.items()), *as_typed(config.hydra.overrides.task)]


def grid(config: DictConfig) -> list[DictConfig]:
    """Return the configurations of all jobs of a sweep, and name their directories by what the grid varies.

    The list is empty for a search: it makes up its jobs as it proceeds, and they are numbered.
    """
    overrides = _parsed(config)
    varied = [o for o in overrides if o.is_sweep_override()]
    if searches(config.hydra) or not all(o.is_discrete_sweep() for o in varied):
        return []
    if any(o.key_or_group == "study" for o in varied):
        raise LabError("a study is a sweep of its own: give one a command")
    if not any(o.startswith("hydra.sweep.subdir=") for o in as_typed(config.hydra.overrides.hydra)):
        choices = config.hydra.runtime.choices
        parts = ["${lab_name:${hydra.runtime.choices.attempt}}"]
        keys = [o.key_or_group for o in varied if o.key_or_group != "attempt"]
        if config.race:
            keys.sort(key=_DRAWN.__contains__)  # names are those of the sweep without a race
        for key in keys:
            parts.append(f"{key}_${{lab_name:${{{f'hydra.runtime.choices.{key}' if key in choices else key}}}}}")
        OmegaConf.set_readonly(config.hydra.overrides.hydra, False)
        config.hydra.overrides.hydra.append(f"hydra.sweep.subdir='{'-'.join(parts)}'")
    return list(_combinations(config, overrides))


def _parsed(config: DictConfig) -> list[Override]:
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    # Of several the last counts, as for the sweeper.
    return list({o.key_or_group: o for o in parser.parse_overrides(_given(config))}.values())


def _combinations(config: DictConfig, overrides: list[Override]) -> Iterator[DictConfig]:
    """Yield the configuration of every combination of listed values; a key with an interval keeps its own value."""
    loader = GlobalHydra.instance().config_loader()
    listed = [o for o in overrides if o.is_discrete_sweep() or not o.is_sweep_override()]
    words = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [str(o.input_line)]
        for o in listed
    ]
    drawn = [i for i, o in enumerate(listed) if o.input_line and o.input_line.split("=")[0] in _DRAWN]
    whole: dict[tuple[str, ...], DictConfig] = {}
    for job in product(*words):
        # Hydra takes a tenth of a second for a job: of those that differ in their fold alone it composes the first.
        others = tuple(word for i, word in enumerate(job) if i not in drawn)
        if others not in whole or not all(job[i].partition("=")[2].isdigit() for i in drawn):
            whole[others] = loader.load_sweep_config(config, list(job))
            yield whole[others]
            continue
        composed = deepcopy(whole[others])
        OmegaConf.set_readonly(composed.hydra, False)
        composed.hydra.overrides.task = list(job)
        for i in drawn:
            key, _, value = job[i].partition("=")
            OmegaConf.update(composed, key, int(value))
        yield composed


def _file_name(value: Any) -> str:
    """Return a value as a part of a directory's name: no separators, nothing that confuses a shell or TensorBoard."""
    # Four keys of 40 letters fit into a file name.
    return re.sub(r"[^\w.+-]+", "_", redacted(str(value))).strip("_.")[-40:] or "empty"


OmegaConf.register_new_resolver("lab_name", _file_name, replace=True)


def prepare_search(config: DictConfig) -> None:
    """Tell a search which way its metric improves, and seed it with the run's seed, unless that was typed.

    Raises:
        LabError: a cross-validation, whose folds a search cannot average, or no run would have a score.
    """
    sweeper = config.hydra.sweeper
    typed = [words.partition("=")[0] for words in as_typed(config.hydra.overrides.hydra)]
    if not searches(config.hydra):
        return
    if config.cv.folds is not None:
        raise LabError(f"cv.folds={config.cv.folds} makes a grid of folds, which a search cannot average: leave it out")
    _require_score(config)
    OmegaConf.set_readonly(config.hydra, False)
    if "direction" in sweeper and "hydra.sweeper.direction" not in typed:
        sweeper.direction = "minimize" if config.trainer.monitor == "val/loss" else "maximize"
    if "seed" in (sweeper.get("sampler") or {}) and sweeper.sampler.seed is None:
        sweeper.sampler.seed = config.seed
    OmegaConf.set_readonly(config.hydra, True)


def _require_score(config: DictConfig) -> None:
    """Raise LabError if no run of a search would have a score; a run without one fails alone otherwise."""
    reason = None
    for job in _combinations(config, _parsed(config)):
        try:
            deciding(to_config(job, job.hydra))
            return
        except LabError as error:
            reason = reason or error
    raise reason or LabError("this search has no values to try: give some")


def share_out(config: DictConfig, jobs: int) -> None:
    """Let a launcher's jobs share processors and terminal; ``jobs`` is 0 if their number is not known yet."""
    launcher = config.hydra.launcher
    OmegaConf.set_readonly(config.hydra.overrides.hydra, False)
    if config.task == "train":  # whose warnings stand below the sweep's table
        config.hydra.overrides.hydra.append("hydra.job_logging.filters.once.table=true")
    if launcher_of(config) == "BasicLauncher":  # one after the other
        return
    config.hydra.overrides.hydra.extend(
        [
            "++hydra.job.env_set.TERM=dumb",  # the bars of several jobs would overwrite each other
            "hydra.job_logging.formatters.plain.format='${hydra.sweep.subdir}: %(message)s'",  # whose line it is
        ]
    )
    if "n_jobs" in launcher and jobs:
        from joblib import effective_n_jobs

        # Each of n_jobs processes gets its share of the cores, even if there is no job for it.
        OmegaConf.set_readonly(launcher, False)
        launcher.n_jobs = min(effective_n_jobs(launcher.n_jobs), jobs)


def launcher_of(config: DictConfig) -> str:
    """Return the name of the launcher's class."""
    return str(config.hydra.launcher._target_).rpartition(".")[2]
