"""Keep a race in race.json, in its sweep's directory, and drop the attempts that a look shows to be worse.

A look rests on the files of the folds that all attempts still in the race have completed, so that it shows the same
whichever process takes it, and when.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypedDict

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import racing
from mvtec_lab.evaluation.differences import LEAST_RUNS
from mvtec_lab.evaluation.racing import Change
from mvtec_lab.foreign import Count, damaged, file_of, misfit, read_json
from mvtec_lab.locks import held
from mvtec_lab.reporting.attempts import THINNED, Attempt, shared
from mvtec_lab.reporting.grouping import by_attempt
from mvtec_lab.reporting.pairs import changes, refused
from mvtec_lab.reporting.runs import settings_of
from mvtec_lab.results import RESULT, Dropped, RunResult, flatten, write_whole

log = logging.getLogger(__name__)

RACE = "race.json"


@dataclass
class Race:
    """Hold who takes part in a race, and who was dropped.

    Args:
        attempts: the directories of each attempt's runs, fold by fold, several of a fold where there are several seeds.
        metric: the key of the metric that decides; None: the attempts' own.
        reference: the attempt that the others are compared with; None: every pair is.
        looked: the looks that were taken.
        dropped: why, by attempt.
        retried: the directories of failed runs that a resumed sweep has not begun again: they may yet be completed.
    """

    attempts: dict[str, list[list[str]]]
    metric: str | None = None
    reference: str | None = None
    looked: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)
    retried: list[str] = field(default_factory=list)

    @property
    def folds(self) -> int:
        """Return the folds of all repeats."""
        return len(next(iter(self.attempts.values())))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs that the verdict will compare."""
        pairs = list(combinations(self.attempts, 2))
        if self.reference not in self.attempts:
            return pairs
        return [pair for pair in pairs if self.reference in pair]

    def reason(self, directory: str) -> dict[str, Any] | None:
        """Return why the run of a directory is left out; None where it is not."""
        for name, why in self.dropped.items():
            if any(directory in of_fold for of_fold in self.attempts[name][why["after"] :]):
                return why
        return None

    def save(self, sweep_dir: Path) -> None:
        """Write race.json."""
        write_whole(sweep_dir / RACE, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, sweep_dir: Path) -> Race:
        """Return the race of a sweep.

        Raises:
            LabError: it is missing or damaged.
        """
        path = file_of(sweep_dir, RACE)
        if path is None:
            raise LabError(f"{sweep_dir / RACE} is missing: start the sweep again with resume=true")
        raw = read_json(path)
        wrong = misfit(raw, _File)
        if wrong is None and (not raw["attempts"] or any(name not in raw["attempts"] for name in raw["dropped"])):
            wrong = "it does not know the attempts that it dropped"
        if wrong:
            raise damaged(path, wrong)
        return cls(**{name: raw[name] for name in cls.__dataclass_fields__})

    def look(self, sweep_dir: Path) -> bool:
        """Take the next look and drop what it shows to be worse; False where none is left or its folds are not done.

        Raises:
            LabError: a run's files are damaged.
        """
        looks = racing.looks(self.folds)
        if self.looked == len(looks) or (runs := self._completed(sweep_dir, looks[self.looked])) is None:
            return False
        after, number = looks[self.looked], len(self.pairs)
        settings = {run.run_dir: settings_of(run) for of_attempt in runs.values() for run in of_attempt}
        attempts = {name: Attempt(name, of_attempt, settings, self.metric) for name, of_attempt in runs.items()}
        compared = [_change(a, b, after) for a, b in combinations(attempts.values(), 2)]
        one_round = max(attempt.one_round for attempt in attempts.values())
        leads = racing.leads([change for change in compared if change], after, one_round=one_round)
        wanted = {frozenset(pair) for pair in self.pairs}
        judged = [lead for lead in leads if {lead.better, lead.worse} in wanted]
        for name, lead in racing.losers(judged, len(looks), number, self.reference).items():
            self.dropped[name] = {
                "than": lead.better,
                "metric": attempts[name].metric.key,
                "lead": lead.value,
                "p": racing.over_looks(lead.p, len(looks)) * number,
                "after": after,
                "folds": self.folds,
                "freedom": lead.freedom,
                "errors": {
                    other: pair.error
                    for pair in leads
                    for other in (pair.better, pair.worse)
                    if name in (pair.better, pair.worse) and other != name
                },
            }
            log.info("the race drops %s after %d of %d folds: worse than %s", name, after, self.folds, lead.better)
        self.looked += 1
        return True

    def _completed(self, sweep_dir: Path, after: int) -> dict[str, list[RunResult]] | None:
        """Return the runs of the first folds of each attempt that is in; None where one has not ended.

        An attempt with a run that failed sits out: it neither drops another one nor is dropped.
        """
        runs: dict[str, list[RunResult]] = {}
        for name in (name for name in self.attempts if name not in self.dropped):
            directories = [directory for of_fold in self.attempts[name][:after] for directory in of_fold]
            folders = [sweep_dir / directory for directory in directories]
            if {*self.retried} & {*directories} or not all((folder / RESULT).exists() for folder in folders):
                return None
            of_attempt = [RunResult.load(folder) for folder in folders]
            if any(run.running or run.stopped or run.left_out for run in of_attempt):
                return None
            if all(run.completed for run in of_attempt):
                runs[name] = of_attempt
        return runs


