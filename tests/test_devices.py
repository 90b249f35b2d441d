"""Several devices: two processes on the CPU train one run together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from conftest import SIZE

from mvtec_lab.results import RunResult, read_csv


def run_lab(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in another process, on one thread: two with more get into each other's way on a small machine."""
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": os.fspath(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["none", "inverse"])
def test_two_processes_train_one_run(product: Path, tmp_path: Path, sampler: str) -> None:
    settings = [
        "data=folder", f"data.root={product}", f"data.image_size={SIZE}", f"data.sampler={sampler}", "attempt=warmup",
        "loss.class_weights=none", "data.batch_size=4", "model.backbone=squeezenet1_1", "model.weights=null",
        "model.warmup_epochs=1", "trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.devices=2",
        "hydra.run.dir=run",
    ]  # fmt: skip
    done = run_lab(tmp_path, "-m", "mvtec_lab", *settings)
    result = RunResult.load(tmp_path / "run")
    assert result.completed
    assert result.epochs == 2
    predictions = read_csv(tmp_path / "run" / "predictions.csv")
    assert len(predictions) == len({p["path"] for p in predictions}) == 8  # each val and test image once
    assert done.stdout.count("macro F1 ") + done.stderr.count("macro F1 ") == 1  # one process speaks


# Trains as the command does, and every process notes what it was given.
RECORDER = """
import json, sys
from pathlib import Path
from mvtec_lab.problems.classification.classifier import DefectClassifier
from mvtec_lab.cli import main

def noting(step, name):
    def noted(self, batch, batch_idx):
        line = {"epoch": self.current_epoch, "index": batch["index"].tolist()}
        with Path(f"{name}_{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\\n")
        return step(self, batch, batch_idx)
    return noted

DefectClassifier.training_step = noting(DefectClassifier.training_step, "train")
DefectClassifier.validation_step = noting(DefectClassifier.validation_step, "val")
sys.exit(main(sys.argv[1:]))
"""


def train_together(product: Path, folder: Path, processes: int, *settings: str) -> Path:
    """Two epochs of a head on frozen stages without dropout: nothing but the batches can differ between processes."""
    folder.mkdir()
    (folder / "recorder.py").write_text(RECORDER)
    run_lab(
        folder, "recorder.py", "data=folder", f"data.root={product}", "data.image_size=32", "model.backbone=resnet18",
        "model.weights=null", "loss.class_weights=none", "trainer.max_epochs=2", "trainer.accelerator=cpu",
        f"trainer.devices={processes}", "hydra.run.dir=run", *settings,
    )  # fmt: skip
    return folder


def batches(folder: Path, name: str, rank: int, epoch: int) -> list[list[int]]:
    lines = map(json.loads, (folder / f"{name}_{rank}.jsonl").read_text().splitlines())
    return [line["index"] for line in lines if line["epoch"] == epoch]


def shared_out(folder: Path, epoch: int) -> list[int]:
    """What two processes drew, in the order of the draw: each takes every other one."""
    first, second = (chain.from_iterable(batches(folder, "train", rank, epoch)) for rank in (0, 1))
    return [place for pair in zip(first, second, strict=True) for place in pair]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["none", "inverse"])
def test_two_processes_do_what_one_does_with_twice_the_batch(product: Path, tmp_path: Path, sampler: str) -> None:
    one = train_together(product, tmp_path / "one", 1, "data.batch_size=8", f"data.sampler={sampler}")
    two = train_together(product, tmp_path / "two", 2, "data.batch_size=4", f"data.sampler={sampler}")

    draws = [list(chain.from_iterable(batches(one, "train", 0, epoch))) for epoch in (0, 1)]
    assert [shared_out(two, epoch) for epoch in (0, 1)] == draws
    assert draws[0] != draws[1]
    for draw in draws:
        assert len(draw) == 14
        assert (sorted(draw) == list(range(14))) == (
            sampler == "none"
        )  # each image once, unless they are drawn by class

    # The same batches, hence the same gradients, weights and figures, up to the order of sums.
    for row, expected in zip(*(read_csv(folder / "run/history.csv") for folder in (two, one)), strict=True):
        compared = [key for key in row if key.startswith(("train/", "val")) or key in ("lr", "grad_norm")]
        assert {"train/loss", "train/accuracy", "val/loss", "val/macro_f1", "val_recall/hole"} <= {*compared}
        for key in compared:
            assert float(row[key]) == pytest.approx(float(expected[key]), abs=1e-4), key
    assert (two / "run/samples.csv").read_text() == (one / "run/samples.csv").read_text()


@pytest.mark.slow
def test_every_process_validates_every_image(product: Path, tmp_path: Path) -> None:
    # Nine images to train on: the second process takes the first draw once more, so that both make as many steps.
    two = train_together(product, tmp_path / "two", 2, "data.batch_size=3", "split.per_class=5")
    for epoch in (0, 1):
        draw = shared_out(two, epoch)
        assert sorted(draw[:-1]) == list(range(9))
        assert draw[-1] == draw[0]
        for rank in (0, 1):
            assert sorted(chain.from_iterable(batches(two, "val", rank, epoch))) == [0, 1, 2]

    # Counted twice, once by each process, which means do not show: one process finds the same figures.
    run_lab(two, "-m", "mvtec_lab", "task=evaluate", "ckpt=run/last.ckpt", "hydra.run.dir=alone")
    alone = json.loads((two / "alone/metrics.json").read_text())["metrics"]["val"]
    last = read_csv(two / "run/history.csv")[-1]
    for name in ("loss", "accuracy", "balanced_accuracy", "macro_f1"):
        assert float(last[f"val/{name}"]) == pytest.approx(alone[name], abs=1e-5), name
    recalls = {key.removeprefix("val_recall/"): float(value) for key, value in last.items() if "recall" in key}
    assert recalls == pytest.approx(alone["recall"])


# Every process finds another mAP, as rounding could make it, and notes on how many images.
MAP_RECORDER = """
import os, sys
from pathlib import Path
from mvtec_lab.problems.detection import base
from mvtec_lab.cli import main

def of_this_process(matches):
    rank = int(os.environ.get("LOCAL_RANK", 0))
    with Path(f"images_{rank}.txt").open("a") as file:
        file.write(f"{len(matches.labels)} ")
    return {"map50": 0.25 + rank / 2, "map": 0.125 + rank / 4}

base.box_metrics = of_this_process
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_agree_on_the_map_that_chooses_the_epoch(product: Path, tmp_path: Path) -> None:
    (tmp_path / "recorder.py").write_text(MAP_RECORDER)
    done = run_lab(
        tmp_path, "recorder.py", "data=folder", f"data.root={product}", "data.image_size=64", "attempt=detect/fcos",
        "model.backbone=resnet18", "model.weights=null", "trainer.max_epochs=1", "trainer.accelerator=cpu",
        "trainer.devices=2", "data.batch_size=4", "hydra.run.dir=run",
    )  # fmt: skip
    (row,) = read_csv(tmp_path / "run/history.csv")
    assert (float(row["val/map50"]), float(row["val/map"])) == (0.5, 0.25)
    images = [(tmp_path / f"images_{rank}.txt").read_text().split() for rank in (0, 1)]
    assert images == [["4"], ["4"]]  # each has seen all of them
    assert "sync_dist" not in done.stdout + done.stderr
