"""Several devices: two processes on the CPU train one run together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SIZE

from mvtec_lab.results import RunResult, read_csv


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["none", "inverse"])
def test_two_processes_train_one_run(product: Path, tmp_path: Path, sampler: str) -> None:
    settings = [
        "data=folder", f"data.root={product}", f"data.image_size={SIZE}", f"data.sampler={sampler}", "attempt=warmup",
        "loss.class_weights=none", "data.batch_size=4", "model.backbone=squeezenet1_1", "model.weights=null",
        "model.warmup_epochs=1", "trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.devices=2",
        "hydra.run.dir=run",
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": os.fspath(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mvtec_lab", *settings]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = RunResult.load(tmp_path / "run")
    assert result.completed
    assert result.epochs == 2
    predictions = read_csv(tmp_path / "run" / "predictions.csv")
    assert len(predictions) == len({p["path"] for p in predictions}) == 8  # each val and test image once
    assert done.stdout.count("macro-F1") + done.stderr.count("macro-F1") == 1  # one process speaks
