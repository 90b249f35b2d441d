"""Check a user's own configuration files (--config-dir) as they are read; they come before the lab's.

Such a file is often somebody else's, so it may set the lab's keys and nothing that could run code or read a secret.
What is wrong in it is said with the file's name, the key and the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from mvtec_lab.arguments import text_keys
from mvtec_lab.config import Config
from mvtec_lab.errors import LabError, unknown
from mvtec_lab.knobs import knobs

# In a wheel conf/ lies inside the package, in a checkout and an editable install beside it.
_HERE = Path(__file__).resolve().parent
CONF = next(d for d in (_HERE / "conf", _HERE.parent / "conf") if (d / "config.yaml").is_file())
OWN = "own"  # Hydra's name for where these files come from
GLOBAL = ("attempt", "study")  # groups whose files set keys of all sections
# Another key's value, the time, and the one environment variable that the lab itself reads.
_HARMLESS = re.compile(r"\$\{(?:[\w.\[\]]+|now:[^${}]*|hydra:[\w.]+|oc\.env:MVTEC_ROOT(?:,[^${}]*)?)\}")


class OwnFiles(ConfigSource):
    """Serve the groups of a user's directory; the primary configuration stays the lab's."""

    @staticmethod
    def scheme() -> str:
        return OWN

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        return Path(self.path, config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return "/" in config_path and self._file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the names of the groups and files in a group, for --help and near misses."""
        names: list[str] = []
        for path in Path(self.path, config_path).iterdir():
            self._list_add_result(names, str(Path(config_path, path.name)), path.name, results_filter)
        return sorted({*names})

    def load_config(self, config_path: str) -> ConfigResult:
        file = self._file(config_path)
        try:
            written = file.read_text(encoding="utf-8")
            config = OmegaConf.create(written)
            typed = yaml.load(written, yaml.BaseLoader)  # every value a text
            values = OmegaConf.to_container(config, resolve=False)
        except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
            raise LabError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise LabError(f"{file} holds no keys: write key: value")
        header = self._get_header_dict(written)
        _check(file, config_path.rpartition("/")[0], header["package"], values, typed or {})
        return ConfigResult(provider=self.provider, path=f"{OWN}://{self.path}", config=config, header=header)

    def _file(self, config_path: str) -> Path:
        return Path(self.path, self._normalize_file_name(config_path))


class OwnFirst(SearchPathPlugin):
    """Put the user's directory before the lab's. Hydra makes this object without arguments, so the class holds it."""

    directory: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: Any) -> None:
        if self.directory is not None:
            search_path.prepend(OWN, f"{OWN}://{self.directory.resolve()}", anchor="main")


@contextmanager
def own_files(directory: str | None) -> Iterator[None]:
    """Let Hydra find the files of a directory before the lab's.

    Raises:
        LabError: there is no such directory, or it has no folder of a group.
    """
    if directory is not None and not Path(directory).is_dir():
        raise LabError(f"--config-dir={directory} is no folder: give one with files like attempt/mine.yaml in it")
    if directory is not None and not any(Path(directory, group.name).is_dir() for group in CONF.iterdir()):
        path = Path(directory).absolute()
        remedy = f"give --config-dir={path.parent}" if (CONF / path.name).is_dir() else "put your files there"
        raise LabError(
            f"--config-dir={directory} has no folder attempt/ or of another group (study, data ...): {remedy}"
        )
    for plugin in (OwnFiles, OwnFirst):
        Plugins.instance().register(plugin)
    OwnFirst.directory = None if directory is None else Path(directory)
    try:
        yield
    finally:
        OwnFirst.directory = None


def keys() -> list[str]:
    """Return every key of the lab by its dotted name, sections included."""
    return [key for key, _, _ in knobs(Config)]


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
