"""Prepare a command line for Hydra: options in any order, and text as it was typed.

Hydra reads values by a grammar of its own: ``2024_05`` is the number 202405 to it, and a path with ``=`` an error. So
the value of every key whose type is text is put into Hydra's quotes here, and means itself:

* ``null``, a value in quotes, and ``${...}`` keep their meaning in Hydra. A leading ``~/`` is the home folder, as in a
  shell, which does not look behind ``key=``.
* A comma parts values where it can: in a sweep (``-m``), and inside the brackets of a list. There a value with a comma
  in it takes quotes of its own: ``-m "data.root='/data/a,b'"``. Hydra's own keys are never swept: commas are text.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser
from collections.abc import Collection, Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import ListConfig, OmegaConf

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError, is_text, printable, unknown
from mvtec_lab.knobs import GROUPS
from mvtec_lab.problems import option_kinds

_GROUPS = ("attempt", "study", "data", "augment", "optimizer", "scheduler")  # whose choices are names of files
OPTIONS = "model.options."  # of a method, which are no keys of the classes
_HYDRA_TEXT = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ELEMENT = re.compile(rf"\s*({_QUOTED}|(?:\$\{{[^}}]*\}}|[^,])*?)\s*,")
_LISTS = re.compile(rf"\s*(\[(?:{_QUOTED}|[^\]])*\]|[^,]*?)\s*,")
_SWEEPS = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)")  # Hydra's functions
# What would run code, or read files that may: callbacks, and directories of configuration that nothing has checked.
_REFUSED = {"--config-path": "-cp", "--config-name": "-cn", "--experimental-rerun": "--experimental-rerun"}
_WITH_VALUE = {"--cfg": "-c", "--package": "-p"}
_PLAIN = {"--help": "-h", "--hydra-help": "", "--version": "", "--resolve": "", "--run": "-r"}
_PLAIN |= {"--shell-completion": "-sc"}  # also Hydra's, without a value
# A study's grid, in its file; OmegaConf fails where the command line sets it and no study has done so.
_GRID = re.compile(r"hydra\.sweeper\.(params|search_space)\b.*")
_CODE = re.compile(r"(?:.*@)?hydra(?:[./](callbacks|searchpath)\b.*)?")


class _Parser(ArgumentParser):
    """Complain in one line."""

    def error(self, message: str) -> NoReturn:
        raise LabError(f"{message}: --help lists the options")


def parse(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Return the words for Hydra, options first and text in quotes, and the directory of ``--config-dir``.

    Raises:
        LabError: an option that does not exist or lacks its value, an option or a key that could run code from a file,
            or a name that is no text.
    """
    for words in arguments:
        if not is_text(words):  # a run writes down its configuration
            raise LabError(f"{printable(words)} cannot be used (it is no UTF-8): rename the file or folder")
    # Hydra's own parser has no public name, and takes overrides in one block only. Options without a value are left
    # to it. It would read the start of an option's name as that option, --vers as its own --version.
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    for option, short in {**_REFUSED, **_WITH_VALUE}.items():
        parser.add_argument(option, short)
    parser.add_argument("--info", "-i", nargs="?", const="all")
    args, options = parser.parse_known_intermixed_args(list(arguments))
    for option in options:
        if option not in {*_PLAIN, *_PLAIN.values()}:
            given_options = ("--multirun", "--config-dir", "--info", *_WITH_VALUE, *_PLAIN)
            raise unknown("option", option.partition("=")[0], given_options)
    given = vars(args)
    for option in _REFUSED:
        if given[option[2:].replace("-", "_")] is not None:
            raise LabError(
                f"{option} would replace the lab's own configuration: leave it out; --config-dir=FOLDER adds files of "
                "your own"
            )
    for words in args.overrides:
        key, equals, value = words.partition("=")
        if equals and (option := f"--{key.replace('_', '-')}") in ("--config-dir", *_PLAIN):
            raise LabError(f"{words} is an option, no setting: write {option}{f'={value}' * (option not in _PLAIN)}")
    _refuse_parted(args.overrides)
    sweep = args.multirun or "hydra.mode=MULTIRUN" in args.overrides
    options += ["--multirun"] * args.multirun
    options += [f"{option}={given[option[2:]]}" for option in (*_WITH_VALUE, "--info") if given[option[2:]] is not None]
    return [*options, *(override(words, sweep) for words in args.overrides)], args.config_dir


