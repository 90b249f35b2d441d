"""Say what every key means, takes and changes: the source of ``--help KEY`` and of the documentation's reference.

The texts stand where a key is declared: beside it in config.py, or in the folder of the method whose option it is.
"""

from __future__ import annotations

import re
import textwrap
import types
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from mvtec_lab.arguments import OPTIONS
from mvtec_lab.config import Config
from mvtec_lab.errors import unknown
from mvtec_lab.evaluation.specs import all_metrics
from mvtec_lab.knobs import GROUPS, Knob, Needs, bounds, knobs
from mvtec_lab.own import CONF
from mvtec_lab.problems import METHODS, takers
from mvtec_lab.problems.classification import LOSSES
from mvtec_lab.tasks import TASKS

_KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "keys", list: "list"}
_WIDTH = 100  # columns of a line of help
# Keys whose values are names that code registers: functions that list them.
_NAMES = {
    "task": lambda: list(TASKS),
    "model.method": METHODS.names,
    "loss.name": LOSSES.names,
    "verdict.metric": lambda: [metric.key for metric in all_metrics() if metric.decides],
}


@dataclass(frozen=True)
class Entry:
    """Describe one key, in plain text.

    Args:
        key: its dotted name, ``data.sampler_beta``.
        kind: text, whole number, number, true or false, list, keys (of its own), value (of several kinds); ``or null``.
        default: as it is typed, ``0.99``; ``null`` is none.
        elsewhere: the defaults of groups' files that are others, ``224 with data=folder, mvtec``.
        about: what it means, and the reason for its default.
        takes: its range or its choices; empty where its kind says all.
        needs: the settings that it needs to have an effect, each as it is read: ``data.sampler=effective``.
        changes: what another value makes: another ``attempt``, another ``run`` of the same attempt, or ``nothing`` in a
            result.
        tasks: those that read it.
        methods: the values of ``model.method`` that take it, where not every one does.
    """

    key: str
    kind: str
    default: str
    about: str
    elsewhere: tuple[str, ...] = ()
    takes: str = ""
    needs: tuple[str, ...] = ()
    changes: str = "attempt"
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()


def entries() -> list[Entry]:
    """Return every key of the lab, in the order of config.py; the options of methods follow ``model.options``."""
    kinds, listed = _kinds(Config), []
    for key, field, known in knobs(Config):
        if key not in kinds:  # a section
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        listed.append(_entry(key, kinds[key], _typed(default), known))
        if f"{key}." == OPTIONS:
            listed += _options()
    return listed


def sections() -> dict[str, str]:
    """Return what each section is for, by its name: ``data``, ``split`` ..."""
    hints = get_type_hints(Config)
    return {key: str(hints[key].__doc__) for key, field, _ in knobs(Config) if "." not in key and not field.metadata}


def choices(group: str, own: str | None = None) -> dict[str, str]:
    """Return the files of a group, by the names that a command line gives, each with its first line of comment.

    Args:
        group: a folder of ``conf/``: attempt, study, data, augment, optimizer, scheduler, hydra/launcher.
        own: a folder of the user's, as ``--config-dir``, whose files come before the lab's.
    """
    files: dict[str, Path] = {}
    for root in filter(None, (own, str(CONF))):
        for file in Path(root, group).rglob("*.yaml"):
            files.setdefault(file.relative_to(Path(root, group)).with_suffix("").as_posix(), file)
    return {name: _comment(files[name]) for name in sorted(files)}


def page(word: str, own: str | None = None) -> str:
    """Return what ``--help WORD`` prints of a key, a section or a group.

    Args:
        own: a folder of the user's, as ``--config-dir``.

    Raises:
        LabError: there is none of that name.
    """
    every, names, files = entries(), sections(), choices(word, own)
    same = [entry for entry in every if entry.key == word]  # options of this name of several methods
    inner = [entry for entry in every if entry.key.startswith(f"{word}.")]
    if not (same or inner or files):
        raise unknown("key", word, {*(entry.key for entry in every), *names, "study", "hydra/launcher"})
    lines: list[str] = []
    if word in names:
        lines += [f"{word}: {names[word]}", ""]
    for entry in same:
        lines += [*_whole(entry), ""]
    if word == "task":
        lines += [*_listed(((f"task={name}", task.about) for name, task in TASKS.items())), ""]
    if files:
        plus = "+" if word == "study" else ""  # which no default names
        lines += [*_listed((f"{plus}{word}={name}", about) for name, about in files.items()), ""]
    lines += [line for entry in inner for line in (*_short(entry), "")]
    return "\n".join(lines)


