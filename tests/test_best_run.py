"""ckpt= takes a file, a run or a sweep, of which validation chooses the run."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from test_pairs import cross_validated
from test_reporting import fabricate

from mvtec_lab.config import Config
from mvtec_lab.engine.origin import checkpoint_of
from mvtec_lab.errors import LabError
from mvtec_lab.reporting.best import best_run
from mvtec_lab.results import BEST, PREDICTIONS, RESULT, find_runs


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of two attempts and two seeds: base has the best run, full the better mean."""
    for attempt, seed, right in [("base", 0, 20), ("base", 1, 2), ("full", 0, 14), ("full", 1, 19)]:
        fabricate(tmp_path / f"sweep/{attempt}-{seed}", attempt, seed=seed, right=right)
        with zipfile.ZipFile(tmp_path / f"sweep/{attempt}-{seed}" / BEST, "w") as file:  # as PyTorch's files begin
            file.writestr("data.pkl", "")
    return tmp_path / "sweep"


def test_validation_chooses_the_attempt_and_then_its_run(sweep: Path) -> None:
    run, said = best_run(sweep)
    assert (run.attempt, run.seed) == ("full", 1)
    assert said == "the best of 4 runs on validation (balanced accuracy 0.950)"
    (sweep / "full-1" / BEST).unlink()
    run, _ = best_run(sweep)
    assert (run.attempt, run.seed) == ("full", 0)  # 0.7; the mean of base is 0.55


def test_the_model_of_a_fold_is_called_that(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[10, 11, 12], b=[5, 6, 7])
    for path in tmp_path.iterdir():
        (path / BEST).touch()
    assert best_run(tmp_path)[1].endswith("; it is the model of one fold: split.test=0 trains one with all images")


def test_a_checkpoint_is_a_file_a_run_or_a_sweep(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(given: Path | str) -> str:
        return checkpoint_of(Config(task="evaluate", ckpt=str(given)))

    run = sweep / "base-1"
    assert of(run / BEST) == of(run) == str(run / BEST)
    assert of(sweep) == str(sweep / "full-1" / BEST)
    monkeypatch.setenv("HOME", str(sweep.parent))
    assert of("~/sweep/base-0") == str(sweep / "base-0" / BEST)


def test_a_folder_that_names_no_model_is_refused(sweep: Path, tmp_path: Path) -> None:
    def refusal(ckpt: Path | str | None) -> str:
        with pytest.raises(LabError) as caught:
            checkpoint_of(Config(task="predict", ckpt=None if ckpt is None else str(ckpt)))
        return str(caught.value)

    assert refusal(None) == "task=predict needs ckpt=FILE: a run's best.ckpt, its directory or a sweep's"
    assert refusal("no/such.ckpt").startswith("ckpt=no/such.ckpt does not exist: give a run's best.ckpt")
    (tmp_path / "empty").mkdir()
    assert "holds no run" in refusal(tmp_path / "empty")
    other = fabricate(sweep / "elsewhere", "cosine", images=8, category="cable")  # other test images
    Path(other.run_dir, BEST).touch()
    assert "validation cannot choose among the runs" in refusal(sweep)
    places = [run.run_dir for run in find_runs(sweep)]
    assert any(f"give ckpt={place}, the best on test (accuracy " in refusal(sweep) for place in places)
    assert "flattered by that choice; or another one, " in refusal(sweep)
    for run in find_runs(sweep):
        Path(run.run_dir, BEST).unlink()
    assert "holds no completed run with a best.ckpt" in refusal(sweep)


@pytest.mark.parametrize("name", [RESULT, PREDICTIONS])
def test_a_damaged_run_refuses_no_other(sweep: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """It refused all, even where another run is the best by far."""
    (sweep / "full-1" / name).write_text("damaged")
    run, said = best_run(sweep)
    assert (run.attempt, run.seed) == ("full", 0)  # 0.7; the mean of base is 0.55
    assert said == "the best of 3 sound runs on validation (balanced accuracy 0.700)"
    (warning,) = caplog.messages
    assert warning.startswith(f"{sweep / 'full-1' / name} is ")
    assert warning.endswith("; the best run is chosen without it")
    for seed in (0, 1):
        (sweep / f"base-{seed}" / name).write_text("damaged")
    run, said = best_run(sweep)
    assert (run.attempt, run.seed, said.partition(" (")[0]) == ("full", 0, "its only sound run")
    (sweep / "full-0" / RESULT).write_text("damaged")
    with pytest.raises(LabError, match=f"{name}|{RESULT}"):
        best_run(sweep)


@pytest.mark.slow
def test_a_sweep_with_a_damaged_run_predicts(lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab("-m", "attempt=base,cosine", "trainer.max_epochs=1", "hydra.sweep.dir=sweep") == 0
    (tmp_path / "sweep/base" / PREDICTIONS).write_text("damaged")
    capsys.readouterr()
    assert lab("task=predict", "ckpt=sweep", f"source={product / 'test/hole/000.png'}", "hydra.run.dir=new") == 0
    said = capsys.readouterr().err
    assert said.count(f"sweep/base/{PREDICTIONS} is damaged (") == 1
    assert "ckpt=sweep: sweep/cosine is its only sound run" in said
    assert (tmp_path / "new" / PREDICTIONS).is_file()


@pytest.mark.slow
def test_tasks_take_a_run_and_a_sweep(lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab("-m", "attempt=base", "hydra.sweep.dir=sweep") == 0
    assert lab("task=evaluate", "ckpt=sweep/base/best.ckpt", "hydra.run.dir=of_file") == 0
    for place, written in [("sweep/base", "of_run"), ("sweep", "of_sweep")]:
        capsys.readouterr()
        assert lab("task=evaluate", f"ckpt={place}", f"hydra.run.dir={written}") == 0
        assert (tmp_path / written / "metrics.json").read_bytes() == (tmp_path / "of_file/metrics.json").read_bytes()
    assert "ckpt=sweep: sweep/base is its only run" in capsys.readouterr().err
    assert lab("task=predict", "ckpt=sweep", f"source={product / 'test/hole/000.png'}", "hydra.run.dir=new") == 0
    assert lab("task=export", "ckpt=sweep/base", "hydra.run.dir=exported") == 0
    assert '"ckpt": "sweep/base/best.ckpt"' in (tmp_path / "exported/export.json").read_text()
