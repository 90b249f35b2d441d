"""Check a sweep before its first job, share it among processes, and sum it up when it has ended."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mvtec_lab.arguments import as_typed, text, typed_keys
from mvtec_lab.complaints import complain, explain
from mvtec_lab.composing import check, idle, look_at_data, look_at_files, settle, to_config
from mvtec_lab.config import Config
from mvtec_lab.engine.loggers import note_verdict
from mvtec_lab.engine.resume import as_begun, earlier_run
from mvtec_lab.engine.threads import computing_with
from mvtec_lab.errors import IncompleteError, LabError, MissingWeights, redacted
from mvtec_lab.grid import cross_validate, grid, launcher_of, prepare_search, share_out
from mvtec_lab.job import FAILED, Command, remove_empty
from mvtec_lab.knobs import varied
from mvtec_lab.logs import CONSOLE, FILE, logging_config
from mvtec_lab.problems import in_full
from mvtec_lab.products import Products
from mvtec_lab.results import RESULT, RunResult, one_line, stopped_run, write_whole
from mvtec_lab.tasks import function_of

MULTIRUN = "multirun.yaml"  # what Hydra leaves of a sweep
_HERE = ("BasicLauncher", "JoblibLauncher", "LocalLauncher")  # those whose jobs run on this very machine

# The command that this thread runs: Hydra makes the callback, which finds it here.
COMMAND: ContextVar[Command | None] = ContextVar("command", default=None)


class Lab(Callback):
    """Before a sweep: unfold a cross-validation, check every job, and name its directory by what the grid varies."""

    def __init__(self) -> None:
        self.command = COMMAND.get() or Command()  # in a launcher's process there is nothing to prepare

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _ending(self.command):
            _refuse_directory(
                config, "hydra.sweep.dir", "a sweep's directory: give hydra.run.dir=FOLDER, or -m as well"
            )
            _check_directory(config, "hydra.run.dir")
            self.command.keep = nearest_folder(Path(config.hydra.run.dir))
            if study := config.hydra.runtime.choices.get("study"):
                raise LabError(f"study={study} is a sweep: give -m as well (python -m mvtec_lab -m +study={study})")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        command = self.command
        with _ending(command):
            _refuse_directory(config, "hydra.run.dir", "a single run's directory: give hydra.sweep.dir=FOLDER")
            _check_directory(config, "hydra.sweep.dir")
            command.sweep_dir = Path(config.hydra.sweep.dir)
            command.keep = nearest_folder(command.sweep_dir)
            _quote_params(config)
            prepare_search(config)
            cross_validate(config)
            jobs = grid(config)
            share_out(config, len(jobs))
            check_jobs(jobs, command)
            _begin_race(command)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        overrides = Path(config.hydra.sweep.dir, MULTIRUN)
        if config.hydra.mode == RunMode.MULTIRUN and overrides.is_file():
            written = overrides.read_text(encoding="utf-8")
            if (hidden := redacted(written)) != written:  # Hydra writes the command line as it is
                write_whole(overrides, hidden)


class Stop(SystemExit):
    """End the command for a mistake that was found where Hydra would swallow an Exception."""

    def __init__(self, error: LabError) -> None:
        super().__init__(error.status)
        self.error = error


class UncheckedError(LabError):
    """Report that the check before the first job failed by itself, so that no job ran (exit status 1)."""

    status = 1


@contextmanager
def _ending(command: Command) -> Iterator[None]:
    """End the command for any Exception: Hydra would turn it into a warning, and run jobs that nothing has checked."""
    try:
        yield
    except LabError as error:
        raise Stop(error) from error
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        raise Stop(explain(error, command.own, command.sweep_dir)) from error
    except Exception as error:
        known = UncheckedError(
            f"nothing was run, as the check before it failed ({one_line(error)}): a fault of the lab or of its "
            "installation, which task=doctor looks at; HYDRA_FULL_ERROR=1 shows where"
        )
        known.__cause__ = error
        raise Stop(known) from error


_store = ConfigStore.instance()
_store.store("schema", Config)
_store.store("lab", {"lab": {"_target_": f"{__name__}.Lab"}}, group="hydra/callbacks")
_store.store("lab", logging_config(console=CONSOLE), group="hydra/hydra_logging")
_store.store("lab", logging_config(console=CONSOLE, file=FILE), group="hydra/job_logging")


def check_jobs(jobs: list[DictConfig], command: Command) -> None:
    """Refuse what is wrong with any job before the first one trains; note the jobs' directories and their data.

    Raises:
        LabError: the first mistake.
    """
    sweep_dir = command.sweep_dir
    assert sweep_dir is not None
    configs, typed = [], [typed_keys(as_typed(job.hydra.overrides.task)) for job in jobs]
    for job in jobs:
        with _of_job(job, len(jobs)):
            configs.append(to_config(job, job.hydra))
    _refuse_idle(configs, typed)
    missing: list[MissingWeights] = []
    for job, config, given in zip(jobs, configs, typed, strict=True):  # all of them before torch is imported
        with _of_job(job, len(jobs)), _noted(missing):
            check(config, settle(config, given))
            look_at_files(config, launcher_of(job) in _HERE)
    _refuse_missing(missing)
    command.race = _race(jobs, configs)
    scans: dict[str, Any] = {}
    products = Products(configs)
    for number, (job, config) in enumerate(zip(jobs, configs, strict=True)):
        with _of_job(job, len(jobs)), products.alone(number):
            look_at_data(config, scans)
    products.require_one()
    if not jobs:
        return
    if not nearest_folder(sweep_dir).is_dir():
        raise LabError(f"{sweep_dir} cannot be written: give hydra.sweep.dir=FOLDER")
    here = launcher_of(jobs[0]) == "BasicLauncher"  # others share the cores out, or have other ones
    with computing_with(command.prepare(configs[0].task, here, len(jobs))):
        _check_in_full(jobs, configs, command, products)
    products.require_one()
    command.configs, command.varied, command.said = products.say(), varied(configs), products.mistakes


def _race(jobs: list[DictConfig], configs: list[Config]) -> Any:
    """Return the race that was asked for; None where there is none."""
    if not configs or not configs[0].race:
        return None
    from mvtec_lab.reporting.race import race_of  # and with it what a comparison needs

    if any(map(_numbered, jobs)):
        raise LabError("race=true knows its jobs by their directories: leave out hydra.sweep.subdir")
    # In full, as the runs will have it: both name the attempts by what differs among them.
    return race_of({job.hydra.sweep.subdir: in_full(config) for job, config in zip(jobs, configs, strict=True)})


def _begin_race(command: Command) -> None:
    """Write race.json, which the jobs of a race share."""
    if command.race is not None:
        from mvtec_lab.reporting.race import begin

        assert command.sweep_dir is not None
        begin(command.race, command.sweep_dir, command.configs[0].resume)


def _check_in_full(jobs: list[DictConfig], configs: list[Config], command: Command, products: Products) -> None:
    """Refuse what only PyTorch or a look at the images can tell; note the jobs' directories and their data."""
    sweep_dir, checks = command.sweep_dir, None
    assert sweep_dir is not None
    for number, (job, config) in enumerate(zip(jobs, configs, strict=True)):
        function_of(config.task)
        if not _numbered(job):
            directory = sweep_dir / job.hydra.sweep.subdir
            _claim(directory, config, command)
            if config.resume:
                config = as_begun(directory, config)
                earlier = earlier_run(directory, config)
                if earlier is not None and earlier.completed:  # its data need not exist any more
                    continue
        if config.task == "train" and not products.fails(number):
            from mvtec_lab.tasks.check import Checks

            checks = checks or Checks()
            with _of_job(job, len(jobs)), products.alone(number):
                images = checks.job(config, here=launcher_of(job) in _HERE)
                files = command.checked.setdefault(images.folder, {})
                for file, digest in images.contents.items():
                    files[file] = files.get(file) or digest  # a file may take part in some jobs alone
    _refuse_missing(checks.missing if checks else [])