def _refuse_parted(words: Sequence[str]) -> None:
    """Refuse words that a shell has parted at a blank: ``data.root=/data/my product``.

    Raises:
        LabError: a word without ``=`` follows a comma, or a key whose value is text or a list.
    """
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if "=" in word or word.startswith("~") or "=" not in before:
            continue
        key = before.partition("=")[0].lstrip("+")
        if before.endswith(",") and "[" not in before:
            raise LabError(f"{before} {word}: leave out the blank behind the comma: {before}{word}")
        if key in text_keys() or "[" in before:
            rest = takewhile(lambda other: "=" not in other, words[place:])
            whole = " ".join([before, *rest])
            raise LabError(
                f"{word} is no setting: write key=value; --help lists the keys; if it belongs to {key}, a blank needs "
                f'quotes: "{whole}"'
            )


def override(words: str, sweep: bool = False) -> str:
    """Return one ``key=value`` with its value in Hydra's quotes where the key's type is text.

    Raises:
        LabError: a key that could run code from a file, or a study's grid.
    """
    key, equals, value = words.partition("=")
    name = key.lstrip("+~")
    if _CODE.fullmatch(name):
        raise LabError(f"{words} is refused, it could run code: --config-dir=FOLDER adds files of your own")
    if _GRID.fullmatch(name):
        raise LabError(
            f"{words} is a key of a study's file: here, give the keys of the grid themselves, "
            '-m attempt=base,cosine or, for a search, -m "optimizer.lr=interval(0.001,0.1)"'
        )
    if equals and name.startswith(OPTIONS) and key == name:
        key = f"++{name}"  # Hydra would refuse a key that the default configuration lacks
    return key + equals + text(name, value, sweep)


def as_typed(overrides: Sequence[str] | ListConfig) -> list[str]:
    """Return the words of ``hydra.overrides.task`` or ``.hydra`` as they were typed.

    An interpolation stays one: its value may not be known before a job starts, as that of ``${hydra.job.num}``.
    """
    words = OmegaConf.to_container(overrides, resolve=False) if isinstance(overrides, ListConfig) else overrides
    assert isinstance(words, Sequence)
    return [str(word) for word in words]


def unquoted(word: str) -> str:
    """Return ``key=value`` without the quotes that Hydra needs around some values."""
    key, equals, value = word.partition("=")
    return key + equals + (value[1:-1].replace("\\'", "'") if re.fullmatch(_QUOTED, value) else value)


def typed_keys(words: Collection[str]) -> dict[str, str]:
    """Return the lab's keys among ``key=value`` words, with their values; a group stands for its `name` key."""
    typed: dict[str, str] = {}
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        key = "augment.transforms" if key.startswith("augment.transforms") or key == "augment" else GROUPS.get(key, key)
        typed[key] = value
    return typed


def text(key: str, value: str, sweep: bool = False) -> str:
    """Return a key's value as Hydra is to read it, several in a sweep."""
    known = text_keys()
    if key.startswith(OPTIONS) and (kinds := option_kinds(key.removeprefix(OPTIONS)) & {str, list}):
        known = {key: list in kinds}
    if key in _GROUPS:  # names alone: lists and functions stay Hydra's
        names = value.split(",") if sweep else [value]
        return ",".join(_quoted(name) if re.fullmatch(r"[\w./+-]+", name) else name for name in names)
    if key not in known or value == "" or (sweep and _SWEEPS.fullmatch(value)):
        return value
    if not sweep or key in _HYDRA_TEXT:
        return _list(value) if known[key] else _quoted(value)
    parts, each = (_LISTS, _list) if known[key] else (_ELEMENT, _quoted)
    return ",".join(each(part) for part in parts.findall(value + ","))


@cache
def text_keys() -> dict[str, bool]:
    """Return every key whose values are text, and whether it takes a list of them."""
    hints = {key: str(hint) for key, hint in _leaves(Config)}
    lists = {key: "list[str]" in hint for key, hint in hints.items() if re.search(r"\bstr\b", hint)}
    del lists["attempt"]  # a file's name to Hydra
    return {**lists, **dict.fromkeys(_HYDRA_TEXT, False)}


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif not str(hint).startswith("dict"):
            yield prefix + name, hint


def _list(value: str) -> str:
    """Quote a list in brackets, or the one path that stands for it: ``dirs=outputs/mine``."""
    if value == "null" or re.fullmatch(r"\$\{.*\}|\[\s*\]", value):
        return value
    elements = _ELEMENT.findall(value[1:-1] + ",") if re.fullmatch(r"\[.*\]", value) else [value]
    return f"[{','.join(map(_quoted, elements))}]"


def _quoted(value: str) -> str:
    if value.lower() == "null" or re.fullmatch(_QUOTED, value):
        return value
    if value == "~" or value.startswith("~/"):
        value = str(Path(value).expanduser())
    return QuotedString(value, Quote.single).with_quotes()
