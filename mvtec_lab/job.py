"""Run one job: a task with one configuration, in one directory. Jobs of a sweep may run in other processes."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mvtec_lab import problems
from mvtec_lab.arguments import OPTIONS, as_typed, typed_keys
from mvtec_lab.complaints import complain, explain
from mvtec_lab.config import SAMPLE_BACKBONE, SAMPLE_WEIGHTS, Config, ModelConfig
from mvtec_lab.data.incoming import look as look_at_source
from mvtec_lab.data.names import look as look_at_transforms
from mvtec_lab.engine.hardware import look as look_at_devices
from mvtec_lab.engine.loggers import require_loggers
from mvtec_lab.engine.origin import TAKEN, checkpoint_of, origin_of
from mvtec_lab.engine.process import command_line_settings, spare_imports
from mvtec_lab.engine.threads import Threads, Usage, choose, computing_with, usage
from mvtec_lab.errors import LabError, MissingWeights, disk_full, redacted, unknown
from mvtec_lab.knobs import asking, changing, settings
from mvtec_lab.logs import Printed
from mvtec_lab.models.names import look as look_at_names
from mvtec_lab.own import CONF, OWN
from mvtec_lab.results import CONFIG, IN_TABLE, RESULT, RunResult, flatten, one_line, write_whole

log = logging.getLogger(__name__)

FAILED = (
    "failed.json"  # how another task than train tells its sweep, from any process, that it failed; read and removed
)


class Task(NamedTuple):
    """Declare a command of the lab: a function (config, run directory) -> anything, imported when it is called."""

    function: str
    about: str  # what it does, in one line
    reads: tuple[str, ...] = ()  # how the keys begin that it reads
    ignores: tuple[str, ...] = ()  # keys that it does not read although they begin so
    torch: bool = True  # it imports PyTorch, which takes seconds

    def takes(self, key: str) -> bool:
        """Tell whether it reads a key."""
        return key.startswith((*_READ_BY_ALL, *self.reads)) and key not in self.ignores


_DATA = ("data.", "split.", "seed", "cache.", "audit")
TASKS = {
    "train": Task(
        "mvtec_lab.tasks.train:run_attempt",
        "trains an attempt and judges it on images that it has not seen; with -m, several side by side",
        ("",),
        ignores=(
            *(
                "ckpt",
                "format",
                "min_area",
                "source",
                "dirs",
                "dir",
                "difference",
                "false_rejects",
                "escapes",
                "reviews",
            ),
            *("watch", "fps", "cost.escape", "cost.false_reject", "cost.defects"),
            *("review.host", "review.port", "review.order"),
            *("serve.host", "serve.port", "serve.queue", "serve.max_mb", "serve.timeout"),
        ),
    ),
    "describe": Task(
        "mvtec_lab.tasks.describe:write_description",
        "says what is in a data set: classes, splits, sizes, what the audit finds",
        (*_DATA, "augment.", "loss.", "model."),
        ignores=("data.tile",),
    ),
    "backbones": Task("mvtec_lab.tasks.backbones:list_backbones", "lists backbones, their stages and their weights"),
    "evaluate": Task(
        "mvtec_lab.tasks.evaluate:evaluate",
        "judges a checkpoint on its run's test images, or on others",
        (*_DATA, "ckpt"),
        ignores=("data.image_size", "data.fit", "data.tile", "data.white"),  # the checkpoint holds them
    ),
    "threshold": Task(
        "mvtec_lab.tasks.threshold:set_threshold",
        "moves a checkpoint's threshold to a rate of false rejects or escapes, or the lowest cost, by held-out images",
        ("ckpt", "false_rejects", "escapes", "reviews", "cost."),
    ),
    "predict": Task(
        "mvtec_lab.tasks.predict:predict",
        "applies a checkpoint to new images",
        ("data.batch_size", "ckpt", "source", "watch", "fps"),
    ),
    "export": Task(
        "mvtec_lab.tasks.export:export", "writes a checkpoint as a file for use without the lab", ("ckpt", "format")
    ),
    "serve": Task(
        "mvtec_lab.tasks.serve:serve",
        "answers images over HTTP with what a checkpoint says of them",
        ("data.batch_size", "ckpt", "serve."),
    ),
    "annotate": Task(
        "mvtec_lab.tasks.annotate:annotate",
        "writes masks as annotations of other programs",
        ("data.", "split.", "seed", "format", "min_area"),
        ignores=(
            *("data.image_size", "data.fit", "data.tile", "data.white"),
            *("data.batch_size", "data.num_workers", "data.sampler"),
        ),
    ),
    "cache": Task("mvtec_lab.tasks.cache:list_cache", "lists what is kept between runs", ("cache.",), torch=False),
    "clear_cache": Task(
        "mvtec_lab.tasks.cache:clear_cache", "deletes what is kept between runs", ("cache.",), torch=False
    ),
    "doctor": Task(
        "mvtec_lab.tasks.doctor:examine",
        "says what this machine has and lacks: Python, PyTorch, device, threads, weights, disk, each with its remedy",
        ("data.name", "data.root", "data.category", "data.archive", "model.backbone", "model.weights", "cache."),
        torch=False,  # it tries whether it can be imported
    ),
    "compare": Task(
        "mvtec_lab.tasks.compare:compare_runs",
        "compares runs of several sweeps in one verdict",
        ("verdict.", "dirs"),
        torch=False,
    ),
    "review": Task(
        "mvtec_lab.tasks.review:review",
        "shows predictions in a browser, where people correct them, and writes a new version of the data set",
        ("review.", "dir"),
        ignores=("dirs",),
        torch=False,
    ),
    "plan": Task(
        "mvtec_lab.tasks.plan:plan_runs",
        "says how many images, folds and repeats show a difference between attempts, from their runs or from a pilot",
        ("verdict.", "dirs", "difference"),
        torch=False,
    ),
}
_READ_BY_ALL = ("task", "attempt", "cv.", "resume")  # a cross-validation is any sweep's


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
        if "ckpt" in TASKS[config.task].reads:
            config.ckpt = checkpoint_of(config)
        if config.task == "evaluate":
            given = {words.split("=")[0].lstrip("+") for words in as_typed(job.overrides.task)}
            options["own"] = _take_data_of_run(config, given)
        elif config.task == "train":
            options |= {"checked": self.command.checked, "varied": self.command.varied}
        look_at_files(config)
        look_at_data(config)
        remarks = _stand_ins(job)
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
            for line in (replaced := _replaced(job, config, self.command.words)):
                log.warning(line, extra=IN_TABLE)
            remarks += replaced
        if isinstance(result, RunResult) and (new := [line for line in remarks if line not in result.warnings]):
            result.warnings += new
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


def to_config(cfg: DictConfig, hydra: Any) -> Config:
    """Return a composed configuration as plain objects.

    What an attempt's file sets and what was typed leaves without effect has its default: nobody could leave it out.
    Another method is no reason: an attempt that it leaves without effect is a mistake.

    Args:
        hydra: what Hydra says about the configuration.
    """
    values = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(values, dict)
    values.pop("hydra", None)
    values["attempt"] = hydra.runtime.choices["attempt"]
    # Merged into the classes once more, because +key=value escapes their check when Hydra composes.
    config = OmegaConf.to_object(OmegaConf.merge(_schema(), values))
    assert isinstance(config, Config)
    if config.model.method in problems.METHODS:
        typed = typed_keys(as_typed(hydra.overrides.task))
        _limit_sample_weights(config, typed)
        untouched = deepcopy(config)
        for key in typed.keys() - {"model.method"}:
            _reset(untouched, key)
        for key in problems.idle(config).keys() - problems.idle(untouched).keys() - typed.keys():
            _reset(config, key)
    return config


@cache
def _schema() -> DictConfig:
    """Return the keys and their types, which take longer to read than a job's values; merging copies them."""
    return OmegaConf.structured(Config)


