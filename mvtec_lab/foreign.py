"""Read the files of a run's directory, which may come from elsewhere: every file is checked before it is used.

A link out of the directory and a file of an unusual size are refused, and an unreadable file is answered in one line
with its name.
"""

from __future__ import annotations

import json
import os
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import yaml

from mvtec_lab.errors import LabError

MIB = 1 << 20
# Bytes, several times what a large run needs: 250 classes, 10,000 images. A config has some 3 KB, and YAML is slow.
MOST = {".yaml": MIB // 4, ".json": 16 * MIB, ".csv": 64 * MIB, ".jpg": 16 * MIB, ".npz": 512 * MIB}
LARGEST = 1e15  # no number of a run comes near it, and every integer below it is exact as a float
# Terminals obey control characters, and half of a surrogate pair cannot be written as UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def damaged(path: Path, reason: object) -> LabError:
    """Return the error for a file that cannot be read, or whose content is impossible."""
    text = " ".join(str(reason).split())
    return LabError(f"{path} is damaged ({text[:300]}): run that attempt again or remove it")  # 300: still one line


def file_of(run_dir: str | os.PathLike[str], name: str) -> Path | None:
    """Return a file of a run's directory; None where there is none.

    Raises:
        LabError: it is a link out of the directory, no regular file, or too large.
    """
    path = Path(run_dir, name)
    if not os.path.lexists(path):
        return None
    try:
        inside = path.resolve().is_relative_to(Path(run_dir).resolve())
    except (OSError, RuntimeError) as error:  # a link to itself
        raise damaged(path, error) from error
    if not inside:
        raise LabError(f"{path} leads out of its run's directory: put the file itself there, or remove the link")
    if not path.is_file():
        raise damaged(path, "no regular file")
    if (size := path.stat().st_size) > MOST[path.suffix]:
        raise damaged(path, f"{size:,} bytes, where at most {MOST[path.suffix]:,} are expected")
    return path


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        LabError: it cannot be read, or holds a number that is not finite or too large.
    """
    try:
        return _sound(json.loads(path.read_text(encoding="utf-8")), LARGEST)
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(
            f"{path} is missing or damaged ({' '.join(str(error).split())}): run that attempt again or remove it"
        ) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file as plain values; ``${...}`` is text like any other.

    Raises:
        LabError: it cannot be read, or has no keys.
    """
    try:
        values = _sound(yaml.load(path.read_text(encoding="utf-8"), _Plain) or {})
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise damaged(path, error) from error
    if not isinstance(values, dict):
        raise damaged(path, "it has no keys")
    return values


class _Plain(yaml.SafeLoader):
    """Load YAML and refuse references, by which a few lines can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to parts of itself")
        return super().compose_node(parent, index)


def _sound(value: Any, most: float = sys.float_info.max) -> Any:
    """Return the value with unprintable characters replaced; raise ValueError for a number that is not used here."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("�", value)
    if isinstance(value, Mapping):
        return {_sound(key) if isinstance(key, str) else str(key): _sound(inner, most) for key, inner in value.items()}
    if isinstance(value, list):
        return [_sound(inner, most) for inner in value]
    if isinstance(value, int | float) and not abs(value) <= most:  # true of NaN as well
        raise ValueError(f"{str(value)[:20]} is no number that is used here")
    return value


class Share:
    """Mark a number from 0 to 1, with a margin for the rounding of sums."""


class Size:
    """Mark a number of 0 or more."""


class Count:
    """Mark a whole number of 0 or more."""


def misfit(value: Any, hint: Any, name: str = "") -> str | None:
    """Return the part of a value that does not fit its type, ``metrics.test.accuracy is '7.5'``; None: all fits.

    Types are those of plain values, lists and dicts with text as keys, dataclasses and TypedDicts (whose unknown keys,
    perhaps of a later version, are ignored), and Share, Size and Count. Of ``Annotated[type, shape]`` the shape counts.
    """
    if hint is Any:
        return None
    if get_origin(hint) is Annotated:
        return misfit(value, hint.__metadata__[0], name)
    if get_origin(hint) in (Union, types.UnionType):
        wrong = [misfit(value, part, name) for part in get_args(hint)]
        return None if None in wrong else max(map(str, wrong), key=len)  # the one that went deepest
    if get_origin(hint) in (list, dict) or is_typeddict(hint) or is_dataclass(hint):
        return _misfit_inside(value, hint, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)  # a bool is an int in Python
    right = number and _NUMBERS[hint](value) if hint in _NUMBERS else isinstance(value, hint)
    return None if right else f"{name} is {str(value)[:60]!r}"


def _misfit_inside(value: Any, hint: Any, name: str) -> str | None:
    """Return the first part of a list, dict, dataclass or TypedDict that does not fit; None: all fits."""
    origin = get_origin(hint)
    if not isinstance(value, list if origin is list else dict):
        return f"{name or 'it'} is {str(value)[:60]!r}"
    if is_typeddict(hint) and (lacking := sorted(hint.__required_keys__ - set(value))):
        return f"{name} has no {lacking[0]}"
    inner: Any = dict(enumerate(value)) if origin is list else value
    hints: dict[Any, Any] = (
        get_type_hints(hint, include_extras=True) if origin is None else dict.fromkeys(inner, get_args(hint)[-1])
    )
    misfits = (misfit(part, hints[k], f"{name}.{k}" if name else str(k)) for k, part in inner.items() if k in hints)
    return next(filter(None, misfits), None)


_NUMBERS: dict[Any, Callable[[float], bool]] = {
    Share: lambda value: 0 <= value <= 1 + 1e-9,
    Size: lambda value: value >= 0,
    Count: lambda value: value >= 0 and value % 1 == 0,
    int: lambda value: isinstance(value, int),
    float: lambda value: True,
}