class _File(TypedDict):
    attempts: dict[str, list[list[str]]]
    metric: str | None
    reference: str | None
    looked: Count
    dropped: dict[str, Dropped]
    retried: list[str]


def race_of(configs: Mapping[str, Config]) -> Race:
    """Return the race of a sweep whose jobs are to come.

    Args:
        configs: those of all its jobs, by their directories in that of the sweep.

    Raises:
        LabError: there are not enough attempts or folds to race, or several products.
    """
    config = next(iter(configs.values()))
    products = dict.fromkeys(f"{of.data.name}/{of.data.category or of.data.root}" for of in configs.values())
    if len(products) > 1:
        raise LabError(f"race=true compares attempts on one product, not on {', '.join(products)}: give one a sweep")
    settings = {name: flatten(asdict(of)) for name, of in configs.items()}
    runs = [
        RunResult(of.attempt, of.seed, of.data.name, str(of.data.category), of.model.backbone, name)
        for name, of in configs.items()
    ]
    thinned = [key for key in THINNED if len({own[key] for own in settings.values()}) > 1]
    if thinned:
        raise LabError(
            f"race=true would leave out runs that a curve over {thinned[0]} is drawn from: give one value of it, or "
            "leave out race"
        )
    groups = by_attempt(runs, settings)
    if len(groups) < 2:
        raise LabError(f"race=true has one attempt, {', '.join(groups)}: give two or more, as attempt=finetune,head")
    folds = (config.cv.folds or 0) * config.cv.repeats
    if not racing.looks(folds):
        few = f"cv.folds={config.cv.folds} cv.repeats={config.cv.repeats}"
        raise LabError(
            f"race=true first looks after {LEAST_RUNS} folds, and {few} leaves none to save after it: give more, as "
            "cv.folds=5 cv.repeats=2"
        )
    attempts: dict[str, list[list[str]]] = {}
    for name, of_attempt in groups.items():
        places: dict[tuple[int | None, int], list[str]] = {}
        for split, directory in ((configs[run.run_dir].split, run.run_dir) for run in of_attempt):
            places.setdefault((split.seed, split.fold), []).append(directory)
        attempts[name] = [places[place] for place in sorted(places)]
    return Race(attempts, config.verdict.metric, config.verdict.reference)


def begin(race: Race, sweep_dir: Path, resume: bool) -> None:
    """Write the race.json of a sweep; one that lies there already goes on.

    Raises:
        LabError: it is damaged, or of other attempts or folds.
    """
    with held(sweep_dir, wait=True):
        if resume and (sweep_dir / RACE).exists():
            begun = Race.load(sweep_dir)
            if replace(begun, looked=0, dropped={}, retried=[]) != race:
                raise LabError(
                    f"{sweep_dir / RACE} is the race of other attempts, folds or metric: give the same ones, or "
                    "hydra.sweep.dir=NEW_FOLDER"
                )
            race = begun
        if resume:
            directories = [each for of_attempt in race.attempts.values() for of_fold in of_attempt for each in of_fold]
            race.retried = [each for each in directories if _failed(sweep_dir / each)]
        race.save(sweep_dir)


def _failed(run_dir: Path) -> bool:
    return (run_dir / RESULT).exists() and RunResult.load(run_dir).failed


def advance(sweep_dir: Path, begins: str = "") -> Race:
    """Take every look whose folds are completed, and return the race. Processes take turns.

    Args:
        sweep_dir: the directory of the sweep.
        begins: the directory in it of the run that is about to begin.

    Raises:
        LabError: race.json or a file of a run is damaged.
    """
    with held(sweep_dir, wait=True):
        race = Race.load(sweep_dir)
        before = replace(race, retried=list(race.retried))
        race.retried = [each for each in race.retried if each != begins]
        while race.look(sweep_dir):
            pass
        if race != before:
            race.save(sweep_dir)
    return race


def _change(a: Attempt, b: Attempt, after: int) -> Change | None:
    """Return how two attempts differ over the first folds; None where they cannot be compared over all of them."""
    common = shared((a, b))
    if len(common) < after or refused(a, b, common) or (known := changes(a, b, common)) is None:
        return None
    change, ratio, resolution = known
    variance = max(float(change.var(ddof=1)), resolution**2 / len(change))
    return Change(a.name, b.name, a.metric.sign * float(change.mean()), variance, ratio)
