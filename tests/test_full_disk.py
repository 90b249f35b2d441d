"""A disk that takes no more: one line with the file and what is missing, status 1, nothing lost, runs that go on."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import others_slow

from mvtec_lab import errors, results
from mvtec_lab.logs import RunLog
from mvtec_lab.problems.classification import training
from mvtec_lab.problems.classification.classifier import DefectClassifier
from mvtec_lab.results import RunResult, write_whole

resource = pytest.importorskip("resource", reason="no limit on the size of files here")
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes, whichever thread writes it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def limits_lifted_after() -> Iterator[None]:
    """Lift the limit before pytest reports the test: its own output may be a file, and larger than the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Bytes that a file may have, and which one is then the first that is too large.
SINGLE = {1_000: "result.json", 12_500: "best.ckpt", 20_000: "last.ckpt", 23_450: "mistakes.jpg"}


@pytest.mark.parametrize("size", others_slow(SINGLE, 12_500))
def test_a_run_whose_files_do_not_fit(lab, tmp_path: Path, capsys, monkeypatch, size: int) -> None:
    settings = ["trainer.max_epochs=1", "hydra.run.dir=run"]
    monkeypatch.setattr(training, "log_first_batch", lambda *_: None)  # TensorBoard's file would be too large first
    with limits_lifted_after():
        limit_files(size)
        status = lab(*settings)
    said = "".join(capsys.readouterr())
    assert status == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path / 'run' / SINGLE[size]} cannot be written: it takes " in line
    assert "File too large" in line
    assert "resume=true" in line
    assert "Traceback" not in said
    assert not list((tmp_path / "run").glob("*.tmp"))
    if size > 3_000:  # else result.json as well is too large to say why
        stopped = RunResult.load(tmp_path / "run")
        assert stopped.interrupted
        assert stopped.error is not None
        assert stopped.error.startswith(f"DiskFullError: {tmp_path}")
    assert lab(*settings, "resume=true") == 0
    assert RunResult.load(tmp_path / "run").completed


@pytest.mark.parametrize("size", others_slow([20_000, 150_000], 20_000))
def test_a_sweep_ends_with_its_table(lab, tmp_path: Path, capsys, size: int) -> None:
    sweep = ["-m", "attempt=base,cosine", "trainer.max_epochs=1", "hydra.sweep.dir=s"]
    with limits_lifted_after():
        limit_files(size)
        status = lab(*sweep)
    said = "".join(capsys.readouterr())
    assert status == 1
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if size == 20_000:  # TensorBoard's thread could not write
        assert [str(tmp_path / "s/base") in lines[0], str(tmp_path / "s/cosine") in lines[1]] == [True, True]
        assert said.count("DiskFullError: ") == 2  # the table's
    else:  # the report alone
        assert f"{tmp_path / 's/report.html'} cannot be written" in lines[0]
        assert RunResult.load(tmp_path / "s/cosine").completed
    assert "test accuracy" in said
    assert not list((tmp_path / "s").rglob("*.tmp"))


def test_the_first_error_counts(lab, tmp_path: Path, capsys, monkeypatch) -> None:
    def fail(self, *_: object) -> None:
        limit_files((tmp_path / "run/result.json").stat().st_size)  # which the error's text will exceed
        raise RuntimeError("the first")

    monkeypatch.setattr(DefectClassifier, "training_step", fail)
    with limits_lifted_after():
        assert lab("hydra.run.dir=run") == 1
    said = "".join(capsys.readouterr())
    assert "failed: RuntimeError: the first" in said
    assert "too large" not in said.replace("run.log is incomplete: [Errno 27] File too large", "")
    assert not RunResult.load(tmp_path / "run").completed  # it is still whole


def test_a_full_disk_has_room_for_the_reason(lab, tmp_path: Path, capsys, monkeypatch) -> None:
    def fail(self, *_: object) -> None:
        patch.setattr(Path, "write_bytes", full)
        raise RuntimeError("the first")

    def full(self, data) -> int:
        self.touch()
        raise NO_SPACE

    with monkeypatch.context() as patch:
        patch.setattr(DefectClassifier, "training_step", fail)
        assert lab("hydra.run.dir=run") == 1
    said = "".join(capsys.readouterr())
    assert "failed: RuntimeError: the first" in said
    assert "No space" not in said
    assert RunResult.load(tmp_path / "run").error == "RuntimeError: the first"  # in the place of the old result.json
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch) -> None:
    def free(_: object) -> object:
        return type("Usage", (), {"free": 3_100_000})

    def full(self, data) -> int:
        raise NO_SPACE

    monkeypatch.setattr(errors.shutil, "disk_usage", free)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(errors.DiskFullError) as caught:
        write_whole(tmp_path / "best.ckpt", bytes(44_800_000))
    assert str(caught.value) == (
        f"{tmp_path / 'best.ckpt'} cannot be written: it takes 44.8 MB, and 3.1 MB are free (No space left on device): "
        "make room for 41.7 MB more (a training continues with resume=true), or give a directory on another disk"
    )
    assert caught.value.status == 1


def test_other_errors_are_no_full_disk(tmp_path: Path) -> None:
    assert errors.disk_full(PermissionError(errno.EACCES, "Permission denied"), tmp_path) is None
    assert errors.disk_full(KeyboardInterrupt(), tmp_path) is None
    full = OSError(errno.ENOSPC, "No space left on device", "from.png", None, str(tmp_path / "to.png"))  # of a copy
    assert str(errors.disk_full(full, Path())).startswith(f"{tmp_path / 'to.png'} cannot be written")
    behind = RuntimeError("unexpected pos 640 vs 598")  # what PyTorch says
    behind.__context__ = NO_SPACE
    assert "No space left on device" in str(errors.disk_full(behind, tmp_path))
    with pytest.raises(PermissionError), results_of(tmp_path).recorded():
        raise PermissionError(errno.EACCES, "Permission denied")


def results_of(folder: Path) -> RunResult:
    return results.RunResult("base", 0, "folder", "widget", "tiny", str(folder))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a disk that is always full")
def test_a_log_that_cannot_be_written_says_so_once(capsys) -> None:
    handler = RunLog("/dev/full", delay=True)
    for text in ("one", "two"):
        handler.handle(logging.LogRecord("lab", logging.INFO, "", 0, text, (), None))
    handler.close()
    said = capsys.readouterr().err
    assert said == "warning: /dev/full is incomplete: [Errno 28] No space left on device\n"
