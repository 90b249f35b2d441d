"""What resume=true makes of a directory: whenever a run was stopped, it ends as if it had not been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import SIZE, others_slow
from PIL import Image

from mvtec_lab import locks
from mvtec_lab.config import Config
from mvtec_lab.engine import checkpoints, resume
from mvtec_lab.problems.classification.classifier import DefectClassifier
from mvtec_lab.problems.classification.problem import Classification
from mvtec_lab.results import RunResult, read_csv

EPOCHS = 6
TUNED = ["attempt=finetune", f"trainer.max_epochs={EPOCHS}", "optimizer.lr=0.01", "seed=3"]
CASES = {
    "plain": [],
    "full": ["model.unfreeze=all", "optimizer=sgd"],
    "cosine": ["scheduler=cosine"],
    "step": ["scheduler=step", "scheduler.step_size=2"],
    "onecycle": ["scheduler=onecycle"],
    "plateau": ["scheduler=plateau", "scheduler.patience=0", "scheduler.gamma=0.5", "optimizer.lr=0.1"],
    "early stopping": ["trainer.patience=3", "optimizer.lr=0.1", "trainer.max_epochs=30"],
    "warm-up over": ["model.warmup_epochs=2"],
    "warm-up": ["model.warmup_epochs=4"],
    "rates by depth": ["model.unfreeze=all", "optimizer.first_stage=0.01", "scheduler=onecycle"],
    "sampler": ["data.sampler=inverse", "loss.class_weights=none"],
    "augment": ["augment=standard"],
    "views": ["augment=standard", "augment.views=2"],
    "mix": ["augment.mix=cutmix"],
    "paste": ["augment.paste=0.5", "augment.views=2", "data.imbalance=2"],
    "workers": ["augment=standard", "data.num_workers=1"],
    "no cache": ["cache.dir=null"],
    "monitor": ["trainer.monitor=val/loss"],
    "groups begin": ["loss.name=group_softmax", "loss.class_weights=none", "loss.defer=0.5", "loss.others=1"],
    "weights deferred": ["loss.defer=0.7"],
    "retrieval": ["model.head=fused"],
    "generated": ["model.unfreeze=0", "model.generate=true", "loss.class_weights=none", "split.pool=all"],
}
# Each of these has a trap of its own; the others run with the slow tests.
FAST = ("plain", "plateau", "warm-up", "groups begin")


def what_counts(run_dir: Path) -> dict[str, Any]:
    """All of a run that must not depend on whether it was stopped."""
    result = RunResult.load(run_dir)
    assert result.completed
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in read_csv(run_dir / "history.csv")]
    best = torch.load(run_dir / "best.ckpt", weights_only=True)
    return {
        "metrics": result.metrics,
        "sets": (result.sets, best["about"]["sets"]),
        "epochs": result.epochs,
        "best": (result.best_epoch, best["epoch"], best["score"]),
        "history": history,
        "predictions": (run_dir / "predictions.csv").read_text(),
        "samples": (run_dir / "samples.csv").read_text(),
    }


@pytest.fixture
def stop(lab, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run the command line, and interrupt it within an epoch, ``lost`` epochs after last.ckpt was written."""

    def run(*arguments: str, epoch: int = 3, lost: int = 1, attempt: str | None = None, by: Any = KeyboardInterrupt):
        whole = DefectClassifier.training_step

        def training_step(self, batch, batch_idx):
            patch.setattr(checkpoints, "EVERY", -1.0 if self.current_epoch < epoch - lost else float("inf"))
            unlike = attempt is not None and f"/{attempt}" not in str(self.trainer.logger.log_dir)
            if not unlike and self.current_epoch == epoch and batch_idx == 1:
                raise by
            return whole(self, batch, batch_idx)

        with monkeypatch.context() as patch:
            patch.setattr(DefectClassifier, "training_step", training_step)
            assert lab(*arguments) == (130 if by is KeyboardInterrupt else 1)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("case", others_slow(CASES, *FAST))
