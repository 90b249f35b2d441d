"""A race: when it looks, what it drops, and what table and verdict make of the runs that it leaves out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_pairs import fold
from test_reporting import printed

from mvtec_lab.config import Config, CrossValidationConfig, SplitConfig, VerdictConfig
from mvtec_lab.engine.resume import as_yaml
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import racing, statistics
from mvtec_lab.evaluation.racing import Change, Lead, leads, looks, losers
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.race import RACE, Race, advance, begin, race_of
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import CONFIG, RESULT, RunResult, find_runs, read_csv
from mvtec_lab.tasks.race import left_out

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is no part of the package

from benchmarks import races

GOOD = [11, 12, 11, 10, 12, 11, 12, 10, 11, 12]  # right of 12 images, fold by fold
FAIR = [10, 12, 12, 10, 11, 11, 12, 11, 10, 12]
BAD = [2, 3, 1, 2, 2, 3, 2, 1, 2, 3]


def config_of(attempt: str, place: int, **verdict: str) -> Config:
    split = SplitConfig(protocol="kfold", seed=place // 5, folds=5, fold=place % 5)
    cv, asked = CrossValidationConfig(folds=5, repeats=2), VerdictConfig(**verdict)
    return Config(attempt=attempt, race=True, split=split, cv=cv, verdict=asked)


def name_of(attempt: str, place: int) -> str:
    return f"{attempt}-{place // 5}-{place % 5}"


def ready(sweep: Path, *attempts: str, **verdict: str) -> Race:
    """Begin the race of attempts over five folds, twice."""
    jobs = ((attempt, place) for place in range(10) for attempt in attempts)
    race = race_of({name_of(*job): config_of(*job, **verdict) for job in jobs})
    begin(race, sweep, resume=False)
    return race


def run(sweep: Path, attempt: str, places: range, right: list[int], **fields: object) -> None:
    """Leave the runs of an attempt, or what the race makes of them."""
    for place in places:
        directory, config = sweep / name_of(attempt, place), config_of(attempt, place)
        if left_out(config, directory, sweep) is None:
            fields = {"seconds": 30.0, "started": f"2026-01-01T00:{place:02}"} | fields
            fold(directory, attempt, place % 5, right[place], **fields)
            if place >= 5:  # other images: what is drawn anew
                rows = (directory / "predictions.csv").read_text(encoding="utf-8").replace("test,", "test,again/")
                (directory / "predictions.csv").write_text(rows, encoding="utf-8")
            (directory / CONFIG).write_text(as_yaml(config), encoding="utf-8")


def side_by_side(sweep: Path, **right: list[int]) -> None:
    """Run the attempts fold by fold, as a sweep with ``race=true`` does."""
    for place in range(10):
        for attempt, counts in right.items():
            run(sweep, attempt, range(place, place + 1), counts)


def test_looks_come_less_and_less_often() -> None:
    assert [looks(folds) for folds in (3, 4, 5, 10, 50)] == [[], [3], [3], [3, 5, 8], [3, 5, 8, 12, 18, 27, 41]]


def test_the_level_is_shared_by_looks_and_pairs() -> None:
    just = racing.LEVEL / (3 * 10)
    leads = [
        Lead(better, worse, 0.1, 0.01, 2, just * share)
        for better, worse, share in (("a", "b", 0.99), ("a", "c", 1.01), ("c", "b", 0.5))
    ]
    shown = losers(leads, number=3, pairs=10)
    assert shown == {"b": leads[2]}  # of two leads the more certain one is named
    assert not losers(leads, number=3, pairs=10, reference="b")
    assert set(losers(leads, number=3, pairs=9)) == {"b", "c"}


def test_attempts_share_what_they_know_of_their_spread() -> None:
    """Three folds of two attempts that differ alike by luck are no certain difference."""
    own = [Change("a", "b", -0.3, 1e-6, 0.25), Change("a", "c", 0.1, 0.04, 0.25), Change("b", "c", 0.4, 0.06, 0.25)]
    alone, (shared, *_) = leads(own[:1], 3)[0], leads(own, 3)
    assert (alone.better, alone.worse, alone.value, alone.freedom) == ("b", "a", 0.3, 2)
    change = [-0.3 - 1e-3, -0.3, -0.3 + 1e-3]  # whose variance is 1e-6
    assert alone.p == pytest.approx(statistics.corrected_t_test(change, 0.25))
    assert shared.freedom == 4
    assert shared.error == pytest.approx((((0.04 + 0.06 + 1e-6) / 3) * (1 / 3 + 0.25)) ** 0.5)
    assert leads(own, 3)[2].error == pytest.approx((0.06 * (1 / 3 + 0.25)) ** 0.5)  # never less than its own
    assert alone.p < 0.001 < 0.05 < shared.p


@pytest.mark.slow
def test_what_is_clearly_worse_is_dropped_and_the_rest_is_as_it_was(tmp_path: Path) -> None:
    ready(tmp_path / "race", "good", "fair", "bad")
    side_by_side(tmp_path / "race", good=GOOD, fair=FAIR, bad=BAD)
    side_by_side_without = tmp_path / "whole"
    ready(side_by_side_without, "good", "fair", "bad", reference="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(racing, "LEVEL", 0.0)
        side_by_side(side_by_side_without, good=GOOD, fair=FAIR, bad=BAD)
    raced, whole = compare(load_runs(tmp_path / "race")), compare(load_runs(side_by_side_without))
    (bad,) = [attempt for attempt in raced.attempts if attempt.name == "bad"]
    assert bad.dropped["after"] == 3
    assert (len(bad.done), len(bad.runs)) == (3, 10)
    assert [attempt.name for attempt in raced.attempts if attempt.dropped] == ["bad"]
    pairs, before = ({f"{p.first} {p.second}": p for p in c.pairs} for c in (raced, whole))
    (kept, same), lost = (of["fair good"] for of in (pairs, before)), pairs["bad good"]
    assert (kept.p, kept.difference, kept.bayesian) == (same.p, same.difference, same.bayesian)
    assert not kept.raced
    assert (raced.best, raced.verdict[0]) == (whole.best, whole.verdict[0])
    assert lost.raced
    assert lost.different
    assert lost.test_sets == 3
    change = [(a - b) / 12 for a, b in zip(BAD[:3], GOOD[:3], strict=True)]
    assert bad.dropped["errors"]["good"] >= statistics.corrected_error(change, 0.3, 1 / 12)
    assert lost.p == racing.at_any_look(lost.difference.value, bad.dropped["errors"]["good"], 4, 3)[0]
    assert racing.at_any_look(-0.5, 0.1, 4, 1)[1] == pytest.approx((-0.5 - 0.1 * 2.776, -0.5 + 0.1 * 2.776), abs=1e-3)
    text = " ".join(raced.verdict)
    assert "The race dropped bad after 3 of 10 folds: shown to be worse than " in text
    assert text.count("the verdict's from one pair alone") == 1
    assert "The race left out 7 of 30 runs, about 4 of 15 minutes." in text
    assert "Not ranked" not in text
    assert "The race left out no run." in whole.verdict


def test_a_race_that_left_out_no_run_says_so(tmp_path: Path) -> None:
    ready(tmp_path, "good", "fair")
    side_by_side(tmp_path, good=GOOD, fair=FAIR)
    assert "The race left out no run." in compare(load_runs(tmp_path)).verdict


@pytest.mark.slow
def test_table_and_files_name_what_was_left_out(tmp_path: Path) -> None:
    ready(tmp_path, "good", "bad")
    side_by_side(tmp_path, good=GOOD, bad=BAD)
    text = printed(tmp_path)
    assert "3/10" in text
    assert "failed:" not in text
    row = next(row for row in read_csv(tmp_path / "summary.csv") if row["attempt"] == "bad")
    assert (row["runs"], row["completed"], row["failed"], row["dropped"]) == ("10", "3", "0", "7")
    result = json.loads((tmp_path / "bad-1-4" / RESULT).read_text(encoding="utf-8"))
    assert (result["status"], result["exit_status"], result["error"]) == ("dropped", 0, None)
    assert result["dropped"]["than"] == "good"
    trained = RunResult.load(tmp_path / "good-0-0")  # it is named as those that were trained, or would stand apart
    assert (result["data"], result["category"]) == (trained.data, trained.category)
    assert result["dropped"]["p"] < racing.LEVEL
    assert not RunResult.load(tmp_path / "bad-1-4").stopped
    assert "Failed" not in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_look_shows_the_same_whenever_it_is_taken(tmp_path: Path) -> None:
    """Of runs at once some are ahead: neither decisions nor figures may depend on it."""
    ready(tmp_path / "late", "good", "bad")
    for attempt, right in (("good", GOOD), ("bad", BAD)):  # one after the other: it is dropped when all is done but one
        run(tmp_path / "late", attempt, range(9), right)
    assert advance(tmp_path / "late").dropped["bad"]["after"] == 3
    run(tmp_path / "late", "bad", range(9, 10), BAD)
    run(tmp_path / "late", "good", range(9, 10), GOOD)
    ready(tmp_path / "turns", "good", "bad")
    side_by_side(tmp_path / "turns", good=GOOD, bad=BAD)
    late, turns = (compare(load_runs(tmp_path / name)) for name in ("late", "turns"))
    assert [pair.described for pair in late.pairs] == [pair.described for pair in turns.pairs]
    assert [attempt.estimate() for attempt in late.attempts] == [attempt.estimate() for attempt in turns.attempts]


def test_what_is_not_completed_is_waited_for_and_what_failed_sits_out(tmp_path: Path) -> None:
    ready(tmp_path, "good", "fair", "bad")
    run(tmp_path, "good", range(5), GOOD)
    run(tmp_path, "bad", range(5), BAD)
    assert advance(tmp_path).looked == 0
    run(tmp_path, "fair", range(4), FAIR)
    assert advance(tmp_path).looked == 1
    run(tmp_path, "fair", range(4, 5), FAIR, status="failed", error="ValueError: no")
    assert advance(tmp_path).looked == 2
    assert set(advance(tmp_path).dropped) == {"bad"}


def test_what_a_resumed_sweep_tries_again_is_waited_for(tmp_path: Path) -> None:
    race = ready(tmp_path, "good", "bad")
    run(tmp_path, "good", range(3), GOOD)
    run(tmp_path, "bad", range(2), BAD)
    run(tmp_path, "bad", range(2, 3), BAD, status="failed", error="ValueError: no")
    (tmp_path / RACE).unlink()
    begin(race, tmp_path, resume=True)
    assert Race.load(tmp_path).retried == ["bad-0-2"]
    assert advance(tmp_path).looked == 0
    assert advance(tmp_path, "bad-0-2").looked == 1  # it has begun again, and failed again


def test_a_stopped_run_is_waited_for(tmp_path: Path) -> None:
    ready(tmp_path, "good", "bad")
    run(tmp_path, "good", range(3), GOOD)
    run(tmp_path, "bad", range(2), BAD)
    run(tmp_path, "bad", range(2, 3), BAD, status="failed", error="KeyboardInterrupt: stopped")
    assert advance(tmp_path).looked == 0


def test_a_reference_is_never_dropped(tmp_path: Path) -> None:
    race = ready(tmp_path, "good", "fair", "bad", reference="bad")
    assert race.pairs == [("good", "bad"), ("fair", "bad")]
    side_by_side(tmp_path, good=GOOD, fair=FAIR, bad=BAD)
    assert not advance(tmp_path).dropped


def test_a_damaged_file_stops_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ready(tmp_path, "good", "bad")
    for content in ("{", '{"attempts": {}}', json.dumps({"attempts": {"a": [["b"]]}, "looked": -1})):
        (tmp_path / RACE).write_text(content, encoding="utf-8")
        with pytest.raises(LabError, match=RACE):
            Race.load(tmp_path)
    assert left_out(config_of("good", 0), tmp_path / "good-0-0", tmp_path) is None
    assert "the race goes on without a look" in caplog.text


def test_a_result_that_was_dropped_says_why(tmp_path: Path) -> None:
    ready(tmp_path, "good", "bad")
    side_by_side(tmp_path, good=GOOD, bad=BAD)
    path = tmp_path / "bad-1-4" / RESULT
    result = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**result, "dropped": None}), encoding="utf-8")
    with pytest.raises(LabError, match="it was dropped, and does not say by what"):
        find_runs(tmp_path)
    path.write_text(json.dumps({**result, "dropped": {**result["dropped"], "after": 4}}), encoding="utf-8")
    (reason,) = compare(load_runs(tmp_path)).damaged
    assert "no race of 10 folds looks after 4" in reason


# Through the command line ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "attempt=base,cosine"), "does nothing for cv.folds=null: it drops attempts"),
        (("cv.folds=5",), "cv.folds=5 makes a sweep: give -m"),
        (("-m", "cv.folds=5"), "race=true has one attempt, base: give two or more"),
        (("-m", "attempt=base,cosine", "cv.folds=3"), "race=true first looks after 3 folds"),
        (("-m", "attempt=base,cosine", "cv.folds=5", "verdict.metric=recall"), "unknown verdict.metric 'recall'"),
        (("-m", "attempt=base,cosine", "cv.folds=5", "data.category=a,b"), "compares attempts on one product"),
        (
            ("-m", "attempt=base,cosine", "cv.folds=5", "data.per_class=2,5"),
            "that a curve over data.per_class is drawn",
        ),
    ],
)
def test_mistakes_are_one_line(lab, tmp_path: Path, capsys, arguments: tuple[str, ...], message: str) -> None:
    assert lab(*arguments, "race=true") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_race_is_one_value(lab, capsys) -> None:
    assert lab("-m", "attempt=base,cosine", "cv.folds=5", "race=true,false") == 2
    assert "race=true,false must be true or false" in capsys.readouterr().err


@pytest.mark.slow
def test_a_race_of_a_sweep(lab, tmp_path: Path, capsys, monkeypatch) -> None:
    """With any lead called certain, the attempt that trails after three folds runs no fourth one."""
    monkeypatch.setattr(racing, "LEVEL", 1e9)
    words = ["-m", "optimizer.lr=0.02,1e-9", "cv.folds=4", "race=true", "hydra.sweep.dir=s", "trainer.max_epochs=1"]
    words += ["verdict.metric=log_loss"]  # in which no two attempts are equal
    assert lab(*words) == 0
    runs = {Path(run.run_dir).name: run for run in find_runs(tmp_path / "s")}
    trained = sorted((run for run in runs.values() if run.completed), key=lambda run: run.started)
    assert [run.fold for run in trained] == [0, 0, 1, 1, 2, 2, 3]  # fold by fold
    (left,) = [run for run in runs.values() if run.left_out]
    assert left.dropped["than"].startswith("base optimizer.lr=")
    assert (Path(left.run_dir) / CONFIG).is_file()
    said = capsys.readouterr().out
    assert "The race left out 1 of 8 runs" in " ".join(said.split())
    log = Path(left.run_dir, "run.log").read_text(encoding="utf-8")
    assert "left out: base optimizer.lr=" in log  # in full
    assert lab(*words, "resume=true") == 0  # all is as it was
    assert {name: run.status for name, run in runs.items()} == {
        Path(run.run_dir).name: run.status for run in find_runs(tmp_path / "s")
    }
    capsys.readouterr()
    assert lab(*[word for word in words if word != "race=true"], "resume=true") == 0  # and what was left out is run
    assert all(run.completed for run in find_runs(tmp_path / "s"))
    assert "race" not in capsys.readouterr().out
    assert lab(*words[:1], "optimizer.lr=0.02,1e-9", "attempt=base,cosine", *words[2:], "resume=true") == 2
    assert "is the race of other attempts" in capsys.readouterr().err


@pytest.mark.slow
def test_a_race_of_two_jobs_at_once_that_is_killed_and_resumed(product: Path, tmp_path: Path) -> None:
    """It drops whom a race alone drops, and ends with the same verdict: a look rests on files of complete folds.

    In every process any lead is called certain.
    """
    (tmp_path / "sitecustomize.py").write_text("from mvtec_lab.evaluation import racing\n\nracing.LEVEL = 1e9\n")
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [
        *("-m", "attempt=base", "optimizer.lr=0.02,1e-9", "cv.folds=5", "race=true", "verdict.metric=log_loss"),
        *("data=folder", f"data.root={product}", "data.image_size=32", "model.backbone=squeezenet1_1"),
        *("model.weights=null", "trainer.accelerator=cpu", "trainer.max_epochs=1", f"cache.dir={tmp_path / 'cache'}"),
    ]
    at_once = ["hydra/launcher=parallel", "hydra.launcher.n_jobs=2"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert swept([*words, f"hydra.sweep.dir={alone}"], tmp_path).wait() == 0
    process = swept([*words, f"hydra.sweep.dir={killed}", *at_once], tmp_path)
    try:
        while process.poll() is None and len(completed(killed)) < 3:
            time.sleep(0.05)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # all of its processes, in the middle of a run
        process.wait()
    assert len(completed(killed)) < 8  # ten runs, of which two are left out
    assert swept([*words, f"hydra.sweep.dir={killed}", *at_once, "resume=true"], tmp_path).wait() == 0
    races = [Race.load(directory) for directory in (alone, killed)]
    assert len(races[0].dropped) == 1
    assert len(completed(alone)) == 8
    assert races[1].dropped.keys() == races[0].dropped.keys()
    first, second = (compare(load_runs(directory)) for directory in (alone, killed))
    for name, why in races[0].dropped.items():
        again = races[1].dropped[name]
        assert (again["than"], again["after"]) == (why["than"], why["after"])
        assert again["p"] == pytest.approx(why["p"], rel=1e-3)
    assert second.best == first.best
    assert {attempt.name for attempt in second.done} == {attempt.name for attempt in first.done}
    # Attempts stand in the order in which they started, which two at once may turn.
    pairs = [{frozenset((pair.first, pair.second)): pair for pair in of.pairs} for of in (first, second)]
    assert pairs[0].keys() == pairs[1].keys()
    for key, pair in pairs[0].items():
        assert pairs[1][key].different == pair.different
        assert pairs[1][key].p == pytest.approx(pair.p, rel=1e-3)


def completed(sweep: Path) -> list[Path]:
    return [path for path in sweep.rglob(RESULT) if '"status": "completed"' in path.read_text(encoding="utf-8")]


def swept(words: list[str], site: Path) -> subprocess.Popen[bytes]:
    """A sweep in a session of its own, as in a terminal, so that all of its processes can be ended together.

    Each of them imports what lies in ``site``.
    """
    paths = os.pathsep.join([str(site), str(Path(__file__).resolve().parents[1])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "mvtec_lab", *words], env=environment, start_new_session=True)


# Simulations ----------------------------------------------------------------------------------------------------------


def test_a_simulated_test_is_that_of_the_verdict() -> None:
    values = races.learners(races.np.random.default_rng(0), [0.5, 0.4], 1, 3)
    change = values[:, 0] - values[:, 1]
    expected = [statistics.corrected_t_test(each, races.RATIO, 0.05) for each in change]
    assert races.tested(change, 0.05) == pytest.approx(expected)


@pytest.mark.parametrize("kind", races.KINDS)
def test_equal_attempts_are_rarely_dropped(kind: str) -> None:
    assert races.level(kind, 3, 1, races=300).wrong <= 0.04


@pytest.mark.slow
@pytest.mark.parametrize("kind", races.KINDS)
@pytest.mark.parametrize(("attempts", "repeats"), races.DESIGNS)
def test_simulated_races_hold_their_level(kind: str, attempts: int, repeats: int) -> None:
    outcome = races.level(kind, attempts, repeats)
    assert outcome.wrong <= 0.03
    assert outcome.either <= 0.075