def _limit_sample_weights(config: Config, typed: Mapping[str, str]) -> None:
    """Leave what conf/data/sample.yaml chooses to methods with a backbone, and its weights to their own backbone."""
    m, default = config.model, ModelConfig()
    chosen = "model.backbone" not in typed and m.backbone == SAMPLE_BACKBONE
    if chosen and not problems.METHODS[m.method].backbone:
        m.backbone = default.backbone
    if "model.weights" not in typed and m.weights == SAMPLE_WEIGHTS and m.backbone != SAMPLE_BACKBONE:
        m.weights = default.weights


def _reset(config: Config, key: str) -> None:
    """Give a key of a section its default; the name of an optimizer or schedule with all that its group's file set."""
    default, (section, _, name) = Config(), key.rpartition(".")
    if name == "name" and section in ("optimizer", "scheduler"):
        setattr(config, section, getattr(default, section))
    elif key.startswith(OPTIONS):
        config.model.options.pop(name, None)
    elif hasattr(getattr(config, section, None), name):
        setattr(getattr(config, section), name, getattr(getattr(default, section), name))


def check(config: Config, typed: Mapping[str, str]) -> None:
    """Check a configuration, and that its task reads every key that was typed.

    Raises:
        LabError: the first mistake.
    """
    for line in unread(config, typed).values():
        raise LabError(line)
    problems.check(config, typed)