def test_a_run_that_was_stopped_ends_as_one_that_was_not(lab, stop, tmp_path: Path, case: str) -> None:
    settings = [*TUNED, *CASES[case]]
    assert lab(*settings, "hydra.run.dir=whole") == 0
    stop(*settings, "hydra.run.dir=run")
    first = RunResult.load(tmp_path / "run")
    assert torch.load(tmp_path / "run/last.ckpt", weights_only=True)["epoch"] == 2
    assert lab(*settings, "hydra.run.dir=run", "resume=true") == 0
    assert what_counts(tmp_path / "run") == what_counts(tmp_path / "whole")
    result = RunResult.load(tmp_path / "run")
    assert (result.started, result.resumed) == (first.started, 1)
    seconds = [float(row["seconds"]) for row in read_csv(tmp_path / "run/history.csv")]
    assert result.seconds >= sum(seconds)
    rates = {row["lr"] for row in read_csv(tmp_path / "run/history.csv")}
    if case in ("cosine", "step", "onecycle", "plateau"):
        assert len(rates) > 1
    if case == "early stopping":
        assert 4 <= result.epochs < 30


@pytest.mark.slow
def test_a_run_can_be_stopped_again_and_again(lab, stop, tmp_path: Path) -> None:
    settings = [*TUNED, "scheduler=plateau", "scheduler.patience=0"]
    assert lab(*settings, "hydra.run.dir=whole") == 0
    stop(*settings, "hydra.run.dir=run", "resume=true", epoch=1, lost=0)  # a directory that is not there yet
    stop(*settings, "hydra.run.dir=run", "resume=true", epoch=2, lost=1)
    stop(*settings, "hydra.run.dir=run", "resume=true", epoch=4, lost=0)
    assert lab(*settings, "hydra.run.dir=run", "resume=true") == 0
    assert what_counts(tmp_path / "run") == what_counts(tmp_path / "whole")
    assert RunResult.load(tmp_path / "run").resumed == 3


@pytest.mark.slow
def test_stopped_between_the_two_checkpoints(lab, tmp_path: Path, monkeypatch) -> None:
    settings = [*TUNED, "trainer.monitor=val/loss", "optimizer.lr=0.001"]  # better in every epoch
    assert lab(*settings, "hydra.run.dir=whole") == 0
    whole = pl.Trainer.save_checkpoint

    def save_checkpoint(self, *arguments, **options):
        if self.current_epoch == 3:
            raise KeyboardInterrupt
        whole(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "EVERY", -1.0)
        patch.setattr(pl.Trainer, "save_checkpoint", save_checkpoint)
        patch.setattr(checkpoints.Checkpoints, "on_exception", lambda *_: None)  # a kill leaves no time for it
        assert lab(*settings, "hydra.run.dir=run") == 130
    last, best = (torch.load(tmp_path / "run" / name, weights_only=True) for name in ("last.ckpt", "best.ckpt"))
    assert last["epoch"] == 2 == best["epoch"]  # the epochs that are over, and the place of the best one
    assert lab(*settings, "hydra.run.dir=run", "resume=true") == 0
    assert what_counts(tmp_path / "run") == what_counts(tmp_path / "whole")


@pytest.mark.parametrize("case", others_slow(["plain", "early stopping"], "plain"))
def test_stopped_after_training(lab, tmp_path: Path, monkeypatch, case: str) -> None:
    settings = [*TUNED, *CASES[case]]
    assert lab(*settings, "hydra.run.dir=whole") == 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "judge", interrupt)
        assert lab(*settings, "hydra.run.dir=run") == 130
    before = (tmp_path / "run/last.ckpt").read_bytes()
    assert lab(*settings, "hydra.run.dir=run", "resume=true") == 0
    assert what_counts(tmp_path / "run") == what_counts(tmp_path / "whole")
    assert (tmp_path / "run/last.ckpt").read_bytes() == before  # nothing was trained


