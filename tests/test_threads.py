"""The command line computes with the cores that are free, and says so; a library call leaves them to PyTorch."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from mvtec_lab.engine import threads
from mvtec_lab.engine.threads import Usage, choose, computing_with, cpu_quota, usage
from mvtec_lab.job import Command
from mvtec_lab.results import RESULT, RunResult


def machine(patch: pytest.MonkeyPatch, cores: int, busy: float, load: float, quota: float | None = None) -> Usage:
    """Pretend a machine, and return what its processors had done two seconds ago."""
    now = Usage(100.0, 50.0, 3.0)
    patch.delenv("OMP_NUM_THREADS", raising=False)
    patch.setattr(threads, "usage", lambda: now)
    patch.setattr(threads, "cpu_quota", lambda: quota)
    patch.setattr(threads, "_affinity", lambda: cores)
    patch.setattr(os, "cpu_count", lambda: cores)
    patch.setattr(os, "getloadavg", lambda: (load, load, load), raising=False)
    patch.setattr("psutil.getloadavg", lambda: (load, load, load))
    patch.setattr("psutil.cpu_count", lambda logical=True: cores)
    return Usage(98.0, 50.0 - 2 * busy - 1.0, 2.0)  # this process has worked for a second of these two


@pytest.mark.parametrize(
    ("cores", "busy", "load", "quota", "number", "said"),
    [
        (8, 0.2, 0.3, None, None, "all 8 cores"),
        (8, 3.1, 4.0, None, 5, "5 of 8 cores, others use 3.1 (OMP_NUM_THREADS=N sets another number)"),
        (2, 2.0, 7.3, None, 1, "1 of 2 cores, others use 2.0 (OMP_NUM_THREADS=N sets another number)"),
        (2, 0.1, 1.9, None, None, "all 2 cores"),  # a command that has just ended is in the average still
        (2, 1.9, 0.1, None, None, "all 2 cores"),  # a burst
        (64, 10.0, 10.0, 2.0, 2, "2 of 64 cores, this process may use 2 (OMP_NUM_THREADS=N sets another number)"),
        (4, 3.0, 3.0, 2.5, 1, "1 of 4 cores, this process may use 2, others use 3.0 (OMP_NUM_THREADS=N sets another"),
        (4, 0.0, 0.0, 0.5, 1, "1 of 4 cores, this process may use 1 (OMP_NUM_THREADS=N sets another number)"),
        (1, 0.9, 1.0, None, None, "the only core"),
    ],
)
def test_free_cores_are_taken(
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    busy: float,
    load: float,
    quota: float | None,
    number: int | None,
    said: str,
) -> None:
    chosen = choose(machine(monkeypatch, cores, busy, load, quota))
    assert chosen.number == number
    assert chosen.reason.startswith(said)


def test_what_is_given_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    began = machine(monkeypatch, 2, 2.0, 2.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert choose(began) == (None, "OMP_NUM_THREADS=7")


def test_this_very_machine_has_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    number = choose(usage()).number
    assert number is None or 1 <= number <= (os.cpu_count() or 1)


def group(root: Path, said: str, **files: str) -> Path:
    for name, text in {"proc/self/cgroup": said, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_quota_of_a_control_group(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None  # no Linux
    two = group(tmp_path / "2", "0::/a/b\n", **{"sys/fs/cgroup/a/b/cpu.max": "max 100000\n"})
    assert cpu_quota(two) is None
    assert cpu_quota(group(two, "0::/a/b\n", **{"sys/fs/cgroup/a/cpu.max": "150000 100000\n"})) == 1.5  # it lies in a
    inside = group(tmp_path / "inside", "0::/elsewhere/x\n", **{"sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert cpu_quota(inside) == 0.5  # a container sees its group as the mount
    quota, period = "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us"
    one = group(tmp_path / "1", "3:memory:/m\n2:cpu,cpuacct:/a\n", **{quota: "-1\n", period: "100000\n"})
    assert cpu_quota(one) is None
    (one / quota).write_text("400000\n")
    assert cpu_quota(one) == 4.0


def test_a_block_computes_with_them_and_restores_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    with computing_with(before + 1):
        assert torch.get_num_threads() == before + 1
        assert os.environ["OMP_NUM_THREADS"] == str(before + 1)
    assert torch.get_num_threads() == before
    assert "OMP_NUM_THREADS" not in os.environ
    with computing_with(None):
        assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.slow
def test_the_choice_is_said_once_and_recorded(lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    began, before = machine(monkeypatch, 2, 2.0, 2.0), torch.get_num_threads()
    monkeypatch.setattr("mvtec_lab.job.usage", lambda: began)
    monkeypatch.setattr("mvtec_lab.cli.Command", lambda **facts: Command(**facts, began=began))
    torch.set_num_threads(2)
    try:
        assert lab("-m", "attempt=base,head", "hydra.sweep.dir=sweep") == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert capsys.readouterr().err.count("threads: 1 of 2 cores, others use 2.0") == 1
    assert [RunResult.load(path.parent).threads for path in tmp_path.glob(f"sweep/*/{RESULT}")] == [1, 1]


@pytest.mark.slow
def test_a_resumed_run_computes_as_it_was_begun(lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from mvtec_lab.engine import checkpoints
    from mvtec_lab.problems.classification.classifier import DefectClassifier

    began, before = machine(monkeypatch, 2, 2.0, 2.0), torch.get_num_threads()
    monkeypatch.setattr("mvtec_lab.cli.Command", lambda **facts: Command(**facts, began=began))
    step = DefectClassifier.training_step

    def stopped(self: DefectClassifier, batch: object, batch_idx: int) -> object:
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "EVERY", -1.0)
        patch.setattr(DefectClassifier, "training_step", stopped)
        assert lab("hydra.run.dir=run") == 130
    result = json.loads((tmp_path / "run" / RESULT).read_text())
    assert result["threads"] == 1
    (tmp_path / "run" / RESULT).write_text(json.dumps({**result, "threads": 2}))  # the machine was less busy then
    shutil.copytree(tmp_path / "run", tmp_path / "given")
    try:
        assert lab("hydra.run.dir=run", "resume=true") == 0
        resumed = RunResult.load(tmp_path / "run")
        assert (resumed.resumed, resumed.threads) == (1, 2)
        assert not any("no exact repetition" in warning for warning in resumed.warnings)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # whoever gives a number gets it, and is told what it means
        torch.set_num_threads(1)
        assert lab("hydra.run.dir=given", "resume=true") == 0
        warnings = RunResult.load(tmp_path / "given").warnings
        assert "resumed with 1 CPU thread(s), begun with 2: no exact repetition" in warnings
    finally:
        torch.set_num_threads(before)
