"""Problems: what is learnt, a folder and a line of PROBLEMS for each; methods: how, a folder and a METHOD for each.

Light to import: a configuration is checked without torch.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import iter_modules

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
