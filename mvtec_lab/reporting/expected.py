"""Recall what a checkpoint reached on test, before anybody believes its predictions."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.operating import interval
from mvtec_lab.foreign import file_of, read_json
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.headline import SHAPES, Light, capital, headline_of, mistake_of
from mvtec_lab.reporting.runs import require_metrics
from mvtec_lab.results import BEST, OPERATING, RESULT, RunResult

UNTESTED = "no image has tested this model: what to expect of it is its attempt's figure in cross-validation"


@dataclass(frozen=True)
class Expected:
    """Hold what to expect of a model's predictions.

    ``light`` is green where the tests show that it learnt something, amber where nothing shows it, red where it was no
    better than always naming the most frequent class, or chance.
    """

    light: Light
    word: str
    sentence: str
    further: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """Return it as lines for a terminal."""
        return [f"{SHAPES[self.light]} {self.word}: {self.sentence}", *self.further]


def expected(ckpt: Path) -> Expected:
    """Return what the run of a checkpoint says of it."""
    with suppress(LabError):  # a damaged file beside it is no reason to predict nothing
        run, point = run_of_checkpoint(ckpt)
        if run is not None:
            return _of_run(run, point)
        if point:
            return Expected("amber", "Not known", "its run is gone", _rates(point))
    return Expected("amber", "Not known", f"no {RESULT} beside this checkpoint says what it reached on test")


def run_of_checkpoint(ckpt: Path) -> tuple[RunResult | None, dict[str, Any] | None]:
    """Return the run of a checkpoint, and the operating point that was chosen for it; None: there is none.

    Raises:
        LabError: a file of theirs is damaged.
    """
    point = _operating(ckpt.parent)
    run_dir = Path(point["ckpt"]).parent if point else ckpt.parent
    while point and (earlier := _operating(run_dir)):  # a threshold that was moved once more
        run_dir = Path(earlier["ckpt"]).parent
    return (None if file_of(run_dir, RESULT) is None else RunResult.load(run_dir)), point


def attempt_of(ckpt: Path) -> str | None:
    """Return the attempt that trained a checkpoint; None: neither its run nor its operating point says so."""
    with suppress(LabError):
        run, point = run_of_checkpoint(ckpt)
        if run is not None:
            return run.attempt
        return str(point["attempt"]) if point and point.get("attempt") else None
    return None


def judged_by(ckpt: Path, method: str, threshold: float | None, accept: float | None) -> str:
    """Return which model judges, in a line: its folder, its attempt (else its method) and what decides.

    Args:
        threshold, accept: as in ``Model``.
    """
    if threshold is None:
        decides = "no threshold"
    elif accept is None or accept == threshold:
        decides = f"threshold {threshold:.4g}"
    else:
        decides = f"thresholds {accept:.4g} and {threshold:.4g}"
    place = ckpt.parent if ckpt.name == BEST and ckpt.parent.name else ckpt
    return f"by {place}: {attempt_of(ckpt) or f'method {method}'}, {decides}"


def _operating(directory: Path) -> dict[str, Any] | None:
    path = file_of(directory, OPERATING)
    return None if path is None else read_json(path)


def _of_run(run: RunResult, point: dict[str, Any] | None) -> Expected:
    if run.untested:
        return Expected("amber", "Untested", UNTESTED, _rates(point) if point else [])
    require_metrics(run)
    headline = headline_of(compare([run]))
    if headline.light == "red":
        sentence = "do not rely on these decisions: on test it is not shown that this model learnt anything"
        return Expected("red", headline.word, sentence)
    mistakes = [f"{capital(kind)}: {mistake_of(kind, share)}." for kind, share in headline.mistakes.items()]
    return Expected(headline.light, headline.word, headline.sure, _rates(point) if point else mistakes)


def _rates(point: dict[str, Any]) -> list[str]:
    """Return the rates of an operating point on test, else on held-out images, a line each."""
    said = []
    for part, title in (("test", "on test"), ("expected", "held out")):
        for key, what in (("false_rejects", "good images are rejected"), ("escapes", "defects pass")):
            if rate := point.get(part, {}).get(key):
                bounds = interval(rate["low"], rate["high"])
                said.append(f"{capital(title)}, {rate['count']} of {rate['of']} {what} ({bounds}).")
        if said:
            break
    return said
