"""Run one job: a task with one configuration, in one directory. Jobs of a sweep may run in other processes."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mvtec_lab import problems
from mvtec_lab.arguments import as_typed, typed_keys, unquoted
from mvtec_lab.complaints import complain, explain
from mvtec_lab.composing import (
    check,
    look_at_data,
    look_at_files,
    replaced,
    searches,
    settle,
    stand_ins,
    take_data_of_run,
    to_config,
)
from mvtec_lab.config import Config
from mvtec_lab.engine.origin import checkpoint_of
from mvtec_lab.engine.process import command_line_settings, spare_imports
from mvtec_lab.engine.threads import Threads, Usage, choose, computing_with, usage
from mvtec_lab.errors import LabError, disk_full, redacted
from mvtec_lab.logs import Printed
from mvtec_lab.results import CONFIG, IN_TABLE, RESULT, RunResult, category_of, one_line, write_whole
from mvtec_lab.tasks import TASKS, function_of

log = logging.getLogger(__name__)

FAILED = (
    "failed.json"  # how another task than train tells its sweep, from any process, that it failed; read and removed
)


@dataclass
class Command:
    """Hold what one call of the command line knows; its callback and its jobs share it, other processes get a copy."""

    full_error: bool = False  # the user asked for tracebacks
    words: list[str] = field(default_factory=list)  # as they were typed
    own: str | None = None  # --config-dir
    sweep_dir: Path | None = None
    directories: list[Path] = field(default_factory=list)  # those of the sweep's jobs; empty if they are numbered
    configs: list[Config] = field(default_factory=list)  # those of the sweep's jobs; empty for a search
    varied: list[str] | None = None  # the keys that vary among them; None for a search and a single run
    said: set[str] = field(default_factory=set)  # mistakes of its jobs that a sweep's check has told already
    checked: dict[str, dict[str, str]] = field(default_factory=dict)  # product folder -> its files and their digests
    race: Any = None  # of the sweep; None: all of its jobs run
    keep: Path | None = None  # the folder that existed before Hydra made ours in it
    status: int = 0  # of the jobs of this process
    result: Any = None  # of the last job of this process
    mistake: Exception | None = None  # the last one of this process
    refused: bool = False  # it ended before its first job
    process: int = field(default_factory=os.getpid)
    began: Usage = field(default_factory=usage)
    threads: tuple[int, Threads] | None = None  # a process, and with how many its jobs compute

    def going_on(self, key: str, directory: Path) -> str:
        """Return the line that says how to go on after a stop; ``key`` names the directory on the command line."""
        from mvtec_lab.reporting.summary import program

        words = [word for word in self.words if not word.startswith(("resume=", f"{key}="))]
        words = [*words, f"{key}={directory}", "resume=true"]
        return f"go on with: {program('python')} -m mvtec_lab {redacted(shlex.join(words))}"

    def complain(self, error: LabError) -> int:
        """Print a mistake, keep it, and return its exit status."""
        self.mistake = error
        return complain(error, self.full_error)

    def prepare(self, task: str, here: bool = True, jobs: int = 0) -> int | None:
        """Return the number of threads for the jobs of this process, None for the libraries' own; say it once.

        PyTorch takes seconds to import, so that is said as well.

        Args:
            task: what the jobs do.
            here: whether they run in this process.
            jobs: how many are checked before the first one runs.
        """
        if not TASKS[task].torch:
            return None
        process, importing = os.getpid(), "torch" not in sys.modules
        begins = f"importing PyTorch{f', then checking {jobs} jobs' if jobs > 1 else ''} ..."
        if not here:
            if importing:
                log.info(begins)
            return None
        if self.threads is None or self.threads[0] != process:
            self.threads = process, choose(self.began if process == self.process else usage())
            said = f"threads: {self.threads[1].reason}"
            if importing:
                log.info("%s   %s", begins, said)
            elif self.threads[1].number is not None:
                log.info(said)
        return self.threads[1].number


class Job:
    """Run every job that Hydra calls it for."""

    def __init__(self, command: Command) -> None:
        self.command = command

    def __call__(self, cfg: DictConfig) -> float | None:
        """Run a job; of a search, return the validation metric by which its runs are ranked, otherwise None.

        It raises no Exception: Hydra would stop the sweep's bookkeeping. A failed job of a search returns the worst
        value.
        """
        job = HydraConfig.get()
        run_dir, sweep = Path(job.runtime.output_dir), job.mode == RunMode.MULTIRUN
        hook, threading.excepthook = threading.excepthook, _thread_failed
        printed, refused = Printed(), False
        logging.getLogger("mvtec_lab").addHandler(printed)
        try:
            config, typed = to_config(cfg, job), typed_keys(as_typed(job.overrides.task))
            if sweep:
                typed = settle(config, typed)
            check(config, typed)
            metric = problems.deciding(config) if sweep and searches(job) else None
            result = self.command.result = self._run(config, job, run_dir)
            if config.task == "train" and not sweep:
                _show_run(result, printed.lines)
            return None if metric is None else result.metrics["val"][metric]
        except Exception as error:
            refused = isinstance(error, LabError)
            self._fail(cfg, job, run_dir, error)
            return float("-inf" if cfg.trainer.monitor != "val/loss" else "inf")
        except KeyboardInterrupt as stop:
            _record_failure(cfg, job, run_dir, stop)
            if not sweep and (run_dir / RESULT).exists():
                print(self.command.going_on("hydra.run.dir", run_dir), flush=True)
            raise
        finally:
            threading.excepthook = hook
            logging.getLogger("mvtec_lab").removeHandler(printed)
            _close_log(run_dir)
            if refused and [path.name for path in run_dir.glob("*")] == ["run.log"]:
                (run_dir / "run.log").unlink()  # a job that is refused leaves nothing, its warnings neither
            remove_empty(run_dir, self.command.keep)

    def _run(self, config: Config, job: Any, run_dir: Path) -> Any:
        if config.race and job.mode == RunMode.MULTIRUN:
            from mvtec_lab.tasks.race import left_out  # and with it what a comparison needs

            if (dropped := left_out(config, run_dir, Path(job.sweep.dir))) is not None:
                return dropped
        options: dict[str, Any] = {}
        for key in {"ckpt", "reference"}.intersection(TASKS[config.task].reads):
            setattr(config, key, checkpoint_of(config, key))
        if config.task == "evaluate":
            given = {words.split("=")[0].lstrip("+") for words in as_typed(job.overrides.task)}
            options["own"] = take_data_of_run(config, given)
        elif config.task == "train":
            options |= {"checked": self.command.checked, "varied": self.command.varied}
        look_at_files(config)
        look_at_data(config)
        remarks = stand_ins(job)
        for line in remarks:
            log.warning(line, extra=IN_TABLE)
        trains = config.task == "train" and problems.METHODS[config.model.method].trains
        threads = self.command.prepare(config.task)
        if threads is not None and config.resume:
            threads = _threads_of(run_dir) or threads
        spare_imports()
        with command_line_settings(trains), computing_with(threads):  # also in a launcher's own process
            result = function_of(config.task)(config, run_dir, **options)
        if config.task == "train":  # said now: a job that is refused has one line, its error
            for line in (replacing := replaced(job, config, self.command.words)):
                log.warning(line, extra=IN_TABLE)
            remarks += replacing
        if isinstance(result, RunResult):
            result.warnings += [line for line in remarks if line not in result.warnings]
            result.typed = result.typed or [redacted(unquoted(word)) for word in as_typed(job.overrides.task)]
            result.save()
        return result

    def _fail(self, cfg: DictConfig, job: Any, run_dir: Path, error: Exception) -> None:
        """Print why a job failed, and record it."""
        known = explain(error) if isinstance(error, OmegaConfBaseException) else disk_full(error, run_dir)
        mistake = error if isinstance(error, LabError) else known
        if mistake and str(mistake) in self.command.said:
            self.command.mistake, status = mistake, mistake.status
        elif mistake:
            status = self.command.complain(mistake)
        else:
            self.command.mistake = error
            status = 1
            log.error("failed: %s (the traceback is in %s)", one_line(error), run_dir / "run.log")
            log.debug("traceback", exc_info=True)
            if self.command.full_error:
                traceback.print_exc()
        self.command.status = max(self.command.status, status)
        _record_failure(cfg, job, run_dir, mistake or error)


def _threads_of(run_dir: Path) -> int | None:
    """Return with how many threads the run in a directory was begun: with others its sums would round differently."""
    with suppress(LabError):  # the task says so
        return RunResult.load(run_dir).threads
    return None


def remove_empty(directory: Path, keep: Path | None) -> None:
    """Remove a directory below ``keep``, and its parents, as long as they are empty: Hydra makes them in advance."""
    while keep is not None and keep in directory.parents:
        try:
            directory.rmdir()
        except OSError:  # not empty
            return
        directory = directory.parent


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Print nothing of TensorBoard's thread, which hands its exception on to the run; print any other's."""
    if failure.thread is None or not type(failure.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(failure)


def _record_failure(cfg: DictConfig, job: Any, run_dir: Path, error: BaseException) -> None:
    """Leave in its directory why a job of a sweep failed, or any run was stopped, if it could not do so itself."""
    if job.mode != RunMode.MULTIRUN and not isinstance(error, KeyboardInterrupt):
        return
    with suppress(OSError, LabError):  # the error has been printed, and must not end the sweep
        if cfg.task != "train" and job.mode == RunMode.MULTIRUN:
            record = {"exit_status": getattr(error, "status", 1), "error": one_line(error)}
            write_whole(run_dir / FAILED, json.dumps(record))
        elif cfg.task == "train" and not any((run_dir / name).exists() for name in (RESULT, CONFIG)):
            names = job.runtime.choices["attempt"], cfg.seed, cfg.data.name, category_of(cfg.data), cfg.model.backbone
            run = RunResult(*names, str(run_dir), method=cfg.model.method)
            run.problem = problems.METHODS[run.method].problem
            run.error, run.exit_status = one_line(error), getattr(error, "status", 1)
            run.save()


def _show_run(result: RunResult, printed: set[str]) -> None:
    from mvtec_lab.reporting.comparison import compare
    from mvtec_lab.reporting.summary import curves, print_table, summarise

    comparison = compare([result])
    print_table(summarise(comparison), comparison.verdict, said=printed, headline=comparison.headline)
    print(f"run: {result.run_dir}   TensorBoard: {curves(result.run_dir)}")


def _close_log(run_dir: Path) -> None:
    """Close the job's log, which Hydra leaves open: later lines would land in it, or in a folder that is gone."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == run_dir:
            root.removeHandler(handler)
            handler.close()