def _kinds(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return the type of every key; a section has none."""
    kinds: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        if hasattr(hint, "__dataclass_fields__"):
            kinds |= _kinds(hint, f"{prefix}{name}.")
        else:
            kinds[prefix + name] = hint
    return kinds


def _entry(key: str, hint: Any, default: str, known: Knob) -> Entry:
    union = get_origin(hint) in (Union, types.UnionType)
    parts = [part for part in get_args(hint) if part is not type(None)] if union else [hint]
    kind = _KINDS.get(get_origin(parts[0]) or parts[0], "value")
    if union and len(parts) < len(get_args(hint)):
        kind += " or null"
    names = known.choices or (_NAMES[key]() if key in _NAMES else ())
    takes = ", ".join(names) if names else bounds(known.least, known.most, known.above, known.below)
    return Entry(
        key,
        kind,
        default,
        known.about,
        _elsewhere(key, default),
        (takes or "").removeprefix("a number "),
        tuple(_said(needs) for needs in known.needs),
        known.changes,
        tuple(name for name, task in TASKS.items() if task.takes(key)),
        tuple(takers("keys").get(key, ())),
    )


def _options() -> Iterator[Entry]:
    """Yield the options of methods, once where several methods declare one alike."""
    for name, methods in sorted(takers("options").items()):
        alike: dict[str, list[str]] = {}
        for method in methods:
            alike.setdefault(repr(METHODS[method].options[name]), []).append(method)
        for them in alike.values():
            option = METHODS[them[0]].options[name]
            known = Knob(option.about, option.least, option.most, option.above, choices=tuple(map(str, option.choices)))
            entry = _entry(OPTIONS + name, option.kind, _typed(option.default), known)
            yield Entry(**{**vars(entry), "methods": tuple(them)})


def _elsewhere(key: str, default: str) -> tuple[str, ...]:
    """Return the values that the groups' files give a key, where they are not its default."""
    values: dict[tuple[str, str], list[str]] = {}
    if key in GROUPS.values():  # which choice it is
        return ()
    for (group, choice), file_values in _files_of_groups().items():
        value = file_values.get(key, default)
        if value != default:
            values.setdefault((value, group), []).append(choice)
    return tuple(f"{value} with {group}={', '.join(names)}" for (value, group), names in values.items())


@cache
def _files_of_groups() -> dict[tuple[str, str], dict[str, str]]:
    """Return the values in the files of the lab's own groups by key; a file by group and name."""
    of_choices: dict[tuple[str, str], dict[str, str]] = {}
    for group in (*GROUPS, "augment"):
        for file in sorted(Path(CONF, group).glob("*.yaml")):
            written = file.read_text(encoding="utf-8")
            values = OmegaConf.to_container(OmegaConf.create(written), resolve=False)
            inner = values if "@package _global_" in written else {group: values}
            of_choices[group, file.stem] = {key: _typed(value) for key, value in _flat(inner).items()}
    return of_choices


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return the plain values of mappings in mappings, by dotted keys."""
    if not isinstance(values, dict):
        return {prefix[:-1]: values}
    return {key: value for name, inner in values.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


def _said(needs: Needs) -> str:
    values = [_typed(value) for value in needs.values]
    return f"{needs.key}={', '.join(values)}" if needs.met else f"{needs.key} other than {', '.join(values)}"


def _typed(value: Any) -> str:
    """Return a value as it is typed on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    value = re.sub(r"\$\{oc\.env:(\w+),null\}", r"$\1", str(value))
    return value.replace("'", "").replace(" ", "")


def _comment(file: Path) -> str:
    """Return the first sentence of the comment at a file's head."""
    text = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            text = f"{text} {line[1:].strip()}".strip()
            if text.endswith((".", ":")):  # after a colon comes a command
                break
    return re.split(r"(?<=[^.]\.) (?=[A-Z])", text.rstrip(":"), maxsplit=1)[0]


def _whole(entry: Entry) -> Iterator[str]:
    """Yield the lines of a key's own page."""
    yield from _short(entry)
    if entry.needs:
        yield from _wrapped(f"has an effect with {'; '.join(entry.needs)}")
    yield from _wrapped(
        f"read by task={', '.join(entry.tasks)}" if len(entry.tasks) < len(TASKS) else "read by every task"
    )
    if "train" in entry.tasks and entry.key != "task":
        makes = {"attempt": "another attempt", "run": "another run of the same attempt", "nothing": "no other result"}
        yield from _wrapped(f"another value makes {makes[entry.changes]}")


def _short(entry: Entry) -> Iterator[str]:
    """Yield the lines of a key among others."""
    yield from _wrapped("; ".join((f"{entry.key}={entry.default}", *entry.elsewhere)), indent="")
    yield from _wrapped(entry.about)
    yield from _wrapped(f"{entry.kind}: {entry.takes}" if entry.takes else entry.kind)
    if entry.methods:
        yield from _wrapped(f"of model.method={', '.join(entry.methods)}")


def _listed(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield rows of a name and what it is, in two columns."""
    rows = list(rows)
    wide = max(len(name) for name, _ in rows) + 2
    for name, about in rows:
        yield from textwrap.wrap(about, _WIDTH, initial_indent=name.ljust(wide), subsequent_indent=" " * wide) or [name]


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent="    ", break_on_hyphens=False)
