"""Declare what is true of a key beside its type, and check a whole configuration by that."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from math import isfinite
from typing import Any, Literal, NamedTuple

from mvtec_lab.errors import LabError, unknown

# A changed value makes another attempt, or another run of the same attempt, or changes no result at all.
Changes = Literal["attempt", "run", "nothing"]
GROUPS = {"data": "data.name", "optimizer": "optimizer.name", "scheduler": "scheduler.name"}
_OF_GROUP = {key: group for group, key in GROUPS.items()}


class Needs(NamedTuple):
    """State the condition on another key under which a key has an effect."""

    key: str
    values: tuple[Any, ...]
    met: bool  # whether these values meet the condition, or all others
    why: str


def only(key: str, *values: Any) -> Needs:
    """Return the condition that a key has one of the values."""
    return Needs(key, values, True, f"it is for {key}={', '.join(map(str, values))}")


def but(key: str, *values: Any, why: str) -> Needs:
    """Return the condition that a key has none of the values."""
    return Needs(key, values, False, why)


@dataclass(frozen=True)
class Knob:
    """Meaning, range, choices, effect and conditions of a key; see ``knob``."""

    about: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Sequence[str] = ()
    changes: Changes = "attempt"
    needs: tuple[Needs, ...] = ()
    zero: bool = False


def knob(default: Any, about: str, **facts: Any) -> Any:
    """Return a dataclass field with its default and the facts of a Knob.

    Args:
        default: the value where none is given; ``dict`` or ``list``: an empty one.
        about: what the key means, and the reason for its default, as --help KEY and the documentation print it.
        least, most: the range of the value, both included; ``above`` and ``below`` are bounds outside of it.
        choices: the names that it takes.
        changes: what another value makes: another ``attempt``, another ``run`` of the same attempt, or ``nothing``.
        needs: conditions without which it has no effect; the first one that is not met is reported.
        zero: 0 asks for something as well.
    """
    start: dict[str, Any] = {"default_factory" if isinstance(default, type) else "default": default}
    return field(**start, metadata={"knob": Knob(about, **facts)})


def knobs(section: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any], Knob]]:
    """Yield every key of a section by its dotted name, with its field and its knob; sections are yielded as well."""
    for f in fields(section):
        yield prefix + f.name, f, f.metadata.get("knob", Knob())
        if is_dataclass(f.default_factory):
            yield from knobs(f.default_factory, f"{prefix}{f.name}.")


def changing(section: Any, *changes: Changes) -> tuple[str, ...]:
    """Return the keys whose values change one of these: an ``attempt``, a ``run``, ``nothing``."""
    return tuple(key for key, _, known in knobs(section) if known.changes in changes)


def settings(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return the value of every key by its dotted name; a method's options are keys as well."""
    items = section if isinstance(section, dict) else {f.name: getattr(section, f.name) for f in fields(section)}
    values: dict[str, Any] = {}
    for name, value in items.items():
        if is_dataclass(value) or (name == "options" and isinstance(value, dict)):
            values |= settings(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values


def varied(sections: Sequence[Any]) -> list[str]:
    """Return the keys whose values differ among configurations; empty for one."""
    values = [settings(section) for section in sections]
    return [key for key in dict.fromkeys(key for of in values for key in of) if any(_differs(key, values))]


def _differs(key: str, values: Sequence[Mapping[str, Any]]) -> Iterator[bool]:
    return (of.get(key) != values[0].get(key) for of in values[1:])


def check_values(section: Any, prefix: str = "") -> None:
    """Check every value of a section by its knob.

    Raises:
        LabError: the first wrong value, with its key and what the key takes.
    """
    values = settings(section, prefix)
    for key, value in values.items():
        if value == "":
            raise LabError(f"{key} is empty: give a value, or leave it out")
        if any(isinstance(number, float) and not isfinite(number) for number in _parts(value)):
            raise LabError(f"{key}={value} is out of range: give finite numbers")
    for key, _, known in knobs(section, prefix):
        value = values.get(key)
        if value is None:
            continue
        if known.choices and value not in known.choices:
            raise unknown(_OF_GROUP.get(key, key), value, known.choices)
        if wanted := out_of_range(value, known.least, known.most, known.above, known.below):
            raise LabError(f"{key}={value} is out of range: give {wanted}")


def out_of_range(
    value: Any,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> str | None:
    """Return what a value outside of its range should be; None where it lies inside."""
    inside = (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if inside and (not isinstance(value, float) or isfinite(value)):
        return None
    return bounds(least, most, above, below) or "a finite number"


def bounds(
    least: float | None = None, most: float | None = None, above: float | None = None, below: float | None = None
) -> str | None:
    """Return a range in words, ``0 to 1``; None where there are no bounds."""
    if above is not None:
        upper = f", up to {most}" if most is not None else ""
        return f"a number between {above} and {below}" if below is not None else f"a number above {above}{upper}"
    if below is not None:
        return f"a number in [{least}, {below})"
    if least is None:
        return None
    return f"{least} to {most}" if most is not None else f"{least} or more"


def without_effect(section: Any, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys whose conditions are not met by the values, each with the reason."""
    reasons: dict[str, str] = {}
    for key, _, known in knobs(section):
        for needs in known.needs:
            if (values[needs.key] in needs.values) is not needs.met:
                other = "null" if values[needs.key] is None else values[needs.key]
                reasons.setdefault(key, f"{needs.key}={other}: {needs.why}")
    return reasons


def idle(
    section: Any,
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    typed: Collection[str],
    reasons: Mapping[str, str],
) -> dict[str, str]:
    """Return the error line of every key that was given and has no effect.

    A key is given if somebody typed it, even with the default as its value, or if its value is not the default.
    Whether its value asks for anything, ``asking`` says.

    Args:
        section: the class whose keys these are.
        values, defaults: those of a configuration and of an untouched one, by dotted key.
        typed: the keys that somebody typed.
        reasons: the keys without effect, each with the reason.
    """
    return {
        key: f"{key if isinstance(value, dict) else f'{key}={value}'} does nothing for {reasons[key]}: leave it out"
        for key, value in asking(section, values).items()
        if key in reasons and (key in typed or value != defaults.get(key))
    }


def asking(section: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys whose values ask for anything: ``none``, ``auto``, null and false do not, and 0 rarely does."""
    zero = {key for key, _, known in knobs(section) if known.zero}
    return {
        key: value
        for key, value in values.items()
        if (bool(value) and value not in ("none", "auto")) or (key in zero and value == 0)
    }


def _parts(value: Any) -> list[Any]:
    """Return the plain values in lists and mappings."""
    if isinstance(value, dict | list):
        return [part for inner in (value.values() if isinstance(value, dict) else value) for part in _parts(inner)]
    return [value]
