"""runs.csv and read_results: a row per run, for the next program."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from test_reporting import fabricate, fail

from mvtec_lab import LabError, read_csv, read_results
from mvtec_lab.reporting.report import sum_up
from mvtec_lab.results import RunResult


@pytest.fixture
def sweep(lab, tmp_path: Path) -> Path:
    """Two learning rates, two folds, and two repeats."""
    grid = ("attempt=base", "optimizer.lr=0.1,0.01", "cv.folds=2", "cv.repeats=2", "trainer.max_epochs=1")
    assert lab("-m", *grid, "hydra.sweep.dir=s") == 0
    return tmp_path / "s"


@pytest.mark.slow
def test_every_run_of_a_sweep_is_a_row(sweep: Path) -> None:
    written, rows = read_csv(sweep / "runs.csv"), read_results(sweep, frame="rows")
    assert list(written[0]) == list(rows[0])
    assert len(rows) == 8
    assert {row["attempt"] for row in rows} == {row["attempt"] for row in read_csv(sweep / "summary.csv")}
    assert {(row["attempt_file"], row["attempt"], row["optimizer.lr"]) for row in rows} == {
        ("base", f"base optimizer.lr={lr}", lr) for lr in (0.1, 0.01)
    }
    assert {(row["fold"], row["repeat"], row["split.seed"]) for row in rows} == {
        (fold, repeat, repeat) for fold in (0, 1) for repeat in (0, 1)
    }
    for row, text in zip(rows, written, strict=True):
        run = RunResult.load(row["run_dir"])
        assert Path(row["run_dir"]) == sweep / text["run_dir"]  # relative, so that the folder can be moved
        assert (row["seed"], row["status"], row["error"], row["category"]) == (0, "completed", None, "widget")
        assert row["test_balanced_accuracy"] == run.metrics["test"]["balanced_accuracy"]
        assert float(text["val_loss"]) == row["val_loss"] == run.metrics["val"]["loss"]
        assert row["test_recall_crack"] == run.metrics["test"]["recall"]["crack"]
        assert (row["epochs"], row["seconds"]) == (run.epochs, run.seconds)
        assert row["train_images"] == sum(run.counts["train"].values())
        assert row["started"] == datetime.fromisoformat(text["started"])
        assert row["started"].utcoffset() == timedelta(0)


@pytest.mark.slow
def test_failed_runs_and_other_problems_have_rows(tmp_path: Path) -> None:
    fabricate(tmp_path / "s/good", "base")
    fail(tmp_path / "s/bad", "full", "ValueError:\n  too big")
    sum_up(tmp_path / "s")
    bad, good = sorted(read_csv(tmp_path / "s/runs.csv"), key=lambda row: row["run_dir"])
    assert (good["attempt"], good["status"], good["run_dir"]) == ("base", "completed", "good")
    assert (bad["attempt"], bad["status"], bad["error"]) == ("full", "failed", "ValueError: too big")
    assert bad["test_accuracy"] == ""
    assert not {"attempt_file", "test_image_auroc", "test_tail_recall"} & good.keys()
    (tmp_path / "elsewhere").mkdir()
    sum_up(tmp_path / "elsewhere", tmp_path / "s")
    assert {row["run_dir"] for row in read_csv(tmp_path / "elsewhere/runs.csv")} == {
        (tmp_path / "s" / name).resolve().as_posix() for name in ("good", "bad")
    }


def test_the_summary_leaves_out_what_no_attempt_has(tmp_path: Path) -> None:
    fabricate(tmp_path / "s/good", "base")
    fail(tmp_path / "s/bad", "full")
    sum_up(tmp_path / "s")
    columns = list(read_csv(tmp_path / "s/summary.csv")[0])
    assert columns[:8] == ["attempt", "category", "runs", "completed", "failed", "running", "dropped", "test_accuracy"]
    assert not {"test_image_auroc", "test_iou", "reported_accuracy", "threshold_rule"} & set(columns)
    assert {"warnings", "marks", "error"} <= set(columns)
    fail(tmp_path / "t/bad", "full")  # nothing was measured: the deciding metric still has its columns
    sum_up(tmp_path / "t")
    assert {"test_accuracy", "test_accuracy_low", "error"} <= set(read_csv(tmp_path / "t/summary.csv")[0])


@pytest.mark.slow
def test_a_pandas_frame_has_types(sweep: Path) -> None:
    pytest.importorskip("pandas")
    frame = read_results(sweep)
    types = frame.dtypes.astype(str)
    assert types[["seed", "fold", "optimizer.lr", "test_accuracy"]].tolist() == ["Int64", "Int64", "float64", "float64"]
    assert types["started"].startswith("datetime64[")
    assert types["started"].endswith("UTC]")
    means = frame.groupby("attempt")["test_accuracy"].mean()
    for row in read_csv(sweep / "summary.csv"):
        assert means[row["attempt"]] == pytest.approx(float(row["test_accuracy"]))


@pytest.mark.slow
def test_a_polars_frame_has_types(sweep: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = read_results(sweep, sweep / "base-optimizer.lr_0.1-split.seed_0-split.fold_0", frame="polars")
    assert frame.height == 8  # a run that two directories hold counts once
    assert frame.schema["fold"] == polars.Int64
    assert frame.schema["test_accuracy"] == frame.schema["optimizer.lr"] == polars.Float64
    assert frame.schema["started"] == polars.Datetime("us", "UTC")
    assert frame["error"].null_count() == 8


def test_what_is_lacking_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fabricate(tmp_path / "run", "base")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LabError, match="frame='pandas' needs pandas: pip install pandas, or frame='rows'"):
        read_results(tmp_path)
    with pytest.raises(LabError, match="pandas"):
        read_results(tmp_path, frame="panda")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabError, match="holds no run"):
        read_results(tmp_path / "empty", frame="rows")


def test_a_damaged_run_is_a_row_that_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(("sound", "config", "result")):
        fabricate(tmp_path / name, "base", seed=number)
    (tmp_path / "config/config.yaml").write_text("a: [1,")
    (tmp_path / "result/result.json").write_text('{"attempt": "base", "seed": ')
    rows = {Path(row["run_dir"]).name: row for row in read_results(tmp_path, frame="rows")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "sound": "completed",
        "config": "damaged",
        "result": "damaged",
    }
    assert {row["attempt"] for row in rows.values()} == {"base"}
    assert rows["result"]["seed"] == 2  # config.yaml says it
    assert rows["result"]["test_accuracy"] is None
    for name in ("config", "result"):
        assert rows[name]["error"] in caplog.text
        assert f"{name}/{name}." in rows[name]["error"]
    for name in ("sound", "config"):
        (tmp_path / name / "result.json").write_text("")
    with pytest.raises(LabError, match=r"result\.json is missing or damaged"):
        read_results(tmp_path, frame="rows")
