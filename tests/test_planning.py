"""What a plan says: designs that show a difference, the advice at a verdict's end, the task and its pilot."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from test_pairs import cross_validated, said
from test_reporting import fabricate

from mvtec_lab.config import VerdictConfig
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.differences import Noise
from mvtec_lab.evaluation.planning import MOST_IMAGES, Design, OnOneTestSet, OverTestSets, rounded, ways
from mvtec_lab.evaluation.specs import METRICS
from mvtec_lab.pilot import pilot_of
from mvtec_lab.reporting.advice import FAR
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.plan import PLAN, at_once, machines_of, of_100, of_time, plan, seconds_of_a_run, size_of
from mvtec_lab.reporting.plan import said as sentences
from mvtec_lab.reporting.report import sum_up
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import CONFIG, RunResult

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is no part of the package

from benchmarks import planning

LEVEL = [[11, 12, 11, 10, 12], [10, 11, 12, 9, 11]]  # right of 12 images in five folds: not shown to differ


def folds_of(variance: float, sets: int = 5, tested: float = 12) -> OverTestSets:
    return OverTestSets(variance, sets, tested, 0.25, 5)


def test_a_smaller_difference_takes_more_images() -> None:
    evidence = folds_of(0.01)
    large, small = (ways(evidence, size, 0.05)[0] for size in (0.2, 0.1))
    assert evidence.design == Design(60, 5, 1)
    assert 60 < large.images < small.images
    assert (large.folds, large.repeats) == (5, 1)
    for design, size in ((large, 0.2), (small, 0.1)):
        assert evidence.power(design, 0.05)(size) >= 0.8
        fewer = Design(design.images - 1, design.folds, design.repeats)
        assert evidence.power(fewer, 0.05)(size) < 0.8
    assert small.images > 3 * large.images  # as the square of the difference
    assert ways(evidence, 0.1, 0.05 / 6)[0].images > small.images


def test_repeats_take_the_place_of_images_as_far_as_they_can() -> None:
    by_repeats = [design for design in ways(folds_of(0.01), 0.25, 0.05) if design.images == 60]
    assert by_repeats
    assert by_repeats[0].repeats > 1
    assert all(design.images > 60 for design in ways(folds_of(0.01), 0.05, 0.05))  # however many: they share images
    with_more = [design for design in ways(folds_of(0.01), 0.1, 0.05) if design.images > 60]
    assert [design.repeats for design in with_more] == [1, 10]
    assert with_more[1].images < with_more[0].images


def test_what_is_there_may_be_enough_and_nothing_may_be() -> None:
    assert ways(folds_of(1e-5), 0.2, 0.05) == [Design(60, 5, 1)]
    assert ways(folds_of(0.05), 0.001, 0.05) == []
    found = folds_of(0.01).found(0.05)
    assert found is not None
    assert ways(folds_of(0.01), 1.01 * found, 0.05) == [Design(60, 5, 1)]  # plan and verdict say the same of it


def test_on_one_test_set_images_and_seeds_count() -> None:
    of_images = (Noise(0.003, 0.002, 82),)
    models = OnOneTestSet(83, of_images, (), 1, 0.05, (0.8, 0.75), disagreement=0.2, labelled=420)
    more, folds = ways(models, 0.1, 0.05)
    assert (more.folds, more.repeats) == (1, 1)
    assert more.images > 83
    assert (folds.images, folds.folds) == (420, 5)
    lucky = OnOneTestSet(83, of_images, (Noise(0.002, 0.002, 2, grows=False),), 3, 0.05, (0.8, 0.75))
    assert ways(lucky, 0.2, 0.05)[-1].repeats > 3
    assert ways(lucky, 0.1, 0.05)[0].repeats >= 10  # three seeds do not say how much luck there is


@pytest.mark.parametrize(("number", "up"), [(1, 1), (99, 99), (141, 150), (1_201, 1_300), (9_990, 10_000)])
def test_advice_has_two_digits(number: int, up: int) -> None:
    assert rounded(number) == up


@pytest.mark.slow
@pytest.mark.parametrize("study", planning.STUDIES, ids=lambda study: f"{study.name}, {100 * study.change:.0f} points")
def test_advice_that_is_followed_shows_the_difference(study: planning.Study) -> None:
    for designs, power in planning.followed(study).values():
        assert len(designs) > 0.9 * planning.PILOTS
        assert 0.73 <= power <= 0.87  # 75 to 85%, and what so few simulations are off by


def test_advice_of_one_test_set_that_is_followed_shows_the_difference() -> None:
    designs, power = planning.followed(planning.STUDIES[0], pilots=12, runs=60)["the first: more images"]
    assert all(83 < design.images < MOST_IMAGES for design in designs)
    assert 0.65 < power < 0.92


def test_the_verdict_ends_with_what_would_tell_the_best_from_its_rival(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=LEVEL[0], b=LEVEL[1], c=[2, 3, 2, 3, 1])
    comparison = compare(load_runs(tmp_path))
    assert comparison.best == "a"
    assert comparison.verdict[-1].startswith("To tell a and b apart (5.0 points seen) you need about ")
    assert "more labelled images" in comparison.verdict[-1]
    assert "To tell" not in said(compare(load_runs(tmp_path), VerdictConfig(reference="c")))  # both are told from c


def test_nothing_follows_the_advice(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=LEVEL[0], b=LEVEL[1])
    for name, metric in (("a-0", "brier"), ("b-0", "log_loss")):
        path = tmp_path / name / CONFIG
        path.write_text(f"{path.read_text(encoding='utf-8')}\nverdict: {{metric: {metric}}}\n", encoding="utf-8")
    _, comparison = sum_up(tmp_path, notes=["2 of 12 jobs are missing."])
    before = "\n".join(comparison.verdict[:-1])
    assert "do not agree on verdict.metric" in before
    assert "2 of 12 jobs are missing." in before
    assert comparison.verdict[-1] == comparison.advice != ""


def test_attempts_that_are_level_are_too_close(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fabricate(tmp_path / name, name)
    assert "are too close" in compare(load_runs(tmp_path)).verdict[-1]


def test_advice_that_is_out_of_reach_is_not_said_first(tmp_path: Path) -> None:
    """Repeats would ask for thousands of images in one way, and for hundreds in another: the latter is said alone."""
    cross_validated(tmp_path, a=[12, 9, 12, 12, 9], b=[12, 9, 11, 12, 7])
    comparison = compare(load_runs(tmp_path))
    (pair,) = comparison.pairs
    assert pair.evidence is not None
    seen = pair.evidence.design.images
    more = [way.images - seen for way in ways(pair.evidence, abs(pair.lead), pair.alpha)]
    assert max(more) >= FAR > min(more)
    assert f"{rounded(min(more)):,} more labelled images with cv.repeats=" in comparison.advice
    assert f"{rounded(max(more)):,}" not in comparison.advice
    cross_validated(tmp_path / "far", a=[11, 9, 9, 9, 9], b=[11, 8, 9, 7, 10])
    far = compare(load_runs(tmp_path / "far")).advice
    assert far.startswith("a and b are too close for these images to tell apart (3.3 points seen): choose by time,")
    assert far.endswith(" more labelled images with cv.repeats=10 would show which is better.")


def test_a_plan_from_runs_that_exist(lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cross_validated(tmp_path / "runs", a=LEVEL[0], b=LEVEL[1], c=[9, 12, 10, 9, 11])
    assert lab("task=plan", "dirs=[runs]", "difference=5", "hydra.run.dir=planned") == 0
    content = json.loads((tmp_path / "planned" / PLAN).read_text(encoding="utf-8"))
    assert content["attempts"] == ["a", "b", "c"]
    assert (content["difference"], content["comparisons"]) == (0.05, 3)
    assert content["seen"] == {"images": 48, "folds": 4, "repeats": 1}  # each tests 12, and 40 were learnt
    assert content["ways"][0]["design"]["images"] > 48
    assert content["ways"][0]["runs"] == 12
    text = " ".join(capsys.readouterr().out.split())
    assert "Holm's correction for 3 comparisons" in text
    (pair,) = re.findall(r"points between (\w and \w) is shown in eight of ten cases", text)
    assert f" {pair} " in f" {compare(load_runs(tmp_path / 'runs')).advice}"  # plan and verdict are about the same two
    assert "more labelled images" in text
    assert lab("task=plan", "dirs=runs", "difference=90", "hydra.run.dir=easy") == 0
    assert "That is enough." in capsys.readouterr().out


def test_a_share_of_cases_in_words() -> None:
    assert [of_100(share) for share in (0.003, 0.01, 0.8)] == ["no case of 100", "1 case of 100", "80 cases of 100"]


def test_the_time_is_that_of_the_runs(tmp_path: Path) -> None:
    runs = [RunResult("a", 0, "sample", "cable", "", "", seconds=8.0, startup_seconds=1.0) for _ in range(4)]
    for run, second in zip(runs, (0, 10, 20, 30), strict=True):
        run.started = f"2026-01-01T00:00:{second:02}+00:00"
    assert (seconds_of_a_run(runs), at_once(runs)) == (10, 1)
    runs[-1].started = "2026-01-02T00:00:00+00:00"  # the next day
    assert seconds_of_a_run(runs) == pytest.approx((10 + 10 + 18) / 3)
    for run, second in zip(runs, (0, 0, 10, 10), strict=True):
        run.started = f"2026-01-01T00:00:{second:02}+00:00"
    assert at_once(runs) == 2
    assert seconds_of_a_run(runs[:1]) is None
    assert of_time(1, machines_of(runs)).startswith("Time: as these runs took, one after the other;")  # older ones
    for run in runs:
        run.machine = "AMD EPYC, 2 cores"
    assert "took, 2 at once on AMD EPYC, 2 cores;" in of_time(2, machines_of(runs))
    runs[0].machine = "Xeon, 4 cores"
    assert " on 2 machines (Xeon, 4 cores; AMD EPYC, 2 cores);" in of_time(1, machines_of(runs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dirs=[runs]", "difference=0"), "difference=0.0 is out of range: give a number above 0"),
        (("dirs=[runs]", "difference=-3"), "difference=-3.0 is out of range"),
        (("dirs=[runs]", "difference=101"), "difference=101 is out of range"),
        (("dirs=[alone]",), "a plan is about two attempts or more, and dirs holds one, a"),
        (("dirs=[nowhere]",), "nowhere holds no run"),
        (("dirs=[same]",), "do not differ on any test image"),
        (("dirs=[apart]",), "these runs are of several products (bottle, cable): plan for one"),
        ((), "task=plan compares attempts: give two or more, attempt=A,B"),
        (("attempt=base", "seed=0,1,2"), "task=plan compares attempts: give two or more, attempt=A,B"),
        (("dirs=[runs]", "data.image_size=64"), "data.image_size=64 does nothing for task=plan"),
        (("attempt=base,wrong",), "unknown attempt 'wrong'"),
    ],
)
def test_mistakes_are_one_line(lab, tmp_path: Path, capsys, words: tuple[str, ...], message: str) -> None:
    cross_validated(tmp_path / "runs", a=LEVEL[0], b=LEVEL[1])
    fabricate(tmp_path / "alone" / "a", "a")
    for name in ("a", "b"):
        fabricate(tmp_path / "same" / name, name)
    fabricate(tmp_path / "apart" / "a", "a")
    fabricate(tmp_path / "apart" / "b", "b", category="cable")
    assert lab("task=plan", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_a_difference_is_in_points_or_in_the_unit_of_the_metric() -> None:
    assert size_of(METRICS["accuracy"], None) == 0.1
    assert size_of(METRICS["log_loss"], 0.2) == 0.2
    with pytest.raises(LabError, match="give difference=NUMBER in its unit"):
        size_of(METRICS["log_loss"], None)


def test_attempts_of_two_metrics_share_no_plan(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=LEVEL[0], b=LEVEL[1])
    comparison = compare(load_runs(tmp_path))
    assert sentences(plan(comparison, None))[0].startswith("To show that a and b differ by 10.0 points in accuracy")
    comparison.attempts[0].metric = METRICS["macro_f1"]
    with pytest.raises(LabError, match=r"different metrics \(macro F1 and accuracy\): give verdict.metric=NAME"):
        plan(comparison, None)


def test_a_race_of_two_that_dropped_one_leaves_nothing_to_plan_from(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=LEVEL[0], b=LEVEL[1])
    comparison = compare(load_runs(tmp_path))
    for pair in comparison.pairs:
        pair.evidence = None  # as of an attempt that a race left out
    with pytest.raises(LabError, match="a race left out one of every two: give runs without race=true"):
        plan(comparison, None)


def test_a_pilot_is_a_sweep_over_folds() -> None:
    words = ("task=plan", "attempt=a,b", "data=mvtec", "difference=5", "verdict.metric=brier", "hydra.run.dir=out")
    pilot = pilot_of(words)
    assert pilot is not None
    sweep = [
        "-m",
        "attempt=a,b",
        "data=mvtec",
        "verdict.metric=brier",
        "cv.folds=5",
        f"hydra.sweep.dir={Path('out/pilot')}",
    ]
    assert pilot.sweep == sweep
    dirs = f"dirs={Path('out/pilot')}"
    assert pilot.plan == ["task=plan", "difference=5", "verdict.metric=brier", dirs, "hydra.run.dir=out"]
    for given in (("cv.folds=3",), ("seed=0,1,2",), ("cv.folds=null",)):
        pilot = pilot_of((*words, *given))
        assert pilot is not None
        assert "cv.folds=5" not in pilot.sweep
    for other in (
        ("task=train", "attempt=a,b"),
        ("task=plan", "dirs=[x]"),
        ("task=plan", "--help"),
        ("-m", "seed=0,1"),
    ):
        assert pilot_of(other) is None


@pytest.mark.slow
def test_a_plan_trains_its_own_pilot(lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("task=plan", "optimizer.lr=0.0001,0.3", "cv.folds=3", "difference=20", "hydra.run.dir=planned")
    small = ("data=folder", f"data.root={tmp_path / 'products/widget'}", "data.image_size=24", "trainer.max_epochs=3")
    net = ("model.backbone=tiny_lab_net", "model.weights=null", "trainer.accelerator=cpu", "cache.dir=cache")
    assert lab(*words, *small, *net) == 0
    assert len(load_runs(tmp_path / "planned" / "pilot")) == 6
    content = json.loads((tmp_path / "planned" / PLAN).read_text(encoding="utf-8"))
    assert (content["attempts"], content["seen"]["folds"]) == (["base optimizer.lr=0.0001", "base optimizer.lr=0.3"], 3)
    assert "differ by 20.0 points" in " ".join(capsys.readouterr().out.split())
