"""Hydra's search sweepers: a job returns its deciding validation metric, and a search ends as any sweep does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mvtec_lab.results import find_runs, read_csv

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

SEARCH = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "trainer.max_epochs=1", "hydra.sweep.dir=s"]


@pytest.mark.slow
@pytest.mark.parametrize(("monitor", "best"), [("val/balanced_accuracy", max), ("val/loss", min)])
def test_a_search_finds_the_best_run_and_ends_as_any_sweep(lab, tmp_path: Path, monitor: str, best) -> None:
    words = [*SEARCH, f"trainer.monitor={monitor}", "optimizer.lr=tag(log,interval(0.0001,10))", "model.unfreeze=all"]
    assert lab(*words) == 0
    runs = find_runs(tmp_path / "s")
    assert len(runs) == 3
    values = {Path(run.run_dir).name: run.metrics["val"][monitor.rpartition("/")[2]] for run in runs}
    assert len({*values.values()}) > 1
    found = yaml.safe_load((tmp_path / "s/optimization_results.yaml").read_text())
    assert found["best_value"] == pytest.approx(best(values.values()))
    assert len(read_csv(tmp_path / "s/summary.csv")) == 3
    assert (tmp_path / "s/report.html").is_file()


@pytest.mark.slow
def test_a_failed_trial_is_the_worst_and_the_search_continues(lab, tmp_path: Path) -> None:
    words = [*SEARCH, "optimizer.lr=choice(0.001,1e38)", "optimizer=sgd", "model.unfreeze=all", "trainer.max_epochs=6"]
    assert lab(*words) == 1
    runs = find_runs(tmp_path / "s")
    assert len(runs) == 3
    assert {run.exit_status for run in runs} == {0, 1}
    found = yaml.safe_load((tmp_path / "s/optimization_results.yaml").read_text())
    assert found["best_params"] == {"optimizer.lr": 0.001}


def test_a_search_takes_no_folds(lab, tmp_path: Path, capsys) -> None:
    assert lab(*SEARCH, "cv.folds=3", "optimizer.lr=interval(0.1,1)") == 2
    assert "which a search cannot average: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


QUANTILE = "threshold.quantile=interval(0.9,1)"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attempt=patchcore", QUANTILE], "threshold.rule=quantile gives model.method=patchcore no validation score"),
        (["model.options.coreset=choice(0.1,0.2)", "attempt=patchcore"], "give threshold.rule=synthetic"),
        (["task=describe", "seed=range(0,3)"], "task=describe has no validation score to search by"),
    ],
)
def test_a_search_needs_a_score(lab, tmp_path: Path, capsys, words: list[str], said: str) -> None:
    assert lab("-m", "hydra/sweeper=optuna", "hydra.sweep.dir=s", *words) == 2
    complaint = capsys.readouterr().err
    assert said in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_a_trial_without_a_score_fails_alone(lab, tmp_path: Path, capsys) -> None:
    words = [
        "attempt=gaussian",
        "model.options.layers=[features.relu2]",
        "threshold.rule=choice(quantile,synthetic)",
        "hydra.sweep.dir=s",
    ]
    assert lab("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", *words) == 2
    assert "no validation score to search by" in capsys.readouterr().err
    best = yaml.safe_load((tmp_path / "s/optimization_results.yaml").read_text())
    assert best["best_params"] == {"threshold.rule": "synthetic"}
    assert best["best_value"] >= 0
