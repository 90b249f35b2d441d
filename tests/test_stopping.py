"""However a command is stopped from outside, and wherever it is: one line, status 130, and runs that go on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import others_slow

from mvtec_lab.cli import main
from mvtec_lab.engine.run import Run
from mvtec_lab.problems.anomaly import judging
from mvtec_lab.problems.classification import training
from mvtec_lab.problems.classification.problem import Classification
from mvtec_lab.reporting import report
from mvtec_lab.results import RunResult
from mvtec_lab.tasks import train

ONE_CLASS = ["attempt=padim", "model.options.layers=[features.relu1,features.relu2]"]


def by(number: signal.Signals) -> Callable[..., None]:
    """Something that has the process sent a signal, in the place of what would have been done."""

    def stop(*_: object, **__: object) -> None:
        assert signal.getsignal(number) is not signal.SIG_DFL  # which would end the tests as well
        signal.raise_signal(number)

    return stop


PLACES = {
    "set_up": train,
    "build_model": train,
    "use_features": training,
    "write_inputs": Run,
    "judge": Classification,
}


@pytest.mark.slow
@pytest.mark.parametrize("place", others_slow(list(PLACES), "set_up", "judge"))
def test_sigterm_outside_of_fitting(lab, tmp_path: Path, capsys, monkeypatch, place: str) -> None:
    settings = ["trainer.max_epochs=1", "hydra.run.dir=run"]
    with monkeypatch.context() as patch:
        patch.setattr(PLACES[place], place, by(signal.SIGTERM))
        assert lab(*settings) == 130
    said = "".join(capsys.readouterr())
    assert said.endswith("stopped from outside (SIGTERM)\n")
    assert "Traceback" not in said
    assert "failed" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("go on with: "))
    assert shlex.split(line)[-2:] == [f"hydra.run.dir={tmp_path / 'run'}", "resume=true"]
    stopped = RunResult.load(tmp_path / "run")
    assert (stopped.interrupted, stopped.error) == (True, "KeyboardInterrupt: stopped from outside (SIGTERM)")
    assert lab(*settings, "resume=true") == 0
    assert RunResult.load(tmp_path / "run").completed
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
@pytest.mark.parametrize("number", others_slow([signal.SIGTERM, signal.SIGINT], signal.SIGINT))
def test_a_report_that_is_stopped(lab, tmp_path: Path, capsys, monkeypatch, number: signal.Signals) -> None:
    sweep = ["-m", "attempt=base", "trainer.max_epochs=1", "hydra.sweep.dir=s"]
    ctrl_c = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_report", by(number))
        assert lab(*sweep) == 130
    signal.signal(signal.SIGINT, ctrl_c)
    said = "".join(capsys.readouterr())
    assert said.splitlines()[-1] in ("stopped by hand", "stopped from outside (SIGTERM)")
    assert "Traceback" not in said
    assert not (tmp_path / "s/report.html").exists()
    for name in ("report.html.1.tmp", "summary.csv.2.tmp", "base/history.csv.3.tmp", "notes.tmp"):
        (tmp_path / "s" / name).touch()
    assert lab(*sweep, "resume=true") == 0
    assert (tmp_path / "s/report.html").is_file()
    # the completed run's directory is left as it is
    assert sorted(p.name for p in (tmp_path / "s").rglob("*.tmp")) == ["history.csv.3.tmp", "notes.tmp"]


def test_a_directory_of_a_stopped_run_says_how_to_go_on(lab, tmp_path: Path, capsys) -> None:
    for folder in ("run", "sweep/base"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.yaml").touch()
        run = RunResult("base", 0, "folder", "widget", "tiny", str(tmp_path / folder))
        run.problem, run.method, run.error = "classification", "classifier", "KeyboardInterrupt: stopped by hand"
        run.save()
    goes_on = "the same command with resume=true goes on with it, or give"
    assert lab("hydra.run.dir=run") == 2
    assert f"run holds a run of base that was stopped: {goes_on} another directory" in capsys.readouterr().err
    assert lab("-m", "attempt=base,head", "hydra.sweep.dir=sweep") == 2
    assert f"sweep/base holds a run that was stopped: {goes_on} hydra.sweep.dir=" in capsys.readouterr().err
    assert lab("task=describe", "hydra.run.dir=run") == 2
    assert (
        "run holds a run of base that was stopped: give another directory (hydra.run.dir=)" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_stopped_sweep_says_what_is_missing_and_how_to_go_on(lab, tmp_path: Path, capsys, monkeypatch) -> None:
    whole, calls = Classification.judge, []

    def judge(self: Classification, run: Run) -> object:
        calls.append(run)
        return whole(self, run) if len(calls) == 1 else by(signal.SIGTERM)()

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "judge", judge)
        assert lab("-m", "attempt=base,cosine,head", "trainer.max_epochs=1", "hydra.sweep.dir=my sweep") == 130
    said = capsys.readouterr().out
    missing = "2 of 3 jobs are missing (stopped: cosine; not begun: head). The same command with resume=true goes on."
    assert missing in " ".join(said.split())
    assert "failed: cosine: stopped from outside (SIGTERM); the same command with resume=true goes on" in (
        " ".join(said.split())
    )
    assert "2 of 3 jobs are missing" in (tmp_path / "my sweep/report.html").read_text()
    assert said.index("drawing report.html ...") > said.index("2 of 3 jobs")
    (line,) = (line for line in said.splitlines() if line.startswith("go on with: "))
    words = shlex.split(line.removeprefix("go on with: "))
    assert words[1:3] == ["-m", "mvtec_lab"]
    assert main(words[3:]) == 0
    said = capsys.readouterr().out
    assert "missing" not in said
    assert "go on with" not in said
    assert all(RunResult.load(tmp_path / "my sweep" / name).completed for name in ("base", "cosine", "head"))


@pytest.mark.slow
def test_sigterm_while_a_one_class_method_scores(lab, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(judging, "score", by(signal.SIGTERM))
    assert lab(*ONE_CLASS, "hydra.run.dir=run") == 130
    assert "".join(capsys.readouterr()).endswith("stopped from outside (SIGTERM)\n")
    assert RunResult.load(tmp_path / "run").interrupted


def test_what_a_kill_left_half_written_goes_at_the_next_start(lab, tmp_path: Path, monkeypatch) -> None:
    settings = ["trainer.max_epochs=1", "hydra.run.dir=run"]
    with monkeypatch.context() as patch:
        patch.setattr(Classification, "judge", by(signal.SIGTERM))
        assert lab(*settings) == 130
    for name in ("best.ckpt.tmp", "last.ckpt.tmp", "history.csv.123.tmp", "result.json.4.tmp", "notes.tmp"):
        (tmp_path / "run" / name).touch()
    assert lab(*settings, "resume=true") == 0
    assert [p.name for p in (tmp_path / "run").glob("*.tmp")] == ["notes.tmp"]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["best.ckpt", "history.csv", "predictions.csv"])
def test_a_kill_while_a_file_is_written(lab, product: Path, tmp_path: Path, file: str) -> None:
    script = f"""
import os, pathlib, signal, sys
from mvtec_lab.cli import main
whole = pathlib.Path.replace
def replace(self, target):
    if pathlib.Path(target).name == {file!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, target)
pathlib.Path.replace = replace
sys.exit(main())
"""
    root = Path(__file__).resolve().parents[1]
    settings = [
        "data=folder", f"data.root={product}", "data.image_size=32", "data.batch_size=8", "trainer.accelerator=cpu",
        "model.backbone=squeezenet1_1", "model.weights=null", "trainer.max_epochs=2", "hydra.run.dir=run",
        f"cache.dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", script, *settings], cwd=tmp_path, env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "run").glob(f"{file}*.tmp"))
    assert not (tmp_path / "run" / file).exists()
    assert main([*settings, "resume=true"]) == 0
    assert RunResult.load(tmp_path / "run").completed
    assert not list((tmp_path / "run").glob("*.tmp"))
