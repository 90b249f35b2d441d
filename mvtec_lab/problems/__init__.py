"""Problems: what is learnt, a folder and a line of PROBLEMS for each; methods: how, a folder and a METHOD for each.

Light to import: a configuration is checked without torch.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from pkgutil import iter_modules

from mvtec_lab.config import Config, validate
from mvtec_lab.problems.base import Method, Problem
from mvtec_lab.registry import Registry

_FOLDERS = Path(__file__).parent / "anomaly" / "methods"
METHODS: Registry[Method] = Registry(
    "method",
    {
        "classifier": f"{__name__}.classification:METHOD",
        **{folder.name: f"{__name__}.anomaly.methods.{folder.name}:METHOD" for folder in iter_modules([str(_FOLDERS)])},
    },
    require=("problem", "home", "options"),
)
PROBLEMS: Registry[Problem] = Registry(
    "problem",
    {
        "classification": f"{__name__}.classification.problem:PROBLEM",
        "anomaly": f"{__name__}.anomaly.problem:PROBLEM",
    },
)


def problem_of(method: str) -> Problem:
    """Return the problem that a value of ``model.method`` solves.

    Raises:
        LabError: an unknown method.
    """
    return PROBLEMS[METHODS[method].problem]


def check(config: Config, typed: Collection[str] = frozenset()) -> None:
    """Check every setting that can be checked without looking at data or network.

    Args:
        typed: the keys that somebody typed, which must have an effect even where they say the default.

    Raises:
        LabError: the first value that is wrong, with its key and what it may be.
    """
    validate(config, typed)
    problem_of(config.model.method).check(config, typed)
