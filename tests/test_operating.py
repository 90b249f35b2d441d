"""Operating points: thresholds from held-out scores, what to expect of them, and task=threshold that sets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mvtec_lab.evaluation.operating import (
    OK,
    REJECT,
    REVIEW,
    UNKNOWN,
    Scores,
    curve,
    decide,
    images_for,
    limit_of_cost,
    limit_of_escapes,
    limit_of_false_rejects,
    rate_of,
    score_of,
    scores_of,
)
from mvtec_lab.problems.model import load_model
from mvtec_lab.reporting.operating import HELD_OUT, TESTED, apart, operating_figure, points
from mvtec_lab.results import find_runs, read_csv, write_csv

LAYERS = "model.options.layers=[features.relu1,features.relu2]"


def scores(good: list[float], defects: list[float] = ()) -> Scores:
    return Scores(np.sort(np.array(good, float)), np.sort(np.array(defects, float)))


def test_a_new_good_image_is_rejected_as_often_as_asked_whatever_the_scores() -> None:
    """The mean over many draws of held-out and new images stays below what was asked for, and near it."""
    rng = np.random.default_rng(0)
    for draw in (rng.normal, rng.standard_cauchy, rng.exponential):
        shares = []
        for _ in range(2000):
            held_out, new = draw(size=99), draw(size=200)
            shares.append((new > limit_of_false_rejects(scores(held_out), 0.05)).mean())
        assert 0.04 < np.mean(shares) <= 0.0515
        few = [(draw(size=200) > limit_of_false_rejects(scores(draw(size=9)), 0.01)).mean() for _ in range(2000)]
        assert 0.09 < np.mean(few) < 0.11  # nine images carry 10% at the least


def test_a_new_defect_escapes_as_often_as_asked() -> None:
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(2000):
        limit = limit_of_escapes(scores(rng.normal(size=5), rng.normal(size=49)), 0.1)
        shares.append((rng.normal(size=200) <= limit).mean())
    assert 0.07 < np.mean(shares) <= 0.103


def test_thresholds_lie_between_scores() -> None:
    of = scores([0.1, 0.2, 0.3], [0.7, 0.9])
    assert limit_of_false_rejects(of, 0.25) == pytest.approx(0.5)  # halfway to the first defect
    assert limit_of_false_rejects(of, 0.5) == pytest.approx(0.25)  # one of three may lie above it
    assert limit_of_escapes(of, 0.4) == pytest.approx(0.5)
    assert limit_of_escapes(of, 0.7) == pytest.approx(0.8)
    assert limit_of_false_rejects(scores([0.1, 0.3]), 0.01) == 0.3
    assert limit_of_escapes(scores([], [0.5]), 0.01) < 0.5
    assert limit_of_false_rejects(scores([0.3, 0.3, 0.3]), 0.5) == 0.3  # equal scores are judged alike
    assert images_for(0.01) == 99


def test_costs_weigh_escapes_by_the_share_of_defects() -> None:
    of = scores([0.1, 0.2, 0.6], [0.4, 0.7, 0.9])
    assert limit_of_cost(of, 100, 1, 0.5) == pytest.approx(0.3)
    assert limit_of_cost(of, 1, 100, 0.5) == pytest.approx(0.65)
    assert limit_of_cost(of, 100, 1, 0.001) == pytest.approx(0.65)
    rejected, passed = curve(of)
    assert (rejected[0], passed[0]) == (1, 0)
    assert (rejected[-1], passed[-1]) == (0, 1)


def test_a_row_gives_a_score_and_a_decision() -> None:
    assert score_of({"score": "0.5", "prob_good": "1"}) == 0.5
    assert score_of({"prob_good": "1", "prob_crack": "1e-07", "prob_hole": "2e-07"}) == pytest.approx(3e-7)
    assert score_of({"prob_crack": "1"}) is None
    assert [decide(s, 0.5, 0.2) for s in (0.2, 0.3, 0.5, 0.6)] == [OK, REVIEW, REVIEW, REJECT]
    assert [decide(s, 0.5) for s in (0.2, 0.5, 0.6)] == [OK, OK, REJECT]
    rows = [{"split": "val", "label": "defect", "type": "synthetic", "score": "9"}]
    assert not len(scores_of(rows, "val").both)


def test_the_table_begins_with_what_the_images_carry() -> None:
    asked = [point["asked"] for point in points(scores([1, 2, 3, 4]), scores([]))]
    assert asked == [0.2]
    many = points(scores(list(range(99))), scores([1], [50]))
    assert [point["asked"] for point in many] == [0.01, 0.02, 0.05, 0.1, 0.2]
    assert [point["held_out"]["false_rejects"].count for point in many] == [0, 1, 4, 9, 19]


def test_rates_have_exact_intervals() -> None:
    rate = rate_of(0, 20)
    assert rate is not None
    assert (rate.low, rate.high) == (0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert rate.expected == pytest.approx(1 / 21)
    assert rate_of(0, 0) is None
    assert str(rate_of(1, 33)) == "1 of 33 (95%: 0.08 to 16%)"


def test_the_chart_shows_the_corner_of_low_rates_and_the_chosen_point() -> None:
    good = scores(list(range(100)), [200, 300]), {"false_rejects": rate_of(1, 100), "escapes": rate_of(1, 2)}
    (ax,) = operating_figure({HELD_OUT: good[0]}, {HELD_OUT: good[1]}).axes
    assert ax.get_xlim()[1] == pytest.approx(0.102)  # a tenth at least
    assert 0.6 < ax.get_ylim()[1] < 0.63  # half of the defects escape at the chosen point
    assert ax.get_xlim()[0] < 0, "a curve at 0 is seen beside the axis"
    assert apart({HELD_OUT: good[0], TESTED: scores([1, 7], [5])}) == [HELD_OUT]


@pytest.fixture
def patchcore(lab, tmp_path: Path) -> Path:
    assert lab("attempt=patchcore", LAYERS, "hydra.run.dir=sweep/run") == 0
    return tmp_path / "sweep/run"


@pytest.mark.slow
def test_an_anomaly_model_gets_a_threshold_that_every_task_honours(
    patchcore: Path, lab, tmp_path: Path, capsys
) -> None:
    words = ("task=threshold", f"ckpt={patchcore}", "false_rejects=0.4")
    assert lab(*words, "hydra.run.dir=sweep/strict") == 0
    out = capsys.readouterr().out
    facts = json.loads((tmp_path / "sweep/strict/operating.json").read_text())
    assert "false_rejects=0.4: REJECT above" in out
    assert "no defect is held out" in out
    assert facts["attempt"] == "patchcore"
    model, before = load_model(tmp_path / "sweep/strict/best.ckpt"), load_model(patchcore / "best.ckpt")
    assert model.threshold == facts["reject"] == model.accept
    assert before.accept is None
    held_out = [float(r["score"]) for r in read_csv(patchcore / "predictions.csv") if r["split"] == "val"]
    assert len(held_out) == facts["held_out"]["good"] == 4
    above = facts["expected"]["false_rejects"]
    assert above["count"] == sum(score > model.threshold for score in held_out) == 1
    assert facts["expected"]["escapes"] is None
    assert facts["test"]["escapes"]["of"] == 12
    # It is no run: what compares its sweep does not count it twice.
    assert [Path(run.run_dir).name for run in find_runs(tmp_path / "sweep")] == ["run"]
    source = f"source={tmp_path / 'products/widget/test'}"
    assert lab("task=predict", "ckpt=sweep/strict", source, "hydra.run.dir=new") == 0
    rows = read_csv(tmp_path / "new/predictions.csv")
    assert {row["decision"] for row in rows} == {OK, REJECT}
    assert all((row["decision"] == REJECT) == (float(row["score"]) > model.threshold) for row in rows)
    assert all((row["decision"] == REJECT) == (row["prediction"] == "defect") for row in rows)
    assert lab("task=evaluate", "ckpt=sweep/strict", "hydra.run.dir=again") == 0
    judged = json.loads((tmp_path / "again/metrics.json").read_text())
    assert judged["threshold"]["value"] == model.threshold
    assert judged["decisions"]["false_rejects"] == facts["test"]["false_rejects"]
    assert lab("task=threshold", "ckpt=sweep/strict", "false_rejects=0.9", "hydra.run.dir=mild") == 0
    assert load_model(tmp_path / "mild/best.ckpt").threshold < model.threshold


def test_review_lies_between_two_thresholds(patchcore: Path, lab, tmp_path: Path, capsys) -> None:
    words = ("task=threshold", f"ckpt={patchcore}", "false_rejects=0.2", "reviews=0.4")
    assert lab(*words, "hydra.run.dir=two") == 0
    assert "REVIEW between" in capsys.readouterr().out
    model = load_model(tmp_path / "two/best.ckpt")
    assert model.accept < model.threshold
    assert "Other operating points" in (tmp_path / "two/report.html").read_text()


def test_what_few_images_cannot_carry_is_said(patchcore: Path, lab, tmp_path: Path, capsys) -> None:
    assert lab("task=threshold", f"ckpt={patchcore}", "false_rejects=0.01", "hydra.run.dir=few") == 0
    said = "4 held-out good images cannot carry 1%"
    assert said in capsys.readouterr().err
    facts = json.loads((tmp_path / "few/operating.json").read_text())
    assert said in facts["warnings"][0]
    assert "99 images are needed" in facts["warnings"][0]
    assert said in (tmp_path / "few/report.html").read_text()


def test_a_classifier_gets_a_good_or_defect_threshold(lab, tmp_path: Path, capsys) -> None:
    assert lab("attempt=base", "hydra.run.dir=run") == 0
    assert lab("task=threshold", "ckpt=run", "false_rejects=0.3", "escapes=0.3", "hydra.run.dir=two") == 0
    out = capsys.readouterr().out
    assert "before: none: the most probable class decided" in out
    assert "but the choice of the epoch" in out
    model = load_model(tmp_path / "two/best.ckpt")
    assert lab("task=predict", "ckpt=two", f"source={tmp_path / 'products/widget/test'}", "hydra.run.dir=new") == 0
    rows = read_csv(tmp_path / "new/predictions.csv")
    for row in rows:
        score = 1 - float(row["prob_good"])
        assert float(row["score"]) == pytest.approx(score, abs=1e-5)
        far = float(row["distance"]) > float(row["unknown_above"])  # as one in fifteen of such images is
        assert row["decision"] == (UNKNOWN if far else decide(float(row["score"]), model.threshold, model.accept))
        if row["decision"] in (OK, REJECT):
            assert (row["prediction"] == "good") == (row["decision"] == OK)
    assert lab("task=evaluate", "ckpt=two", "hydra.run.dir=again") == 0
    judged = read_csv(tmp_path / "again/predictions.csv")
    assert {row["decision"] for row in judged} <= {OK, REVIEW, REJECT}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "task=threshold needs what to choose by: give false_rejects=0.01"),
        (["cost.escape=3"], "cost.escape and cost.false_reject go together"),
        (["cost.escape=3", "cost.false_reject=1", "escapes=0.1"], "by costs or by rates, not by both"),
        (["reviews=0.1"], "goes with false_rejects alone"),
        (["false_rejects=1.5"], "false_rejects=1.5 is out of range"),
        (["escapes=0.02"], "no defect was held out"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(words: list[str], said: str, lab, patchcore: Path, tmp_path, capsys) -> None:
    assert lab("task=threshold", f"ckpt={patchcore}", *words, "hydra.run.dir=out") == 2
    err = capsys.readouterr().err
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_score_that_is_no_number_chooses_no_threshold(patchcore: Path, lab, tmp_path: Path, capsys) -> None:
    """Sorted it would be the highest of the good images' scores, and nothing would be rejected."""
    path = patchcore / "predictions.csv"
    rows = read_csv(path)
    next(row for row in rows if row["split"] == "val")["score"] = "nan"
    write_csv(path, rows, list(rows[0]))
    assert lab("task=threshold", f"ckpt={patchcore}", "false_rejects=0.1", "hydra.run.dir=out") == 2
    assert "predictions.csv is damaged (a score is no finite number)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_its_run_is_refused(patchcore: Path, lab, tmp_path: Path, capsys) -> None:
    (patchcore / "predictions.csv").unlink()
    assert lab("task=threshold", f"ckpt={patchcore}", "false_rejects=0.1", "hydra.run.dir=out") == 2
    assert "has no predictions.csv of its run beside it" in capsys.readouterr().err
