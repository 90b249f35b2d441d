"""Group runs by the attempt that they repeat."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mvtec_lab.config import Config
from mvtec_lab.knobs import changing
from mvtec_lab.reporting.runs import Settings
from mvtec_lab.results import RunResult

# These keys tell runs of one attempt apart, not attempts: seeds and folds, and where and how a run was made.
RUN_KEYS = changing(Config, "run", "nothing")
OPTIONS = "model.options."  # how the keys of methods' options begin


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
