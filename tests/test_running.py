"""A sweep beside others: what a second process sees of a run that goes on, and which job of a grid is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import write_product

from mvtec_lab import locks
from mvtec_lab.job import Command
from mvtec_lab.results import RunResult, read_csv
from mvtec_lab.sweep import sum_up

locking = pytest.mark.skipif(locks.fcntl is None, reason="no locks here")


@locking
def test_a_lock_is_seen_while_it_is_held(tmp_path: Path) -> None:
    assert not locks.in_use(tmp_path / "run")
    with locks.held(tmp_path / "run"):
        assert locks.in_use(tmp_path / "run")
    assert not locks.in_use(tmp_path / "run")


@locking
def test_a_look_at_a_run_does_not_stop_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    whole = locks._locked

    def looked_at(descriptor: int, kind: int) -> bool:
        tries.append(kind)
        return len(tries) > 1 and whole(descriptor, kind)

    monkeypatch.setattr(locks, "_locked", looked_at)
    with locks.held(tmp_path / "run"):
        assert len(tries) == 2


@locking
def test_a_run_that_goes_on_is_still_running_to_others(lab, tmp_path: Path, capsys) -> None:
    assert lab("-m", "attempt=base,cosine", "trainer.max_epochs=1", "hydra.sweep.dir=s") == 0
    record = tmp_path / "s/cosine/result.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "failed", "metrics": {}}))
    with locks.held(record.parent):
        assert RunResult.load(record.parent).running
        capsys.readouterr()
        assert lab("task=compare", "dirs=[s]", "hydra.run.dir=c") == 0
        said = capsys.readouterr().out
        assert "Still running, and not part of this: cosine." in said
        assert said.count("still running") == 1  # in the place of its figure
        assert "ended from outside" not in said
        assert "Failed runs" not in (tmp_path / "c/report.html").read_text()
        (row,) = [row for row in read_csv(tmp_path / "c/summary.csv") if row["attempt"] == "cosine"]
        assert (row["failed"], row["running"], row["error"]) == ("0", "1", "")
        # the sweep itself, taken up by a second process
        assert lab("-m", "attempt=base,cosine", "trainer.max_epochs=1", "hydra.sweep.dir=s", "resume=true") == 2
        said = "".join(capsys.readouterr())
        assert "in use by another process" in said
        assert "Still running" in said
    assert lab("task=compare", "dirs=[s]", "hydra.run.dir=c") == 0
    assert "failed: cosine: no reason recorded: the process was ended from outside" in capsys.readouterr().out


def test_a_refusal_names_job_folder_and_remedy(lab, product: Path, tmp_path: Path, capsys) -> None:
    few = write_product(product.parent / "few", {"good": 4, "crack": 2})
    grid = [f"data.root={product.parent}", "data.category=widget,few", "attempt=base,cosine", "hydra.sweep.dir=s"]
    assert lab("-m", *grid) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: job base-data.category_few: {few}: class 'crack' has 2 image(s)")
    assert "add images, remove the class, or give" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "s").exists()
    assert lab("data.category=few", f"data.root={product.parent}", "hydra.run.dir=r") == 2
    assert capsys.readouterr().err.startswith(f"error: {few}: class 'crack' has 2")
    assert lab("-m", "attempt=base,cosine", "optimizer.lr=-1", "hydra.sweep.dir=s") == 2
    assert capsys.readouterr().err.startswith("error: job base: optimizer.lr=-1")


def test_the_exit_status_of_a_sweep_is_in_the_files_of_its_runs(lab, tmp_path: Path) -> None:
    assert lab("-m", "attempt=base", "trainer.max_epochs=1", "hydra.sweep.dir=s") == 0
    command = Command(sweep_dir=tmp_path / "s", directories=[tmp_path / "s/base"])
    assert sum_up(command) == 0
    run = RunResult.load(tmp_path / "s/base")
    run.status, run.error, run.exit_status = "failed", "LabError: no such weights", 2
    run.save()
    assert sum_up(command) == 2
    run.exit_status = 0  # killed: it could record none
    run.save()
    assert sum_up(command) == 1
    run.status = "completed"
    run.save()
    command.directories.append(tmp_path / "s/cosine")  # a job that left nothing at all
    assert sum_up(command) == 1
