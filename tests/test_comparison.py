"""Comparisons of many attempts: reference, ranking, verdict and files, of fabricated runs and of small sweeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from test_pairs import FOLDS, cross_validated, fold, said
from test_reporting import CLASSES, fabricate, fail

from mvtec_lab import compose
from mvtec_lab.config import VerdictConfig
from mvtec_lab.errors import LabError
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.grouping import by_attempt
from mvtec_lab.reporting.pairs import COMPARISON
from mvtec_lab.reporting.report import REPORT, sum_up
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.reporting.summary import SUMMARY
from mvtec_lab.results import CONFIG, HISTORY, PREDICTIONS, RESULT, SAMPLES, RunResult, read_csv, write_csv


def test_draws_of_a_tail_are_no_copies(tmp_path: Path) -> None:
    for name, imbalance in (("thin", 3.0), ("same", None)):
        for seed in range(3):
            folder = tmp_path / f"{name}{seed}"
            fabricate(folder, name)
            config = yaml.safe_load((folder / CONFIG).read_text())
            config |= {"split": {**config["split"], "seed": seed}, "data": {"imbalance": imbalance}}
            (folder / CONFIG).write_text(yaml.safe_dump(config))
    copies = {attempt.name: attempt.copies for attempt in compare(load_runs(tmp_path)).attempts}
    assert copies == {"thin": 0, "same": 2}


@pytest.mark.slow
def test_a_reference_is_what_each_other_attempt_is_compared_with(tmp_path: Path) -> None:
    for i in range(FOLDS):
        for name, right in (("ce", 10), ("good", 18 + i % 2), ("near", 10 + i % 2), ("bad", 4)):
            fold(tmp_path / f"{name}{i}", name, i, right, images=20, verdict={"reference": "ce"})
    comparison = compare(load_runs(tmp_path))
    assert {(pair.first, pair.second) for pair in comparison.pairs} == {("good", "ce"), ("near", "ce"), ("bad", "ce")}
    good = next(pair for pair in comparison.pairs if pair.first == "good")
    assert good.p is not None
    assert good.p_holm is not None
    assert good.p_holm <= 3 * good.p * (1 + 1e-9)
    assert comparison.best == "good"
    leads = {pair.first: round(pair.lead, 2) for pair in comparison.pairs}
    assert leads == {"good": 0.42, "near": 0.02, "bad": -0.3}
    assert {pair.first for pair in comparison.pairs if pair.different} == {"good", "bad"}
    text = said(comparison)
    for figure in ("0.920", "0.500", "+42.0", "-30.0", "+2.0"):
        assert figure in text
    sum_up(tmp_path)
    assert "Against ce" in (tmp_path / REPORT).read_text(encoding="utf-8")
    assert json.loads((tmp_path / COMPARISON).read_text(encoding="utf-8"))["reference"] == "ce"


def test_what_is_asked_for_goes_before_what_runs_say(tmp_path: Path) -> None:
    for name, said_ in (("a", {"reference": "b"}), ("b", {"metric": "macro_f1"}), ("c", {})):
        fabricate(tmp_path / name, name, verdict=said_)
    runs = load_runs(tmp_path)
    comparison = compare(runs)
    assert (comparison.metrics[0], comparison.reference, len(comparison.pairs)) == ("macro_f1", "b", 2)
    comparison = compare(runs, VerdictConfig("accuracy", "c"))
    assert (comparison.metrics[0], comparison.reference) == ("accuracy", "c")
    comparison = compare(runs, VerdictConfig(reference="nobody"))
    assert (comparison.reference, len(comparison.pairs)) == (None, 3)
    assert "verdict.reference=nobody" in said(comparison)
    fabricate(tmp_path / "d", "d", verdict={"metric": "accuracy"})
    comparison = compare(load_runs(tmp_path))
    assert comparison.metrics[0] == "accuracy"
    assert "verdict.metric (macro_f1, accuracy)" in said(comparison)


def test_what_the_verdict_rests_on_tells_no_attempts_apart(tmp_path: Path) -> None:
    for seed, verdict in enumerate(({"metric": "macro_f1"}, {"reference": "b"}, {})):
        fabricate(tmp_path / str(seed), "a", seed=seed, verdict={"metric": None, "reference": None, **verdict})
    comparison = compare(load_runs(tmp_path))
    assert [attempt.name for attempt in comparison.attempts] == ["a"]
    assert comparison.metrics[0] == "macro_f1"


def test_a_reference_may_be_one_of_an_attempts_settings(tmp_path: Path) -> None:
    for index, lr in enumerate((0.001, 0.01)):
        run = fabricate(tmp_path / str(index), "base")
        path = Path(run.run_dir) / CONFIG
        path.write_text(path.read_text(encoding="utf-8").replace("lr: 0.001", f"lr: {lr}"), encoding="utf-8")
    fabricate(tmp_path / "2", "other")
    comparison = compare(load_runs(tmp_path), VerdictConfig(reference="base optimizer.lr=0.01"))
    assert {pair.second for pair in comparison.pairs} == {"base optimizer.lr=0.01"}
    assert compare(load_runs(tmp_path), VerdictConfig(reference="base")).reference is None


def test_validation_ranks_and_test_states(tmp_path: Path) -> None:
    first = fabricate(tmp_path / "0", "chosen", right=6)
    first.metrics["val"] = {"balanced_accuracy": 1.0, "accuracy": 1.0, "loss": 0.1, "images": 9}
    first.save()
    fabricate(tmp_path / "1", "better", right=18)
    comparison = compare(load_runs(tmp_path))
    assert comparison.best == "chosen"
    (pair,) = comparison.pairs
    assert (pair.different, pair.lead_of("better")) == (True, pytest.approx(0.6))
    assert "60.0" in said(comparison)


def test_different_test_images_are_not_compared(tmp_path: Path) -> None:
    fold(tmp_path / "0", "a", 0, 10)
    fold(tmp_path / "1", "b", 1, 4)
    fabricate(tmp_path / "2", "c", category="cable")
    comparison = compare(load_runs(tmp_path))
    assert all(pair.p is None and pair.test is None and not pair.different for pair in comparison.pairs)
    (why,) = {pair.refused for pair in comparison.pairs}
    assert f"a and b; a and c; b and c, as {why}" in said(comparison)


def on_version(run_dir: Path, root: str, right: int, **wrong: str) -> RunResult:
    """Write a run on a data set whose test images are named from the last to the first; ``wrong``: in samples.csv."""
    run = fabricate(run_dir, "base", right=right, data="folder", category=Path(root).name, paths={"data.root": root})
    rows = read_csv(run_dir / PREDICTIONS)
    names = {row["path"]: f"test/{row['label']}/{20 - place:03}.png" for place, row in enumerate(rows)}
    samples = [
        {"path": names[row["path"]], "label": row["label"], "split": "test", "digest": f"of {row['path']}", **wrong}
        for row in rows
    ]
    write_csv(run_dir / SAMPLES, samples, ("path", "label", "split", "digest"))
    moved = sorted(({**row, "path": names[row["path"]]} for row in rows), key=lambda row: row["path"])
    write_csv(run_dir / PREDICTIONS, moved, ("split", "path", "label", "prediction"))
    return run


def test_a_version_of_a_data_set_is_compared_with_the_data_set(tmp_path: Path) -> None:
    """What a review wrote: other images train, the same ones test, under other names, in a folder of another name."""
    first = fabricate(tmp_path / "first", "base", right=8, data="folder", started="2026-01-01")
    rows = [
        {"path": row["path"], "label": row["label"], "split": "test", "digest": f"of {row['path']}"}
        for row in read_csv(tmp_path / "first" / PREDICTIONS)
    ]
    write_csv(Path(first.run_dir) / SAMPLES, rows, ("path", "label", "split", "digest"))
    on_version(tmp_path / "second", "/a/review/version-1", 18)
    on_version(tmp_path / "third", "/b/review/version-1", 18)
    comparison = compare(load_runs(tmp_path / "first", tmp_path / "second"))
    (pair,) = comparison.pairs
    assert {pair.first, pair.second} == {"base", "base on version-1"}
    assert (pair.images, pair.different, abs(pair.difference.value)) == (20, True, pytest.approx(0.5))
    # Ten images were wrong and are right, none the other way: McNemar's mid-p, by which each image meets itself.
    assert pair.p == pytest.approx(0.5**10)
    both = compare(load_runs(tmp_path))
    assert {attempt.name for attempt in both.attempts} == {
        "base",
        "base on a/review/version-1",
        "base on b/review/version-1",
    }


@pytest.mark.parametrize("wrong", [{"label": "good"}, {"digest": ""}, {"digest": "same"}])
def test_what_may_be_other_images_is_another_product(tmp_path: Path, wrong: dict[str, str]) -> None:
    first = fabricate(tmp_path / "first", "base", data="folder", started="2026-01-01")
    rows = [
        {"path": row["path"], "label": row["label"], "split": "test", "digest": f"of {row['path']}"}
        for row in read_csv(tmp_path / "first" / PREDICTIONS)
    ]
    write_csv(Path(first.run_dir) / SAMPLES, rows, ("path", "label", "split", "digest"))
    on_version(tmp_path / "second", "/a/review/version-1", 18, **wrong)
    assert {run.category for run in load_runs(tmp_path)} == {"bottle", "version-1"}


def test_unequal_numbers_of_runs_are_compared_on_what_they_share(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[6, 7, 5, 6])
    fail(tmp_path / "b-4", "b")
    comparison = compare(load_runs(tmp_path))
    assert comparison.pairs[0].test_sets == 4
    assert {attempt.name: len(attempt.tests) for attempt in comparison.attempts} == {"a": 5, "b": 4}
    assert "a 5, b 4" in said(comparison)


def test_copies_of_a_run_count_once(tmp_path: Path) -> None:
    for name, started in (("0", "2026-01-01"), ("1", "2026-01-02")):
        fabricate(tmp_path / name, "a", right=10 + int(name), started=started)
    fabricate(tmp_path / "b", "b")
    comparison = compare(load_runs(tmp_path, tmp_path / "0"))
    (a,) = (attempt for attempt in comparison.attempts if attempt.name == "a")
    assert [len(group) for group in a.tests.values()] == [1]
    assert a.copies == 1
    accuracy = a.estimate()
    assert accuracy is not None
    assert accuracy.value == pytest.approx(11 / 20)  # the newer one's


def test_all_runs_failed(tmp_path: Path) -> None:
    fail(tmp_path / "0", "a")
    comparison = compare(load_runs(tmp_path))
    assert (comparison.done, comparison.best, comparison.pairs, len(comparison.verdict)) == ([], None, [], 1)


def test_runs_without_predictions_are_said(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "0", "a")
    fabricate(tmp_path / "1", "b")
    (Path(run.run_dir) / PREDICTIONS).unlink()
    comparison = compare(load_runs(tmp_path))
    (pair,) = comparison.pairs
    assert (pair.p, pair.difference, comparison.attempts[0].tests) == (None, None, {})
    assert f"a and b, as {pair.refused}." in said(comparison)


def test_the_headline_says_where_nothing_was_learnt(tmp_path: Path) -> None:
    for name, right in (("finetune", 5), ("augment", 3)):
        fabricate(tmp_path / name, name, right=right)

    def headline() -> tuple[str, list[bool | None]]:
        comparison = compare(load_runs(tmp_path))
        return comparison.verdict[0], [attempt.learnt for attempt in comparison.attempts]

    nothing, learnt = headline()
    assert not any(learnt)
    assert "learnt" in nothing
    assert "0.250" in nothing
    fabricate(tmp_path / "full", "full", right=7)  # above the baseline, but not shown to be
    uncertain, learnt = headline()
    assert not any(learnt)
    assert "learnt" in uncertain
    assert nothing.partition(":")[0] != uncertain.partition(":")[0]
    fabricate(tmp_path / "head", "head", right=15)
    first, learnt = headline()
    assert any(learnt)
    assert "learnt" not in first


def test_only_what_shares_its_test_images_is_ranked(tmp_path: Path) -> None:
    fold(tmp_path / "0", "a", 0, 12)
    fold(tmp_path / "1", "b", 0, 10)
    fabricate(tmp_path / "2", "c", category="cable", right=20, val_is_test=True)
    fabricate(tmp_path / "3", "d", category="cable", right=18)
    comparison = compare(load_runs(tmp_path))
    assert comparison.best is None
    # The checkpoint of c was chosen on the test images: its higher accuracy is no merit.
    for best in ("a", "d"):
        assert any(f": {best} (" in line and "Best" in line for line in comparison.verdict)


def test_runs_are_ranked_on_the_folds_that_all_have(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[11, 6, 6, 6, 6], b=[9])
    assert compare(load_runs(tmp_path)).best == "a"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CONFIG, "a: [1,"),
        (CONFIG, "hello"),
        (HISTORY, "epoch,val/loss\n0,low\n"),
        (HISTORY, "val/loss\n1\n"),
        (PREDICTIONS, "split,path\ntest,1.png\n"),
        (PREDICTIONS, "split,path,label,prediction\ntest\ntest,1.png,good,good\n"),
        (PREDICTIONS, ""),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    (Path(fabricate(tmp_path / "0", "a").run_dir) / name).write_text(content)
    fabricate(tmp_path / "1", "b")
    rows, comparison = sum_up(tmp_path)
    assert [(row["attempt"], row["completed"], row["failed"]) for row in rows] == [("a", 0, 1), ("b", 1, 0)]
    (reason,) = comparison.damaged
    assert f"{name} is damaged" in reason
    assert rows[0]["error"] == reason
    assert "Left out, as a file of theirs is damaged: 1 of 2 runs (0)." in comparison.verdict
    assert reason in json.loads((tmp_path / COMPARISON).read_text(encoding="utf-8"))["damaged"]
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(LabError, match=f"{name} is damaged"):
        sum_up(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"attempt": "a"}', '{"seed": NaN}'])
def test_a_damaged_result_is_named(tmp_path: Path, content: str | None) -> None:
    run = fabricate(tmp_path / "0", "a")
    path = Path(run.run_dir) / RESULT
    write_csv(path.with_name(SAMPLES), [{"path": "000.png"}], ["path"])
    path.unlink() if content is None else path.write_text(content)
    fabricate(tmp_path / "1", "b")
    damaged, sound = load_runs(tmp_path)
    assert (damaged.attempt, damaged.status, sound.attempt, sound.status) == ("a", "damaged", "b", "completed")
    assert "result.json is missing or damaged" in str(damaged.error)
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(LabError, match=r"result\.json is missing or damaged"):
        load_runs(tmp_path)


def test_comparison_json(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[11, 12, 11, 10, 12], b=[6, 7, 5, 6, 7])
    fail(tmp_path / "c", "c")
    sum_up(tmp_path)
    found = json.loads((tmp_path / COMPARISON).read_text(encoding="utf-8"))
    assert found["best"] == "a"
    assert found["verdict"]
    a, _, c = found["attempts"]
    assert a["accuracy"]["value"] == pytest.approx(56 / 60)
    assert a["accuracy"]["low"] < a["accuracy"]["value"] < a["accuracy"]["high"]
    assert a["recall"]["good"]["value"] == 1
    assert a["recall"]["good"]["low"] == pytest.approx(0.80, abs=0.01)  # fifteen images of fifteen
    assert a["balanced_accuracy"]["low"] < a["balanced_accuracy"]["value"] < a["balanced_accuracy"]["high"]
    assert set(a["recall"]) == set(CLASSES)
    assert (c["completed"], c["accuracy"]) == (0, None)
    assert found["pairs"][0]["different"] is True


def test_a_reported_figure_stands_beside_the_measured_one(tmp_path: Path) -> None:
    for name, accuracy in (("a", 0.7), ("b", 0.99)):
        fabricate(tmp_path / name, name, right=14, reported={"accuracy": accuracy, "split": "val"})
    rows, _ = sum_up(tmp_path)
    assert [row["reported_accuracy"] for row in rows] == [0.7, 0.99]
    assert rows[0]["reported_measured"] == pytest.approx(0.7)
    html = (tmp_path / REPORT).read_text(encoding="utf-8")
    assert "Reported and measured" in html
    assert "within" in html
    assert ">above<" in html


# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cross_validation_is_a_sweep(lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab("-m", "attempt=base,cosine", "cv.folds=3", "cv.repeats=2", "hydra.sweep.dir=sweep") == 0
    runs = load_runs(tmp_path / "sweep")
    assert len(runs) == 12
    tests = {
        run.run_dir: frozenset(r["path"] for r in read_csv(Path(run.run_dir) / PREDICTIONS) if r["split"] == "test")
        for run in runs
    }
    of = {name: {tests[run.run_dir] for run in runs if run.attempt == name} for name in ("base", "cosine")}
    assert of["base"] == of["cosine"]
    assert len(of["base"]) == 6
    assert len(frozenset.union(*of["base"])) == 22  # every image of the pool
    assert sum(map(len, of["base"])) == 2 * 22  # once a repeat
    assert {run.fold for run in runs} == {0, 1, 2}
    assert all(not run.val_is_test and run.metrics["val"]["images"] for run in runs)
    assert all(set(run.metrics["test"]["group_recall"]) == {"head", "middle", "tail"} for run in runs)
    comparison = json.loads((tmp_path / "sweep" / COMPARISON).read_text(encoding="utf-8"))
    assert comparison["pairs"][0]["test"] == "corrected resampled t-test"
    assert comparison["pairs"][0]["image_test"] in ("mid-p McNemar test", "paired permutation test")
    assert "22 images in 6 test sets" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "cv.folds=1"), "cv.folds=1 cv.repeats=1 is no cross-validation: give 2 folds or more"),
        (("-m", "cv.folds=3,5"), "cv.folds=3,5 must be one whole number"),
        (("-m", "cv.repeats=2"), "give cv.folds as well"),
        (("-m", "cv.folds=3", "split.fold=0,1"), "cv.folds=3 decides on split.fold itself: leave it out"),
        (("-m", "cv.folds=3", "split.seed=0,1"), "give one number, or cv.repeats"),
        (("cv.folds=3",), "cv.folds=3 makes a sweep: give -m"),
        (("+study=bottle",), "study=bottle is a sweep: give -m as well"),
        (("-m", "+study=bottle,cable"), "a study is a sweep of its own: give one a command"),
        (("reported.accuracy=70",), "reported.accuracy=70.0 is out of range: give 0 to 1"),
        (("task=compare",), "task=compare needs dirs="),
        (("task=compare", "dirs=[nowhere]"), "nowhere holds no run"),
    ],
)
def test_mistakes_are_one_line(lab, tmp_path: Path, capsys, arguments: tuple[str, ...], message: str) -> None:
    assert lab(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_folds_differ_in_their_draw_and_repeat_it(lab, tmp_path: Path) -> None:
    for sweep in ("a", "b"):
        assert lab("-m", "cv.folds=2", f"hydra.sweep.dir={sweep}") == 0
    a, b = (load_runs(tmp_path / sweep) for sweep in ("a", "b"))
    assert [run.metrics for run in a] == [run.metrics for run in b]


@pytest.mark.slow
def test_compare_sweeps_of_other_days(lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for attempt in ("base", "cosine"):
        assert lab("-m", f"attempt={attempt}", "cv.folds=3", f"hydra.sweep.dir={attempt}") == 0
    capsys.readouterr()
    assert lab("task=compare", "dirs=[base,cosine]", "hydra.run.dir=both") == 0
    out = capsys.readouterr().out
    assert "Best on validation" in out
    assert {SUMMARY, COMPARISON, REPORT} <= {path.name for path in (tmp_path / "both").iterdir()}
    found = json.loads((tmp_path / "both" / COMPARISON).read_text(encoding="utf-8"))
    assert (len(found["pairs"]), found["pairs"][0]["test_sets"]) == (1, 3)
    asked = ("verdict.metric=balanced_accuracy", "verdict.reference=base")
    assert lab("task=compare", "dirs=[base,cosine]", "hydra.run.dir=both", *asked) == 0
    found = json.loads((tmp_path / "both" / COMPARISON).read_text(encoding="utf-8"))
    assert (found["metric"], found["reference"], found["pairs"][0]["second"]) == ("balanced_accuracy", "base", "base")
    assert "Compared with base (balanced accuracy" in capsys.readouterr().out


STUDIES = {
    "cable": ("good", "bent_wire", "cable_swap", "combined", "cut_inner_insulation", "cut_outer_insulation",
              "missing_cable", "missing_wire", "poke_insulation"),
    "transistor": ("good", "bent_lead", "cut_lead", "damaged_case", "misplaced"),
    "zipper": ("good", "broken_teeth", "combined", "fabric_border", "fabric_interior", "rough", "split_teeth",
               "squeezed_teeth"),
    "bottle": ("good", "broken_large", "broken_small", "contamination"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("attempt", "lr", "epochs", "batch", "optimizer", "backbone", "reported"),
    [
        ("cable/finetune", 1e-3, 50, 32, "adam", "resnet18", 0.6979),
        ("transistor/epochs200", 1e-3, 200, 32, "sgd", "resnet18", 0.7),
        ("transistor/resnet50", 1e-3, 50, 32, "sgd", "resnet50", 0.4),
        ("zipper/exp4", 1e-4, 50, 16, "adam", "resnet18", 0.8125),
        ("bottle/attempt1", 3e-3, 50, 4, "adam", "resnet18", 0.5833),
        ("bottle/attempt3", 1e-4, 50, 4, "rmsprop", "resnet18", 0.625),
        ("bottle/attempt4", 1e-4, 100, 4, "adam", "resnet18", 0.7532),
    ],
)
def test_a_preset_is_what_its_report_says(
    attempt: str, lr: float, epochs: int, batch: int, optimizer: str, backbone: str, reported: float
) -> None:
    config = compose(f"attempt={attempt}", "data.root=somewhere")
    assert (config.data.name, config.data.category) == ("mvtec", attempt.split("/")[0])
    assert (config.optimizer.lr, config.trainer.max_epochs, config.data.batch_size) == (lr, epochs, batch)
    assert (config.optimizer.name, config.model.backbone) == (optimizer, backbone)
    assert config.reported.accuracy == reported
    small = attempt.startswith(("bottle", "transistor"))
    assert (config.split.val_is_test, config.split.per_class) == (small, 10 if small else None)


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_runs_its_reports_attempts(study: str, lab, tmp_path: Path, capsys) -> None:
    from conftest import write_product

    write_product(tmp_path / "mvtec" / study, dict.fromkeys(STUDIES[study], 10))
    settings = ("data=mvtec", f"data.root={tmp_path / 'mvtec'}", "hydra.sweep.dir=sweep", "trainer.max_epochs=1")
    assert lab("-m", f"+study={study}", *settings) == 0
    runs = load_runs(tmp_path / "sweep")
    assert all(run.attempt.startswith(f"{study}/") and run.category == study and run.reported for run in runs)
    assert len(runs) == (5 if study == "transistor" else 4)
    assert "measured there" in capsys.readouterr().out
    if study == "transistor":
        assert all(run.val_is_test and sum(run.counts["test"].values()) == 10 for run in runs)


@pytest.mark.slow
def test_attempts_that_differ_in_their_seed_alone_are_never_called_different(lab, tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "attempt"
    folder.mkdir(parents=True)
    for repetition in range(1, 4):  # tests/test_levels.py simulates the level; this is the real entry point
        for seed in range(2):
            (folder / f"seed{seed}.yaml").write_text(f"# @package _global_\nseed: {repetition}{seed}\n")
        sweep = f"hydra.sweep.dir=sweep{repetition}"
        assert lab("-m", "attempt=seed0,seed1", "cv.folds=3", "--config-dir=conf", sweep, "optimizer.lr=0.02") == 0
        found = json.loads((tmp_path / f"sweep{repetition}" / COMPARISON).read_text(encoding="utf-8"))
        (pair,) = found["pairs"]
        assert pair["test_sets"] == 3
        assert not pair["different"]
        assert np.isfinite(pair["p"])


@pytest.mark.parametrize(
    ("paths", "attempts"),
    [
        (("/old/fold_0/best.ckpt", "/old/fold_0/best.ckpt"), 1),  # of one fold's run, in every fold
        (("/old/fold_0/best.ckpt", "/old/fold_1/best.ckpt"), 1),  # of each fold's own
        (("/old/fold_0/best.ckpt", "/new/fold_1/best.ckpt"), 2),
    ],
)
def test_folds_are_one_attempt_whatever_path_they_share(paths: tuple[str, str], attempts: int) -> None:
    runs = [RunResult("base", 0, "folder", "widget", "resnet18", f"run{fold}", fold=fold) for fold in (0, 1)]
    settings = {f"run{fold}": {"split.fold": str(fold), "model.weights": path} for fold, path in enumerate(paths)}
    assert len(by_attempt(runs, settings)) == attempts
