"""The jobs of a grid are made and checked in little time, and are none the less what Hydra would make of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from mvtec_lab import sweep
from mvtec_lab.results import find_runs
from mvtec_lab.tasks import check


class CheckedError(SystemExit):
    """Ends a command where its first job would begin."""

    code = 0


@pytest.fixture
def unstarted(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: object) -> None:
        raise CheckedError

    monkeypatch.setattr(sweep, "_begin_race", stop)  # the last that a sweep does before its jobs


def test_every_fold_is_as_hydra_composes_it(lab, unstarted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folds of an attempt are copies of its first one."""
    composed: list[tuple[DictConfig, DictConfig]] = []

    def compose_again(config: DictConfig) -> list[DictConfig]:
        jobs, loader = grid(config), GlobalHydra.instance().config_loader()
        composed.extend((job, loader.load_sweep_config(config, list(job.hydra.overrides.task))) for job in jobs)
        return jobs

    grid = sweep.grid
    monkeypatch.setattr(sweep, "grid", compose_again)
    assert lab("-m", "attempt=base,cosine", "cv.folds=2", "cv.repeats=2", "trainer.max_epochs=1,2", "task=train") == 0
    assert len(composed) == 2 * 2 * 2 * 2
    for job, expected in composed:
        assert job.hydra.sweep.subdir == expected.hydra.sweep.subdir
        OmegaConf.update(job, "hydra.job.override_dirname", expected.hydra.job.override_dirname)  # nobody reads it
        assert job == expected
    assert len({job.hydra.sweep.subdir for job, _ in composed}) == len(composed)


def test_attempts_that_share_images_have_them_looked_at_once(
    lab, unstarted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, set_up = [], check.set_up
    monkeypatch.setattr(
        check, "set_up", lambda config, *given: looked.append(config.split.fold) or set_up(config, *given)
    )
    assert lab("-m", "attempt=base,cosine,head", "cv.folds=2") == 0
    assert looked == [0, 1]


@pytest.mark.slow
def test_numbered_directories_are_unfolded_and_checked(lab, tmp_path: Path, capsys) -> None:
    """A job's number is known when it starts, and not when its sweep is checked."""
    numbered = "hydra.sweep.subdir='${hydra.job.num}'"
    words = ["-m", "attempt=base,cosine", "cv.folds=2", "hydra.sweep.dir=s", numbered, "trainer.max_epochs=1"]
    assert lab(*words, "data.batch_size=0") == 2
    assert "data.batch_size=0 is out of range" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
    assert lab(*words) == 0
    runs = find_runs(tmp_path / "s")
    assert {(run.attempt, run.fold) for run in runs} == {(name, fold) for name in ("base", "cosine") for fold in (0, 1)}
    assert {Path(run.run_dir).name for run in runs} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("error", [ImportError("no such library"), RuntimeError("broken"), KeyError("key")])
@pytest.mark.parametrize("sweeps", [True, False])
def test_nothing_runs_where_the_check_itself_fails(
    lab, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, sweeps: bool, error: Exception
) -> None:
    """Hydra turns what a callback raises into a warning, and would run every job unchecked."""

    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr(sweep, "check_jobs" if sweeps else "_check_directory", fail)
    assert lab(*(["-m", "attempt=base,cosine"] if sweeps else [])) == 1
    said = capsys.readouterr().err
    assert f"error: nothing was run, as the check before it failed ({type(error).__name__}: " in said
    assert said.count("\n") == 1
    assert not (tmp_path / "outputs").exists()
