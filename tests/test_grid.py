"""The jobs of a grid are made and checked in little time, and are none the less what Hydra would make of them."""

from __future__ import annotations

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from mvtec_lab import sweep
from mvtec_lab.tasks import check


def test_every_fold_is_as_hydra_composes_it(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folds of an attempt are copies of its first one."""
    composed: list[tuple[DictConfig, DictConfig]] = []

    def compose_again(config: DictConfig) -> list[DictConfig]:
        jobs, loader = grid(config), GlobalHydra.instance().config_loader()
        composed.extend((job, loader.load_sweep_config(config, list(job.hydra.overrides.task))) for job in jobs)
        return jobs

    grid = sweep.grid
    monkeypatch.setattr(sweep, "grid", compose_again)
    assert lab("-m", "attempt=base,cosine", "cv.folds=3", "cv.repeats=2", "trainer.max_epochs=1,2", "task=train") == 0
    assert len(composed) == 2 * 3 * 2 * 2
    for job, expected in composed:
        assert job.hydra.sweep.subdir == expected.hydra.sweep.subdir
        OmegaConf.update(job, "hydra.job.override_dirname", expected.hydra.job.override_dirname)  # nobody reads it
        assert job == expected
    assert len({job.hydra.sweep.subdir for job, _ in composed}) == len(composed)


def test_attempts_that_share_images_have_them_looked_at_once(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, set_up = [], check.set_up
    monkeypatch.setattr(
        check, "set_up", lambda config, *given: looked.append(config.split.fold) or set_up(config, *given)
    )
    assert lab("-m", "attempt=base,cosine,head", "cv.folds=2") == 0
    assert looked == [0, 1]