@contextmanager
def _noted(missing: list[MissingWeights]) -> Iterator[None]:
    """Note weights that a job lacks, so that those of the others are named with them."""
    try:
        yield
    except MissingWeights as error:
        missing.append(error)


def _refuse_missing(missing: list[MissingWeights]) -> None:
    """Refuse a sweep for all files of weights that its jobs lack, at once."""
    if missing:
        raise MissingWeights.of_all(missing)


def _claim(directory: Path, config: Config, command: Command) -> None:
    """Note a job's directory; raise LabError if it is another job's or another sweep's."""
    if directory in command.directories:
        raise LabError(f"two jobs of this sweep are called {directory.name}: give each value once")
    if directory.exists() and any(directory.iterdir()) and not config.resume:
        if stopped_run(directory) is not None:
            goes_on = "the same command with resume=true goes on with it, or give hydra.sweep.dir=NEW_FOLDER"
            raise LabError(f"{directory} holds a run that was stopped: {goes_on}")
        raise LabError(
            f"{directory} holds another run: give hydra.sweep.dir=NEW_FOLDER, remove it, or resume it (resume=true)"
        )
    command.directories.append(directory)


def _refuse_idle(configs: list[Config], typed: list[dict[str, str]]) -> None:
    """Refuse what was typed for a sweep and has an effect in none of its jobs, or would make several jobs equal."""
    lines_of_jobs = [idle(config, given) for config, given in zip(configs, typed, strict=True)]
    for key in {key: None for lines in lines_of_jobs for key in lines}:
        line = next(lines[key] for lines in lines_of_jobs if key in lines)
        varied = len({given.get(key) for given in typed}) > 1
        if key in typed[0] and (varied or all(key in lines for lines in lines_of_jobs)):
            raise LabError(line)


@contextmanager
def _of_job(job: DictConfig, jobs: int) -> Iterator[None]:
    """Let an error name the job that it belongs to, if there are several."""
    try:
        yield
    except LabError as error:
        if jobs == 1 or _numbered(job):
            raise
        raise type(error)(f"job {job.hydra.sweep.subdir}: {error}") from error