@pytest.mark.slow
def test_a_sweep_goes_on(lab, stop, product: Path, tmp_path: Path, capsys) -> None:
    sweep = ["-m", "attempt=base,cosine", "seed=0,1", "split.seed=0", "trainer.max_epochs=4"]
    assert lab(*sweep, "hydra.sweep.dir=whole") == 0
    stop(*sweep, "hydra.sweep.dir=s", attempt="cosine-seed_0")
    assert not (tmp_path / "s/cosine-seed_1").exists()
    finished = (tmp_path / "s/base-seed_1/result.json").read_bytes()
    capsys.readouterr()
    assert lab(*sweep, "hydra.sweep.dir=s", "resume=true", "cache.max_gb=5") == 0
    said = "".join(capsys.readouterr())
    assert "base-seed_1 is completed: nothing to do" in said
    assert "cosine-seed_0 continues after epoch 2 of 4" in said
    assert (tmp_path / "s/base-seed_1/result.json").read_bytes() == finished
    for name in ("base-seed_0", "base-seed_1", "cosine-seed_0", "cosine-seed_1"):
        assert what_counts(tmp_path / "s" / name) == what_counts(tmp_path / "whole" / name)
    rows, whole = (read_csv(tmp_path / folder / "summary.csv") for folder in ("s", "whole"))
    for row in (*rows, *whole):
        del row["seconds"]
    assert rows == whole
    shutil.rmtree(product)  # what is completed needs no data any more
    assert lab(*sweep, "hydra.sweep.dir=s", "resume=true") == 0


@pytest.mark.slow
def test_tensorboard_shows_no_step_twice(lab, stop, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert lab(*TUNED, "hydra.run.dir=whole") == 0
    stop(*TUNED, "hydra.run.dir=run")
    assert lab(*TUNED, "hydra.run.dir=run", "resume=true") == 0
    shown = []
    for name in ("run", "whole"):
        events = EventAccumulator(str(tmp_path / name)).Reload()
        shown.append({tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]})
        assert len(events.Images("pictures/first_batch")) == 1
    assert shown[0] == shown[1]


@pytest.mark.slow
def test_a_failed_run_starts_anew(lab, stop, tmp_path: Path, capsys) -> None:
    assert lab(*TUNED, "hydra.run.dir=whole") == 0
    stop(*TUNED, "hydra.run.dir=run", by=RuntimeError("no memory left"))
    (tmp_path / "run/notes.txt").write_text("mine")
    capsys.readouterr()
    assert lab(*TUNED, "hydra.run.dir=run", "resume=true") == 0
    assert "failed (RuntimeError: no memory left): it starts again" in "".join(capsys.readouterr())
    assert what_counts(tmp_path / "run") == what_counts(tmp_path / "whole")
    assert RunResult.load(tmp_path / "run").resumed == 0
    assert (tmp_path / "run/notes.txt").read_text() == "mine"
    events = [len(list((tmp_path / name).glob("events.*"))) for name in ("run", "whole")]
    assert events[0] == events[1]


