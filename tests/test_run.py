"""What every run leaves of itself, whatever its problem."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mvtec_lab.results import RunResult


def test_tensorboard_shows_validation_as_validation_and_test_as_test(lab, tmp_path: Path) -> None:
    assert lab("attempt=base", "hydra.run.dir=run") == 0
    metrics = RunResult.load(tmp_path / "run").metrics
    assert metrics["val"]["loss"] != metrics["test"]["loss"]
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    for split in ("val", "test"):
        for key in ("accuracy", "loss"):  # what decides, and the loss: the rest would bury them
            (event,) = board.Scalars(f"{split}_best/{key}")
            assert abs(event.value - metrics[split][key]) < 1e-6, (split, key)
    shown = [tag for tag in board.Tags()["scalars"] if "_best/" in tag]
    assert shown == ["test_best/accuracy", "val_best/accuracy", "test_best/loss", "val_best/loss"]
