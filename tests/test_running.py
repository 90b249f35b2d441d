"""A sweep beside others: what a second process sees of a run that goes on, and which job of a grid is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import write_product

from mvtec_lab import locks, results
from mvtec_lab.errors import LabError
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
    tries: list[bool] = []
    whole = locks._locked

    def looked_at(descriptor: int | None, exclusive: bool) -> bool | None:
        tries.append(exclusive)
        return whole(descriptor, exclusive) if len(tries) > 1 else False

    monkeypatch.setattr(locks, "_locked", looked_at)
    with locks.held(tmp_path / "run"):
        assert len(tries) == 2


def sign_of(run_dir: Path, **changes: object) -> Path:
    """A sign in a directory as a process leaves it that works there, elsewhere as ``changes`` say."""
    with locks.held(run_dir):
        sign = json.loads((run_dir / locks.SIGN).read_text())
    assert not (run_dir / locks.SIGN).exists()
    path = run_dir / locks.SIGN
    path.write_text(json.dumps(sign | {"host": "node7", "pid": 4242} | changes))
    return path


def test_a_run_on_another_machine_is_seen_by_its_sign(tmp_path: Path) -> None:
    """Locks of another machine are not seen: its run was called ended, and a second one could start beside it."""
    sign = sign_of(tmp_path / "run", system="another kernel")
    assert locks.in_use(tmp_path / "run")
    why = r"in use by another process \(4242 on node7; if it has ended, it is free after 150 s\)"
    with pytest.raises(LabError, match=why), locks.held(tmp_path / "run"):
        pass
    age = sign.stat().st_mtime - locks.GONE - 1
    os.utime(sign, (age, age))
    assert not locks.in_use(tmp_path / "run")
    with locks.held(tmp_path / "run"):
        assert json.loads(sign.read_text())["pid"] == os.getpid()
    sign.write_text("{")
    assert not locks.in_use(tmp_path / "run")


@pytest.mark.parametrize("locked", [pytest.param(True, marks=locking), False])
def test_a_sign_of_this_machine_ends_with_its_process(
    locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed can be resumed at once, where locks tell that it has ended and where they do not."""
    monkeypatch.setattr(locks, "_locked", (lambda *args, **kinds: True) if locked else (lambda *args, **kinds: None))
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    signs: list[tuple[dict[str, object], bool]] = [
        ({"pid": os.getpid()}, True),
        ({"pids": "another container"}, True),
        ({"pid": process.pid}, False),
    ]
    for number, (changes, works) in enumerate(signs):
        sign_of(tmp_path / str(number), **{"locked": locked, **changes})
        assert locks.in_use(tmp_path / str(number)) == (works and not locked)


def test_a_sign_is_touched_while_its_process_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = threading.Event()
    monkeypatch.setattr(locks, "BEAT", 0.001)
    monkeypatch.setattr(locks.os, "utime", lambda path: touched.set() if path.name == locks.SIGN else None)
    with locks.held(tmp_path / "run"):
        assert touched.wait(60)
    assert "sign of life" not in {thread.name for thread in threading.enumerate()}


@locking
def test_a_run_that_ends_while_it_is_read_was_running(lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result.json was read as it was before, and its lock was looked at when it was free."""
    assert lab("trainer.max_epochs=1", "hydra.run.dir=run") == 0
    record = tmp_path / "run/result.json"
    whole, unfinished = results.read_json, json.loads(record.read_text()) | {"status": "failed", "metrics": {}}
    holder = ExitStack()
    holder.enter_context(locks.held(record.parent))

    def read_json(path: Path) -> object:
        read = whole(path)
        holder.close()
        return read

    record.write_text(json.dumps(unfinished))
    monkeypatch.setattr(results, "read_json", read_json)
    assert RunResult.load(record.parent).running


@pytest.mark.slow
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
    # of several products one that cannot run refuses no other (test_products)
    grid = [f"data.root={product.parent}", "data.category=few", "attempt=base,cosine", "hydra.sweep.dir=s"]
    assert lab("-m", *grid) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: job base: {few}: class 'crack' has 2 image(s)")
    assert "add images, remove the class, or give" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "s").exists()
    assert lab("data.category=few", f"data.root={product.parent}", "hydra.run.dir=r") == 2
    assert capsys.readouterr().err.startswith(f"error: {few}: class 'crack' has 2")
    assert lab("-m", "attempt=base,cosine", "optimizer.lr=-1", "hydra.sweep.dir=s") == 2
    assert capsys.readouterr().err.startswith("error: job base: optimizer.lr=-1")


@pytest.mark.slow
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