@pytest.mark.parametrize("spoilt", others_slow(["last.ckpt", "best.ckpt"], "last.ckpt"))
@pytest.mark.parametrize("how", others_slow(["damaged", "missing", "a bit"], "a bit"))
def test_checkpoints_that_are_of_no_use(lab, stop, tmp_path: Path, capsys, spoilt: str, how: str) -> None:
    stop(*TUNED, "hydra.run.dir=run")
    path = tmp_path / "run" / spoilt
    if how == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "a bit":
        with zipfile.ZipFile(path) as archive:
            values = [part for part in archive.infolist() if "/data/" in part.filename]
        largest = max(values, key=lambda part: part.file_size)
        content = bytearray(path.read_bytes())
        content[largest.header_offset + largest.file_size // 2 + 64] ^= 1  # 64: behind its header
        path.write_bytes(content)
    else:
        path.unlink()
    assert lab(*TUNED, "hydra.run.dir=run", "resume=true") == 0
    said = "".join(capsys.readouterr())
    assert spoilt in said
    assert "starts again" in said
    assert RunResult.load(tmp_path / "run").epochs == EPOCHS


def refused(lab, capsys, said: str, *arguments: str) -> None:
    capsys.readouterr()
    assert lab(*arguments, "resume=true") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1, error


@pytest.mark.slow
def test_other_settings_are_refused_before_anything_trains(lab, stop, tmp_path: Path, capsys) -> None:
    stop(*TUNED, "hydra.run.dir=run")
    before = (tmp_path / "run/result.json").read_bytes()
    said = "holds a run with other settings: seed=3, now 4; split.seed=3, now 4; optimizer.lr=0.01, now 0.02: give"
    refused(lab, capsys, said, *TUNED, "seed=4", "optimizer.lr=0.02", "hydra.run.dir=run")
    refused(lab, capsys, "trainer.max_epochs=6, now 7", *TUNED, "trainer.max_epochs=7", "hydra.run.dir=run")
    refused(lab, capsys, "augment.transforms", *TUNED, "augment=standard", "hydra.run.dir=run")
    assert (tmp_path / "run/result.json").read_bytes() == before

    assert lab("-m", "attempt=cosine", "hydra.sweep.dir=s") == 0
    refused(lab, capsys, "seed=0, now 1", "-m", "attempt=base,cosine", "seed=1", "hydra.sweep.dir=s")
    assert not (tmp_path / "s/base").exists()


@pytest.mark.slow
def test_settings_that_no_result_depends_on_may_change(lab, stop, tmp_path: Path) -> None:
    assert lab(*TUNED, "hydra.run.dir=whole") == 0
    stop(*TUNED, "hydra.run.dir=run")
    assert lab(*TUNED, "hydra.run.dir=run", "resume=true", "cache.dir=null", "data.num_workers=1") == 0
    assert what_counts(tmp_path / "run") == what_counts(tmp_path / "whole")


def exchange(one: Path, other: Path) -> None:
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


@pytest.mark.slow
def test_other_images_are_refused(lab, stop, product: Path, tmp_path: Path, capsys) -> None:
    stop(*TUNED, "hydra.run.dir=run")
    before = (tmp_path / "run/result.json").read_bytes()
    Image.new("RGB", (SIZE, SIZE)).save(product / "test/good/999.png")
    refused(lab, capsys, f"than {tmp_path / 'run'} began with: test/good/999.png is new", *TUNED, "hydra.run.dir=run")
    (product / "test/good/999.png").unlink()
    exchange(product / "test/crack", product / "test/hole")  # the names stay
    refused(lab, capsys, "test/crack/000.png has changed (and 11 more)", *TUNED, "hydra.run.dir=run")
    exchange(product / "test/crack", product / "test/hole")
    assert (tmp_path / "run/result.json").read_bytes() == before
    assert lab(*TUNED, "hydra.run.dir=run", "resume=true") == 0


@pytest.mark.parametrize("name", ["result.json", "config.yaml"])
def test_a_damaged_record_is_left_alone(lab, stop, tmp_path: Path, capsys, name: str) -> None:
    stop(*TUNED, "hydra.run.dir=run")
    (tmp_path / "run" / name).write_text("{broken")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir() if p.name != "run.log"}
    refused(lab, capsys, name, *TUNED, "hydra.run.dir=run")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir() if p.name != "run.log"} == before