def look_at_files(config: Config, here: bool = True) -> None:
    """Refuse names and devices that do not exist and a file that is not there, before PyTorch is imported.

    Args:
        here: whether this machine runs the job; another one has devices of its own.

    Raises:
        LabError: the first one, with the key and what it takes.
    """
    task, m = TASKS[config.task], config.model
    if not task.torch or config.resume:  # what is completed needs no file any more
        return
    if task.takes("model.weights"):
        look_at_names(m.backbone if problems.METHODS[m.method].backbone else None, m.weights, m.unfreeze)
    if task.takes("trainer.accelerator"):
        look_at_devices(config.trainer, here)
        if here:
            require_loggers(config)
    if task.takes("augment.transforms"):
        look_at_transforms(config.augment.transforms)
    files = {
        "split.file": (config.split.file, "a CSV with columns path,split"),
        "model.sam_weights": (m.sam_weights, "a file of SAM's weights"),
        "model.text_embeddings": (m.text_embeddings, "a file .npz"),
    }
    for key, (file, wanted) in files.items():
        if file is not None and task.takes(key) and not Path(file).expanduser().exists():
            kind = MissingWeights if key == "model.sam_weights" else LabError
            raise kind(f"{key}={file} does not exist: give {wanted}")
    if task.takes("source") and config.source is not None:
        look_at_source(config.source)


def look_at_data(config: Config, scans: dict[str, Any] | None = None) -> None:
    """Refuse data whose place, layout or split is wrong, before the task imports torch.

    Args:
        scans: what was read for other jobs of a sweep, as ``look_at_split`` of data.source keeps it.

    Raises:
        LabError: what ``look`` and ``look_at_split`` say.
    """
    task = TASKS[config.task]
    if task.torch and task.takes("data.root") and not config.resume:  # what is completed needs no data any more
        from mvtec_lab.data import source  # and with it NumPy and OpenCV, which other mistakes need not pay for

        folder = source.look(config.data)
        if folder is not None and config.task == "train":  # task=describe describes what has no split
            source.look_at_split(folder, config.data, config.split, {} if scans is None else scans)


def unread(config: Config, typed: Mapping[str, str]) -> dict[str, str]:
    """Return the error line of every typed key that the configuration's task does not read."""
    if config.task not in TASKS:
        raise unknown("task", config.task, TASKS)
    task, values = TASKS[config.task], asking(Config, settings(config))
    lines: dict[str, str] = {}
    for key in typed:
        if key in values and not task.takes(key):
            said = key if isinstance(values[key], dict) else f"{key}={values[key]}"
            lines[key] = f"{said} does nothing for task={config.task}: leave it out"
    return lines


def idle(config: Config, typed: Mapping[str, str]) -> dict[str, str]:
    """Return the error line of every key that was given and has no effect, whatever the reason."""
    return problems.idle(config, typed) | unread(config, typed)


def settle(config: Config, typed: Mapping[str, str]) -> dict[str, str]:
    """Reset what was typed for a sweep's other jobs and has no effect in this one; return what remains as typed."""
    left = dict(typed)
    while idle_keys := idle(config, left).keys() & left:  # one may depend on another
        for key in idle_keys:
            del left[key]
            _reset(config, key)
    return left


def searches(hydra: Any) -> bool:
    """Tell whether the sweeper of Hydra's own configuration makes up its jobs, instead of running a grid."""
    return not str(hydra.sweeper._target_).endswith(".BasicSweeper")