def _numbered(job: DictConfig) -> bool:
    """Tell whether a job's directory has its number in its name, which is not known before it starts."""
    return "job.num" in str(OmegaConf.to_container(job.hydra.sweep, resolve=False))


NAMED = 6  # jobs that a sentence names


def begun(command: Command) -> bool:
    """Tell whether there is a sweep with runs to sum up."""
    return command.sweep_dir is not None and any(command.sweep_dir.rglob(RESULT))


def sum_up(command: Command) -> int:
    """Print a sweep's table and verdict, write its report, and return its exit status.

    The status is in the files of the runs, wherever they ran: 1 if one failed or left none, 2 for a user's mistake.
    """
    from mvtec_lab.reporting import report
    from mvtec_lab.reporting.summary import SUMMARY, curves
    from mvtec_lab.tasks.describe import describe_sweep

    sweep_dir = command.sweep_dir
    assert sweep_dir is not None
    status = max(command.status, _status_of_jobs(command))
    if not begun(command):  # a sweep of another task
        return status
    missing = _missing(command)
    with suppress(LabError, OSError):  # images that are gone, a full disk: the report says what is missing
        describe_sweep(command.configs, sweep_dir)
    try:
        _, comparison = report.sum_up(sweep_dir, show=report.show_results, notes=missing)
        note_verdict(sweep_dir, comparison.verdict)
        for line in comparison.damaged:
            status = max(status, complain(IncompleteError(line), command.full_error))
    except LabError as error:
        return max(status, complain(error, command.full_error))
    if missing:
        print(command.going_on("hydra.sweep.dir", sweep_dir))
    tables = f"{sweep_dir / SUMMARY}, {report.RUNS}"
    print(f"report: {sweep_dir / report.REPORT}   tables: {tables}   TensorBoard: {curves(sweep_dir)}")
    return status


def _missing(command: Command) -> list[str]:
    """Return a sentence on the jobs of a sweep that were not begun, or stopped; none where all have ended."""
    missing: dict[str, list[str]] = {"stopped": [], "not begun": []}
    for directory in command.directories:
        try:
            if not (directory / RESULT).exists():
                missing["not begun"].append(directory.name)
            elif RunResult.load(directory).stopped:
                missing["stopped"].append(directory.name)
        except LabError:  # the report names the damaged file
            continue
    if not (number := sum(map(len, missing.values()))):
        return []
    which = "; ".join(f"{how}: {_few(of)}" for how, of in missing.items() if of)
    of = f"{number} of {len(command.directories)} jobs are missing"
    return [f"{of} ({which}). The same command with resume=true goes on."]


def _few(names: list[str]) -> str:
    """Return the names, of many the first ones and the number of the rest."""
    rest = len(names) - NAMED
    return ", ".join(names) if rest < 2 else f"{', '.join(names[:NAMED])} and {rest} more"


def _status_of_jobs(command: Command) -> int:
    """Return the highest exit status that the jobs of a sweep left in their directories."""
    assert command.sweep_dir is not None
    results = list(command.sweep_dir.rglob(RESULT))
    statuses = []
    for path in list(command.sweep_dir.rglob(FAILED)):
        statuses.append(json.loads(path.read_text(encoding="utf-8"))["exit_status"])
        path.unlink()
        remove_empty(path.parent, command.keep)
    if results:  # of trainings, each of which leaves one
        statuses += [int(not (directory / RESULT).exists()) for directory in command.directories]
    for path in results:
        try:
            run = RunResult.load(path.parent)
        except LabError:  # the report names the damaged file
            continue
        if run.failed:
            statuses.append(run.exit_status if path.parent in command.directories or not command.directories else 1)
            statuses.append(1)  # one that was killed recorded no status
    return max(statuses, default=0)


def _refuse_directory(config: DictConfig, key: str, why: str) -> None:
    """Refuse the directory of the other mode alone, which Hydra would ignore; a script may give both."""
    typed = {word.lstrip("+").partition("=")[0] for word in as_typed(config.hydra.overrides.hydra)}
    if typed & {"hydra.run.dir", "hydra.sweep.dir"} == {key}:
        raise LabError(f"{key} is {why}")


def _check_directory(config: DictConfig, key: str) -> None:
    """Refuse what leaves no run a place: Hydra checks neither."""
    if not str(OmegaConf.select(config, key)).strip():
        raise LabError(f"{key} is empty: give {key}=FOLDER, or leave it out")
    if config.hydra.job.chdir:
        raise LabError("hydra.job.chdir=true would move every relative path into the run's folder: leave it out")


def _quote_params(config: DictConfig) -> None:
    """Quote a study's grid, which is text to Hydra as well, as if it followed -m."""
    if params := config.hydra.sweeper.get("params"):
        OmegaConf.set_readonly(params, False)
        for key, value in params.items():
            params[key] = text(str(key), str(value), sweep=True)


def nearest_folder(path: Path) -> Path:
    """Return the path itself, or the closest of its parents, that exists."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 # as Hydra does: without .. , links untouched
    return next(p for p in (path, *path.parents) if p.exists())
