"""Check a user's own configuration files (--config-dir) as they are read; they come before the lab's.

Such a file is often somebody else's, so it may set the lab's keys and nothing that could run code or read a secret.
What is wrong in it is said with the file's name, the key and the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from mvtec_lab.arguments import text_keys
from mvtec_lab.config import Config
from mvtec_lab.errors import LabError, unknown

OWN = "own"  # Hydra's name for where these files come from
GLOBAL = ("attempt", "study")  # groups whose files set keys of all sections
# Another key's value, the time, and the one environment variable that the lab itself reads.
_HARMLESS = re.compile(r"\$\{(?:[\w.\[\]]+|now:[^${}]*|hydra:[\w.]+|oc\.env:MVTEC_ROOT(?:,[^${}]*)?)\}")

_directory: Path | None = None


class OwnFiles(FileConfigSource):
    """Serve the groups of a user's directory; the primary configuration stays the lab's."""

    @staticmethod
    def scheme() -> str:
        return OWN

    def is_config(self, config_path: str) -> bool:
        return "/" in config_path and super().is_config(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, f"{config_path}.yaml")
        try:
            result = super().load_config(config_path)
            typed = yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)  # every value a text
            values = OmegaConf.to_container(result.config, resolve=False)
        except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
            raise LabError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise LabError(f"{file} holds no keys: write key: value")
        _check(file, config_path.rpartition("/")[0], result.header["package"], values, typed or {})
        return result


class _OwnFirst(SearchPathPlugin):
    def manipulate_search_path(self, search_path: Any) -> None:
        if _directory is not None:
            search_path.prepend(OWN, f"{OWN}://{_directory.resolve()}", anchor="main")


@contextmanager
def own_files(directory: str | None) -> Iterator[None]:
    """Let Hydra find the files of a directory before the lab's.

    Raises:
        LabError: there is no such directory.
    """
    global _directory
    if directory is not None and not Path(directory).is_dir():
        raise LabError(f"--config-dir={directory} is no folder: give one with files like attempt/mine.yaml in it")
    for plugin in (OwnFiles, _OwnFirst):
        Plugins.instance().register(plugin)
    _directory = None if directory is None else Path(directory)
    try:
        yield
    finally:
        _directory = None


def keys(cls: type = Config, prefix: str = "") -> list[str]:
    """Return every key of the lab by its dotted name, sections included."""
    names = []
    for f in fields(cls):
        names.append(prefix + f.name)
        section = f.default_factory if isinstance(f.default_factory, type) else None
        if section is not None and is_dataclass(section):
            names += keys(section, f"{prefix}{f.name}.")
    return names


def _check(file: Path, group: str, package: str | None, values: dict[Any, Any], typed: dict[Any, Any]) -> None:
    _refuse_code(file, group, values)
    values.pop("defaults", None)
    if group == "study" and isinstance(params := _params(values), dict):
        for key, value in params.items():
            _refuse_number(file, str(key), value, (_params(typed) or {}).get(key))
        values.pop("hydra")
    if group in GLOBAL and package != "_global_" and values:
        raise LabError(f"{file} sets keys of the whole lab: its first line must be # @package _global_")
    place = package or group.replace("/", ".")
    for part in reversed(place.replace("_group_", group.replace("/", ".")).replace("_name_", file.stem).split(".")):
        if part != "_global_":
            values, typed = {part: values}, {part: typed}
    try:
        OmegaConf.merge(OmegaConf.structured(Config), values)
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise LabError(f"{file}: {unknown('key', error.full_key, keys())}") from error
    except OmegaConfBaseException as error:
        raise LabError(f"{file}: {error.full_key}: {str(error).splitlines()[0].rstrip('.')}") from error
    for key, value in _flat(values).items():
        _refuse_number(file, key, value, _flat(typed).get(key))


def _params(values: dict[Any, Any]) -> Any:
    """Return a study's grid, where there is nothing else of Hydra's in it."""
    match values.get("hydra"):
        case {"sweeper": {"params": params, **others}, **more} if not (others or more):
            return params
    return None


def _refuse_code(file: Path, group: str, values: dict[Any, Any]) -> None:
    """Refuse what Hydra would run, or take from outside: before it has looked at the file."""
    refused = "hydra.*" if group.split("/")[0] == "hydra" else None
    allowed = "hydra.sweeper.params." if group == "study" and isinstance(_params(values), dict) else None
    for key, value in _flat(values).items():
        said = f"{key}: {value}"
        of_hydra = re.search(r"\bhydra\b", said) if key.startswith("defaults.") else key.startswith("hydra")
        if allowed and key.startswith(allowed):
            of_hydra = re.search(r"(^|@)[+~]*hydra\b", key.removeprefix(allowed))
        if of_hydra or "_target_" in said or "${" in _HARMLESS.sub("", said):
            refused = refused or said
    if refused is not None:
        raise LabError(
            f"{file} may not set {refused}, it could run code or read a secret: a file of your own sets the lab's keys "
            "alone; what is Hydra's is given on the command line"
        )


def _refuse_number(file: Path, key: str, value: Any, typed: Any) -> None:
    """Refuse text that YAML reads as something else: category: 2024_05."""
    if (
        isinstance(value, bool | int | float)
        and re.sub(r"\.\d+$", "", key.lstrip("+")) in text_keys()
        and str(value) != typed
    ):
        raise LabError(f"{file}: {key}: {typed} is {value!r} to YAML: write '{typed}'")


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return every value in mappings and lists by its place."""
    if not isinstance(values, dict | list):
        return {prefix: values}
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    flat: dict[str, Any] = {}
    for key, value in inner:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
