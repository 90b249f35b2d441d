"""Run the command line: parse it, let Hydra compose and run the jobs, complain in one line, return an exit status.

Light to import: ``--help`` and a typo do not pay for torch.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from string import Template
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mvtec_lab import __version__
from mvtec_lab.arguments import override, parse, typed_keys
from mvtec_lab.complaints import explain
from mvtec_lab.composing import check, to_config
from mvtec_lab.config import Config
from mvtec_lab.engine.process import command_line_settings
from mvtec_lab.errors import LabError
from mvtec_lab.job import Command, Job
from mvtec_lab.logs import logging_restored
from mvtec_lab.own import CONF, own_files
from mvtec_lab.pilot import Pilot, pilot_of
from mvtec_lab.sweep import COMMAND, Stop, begun, sum_up
from mvtec_lab.tasks import TASKS

if TYPE_CHECKING:
    from mvtec_lab.reporting.pairs import Comparison

STOPPED = 130  # exit status, as a shell says it of Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Returns:
        0, 1 (a run failed), 2 (the user's mistake) or 130 (stopped).
    """
    return _call(Command(full_error=_full_error()), sys.argv[1:] if arguments is None else arguments)


def run_task(*words: str, directory: str | os.PathLike[str]) -> Any:
    """Run one task as the command line does, and return what the task returns.

    ``run_task("task=evaluate", "ckpt=outputs/mine", directory="outputs/judged")``

    Args:
        words: as they are typed: ``key=value``, and ``--config-dir=FOLDER``.
        directory: what it writes goes there; a run's directory, for a training.

    Returns:
        A RunResult of ``train``, a list of rows of ``predict``, a Comparison of ``compare``, a Plan of ``plan``, and
        the facts that the other tasks write or print.

    Raises:
        LabError: the mistake that the command line would print; it is printed as well.
        KeyboardInterrupt: it was stopped.
    """
    command = Command(full_error=_full_error())
    _raise(command, _call(command, [*words, f"hydra.run.dir={os.fspath(directory)}"]))
    return command.result


def run_sweep(*words: str, directory: str | os.PathLike[str]) -> Comparison:
    """Run several attempts, seeds or folds as ``-m`` does, print table and verdict, and return their comparison.

    ``run_sweep("attempt=head,finetune", "cv.folds=5", directory="outputs/mine").verdict``

    A run that fails stands in the comparison with its reason; the others go on.

    Args:
        words: as they are typed, without ``-m``.
        directory: of the sweep; each run has a directory of its own in it.

    Raises:
        LabError: the mistake that the command line would print, before anything was trained; it is printed as well.
        KeyboardInterrupt: it was stopped; ``resume=true`` goes on with it.
    """
    command = Command(full_error=_full_error())
    status = _call(command, ["-m", *words, f"hydra.sweep.dir={os.fspath(directory)}"])
    if status == STOPPED or command.refused or not begun(command):
        _raise(command, status)
    from mvtec_lab.reporting.comparison import compare  # and with it SciPy, which the command line's start does without
    from mvtec_lab.reporting.runs import load_runs

    return compare(load_runs(directory))


def _full_error() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _raise(command: Command, status: int) -> None:
    """Raise what ended a command."""
    if status == STOPPED:
        raise KeyboardInterrupt
    if command.mistake is not None:
        raise command.mistake


def _call(command: Command, arguments: Sequence[str]) -> int:
    """Run a command line, of a plan without runs its pilot first, and return its exit status."""
    try:
        pilot = pilot_of(arguments)
    except LabError as error:
        command.refused = True
        return command.complain(error)
    return _one(command, arguments) if pilot is None else _planned(command, pilot)


def _planned(command: Command, pilot: Pilot) -> int:
    """Train a pilot and plan from it; a run that failed leaves the others to plan from."""
    trained = Command(full_error=command.full_error)
    status = _one(trained, pilot.sweep)
    if status == STOPPED or trained.refused or not begun(trained):
        command.mistake, command.refused = trained.mistake, True
        return status
    return max(status, _one(command, pilot.plan))


def _one(command: Command, arguments: Sequence[str]) -> int:
    """Run a command line as it is, and return its exit status."""
    command.words = list(arguments)
    with _stopped_by_sigterm(), logging_restored():
        try:
            status = _run(command, arguments)
            command.refused = status is not None
            if status is None:
                status = sum_up(command) if command.sweep_dir else command.status
        except KeyboardInterrupt as stop:  # in the report
            status = _stopped(stop)
    return status


