"""The seam: what differs between problems is said once, by an object of that problem. Light to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from mvtec_lab.errors import LabError, unknown

_KINDS = {int: "a whole number", float: "a number", str: "a name", list: "names in brackets, [a,b]"}


@dataclass(frozen=True)
class Option:
    """A setting of a method, ``model.options.<name>``; None stands for the default.

    Args:
        kind: int, float, str or list (of names).
        about: what it does, in one line.
        default: the value where none is given; None where the method computes it from the data.
        least, most: its range, both included; ``above``: a bound that it must exceed.
        choices: its values, where they are names.
    """

    kind: type
    about: str
    default: Any = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    choices: Sequence[str] = ()


@dataclass(frozen=True)
class Method:
    """How a problem is solved: the value of ``model.method``.

    Args:
        name: as in ``model.method``.
        problem: the problem that it solves, a name of ``problems.PROBLEMS``.
        home: ``module:Class`` of its module, which is imported when a run needs it.
        trains: by gradient; False where it is fitted in one pass, or not at all.
        draws: from random numbers, so that another seed gives another model.
        backbone: it takes ``model.backbone`` and ``model.weights``.
        options: what it takes beside them, by name.
        rules: raises LabError for settings that the method cannot work with; it is given the whole Config.
    """

    name: str
    problem: str
    home: str
    trains: bool = True
    draws: bool = True
    backbone: bool = True
    options: Mapping[str, Option] = field(default_factory=dict)
    rules: Callable[[Any], None] | None = None


def checked_options(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option of a method by its name: the given value, or the default where none or None is given.

    Raises:
        LabError: an option that the method does not know, or a value of another kind or out of its range.
    """
    for name, value in options.items():
        if name not in method.options:
            if method.options:
                raise unknown(f"option of {method.name}", name, method.options)
            raise LabError(f"model.method={method.name} has no options: leave out model.options.{name}")
        if value is not None:
            _check_option(f"model.options.{name}", value, method.options[name])
    given = {name: value for name, value in options.items() if value is not None}
    return {name: given.get(name, option.default) for name, option in method.options.items()}


def _check_option(key: str, value: Any, option: Option) -> None:
    if option.kind is list:
        right = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    else:
        kinds = (int, float) if option.kind is float else option.kind
        right = isinstance(value, kinds) and not isinstance(value, bool)
    if not right:
        raise LabError(f"{key}={value} is not {_KINDS[option.kind]}: {option.about}")
    if option.choices and value not in option.choices:
        raise unknown(key, value, option.choices)
    if option.kind not in (int, float):
        return
    least, most, above = option.least, option.most, option.above
    inside = (least is None or value >= least) and (most is None or value <= most) and (above is None or value > above)
    if not (isfinite(value) and inside):
        lower = f"a number above {above}" if above is not None else f"{least} or more" if least is not None else ""
        upper = f"up to {most}" if most is not None else ""
        wanted = ", ".join(bound for bound in (lower, upper) if bound) or "a finite number"
        raise LabError(f"{key}={value} is out of range: give {wanted}")


class Problem:
    """What is learnt: classification, anomaly ... The methods of this class are filled in by the seam's author."""

    name: str

    def methods(self) -> list[Any]:
        raise NotImplementedError
