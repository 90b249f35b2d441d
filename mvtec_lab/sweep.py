"""The command line: Hydra composes, one or many runs follow, and the sweep is summed up.

With grid.py the only place that knows Hydra, and light to import: ``--help`` and a typo do not pay for torch.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra._internal.utils import _run_hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.version import VersionBase, setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from mvtec_lab import problems
from mvtec_lab.arguments import OPTIONS, override, parse, text, typed_keys
from mvtec_lab.config import Config
from mvtec_lab.engine.origin import TAKEN, origin_of
from mvtec_lab.engine.process import command_line_settings
from mvtec_lab.engine.resume import earlier_run
from mvtec_lab.errors import LabError, disk_full, redacted, unknown
from mvtec_lab.grid import cross_validate, grid, launcher_of, share_out
from mvtec_lab.knobs import asks, settings
from mvtec_lab.own import OWN, keys, own_files
from mvtec_lab.results import CONFIG, IN_TABLE, RESULT, RunResult, one_line, write_whole

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
# In a wheel conf/ lies inside the package, in a checkout and an editable install beside it.
CONF = next(d for d in (PACKAGE / "conf", PACKAGE.parent / "conf") if (d / "config.yaml").is_file())

MULTIRUN = "multirun.yaml"  # what Hydra leaves of a sweep


class Task(NamedTuple):
    """A command of the lab: a function (config, run directory) -> anything, imported when it is called."""

    function: str
    reads: tuple[str, ...] = ()  # how the keys begin that it reads
    ignores: tuple[str, ...] = ()  # keys that it does not read although they begin so


_DATA = ("data.", "split.", "seed", "cache.", "audit")
TASKS = {
    "train": Task("mvtec_lab.tasks.train:run_attempt", ("",), ignores=("ckpt", "format", "source", "dirs")),
    "describe": Task("mvtec_lab.tasks.describe:describe", (*_DATA, "augment.", "loss.", "model.")),
    "backbones": Task("mvtec_lab.tasks.backbones:list_backbones"),
    # The checkpoint holds the size of its images and their white.
    "evaluate": Task("mvtec_lab.tasks.evaluate:evaluate", (*_DATA, "ckpt"), ignores=("data.image_size", "data.white")),
    "predict": Task("mvtec_lab.tasks.predict:predict", ("data.batch_size", "ckpt", "source")),
    "export": Task("mvtec_lab.tasks.export:export", ("ckpt", "format")),
    "cache": Task("mvtec_lab.tasks.cache:list_cache", ("cache.",)),
    "clear_cache": Task("mvtec_lab.tasks.cache:clear_cache", ("cache.",)),
    "compare": Task("mvtec_lab.tasks.compare:compare_runs", ("verdict.", "dirs")),
}
_READ_BY_ALL = ("task", "attempt", "cv.", "resume")  # a cross-validation is any sweep's

# Hydra's plugins -> the extra that installs them.
_EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
_HERE = ("BasicLauncher", "JoblibLauncher", "LocalLauncher")  # those whose jobs run on this very machine

_CONSOLE = {"class": "logging.StreamHandler", "formatter": "plain", "level": "INFO", "filters": ["once"]}
_FILE = {
    "class": f"{__name__}.RunLog",
    "formatter": "full",
    "filename": "${hydra.runtime.output_dir}/run.log",
    "delay": True,  # a run that cannot begin leaves no file
    "encoding": "utf-8",  # not the system's, which on Windows lacks most letters
}


def _logging(**handlers: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "plain": {"class": f"{__name__}._Redacted", "format": "%(message)s"},
            "full": {"class": f"{__name__}._Redacted", "format": "%(asctime)s %(levelname)s %(name)s %(message)s"},
        },
        "filters": {"once": {"()": f"{__name__}._Once"}},
        "handlers": handlers,
        "loggers": {
            "mvtec_lab": {"level": "DEBUG"},  # tracebacks go to the file alone
            "pytorch_lightning": {"level": "WARNING"},  # its hints on devices would bury what the lab has to say
        },
        "root": {"handlers": list(handlers), "level": "INFO"},
    }


class _Redacted(logging.Formatter):
    """Log no credential of a URL: Hydra logs the overrides of each job, and tracebacks hold them as well."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _Once(logging.Filter):
    """Print a run's warnings once: a sweep's stand below its table, a single run's when they are found."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "in_table"):
            return True
        _state.said.add(record.getMessage())
        return not _state.table


class RunLog(logging.FileHandler):
    """run.log, which says in one line, once, that it cannot be written: the run fails where its results cannot."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # it is opened here
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 # logging calls it so
        if not self.said:
            self.said = True
            print(f"warning: {self.baseFilename} is incomplete: {sys.exc_info()[1]}", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # what it had still to write
            super().close()


class _Lab(Callback):
    """Before a sweep: unfold a cross-validation, check every job, and name its directory by what the grid varies."""

    def __init__(self) -> None:
        self.state: _State | None = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check_directory(config, "hydra.run.dir")
        _state.keep = _nearest_folder(Path(config.hydra.run.dir))
        if study := config.hydra.runtime.choices.get("study"):
            raise _Stop(LabError(f"study={study} is a sweep: give -m as well (python -m mvtec_lab -m +study={study})"))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check_directory(config, "hydra.sweep.dir")
        _state.sweep_dir = Path(config.hydra.sweep.dir)
        _state.table = config.task == "train"
        _state.keep = _nearest_folder(_state.sweep_dir)
        try:  # Hydra turns an exception of a callback into a warning, so it becomes an exit
            _quote_params(config)
            cross_validate(config)
            jobs = grid(config)
            share_out(config, len(jobs))
            _check(jobs, _state.sweep_dir)
        except LabError as error:
            raise _Stop(error) from error
        except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
            raise _Stop(_explain(error)) from error
        self.state = _state

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """A launcher's process has been handed this object, and knows nothing of the command line otherwise."""
        global _state
        _state = self.state or _state
        if config.hydra.mode == RunMode.MULTIRUN and (overrides := Path(config.hydra.sweep.dir, MULTIRUN)).is_file():
            written = overrides.read_text(encoding="utf-8")
            if (hidden := redacted(written)) != written:  # Hydra writes the command line as it is
                write_whole(overrides, hidden)


class _Stop(SystemExit):
    """A user's mistake, found where Hydra would swallow an exception."""

    def __init__(self, error: LabError) -> None:
        super().__init__(2)
        self.error = error


class _State:
    """What the jobs of this process leave for its exit status."""

    def __init__(self, full_error: bool = False) -> None:
        self.full_error = full_error  # the user asked for tracebacks
        self.own: str | None = None  # --config-dir
        self.sweep_dir: Path | None = None
        self.checked: dict[str, dict[str, str]] = {}  # product folder -> its files and their digests
        self.keep: Path | None = None  # the folder that was there before Hydra made ours in it
        self.table = False  # a sweep of trainings ends with one
        self.said: set[str] = set()  # warnings of the runs of this process
        self.status = 0


_state = _State()


class _Status:
    """A job's exit status on its way home: Hydra drops what jobs return, so it counts where it is unpickled."""

    def __init__(self, value: int) -> None:
        self.value = value
        _state.status = max(_state.status, value)

    def __reduce__(self) -> tuple[type[_Status], tuple[int]]:
        return _Status, (self.value,)


_store = ConfigStore.instance()
_store.store("schema", Config)
_store.store("lab", {"lab": {"_target_": f"{__name__}._Lab"}}, group="hydra/callbacks")
_store.store("lab", _logging(console=_CONSOLE), group="hydra/hydra_logging")
_store.store("lab", _logging(console=_CONSOLE, file=_FILE), group="hydra/job_logging")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 (a run failed), 2 (the user's mistake) or 130 (stopped)."""
    global _state
    _state = _State(os.environ.get("HYDRA_FULL_ERROR") == "1")
    with _stopped_by_sigterm():
        try:
            status = _command(arguments)
            if status is None:
                status = _sum_up(_state.sweep_dir) if _state.sweep_dir else _state.status
        except KeyboardInterrupt as stop:  # in the report
            status = _stopped(stop)
    return status


def _command(arguments: Sequence[str] | None) -> int | None:
    """Run the command line but for a sweep's table; returns the exit status where there is to be none."""
    try:
        with _apart(), command_line_settings(), _command_line(arguments):
            _run(*parse(sys.argv[1:]))
    except _Stop as stop:
        return _complain(stop.error)
    except LabError as error:
        return _complain(error)
    except BrokenPipeError:  # --help | head
        return 0
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:  # Hydra's own: jobs raise none
        _state.status = max(_state.status, _complain(_explain(error)))
        if not (isinstance(error, OSError) and _begun()):
            return _state.status
    except KeyboardInterrupt as stop:
        _state.status = _stopped(stop)
    except SystemExit as exit_:  # --help, --version and the argument parser's own complaints
        return int(exit_.code or 0)
    except Exception as error:
        if _state.sweep_dir is None:
            raise
        # A launcher's: it cannot be had here, or one of its processes was killed.
        status = _complain(LabError(f"the launcher gave up: {_explain(error)}"))
        _state.status = max(_state.status, 1 if _begun() else status)
    return None


def _begun() -> bool:
    """Tell whether there is a sweep with runs to sum up."""
    return _state.sweep_dir is not None and any(_state.sweep_dir.rglob(RESULT))


def _stopped(stop: KeyboardInterrupt) -> int:
    print(str(stop) or "stopped by hand", file=sys.stderr)
    return 130


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, wherever it is; a handler of somebody else's is left alone."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt("stopped from outside (SIGTERM)")

    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def compose(*overrides: str) -> Config:
    """The configuration of a command line, for use from Python: ``compose("attempt=finetune", "seed=1")``.

    Raises:
        LabError: an unknown name or key, or a value of the wrong type or out of range.
    """
    try:
        with _apart(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra.compose("config", [override(words) for words in overrides], return_hydra_config=True)
            config = _to_config(composed, composed.hydra.runtime.choices)
            check(config, typed_keys(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error) from error
    return config


def _job(cfg: DictConfig) -> _Status:
    """One job. It never raises an Exception: Hydra would stop the sweep's bookkeeping."""
    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    whole, threading.excepthook = threading.excepthook, _thread_failed
    try:
        config, typed = _to_config(cfg, job.runtime.choices), typed_keys(job.overrides.task)
        if job.mode == RunMode.MULTIRUN:
            typed = _settle(config, typed)
        check(config, typed)
        options: dict[str, Any] = {}
        if config.task == "evaluate":
            given = {words.split("=")[0].lstrip("+") for words in job.overrides.task}
            options["own"] = _take_data_of_run(config, given)
        elif config.task == "train":
            options["checked"] = _state.checked
        stand_ins = _stand_ins(job)
        for line in stand_ins:
            log.warning(line, extra=IN_TABLE)
        trains = config.task == "train" and problems.METHODS[config.model.method].trains
        with command_line_settings(trains):  # also in a launcher's own process
            result = _function(_task(config.task))(config, run_dir, **options)
        if isinstance(result, RunResult) and (new := [line for line in stand_ins if line not in result.warnings]):
            result.warnings += new
            result.save()
        if config.task == "train" and job.mode == RunMode.RUN:
            _show_run(result)
    except Exception as error:
        known = _explain(error) if isinstance(error, OmegaConfBaseException) else disk_full(error, run_dir)
        if mistake := error if isinstance(error, LabError) else known:
            _state.status = max(_state.status, _complain(mistake))
        else:
            _state.status = max(_state.status, 1)
            log.error("failed: %s: %s (the traceback is in %s)", type(error).__name__, error, run_dir / "run.log")
            log.debug("traceback", exc_info=True)
            if _state.full_error:
                traceback.print_exc()
        _record_failure(cfg, job, run_dir, mistake or error)
    except KeyboardInterrupt as stop:
        _record_failure(cfg, job, run_dir, stop)
        raise
    finally:
        threading.excepthook = whole
        _close_log(run_dir)
        _remove_empty(run_dir)
    return _Status(_state.status)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Say nothing of TensorBoard's thread, which hands its exception on to the run; print any other's."""
    if failure.thread is None or not type(failure.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(failure)


def _run(parser: ArgumentParser, args: Namespace) -> None:
    """Do what hydra.main does, with a directory of the user's own before the lab's."""
    setbase("1.3")
    _state.own, args.config_dir = args.config_dir, None
    with own_files(_state.own):
        _run_hydra(args, parser, _job, str(CONF), "config")


def _take_data_of_run(config: Config, given: set[str]) -> bool:
    """Take the data and the split of a checkpoint's own run, but for the keys that are given.

    Returns:
        Whether the images are to be those of the run.

    Raises:
        LabError: its settings do not lie beside it, and no data are given.
    """
    if config.ckpt is None or not Path(config.ckpt).is_file():
        return False  # the task says so
    run = origin_of(Path(config.ckpt))
    if run is None:
        if config.data.name == "sample" and "data" not in given:
            raise LabError(
                f"{config.ckpt} has no {CONFIG} of its run beside it, so the images to judge it on are not known: give "
                "data=mvtec data.category=NAME, data=folder data.root=FOLDER or data=sample"
            )
        return False
    for section in {"data", "split"} - given:  # where no whole other one was chosen
        for name in TAKEN[section]:
            if f"{section}.{name}" not in given:
                setattr(getattr(config, section), name, getattr(getattr(run, section), name))
    if "seed" not in given:
        config.seed = run.seed
    elif "split.seed" not in given:
        config.split.seed = config.seed
    config.model.method = run.model.method  # which goes with the split's protocol
    return not given & {"data", "data.name", "data.root", "data.category", "data.archive"}


def _stand_ins(job: Any) -> list[str]:
    """Say which of the names that were chosen stand for files of the user's, where the lab has its own."""
    return [
        f"{group}={choice} is {file}, not the lab's own of that name"
        for source in job.runtime.config_sources
        if source.provider == OWN
        for group, choice in job.runtime.choices.items()
        if (file := Path(source.path, group, f"{choice}.yaml")).is_file() and (CONF / group / file.name).is_file()
    ]


def _record_failure(cfg: DictConfig, job: Any, run_dir: Path, error: BaseException) -> None:
    """Write result.json where a run of a sweep failed, or any run was stopped, before it could do so itself."""
    if (
        (job.mode != RunMode.MULTIRUN and not isinstance(error, KeyboardInterrupt))
        or cfg.task != "train"
        or any((run_dir / name).exists() for name in (RESULT, CONFIG))
    ):
        return
    data, model = cfg.data, cfg.model
    result = RunResult(
        attempt=str(job.runtime.choices["attempt"]),
        seed=int(cfg.seed),
        data=str(data.name),
        category=str(data.category),
        backbone=str(model.backbone),
        method=str(model.method),
        run_dir=str(run_dir),
        error=one_line(error),
    )
    with suppress(OSError, LabError):  # the error has been said, and must not end the sweep
        result.save()


def _task(name: str) -> Task:
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def _function(task: Task) -> Callable[..., Any]:
    module, name = task.function.split(":")
    return getattr(importlib.import_module(module), name)


def _to_config(cfg: DictConfig, choices: Mapping[str, Any]) -> Config:
    values = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(values, dict)
    values.pop("hydra", None)
    values["attempt"] = choices["attempt"]
    # Merged anew into the classes, because +key=value slips past their check when Hydra composes.
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values))
    assert isinstance(config, Config)
    return config


def check(config: Config, typed: Mapping[str, str]) -> None:
    """Check a configuration, and that its task reads every key that was typed.

    Raises:
        LabError: the first mistake.
    """
    for reason in unread(config, typed).values():
        raise LabError(reason)
    problems.check(config, typed)


def unread(config: Config, typed: Mapping[str, str]) -> dict[str, str]:
    """Return the error line of every typed key that the configuration's task does not read."""
    task, values = _task(config.task), settings(config)
    lines: dict[str, str] = {}
    for key in typed:
        read = key.startswith((*_READ_BY_ALL, *task.reads)) and key not in task.ignores
        if asks(value := values.get(key)) and not read:
            said = key if isinstance(value, dict) else f"{key}={value}"
            lines[key] = f"{said} does nothing for task={config.task}: leave it out"
    return lines


def idle(config: Config, typed: Mapping[str, str]) -> dict[str, str]:
    """Return the error line of every key that was given and has no effect, whatever the reason."""
    return problems.idle(config, typed) | unread(config, typed)


def _settle(config: Config, typed: Mapping[str, str]) -> dict[str, str]:
    """Reset what was typed for a sweep's other jobs and has no effect in this one; return what remains as typed."""
    default, left = Config(), dict(typed)
    while idle_keys := idle(config, left).keys() & left:  # one may depend on another
        for key in idle_keys:
            del left[key]
            section, _, name = key.rpartition(".")
            if name == "name" and section in ("optimizer", "scheduler"):  # with all that its group's file set
                setattr(config, section, getattr(default, section))
            elif key.startswith(OPTIONS):
                del config.model.options[name]
            elif section:
                setattr(getattr(config, section), name, getattr(getattr(default, section), name))
    return left


def _refuse_idle(configs: list[Config], typed: list[dict[str, str]]) -> None:
    """Refuse what was typed for a sweep and has an effect in none of its jobs, or would make several jobs equal."""
    lines_of_jobs = [idle(config, given) for config, given in zip(configs, typed, strict=True)]
    for key in {key: None for lines in lines_of_jobs for key in lines}:
        line = next(lines[key] for lines in lines_of_jobs if key in lines)
        varied = len({given.get(key) for given in typed}) > 1
        if key in typed[0] and (varied or all(key in lines for lines in lines_of_jobs)):
            raise LabError(line)


def _check(jobs: list[DictConfig], sweep_dir: Path) -> None:
    """Find what is wrong with any job before the first one trains."""
    taken: set[Path] = set()
    configs, typed = [], [typed_keys(job.hydra.overrides.task) for job in jobs]
    for job in jobs:
        with _of_job(job, len(jobs)):
            configs.append(_to_config(job, job.hydra.runtime.choices))
    _refuse_idle(configs, typed)
    for job, config, given in zip(jobs, configs, typed, strict=True):  # all of them before torch is imported
        with _of_job(job, len(jobs)):
            check(config, _settle(config, given))
    if jobs and not _nearest_folder(sweep_dir).is_dir():
        raise LabError(f"{sweep_dir} cannot be written: give hydra.sweep.dir=FOLDER")
    for job, config in zip(jobs, configs, strict=True):
        _function(_task(config.task))
        if not _numbered(job):
            directory = sweep_dir / job.hydra.sweep.subdir
            if directory in taken:
                raise LabError(f"two jobs of this sweep are called {directory.name}: give each value once")
            if directory.exists() and any(directory.iterdir()) and not config.resume:
                raise LabError(
                    f"{directory} holds another run: give hydra.sweep.dir=NEW_FOLDER, remove it, "
                    "or go on with it (resume=true)"
                )
            taken.add(directory)
            earlier = earlier_run(directory, config) if config.resume else None
            if earlier is not None and earlier.completed:  # its data need not be there any more
                continue
        if config.task == "train":
            from mvtec_lab.tasks.check import check_job

            with _of_job(job, len(jobs)):
                data = check_job(config, here=launcher_of(job) in _HERE)
                files = _state.checked.setdefault(str(data.folder.absolute()), {})
                for file, digest in data.contents().items():
                    files[file] = files.get(file) or digest  # a file may take part in some jobs alone


@contextmanager
def _of_job(job: DictConfig, jobs: int) -> Iterator[None]:
    """Let an error say which job of several has it."""
    try:
        yield
    except LabError as error:
        if jobs == 1 or _numbered(job):
            raise
        raise type(error)(f"job {job.hydra.sweep.subdir}: {error}") from error


def _numbered(job: DictConfig) -> bool:
    """Tell whether a job's directory has its number in its name, which is not known before it starts."""
    return "job.num" in str(OmegaConf.to_container(job.hydra.sweep, resolve=False))


def _sum_up(sweep_dir: Path) -> int:
    """The table, verdict and report of a sweep; 1 if one of its runs failed."""
    from mvtec_lab.reporting.report import REPORT, sum_up
    from mvtec_lab.reporting.summary import SUMMARY, print_table

    if not _begun():  # a sweep of another task
        return _state.status
    try:
        rows, _ = sum_up(sweep_dir, show=print_table)
    except LabError as error:
        return max(_state.status, _complain(error))
    print(
        f"report: {sweep_dir / REPORT}   table: {sweep_dir / SUMMARY}   "
        f"curves: tensorboard --logdir {shlex.quote(str(sweep_dir))}"
    )
    return max(_state.status, int(any(row["failed"] for row in rows)))


def _show_run(result: Any) -> None:
    from mvtec_lab.reporting.comparison import compare
    from mvtec_lab.reporting.summary import print_table, summarise

    comparison = compare([result])
    print_table(summarise(comparison), comparison.verdict, said=_state.said)
    print(f"run: {result.run_dir}   curves: tensorboard --logdir {shlex.quote(result.run_dir)}")


def _check_directory(config: DictConfig, key: str) -> None:
    """Refuse what leaves no run a place: Hydra asks nobody, and turns an exception into a warning here."""
    if not str(OmegaConf.select(config, key)).strip():
        raise _Stop(LabError(f"{key} is empty: give {key}=FOLDER, or leave it out"))
    if config.hydra.job.chdir:
        raise _Stop(LabError("hydra.job.chdir=true would move every relative path into the run's folder: leave it out"))


def _quote_params(config: DictConfig) -> None:
    """Quote a study's grid, which is text to Hydra as well, as if it stood behind -m."""
    if params := config.hydra.sweeper.get("params"):
        OmegaConf.set_readonly(params, False)
        for key, value in params.items():
            params[key] = text(str(key), str(value), sweep=True)


def _nearest_folder(path: Path) -> Path:
    """The path itself, or the closest of its parents, that exists."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 # as Hydra does: without .. , links untouched
    return next(p for p in (path, *path.parents) if p.exists())


def _close_log(run_dir: Path) -> None:
    """Hydra leaves the job's log open: what is logged later would land in it, or in a folder that is gone."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == run_dir:
            root.removeHandler(handler)
            handler.close()


def _remove_empty(directory: Path) -> None:
    """Hydra makes a directory before it knows whether there will be anything to put into it."""
    while _state.keep is not None and _state.keep in directory.parents:
        try:
            directory.rmdir()
        except OSError:  # not empty
            return
        directory = directory.parent


def _complain(error: LabError) -> int:
    print(f"error: {error}", file=sys.stderr)
    if _state.full_error:
        traceback.print_exception(error)
    return error.status


@contextmanager
def _apart() -> Iterator[None]:
    """Set aside a Hydra application that this process may be running, and give it back as it was."""
    of_application: tuple[type, ...] = (GlobalHydra, HydraConfig, JobRuntime, VersionBase)
    instances = Singleton._instances
    theirs = {of: instances.pop(of) for of in of_application if of in instances}
    try:
        yield
    finally:
        for of in of_application:
            instances.pop(of, None)
        instances.update(theirs)


@contextmanager
def _command_line(arguments: Sequence[str] | None) -> Iterator[None]:
    """Let Hydra see ``arguments``, and let its exceptions through: it would print them at length and exit with 1."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        sys.argv = argv if arguments is None else [argv[0], *arguments]
        yield
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full


def _explain(error: BaseException) -> LabError:
    """One line for what Hydra, OmegaConf or the operating system say at length."""
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, OmegaConfBaseException | MissingConfigException):
        cause = cause.__cause__
    found = re.match("In '(.*?/.*?)': ", str(error))  # a group's file
    file = Path(_state.own or CONF, f"{found[1]}.yaml") if found else CONF
    where = f"{file}: " if file.is_file() else ""
    if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
        group, _, name = str(cause.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and name in _EXTRAS:
            return LabError(f'Hydra\'s {name} launcher is not installed: pip install "mvtec_lab[{_EXTRAS[name]}]"')
        known = cause.options or [
            p.stem for root in (CONF, _state.own or CONF) for p in Path(root, group).glob("*.yaml")
        ]
        return LabError(where + str(unknown(group or "config", name, known)))
    if full := disk_full(error, _state.sweep_dir or Path.cwd()):
        return full
    if isinstance(cause, OSError) and cause.filename:
        remedy = "give hydra.run.dir=FOLDER (hydra.sweep.dir for a sweep) that can be written"
        return LabError(f"{cause.filename} cannot be written ({cause.strerror}): {remedy}")
    key = getattr(cause, "full_key", None)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key:
        if str(key).startswith("hydra.runtime.choices."):
            name = str(key).rpartition(".")[2]
            return LabError(f"{name} takes one name; several are a sweep: -m {name}=A,B")
        if str(key).startswith("augment.transforms."):
            return LabError(f"{where}{key} is not in this configuration yet: add a transform with +{key}.p=PROBABILITY")
        if str(key).startswith("hydra."):
            return LabError(f"{where}unknown key {str(key)!r}: --cfg hydra lists what Hydra has")
        return LabError(where + str(unknown("key", key, keys())))
    reason = str(cause).split("\n")[0].rstrip(".")
    if isinstance(cause, ValidationError) and key:
        return LabError(f"{where}{key}: {reason}")
    return LabError(where + reason)