def _run(command: Command, arguments: Sequence[str]) -> int | None:
    """Run everything except a sweep's table; return the exit status if there is to be none."""
    try:
        options, command.own = parse(arguments)
        if {"--help", "-h"} & {*options}:
            print(_help(options, command.own))
            return 0
        if "--version" in options:
            print(f"mvtec_lab {__version__}")
            return 0
        for word in {*options} & TASKS.keys():
            raise LabError(f"{word} is a task: write task={word}")
        with _apart(), command_line_settings(), own_files(command.own), _hydra_sees(options, command):
            hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(Job(command))()
    except Stop as stop:
        return command.complain(stop.error)
    except LabError as error:
        return command.complain(error)
    except BrokenPipeError:  # --help | head
        return 0
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:  # Hydra's own: jobs raise none
        mistake = explain(error, command.own, command.sweep_dir)
        command.status = max(command.status, command.complain(mistake))
        if not (isinstance(error, OSError) and begun(command)):
            return command.status
    except KeyboardInterrupt as stop:
        command.status = _stopped(stop)
    except SystemExit as exit_:  # the argument parser's own complaints
        return int(exit_.code or 0)
    except Exception as error:
        if command.sweep_dir is None:
            raise
        # A launcher's: it does not work on this machine, or one of its processes was killed.
        reason = explain(error, command.own, command.sweep_dir)
        status = command.complain(LabError(f"the launcher gave up: {reason}"))
        command.status = max(command.status, 1 if begun(command) else status)
    return None


def compose(*overrides: str) -> Config:
    """Return the configuration of a command line, for use from Python: ``compose("attempt=finetune", "seed=1")``.

    Raises:
        LabError: an unknown name or key, or a value of the wrong type or out of range.
    """
    try:
        composed = _composed([override(words) for words in overrides])
        config = to_config(composed, composed.hydra)
        check(config, typed_keys(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    return config


def _composed(overrides: list[str]) -> DictConfig:
    with _apart(), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", overrides, return_hydra_config=True)


def _first(word: str) -> str:
    """Return a setting of a sweep with the first of its values, which the help shows; empty where none is listed."""
    if "=" not in word:
        return word
    (setting,) = OverridesParser.create().parse_overrides([word])
    if not setting.is_sweep_override():
        return word
    listed = setting.is_choice_sweep() or setting.is_range_sweep()
    return f"{setting.get_key_element()}={next(setting.sweep_string_iterator())}" if listed else ""


def _help(options: list[str], own: str | None) -> str:
    """Return what some keys and groups mean; without them, the help with all groups and keys.

    Of a sweep it shows the first value of each setting, and says so. Hydra takes a second to list groups, as it copies
    its own for each.

    Args:
        options: the words of the command line.
        own: the directory of ``--config-dir``.
    """
    typed = [word for word in options if not word.startswith("-")]
    words = [*filter(None, map(_first, typed))] if "--multirun" in options else typed
    settings = [word for word in words if "=" in word]
    with own_files(own):
        if len(settings) < len(words):
            if settings:
                raise LabError(f"--help with a key takes no settings: leave out {settings[0].partition('=')[0]}=")
            from mvtec_lab.reference import page

            return "\n".join(page(word, own) for word in words).rstrip()
        config = _composed(settings)
    keys = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    shown = " ".join(word for word in words if word not in typed).replace("'", "")
    note = f"Of several values the first is shown: {shown}" if shown else ""
    return Template(config.hydra.help.template).substitute(
        APP_CONFIG_GROUPS=_groups(own), CONFIG=OmegaConf.to_yaml(keys) + note
    )


def _groups(own: str | None) -> str:
    """Return the names in each group of the lab's configuration and of the user's own, a line for each group."""
    groups: dict[str, set[str]] = {}
    for root in (str(CONF), own or str(CONF)):
        for folder, _, files in os.walk(root, followlinks=True):
            group = os.path.relpath(folder, root).replace(os.sep, "/")
            if group.split("/")[0] not in (".", "hydra"):
                groups.setdefault(group, set()).update(name[:-5] for name in files if name.endswith(".yaml"))
    return "".join(f"{group}: {', '.join(sorted(groups[group]))}\n" for group in sorted(groups) if groups[group])


def _stopped(stop: KeyboardInterrupt) -> int:
    print(str(stop) or "stopped by hand", file=sys.stderr)
    return STOPPED


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does; leave a handler that somebody else has set."""

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


@contextmanager
def _apart() -> Iterator[None]:
    """Set aside a Hydra application that this process runs, and restore it."""
    job, runtime, version = HydraConfig.instance(), JobRuntime.instance(), VersionBase.instance()
    theirs = GlobalHydra.instance().hydra, job.cfg, runtime.conf.copy(), version.version_base
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra, job.cfg, runtime.conf, version.version_base = theirs


@contextmanager
def _hydra_sees(words: Sequence[str], command: Command) -> Iterator[None]:
    """Give Hydra a command line, and let its exceptions through: it would print them at length and exit with 1."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    token = COMMAND.set(command)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        sys.argv = [argv[0], *words]
        yield
    finally:
        COMMAND.reset(token)
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