def function_of(task: str) -> Callable[..., Any]:
    """Import and return a task's function.

    Raises:
        LabError: a library that it needs is missing or broken.
    """
    module, name = TASKS[task].function.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, OSError, RuntimeError) as error:  # as a library of the system that is missing
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise LabError(f"task={task} cannot be imported ({reason}): task=doctor says what is lacking") from error


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Print nothing of TensorBoard's thread, which hands its exception on to the run; print any other's."""
    if failure.thread is None or not type(failure.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(failure)


def _take_data_of_run(config: Config, given: set[str]) -> bool:
    """Take the data and the split of a checkpoint's own run, except for the keys that are given.

    Returns:
        Whether the images must be those of the run.

    Raises:
        LabError: its settings do not lie beside it, and no data are given.
    """
    run = origin_of(Path(str(config.ckpt)))
    if run is None:
        if config.data.name == "sample" and "data" not in given:
            raise LabError(
                f"{config.ckpt} has no {CONFIG} of its run beside it, so the images to judge it on are not known: give "
                "data=mvtec data.category=NAME, data=folder data.root=FOLDER or data=sample"
            )
        return False
    for section in {"data", "split"} - given:  # if no other one was chosen as a whole
        for name in TAKEN[section]:
            if f"{section}.{name}" not in given:
                setattr(getattr(config, section), name, getattr(getattr(run, section), name))
    if "seed" not in given:
        config.seed = run.seed
    elif "split.seed" not in given:
        config.split.seed = config.seed
    config.model.method = run.model.method  # the split's protocol depends on it
    others = bool(given & {"data", "data.name", "data.root", "data.category", "data.archive"})
    if others and config.data.name == "folder" and config.split.protocol == "own" and "split.protocol" not in given:
        config.split.protocol = "auto"  # another folder need not be divided
    return not others


def _stand_ins(job: Any) -> list[str]:
    """Return a line for every chosen name that stands for a file of the user's, although the lab has its own."""
    return [
        f"{group}={choice} is {file}, not the lab's own of that name"
        for source in job.runtime.config_sources
        if source.provider == OWN
        for group, choice in job.runtime.choices.items()
        if (file := Path(source.path, group, f"{choice}.yaml")).is_file() and (CONF / group / file.name).is_file()
    ]


def _replaced(job: Any, config: Config, words: list[str]) -> list[str]:
    """Return a line if what was typed for all jobs replaces values that the attempt's own file sets; no line if not.

    What a sweep varies is in the names of its attempts, and what changes no result needs no word.
    """
    attempt = job.runtime.choices["attempt"]
    folders = [*(source.path for source in job.runtime.config_sources if source.provider == OWN), CONF]
    values = _of_attempt(attempt, folders)
    merged = OmegaConf.merge(OmegaConf.structured(Config), values)  # numbers as the keys have them
    (of_file, of_run), named = (_flat(merged), _flat(config)), flatten(_plain(values))
    fixed = [key for key, value in typed_keys(words).items() if not {",", "("} & {*value}]
    others = changing(Config, "run", "nothing")
    keys = [key for key in fixed if key in named and key not in others and of_file[key] != of_run.get(key)]
    if not keys:
        return []
    said = ", ".join(f"{key}={of_run.get(key, 'null')} in place of {of_file[key]}" for key in keys)
    return [f"what was typed replaces what attempt={attempt} sets: {said}"]


def _of_attempt(attempt: str, folders: Sequence[str | Path]) -> DictConfig:
    """Return the values that an attempt's file sets, and those of the attempts that it is made of."""
    file = next(file for folder in folders if (file := Path(folder, "attempt", f"{attempt}.yaml")).is_file())
    values = OmegaConf.load(file)
    assert isinstance(values, DictConfig)
    begun_from = [e for e in values.pop("defaults", ()) if isinstance(e, str) and e.startswith("/attempt/")]
    merged = OmegaConf.merge(*(_of_attempt(name.removeprefix("/attempt/"), folders) for name in begun_from), values)
    assert isinstance(merged, DictConfig)
    return merged


def _plain(values: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.create(values), resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _flat(values: Any) -> dict[str, str]:
    return flatten(_plain(OmegaConf.structured(values) if isinstance(values, Config) else values))


def _record_failure(cfg: DictConfig, job: Any, run_dir: Path, error: BaseException) -> None:
    """Leave in its directory why a job of a sweep failed, or any run was stopped, if it could not do so itself."""
    if job.mode != RunMode.MULTIRUN and not isinstance(error, KeyboardInterrupt):
        return
    with suppress(OSError, LabError):  # the error has been printed, and must not end the sweep
        if cfg.task != "train" and job.mode == RunMode.MULTIRUN:
            record = {"exit_status": getattr(error, "status", 1), "error": one_line(error)}
            write_whole(run_dir / FAILED, json.dumps(record))
        elif cfg.task == "train" and not any((run_dir / name).exists() for name in (RESULT, CONFIG)):
            names = job.runtime.choices["attempt"], cfg.seed, cfg.data.name, str(cfg.data.category), cfg.model.backbone
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