def test_stopped_before_anything_was_recorded(lab, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()  # claimed, no more
    assert lab("hydra.run.dir=run", "resume=true") == 0
    assert RunResult.load(tmp_path / "run").completed


@pytest.mark.skipif(locks.fcntl is None, reason="no locks here")
def test_a_run_that_goes_on_elsewhere_is_left_to_it(lab, stop, tmp_path: Path, capsys) -> None:
    stop(*TUNED, "hydra.run.dir=run")
    with locks.held(tmp_path / "run"):
        refused(lab, capsys, "in use by another process", *TUNED, "hydra.run.dir=run")
    assert lab(*TUNED, "hydra.run.dir=run", "resume=true") == 0


def test_resume_is_for_training(lab, tmp_path: Path, capsys) -> None:
    refused(lab, capsys, "resume=true resumes a training", "task=describe", "hydra.run.dir=d")


def test_a_directory_is_read_without_torch() -> None:
    code = "import sys, mvtec_lab.engine.resume; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_another_version_wrote_is_compared_with_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("attempt: base\nseed: 0\n")  # the keys that came later are missing
    assert resume.earlier_run(tmp_path, Config()) is not None


def in_a_process(folder: Path, product: Path, *arguments: str) -> subprocess.Popen:
    """The command line in a process group of its own, where checkpoints are written after every epoch."""
    script = folder / "lab.py"  # a file, which Lightning can start again for a second device
    script.write_text(
        "import mvtec_lab.engine.checkpoints as c, mvtec_lab.cli as s; c.EVERY = 0.0; raise SystemExit(s.main())"
    )
    settings = [
        "data=folder", f"data.root={product}", "data.image_size=32", "data.batch_size=4", "model.unfreeze=1",
        "model.backbone=squeezenet1_1", "model.weights=null", "trainer.max_epochs=12", "trainer.accelerator=cpu",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    flags = [a for a in arguments if a.startswith("-")]
    settings += [a for a in arguments if not a.startswith("-")]
    command = [sys.executable, script, *flags, *settings]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)


def kill_within(process: subprocess.Popen, run_dir: Path) -> None:
    """kill -9 for the process and all that it started, once its run has some epochs behind it."""
    try:
        while not (run_dir / "last.ckpt").exists() or len(read_csv(run_dir / "history.csv")) < 3:
            assert process.poll() is None
            time.sleep(0.01)  # between two looks: what is waited for is the files
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    assert not RunResult.load(run_dir).completed


@pytest.mark.slow
def test_a_sweep_survives_kill_9(product: Path, tmp_path: Path) -> None:
    sweep = ["-m", "attempt=base,cosine,augment"]
    assert in_a_process(tmp_path, product, *sweep, "hydra.sweep.dir=whole").wait(300) == 0
    kill_within(in_a_process(tmp_path, product, *sweep, "hydra.sweep.dir=s"), tmp_path / "s/cosine")
    again = [*sweep, "hydra.sweep.dir=s", "resume=true"]
    kill_within(in_a_process(tmp_path, product, *again), tmp_path / "s/augment")
    assert in_a_process(tmp_path, product, *again).wait(300) == 0
    for attempt, resumed in (("base", 0), ("cosine", 1), ("augment", 1)):
        assert what_counts(tmp_path / "s" / attempt) == what_counts(tmp_path / "whole" / attempt)
        assert RunResult.load(tmp_path / "s" / attempt).resumed == resumed


@pytest.mark.slow
def test_two_processes_survive_kill_9(product: Path, tmp_path: Path) -> None:
    settings = ["trainer.devices=2", "attempt=cosine"]
    assert in_a_process(tmp_path, product, *settings, "hydra.run.dir=whole").wait(300) == 0
    kill_within(in_a_process(tmp_path, product, *settings, "hydra.run.dir=run"), tmp_path / "run")
    assert in_a_process(tmp_path, product, *settings, "hydra.run.dir=run", "resume=true").wait(300) == 0
    assert what_counts(tmp_path / "run") == what_counts(tmp_path / "whole")
    assert RunResult.load(tmp_path / "run").resumed == 1
