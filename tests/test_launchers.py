"""Sweeps through Hydra's launchers: several runs at once, each in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from mvtec_lab.cli import main
from mvtec_lab.grid import share_out
from mvtec_lab.own import CONF
from mvtec_lab.results import find_runs, read_csv

# Ours, or the plugin's own where ours is for a cluster -> the plugin's module.
LAUNCHERS = {"parallel": "joblib", "submitit_local": "submitit", "slurm": "submitit", "ray_cluster": "ray"}
REPOSITORY = Path(__file__).resolve().parents[1]
# The tiny network of the other tests is registered in this process alone. Sweeps get absolute paths: processes are kept
# from one test to the next, in the folder of the first.
SMALL = ["model.backbone=squeezenet1_1", "data.image_size=32"]


def need(launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{LAUNCHERS[launcher]}_launcher")


def composed(capsys, *arguments: str) -> dict:
    assert main([*arguments, "--cfg", "hydra", "-p", "hydra.launcher"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_every_launcher_file_is_tried() -> None:
    assert {path.stem for path in (CONF / "hydra/launcher").glob("*.yaml")} <= set(LAUNCHERS)


def test_parallel_composes(capsys) -> None:
    need("parallel")
    launcher = composed(capsys, "hydra/launcher=parallel", "hydra.launcher.n_jobs=3")
    assert launcher["_target_"].endswith("JoblibLauncher")
    assert launcher["n_jobs"] == 3


def test_no_more_processes_than_runs() -> None:
    need("parallel")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["hydra/launcher=parallel", "hydra.launcher.n_jobs=50"], return_hydra_config=True)
    share_out(config, 3)
    assert config.hydra.launcher.n_jobs == 3


def test_slurm_composes(capsys) -> None:
    need("slurm")
    launcher = composed(capsys, "hydra/launcher=slurm", "hydra.launcher.partition=gpu")
    assert launcher["_target_"].endswith("SlurmLauncher")
    assert launcher["partition"] == "gpu"
    assert launcher["setup"] == ["export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK"]
    assert launcher["cpus_per_task"] == 8
    assert launcher["gpus_per_node"] == launcher["tasks_per_node"] == launcher["nodes"] == 1


@pytest.mark.parametrize(
    ("launcher", "plugin", "extra"),
    [("parallel", "joblib", "joblib"), ("slurm", "submitit_slurm", "slurm"), ("ray_cluster", "ray", "ray")],
)
def test_a_launcher_that_is_not_installed(lab, capsys, monkeypatch, launcher: str, plugin: str, extra: str) -> None:
    Plugins.instance()  # where it is installed, its name is known from here on
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{plugin}.yaml", raising=False)
    assert lab("-m", "attempt=base,cosine", f"hydra/launcher={launcher}") == 2
    said = capsys.readouterr().err
    assert f'pip install "mvtec_lab[{extra}]"' in said
    assert said.count("\n") == 1


def test_a_launcher_that_does_not_exist(lab, capsys) -> None:
    assert lab("-m", "attempt=base,cosine", "hydra/launcher=slrum") == 2
    assert capsys.readouterr().err == "error: unknown hydra/launcher 'slrum': did you mean slurm?\n"


def test_no_jobs_at_once_is_one_line(lab, capsys) -> None:
    need("parallel")
    assert lab("-m", "attempt=base,cosine", "hydra/launcher=parallel", "hydra.launcher.n_jobs=0") == 2
    said = capsys.readouterr().err
    assert "n_jobs" in said
    assert said.count("\n") == 1


def test_a_cluster_that_is_not_there_is_one_line(lab, capsys, monkeypatch) -> None:
    need("slurm")
    monkeypatch.setenv("PATH", "")  # wherever this test runs: no srun
    # The device is the cluster's: that this machine has none is no mistake.
    assert lab("-m", "attempt=base,cosine", "hydra/launcher=slurm", "trainer.accelerator=cuda") == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "srun" in said


def test_several_devices_in_a_sweep_are_refused_wherever_it_runs(lab, capsys) -> None:
    need("slurm")
    assert lab("-m", "attempt=base,cosine", "hydra/launcher=slurm", "trainer.devices=2") == 2
    assert "trainer.devices=2 in a sweep" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["parallel", "submitit_local", "ray_cluster"])
def test_a_launcher_gives_what_one_after_the_other_gives(
    lab, tmp_path: Path, monkeypatch, capfd, launcher: str
) -> None:
    need(launcher)
    if launcher == "parallel":  # which shares the cores out itself, where nobody says otherwise
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sweep = ["-m", *SMALL, "attempt=base,augment"]
    assert lab(*sweep, "hydra.sweep.dir=one") == 0
    capfd.readouterr()
    assert lab(*sweep, f"hydra.sweep.dir={tmp_path / 'many'}", f"hydra/launcher={launcher}") == 0
    said, complained = capfd.readouterr()
    one, many = ({Path(r.run_dir).name: r for r in find_runs(tmp_path / name)} for name in ("one", "many"))
    assert len(one) == 2
    assert one.keys() == many.keys()
    for name, run in many.items():
        assert run.completed
        log = (tmp_path / "many" / name / "run.log").read_text()
        assert log.count("parameters train") == log.count(": test accuracy") == 1  # its own lines, and no other's
        for split in ("val", "test"):  # the number of threads touches the last digits
            assert run.metrics[split].keys() == one[name].metrics[split].keys()
            for metric in ("accuracy", "balanced_accuracy", "macro_f1", "loss"):
                assert run.metrics[split][metric] == pytest.approx(one[name].metrics[split][metric], abs=1e-5)
        if launcher == "parallel":
            share = max((os.cpu_count() or 1) // 2, 1)
            assert f", {share} CPU thread(s)" in log
            assert f"{name}: epoch 2/2" in complained  # whose line it is
    assert len(read_csv(tmp_path / "many/summary.csv")) == 2
    assert "<html" in (tmp_path / "many/report.html").read_text()
    assert said.count("warning: random weights") == 1


@pytest.mark.slow
def test_runs_at_once_have_processes_that_augment(lab) -> None:
    need("parallel")
    sweep = ["-m", *SMALL, "attempt=augment", "seed=0,1", "data.num_workers=1", "hydra.sweep.dir=s"]
    assert lab(*sweep, "hydra/launcher=parallel", "hydra.launcher.n_jobs=2") == 0
    assert all(run.completed for run in find_runs("s"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["parallel", "submitit_local", "ray_cluster"])
def test_a_failing_run_stands_in_the_table_whatever_launched_it(lab, tmp_path: Path, launcher: str) -> None:
    need(launcher)
    rates = ["optimizer.lr=1e-3,1e38", "optimizer=sgd", "model.unfreeze=all", "trainer.max_epochs=6"]
    assert lab("-m", *SMALL, *rates, f"hydra.sweep.dir={tmp_path / 's'}", f"hydra/launcher={launcher}") == 1
    rows = read_csv(tmp_path / "s/summary.csv")
    assert {(row["completed"], row["failed"]) for row in rows} == {("1", "0"), ("0", "1")}
    (failed,) = [run for run in find_runs(tmp_path / "s") if not run.completed]
    assert "TrainingDivergedError" in (failed.error or "")
    assert "Traceback" in (Path(failed.run_dir) / "run.log").read_text()


@pytest.mark.slow
def test_the_status_of_another_task_comes_home(lab, product: Path, tmp_path: Path, capfd) -> None:
    need("parallel")
    sweep = ["-m", "task=predict", f"source={product}", "ckpt=a.ckpt,b.ckpt", "hydra/launcher=parallel"]
    assert lab(*sweep, f"hydra.sweep.dir={tmp_path / 's'}") == 2
    said = capfd.readouterr().err
    assert "a.ckpt" in said
    assert "b.ckpt" in said
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["multirun.yaml"]  # Hydra's own


@pytest.fixture
def two_at_once(product: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep whose two runs have begun, and would go on for hours; a session of its own, as in a terminal."""
    need("parallel")

    def heed_interrupts() -> None:  # which a shell's background jobs ignore, and their children with them
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen(
        [
            sys.executable, "-m", "mvtec_lab", "-m", "attempt=base,cosine", "data=folder", f"data.root={product}",
            *SMALL, "model.weights=null", "trainer.accelerator=cpu", "trainer.max_epochs=100000", "hydra.sweep.dir=s",
            "hydra/launcher=parallel", "hydra.launcher.n_jobs=2",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        begun: set[str] = set()
        for line in process.stderr:
            if found := re.match(r"(\w+): epoch", line):
                begun.add(found[1])
            if len(begun) == 2:
                break
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def has_ended(process: subprocess.Popen[str], sweep: Path, status: int) -> str:
    """What it said since; waits for everybody who could still say something."""
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status, said
    assert "Traceback" not in said
    assert [run.status for run in find_runs(sweep)] == ["failed", "failed"]
    assert {row["failed"] for row in read_csv(sweep / "summary.csv")} == {"1"}
    assert (sweep / "report.html").is_file()
    return said


@pytest.mark.slow
def test_ctrl_c_ends_every_process(two_at_once: subprocess.Popen[str], tmp_path: Path) -> None:
    os.killpg(two_at_once.pid, signal.SIGINT)
    has_ended(two_at_once, tmp_path / "s", 130)


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_table(two_at_once: subprocess.Popen[str], tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")  # ipykernel brings it
    of_runs = [p for p in psutil.Process(two_at_once.pid).children() if "popen_loky_posix" in " ".join(p.cmdline())]
    assert len(of_runs) == 2
    of_runs[0].kill()  # as the system does with one that takes too much memory
    assert "error: the launcher gave up: " in has_ended(two_at_once, tmp_path / "s", 1)
