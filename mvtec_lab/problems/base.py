"""The seam: what differs between problems is said once, by an object of that problem. Light to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Option:
    """A setting of a method, ``model.options.<name>``; None stands for the method's default.

    Args:
        kind: int, float, str or list (of names).
        about: what it does, in one line.
        least, most: its range, both included; ``above``: a bound that it must exceed.
        choices: its values, where they are names.
    """

    kind: type
    about: str
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


class Problem:
    """What is learnt: classification, anomaly ... The methods of this class are filled in by the seam's author."""

    name: str

    def methods(self) -> list[Any]:
        raise NotImplementedError
