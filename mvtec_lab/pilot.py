"""Turn a plan without runs into two commands: a sweep that trains a pilot, and the plan from its runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.knobs import changing

PILOT = "pilot"  # the folder of its runs, in that of the plan
# Five folds: their spread has four degrees of freedom; that of three folds has two, too few to plan from.
FOLDS = "cv.folds=5"
_SPLITS = {"cv.folds", "cv.repeats", "seed", "split.seed", "split.protocol", "study"}  # who gives one chooses a design
_OF_PLAN = {"task", "difference", "hydra.run.dir", "hydra.sweep.dir"}
_OF_BOTH = {"verdict.metric", "verdict.reference"}
_OPTIONS = ("-m", "--multirun", "--config-dir", "-cd")  # with any other one, as --help, nothing is run


class Pilot(NamedTuple):
    """Hold the words of two commands: the sweep that trains a pilot, and the plan from it."""

    sweep: list[str]
    plan: list[str]


def pilot_of(arguments: Sequence[str]) -> Pilot | None:
    """Return the two commands of ``task=plan`` without ``dirs``; None for any other command.

    Attempts are listed as in a sweep, with or without ``-m``.

    Raises:
        LabError: there are not several attempts to compare.
    """
    given = {key.lstrip("+"): value for key, equals, value in (word.partition("=") for word in arguments) if equals}
    options = [word for word in arguments if word.startswith("-") and not word.startswith(_OPTIONS)]
    if given.get("task") != "plan" or "dirs" in given or options:
        return None
    same = changing(Config, "run", "nothing")  # other seeds and folds are no other attempts
    varied = [key for key, value in given.items() if "," in value and not value.startswith("[") and key not in same]
    if not varied and "study" not in given:
        raise LabError(
            "task=plan compares attempts: give two or more, attempt=A,B, of which it trains a pilot, or runs that "
            "exist, dirs=[SWEEP]"
        )
    typed = given.get("hydra.run.dir") or given.get("hydra.sweep.dir")
    folder = Path(typed.strip("'\"")) if typed else Path(f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S-%f}")
    words = [word for word in arguments if word not in ("-m", "--multirun")]
    kept = [word for word in words if _key(word) not in _OF_PLAN]
    folds = [] if _SPLITS & given.keys() else [FOLDS]
    shared = [word for word in words if _key(word) in _OF_BOTH | {"difference"}]
    return Pilot(
        ["-m", *kept, *folds, f"hydra.sweep.dir={folder / PILOT}"],
        ["task=plan", *shared, f"dirs={folder / PILOT}", f"hydra.run.dir={folder}"],
    )


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]
