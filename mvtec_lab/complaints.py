"""Answer a mistake in one line, whether the lab, Hydra, OmegaConf or the operating system has noticed it."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from mvtec_lab.errors import LabError, disk_full, setting, unknown
from mvtec_lab.own import CONF, keys

# Hydra's plugins -> the extra that installs them.
_EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray", "optuna": "optuna"}


# What Hydra says of a command line -> the same with its remedy.
_HYDRA = {
    r"Ambiguous value for argument '(.*)'": "{} gives several values: a sweep takes -m in front, a list [brackets]",
    r"Error parsing override '(.*)'": "{} is no setting: write key=value; --help lists the keys",
    r"no viable alternative at input '(.*)'": "{} cannot be read as a value: close its brackets and quotes",
    r"BasicSweeper does not support sweep type : (INTERVAL)_SWEEP": "an interval is for a search: give "
    "hydra/sweeper=optuna, or list the values",
    r"Could not override '(.*)'": "nothing has chosen a {0} yet: write a + before it, +{0}=NAME",
    r"Multiple values for (\S+)\. To override": "{} is set already: leave out the + before it",
}


def complain(error: LabError, full: bool = False) -> int:
    """Print an error, with its traceback if it is asked for, and return its exit status."""
    print(f"{error.word}: {error}", file=sys.stderr)
    if full:
        traceback.print_exception(error)
    return error.status


def explain(error: BaseException, own: str | None = None, folder: Path | None = None) -> LabError:
    """Return one line for what Hydra, OmegaConf or the operating system say at length.

    Args:
        own: the user's own configuration directory.
        folder: where this command writes.
    """
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, OmegaConfBaseException | MissingConfigException):
        cause = cause.__cause__
    in_group = re.match("In '(.*?/.*?)': ", str(error))  # a group's file
    file = Path(own or CONF, f"{in_group[1]}.yaml") if in_group else CONF
    where = f"{file}: " if file.is_file() else ""
    if isinstance(cause, MissingConfigException) and cause.missing_cfg_file:
        return _missing(cause, own, where)
    if full := disk_full(error, folder or Path.cwd()):
        return full
    if isinstance(cause, OSError) and cause.filename:
        remedy = "give hydra.run.dir=FOLDER (hydra.sweep.dir for a sweep) that can be written"
        return LabError(f"{cause.filename} cannot be written ({cause.strerror}): {remedy}")
    key = str(getattr(cause, "full_key", None) or "")
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and key:
        return _no_such_key(key, where)
    reason = str(cause).split("\n")[0].rstrip(".")
    for pattern, remedy in _HYDRA.items():
        if said := re.match(pattern, reason):
            return LabError(where + remedy.format(said[1]) + _if_folder(said[1]))
    if isinstance(cause, ValidationError) and key:
        return LabError(f"{where}{key}: {reason}")
    return LabError(where + reason)


def _if_folder(word: str) -> str:
    """Return how a folder or a file is given that was typed alone, or as the name of a data set."""
    return f"; images of your own: data=folder {setting('data.root', word)}" if Path(word).expanduser().exists() else ""


def _missing(cause: MissingConfigException, own: str | None, where: str) -> LabError:
    group, _, name = str(cause.missing_cfg_file).rpartition("/")
    if group in ("hydra/launcher", "hydra/sweeper") and name in _EXTRAS:
        kind = group.rpartition("/")[2]
        return LabError(f'Hydra\'s {name} {kind} is not installed: pip install "mvtec_lab[{_EXTRAS[name]}]"')
    top, _, choice = str(cause.missing_cfg_file).lstrip("/").partition("/")
    roots = [Path(root, top) for root in (CONF, own or CONF)]
    names = {file.relative_to(root).with_suffix("").as_posix() for root in roots for file in root.rglob("*.yaml")}
    if top == "hydra" or not names:
        return LabError(where + str(unknown(group or "config", name, cause.options or [])))
    return LabError(where + str(_no_such_choice(top, choice, sorted(names))))


def _no_such_choice(group: str, choice: str, known: Sequence[str]) -> LabError:
    """Return the error of a name that a group lacks, with the names in other folders that may be meant."""
    folder, _, last = choice.rpartition("/")
    beside, elsewhere = dict[str, str](), []
    for name in known:
        home, _, end = name.rpartition("/")
        if home == folder:
            beside[end] = name
        if end == last or home == choice:
            elsewhere.append(name)
    if near := elsewhere or [beside[end] for end in get_close_matches(last.lower(), beside)]:
        return LabError(f"unknown {group} {choice!r}: did you mean {', '.join(near)}?")
    return LabError(
        f"{unknown(group, choice, beside.values() or known)}{_if_folder(choice) if group == 'data' else ''}"
    )


def _no_such_key(key: str, where: str) -> LabError:
    name = key.rpartition(".")[2]
    if key.startswith("hydra.runtime.choices."):
        return LabError(f"{name} takes one name; several are a sweep: -m {name}=A,B")
    if key.startswith("augment.transforms."):
        return LabError(f"{where}{key} is not in this configuration yet: add a transform with +{key}.p=PROBABILITY")
    if key.startswith("hydra."):
        return LabError(f"{where}unknown key {key!r}: --cfg hydra lists what Hydra has")
    if name == key and (near := _ending(key)):
        return LabError(f"{where}unknown key {key!r}: did you mean {', '.join(near)}?")
    return LabError(where + str(unknown("key", key, keys())))


def _ending(word: str) -> list[str]:
    """Return the keys of sections that end in a word: ``lr`` is meant for ``optimizer.lr``."""
    ends = {key: key.rpartition(".")[2] for key in keys() if "." in key}
    same = [key for key, end in ends.items() if end == word]
    return same or [key for key, end in ends.items() if word in end.split("_")]
