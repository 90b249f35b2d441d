"""A new problem is one folder and its line in a registry: it trains, resumes, compares and reports as any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import brightness
import pytest
from brightness.problem import PROBLEM, Regressor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mvtec_lab import build_data, compose
from mvtec_lab.engine import checkpoints
from mvtec_lab.evaluation.specs import METRICS, register_metric
from mvtec_lab.problems import METHODS, PROBLEMS
from mvtec_lab.results import read_csv

BRIGHTNESS = ["model.method=brightness_regressor", "model.options.start=0.2", "optimizer=sgd"]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    METHODS.register("brightness_regressor", brightness.METHOD)
    PROBLEMS.register("brightness", PROBLEM)
    for metric in brightness.METRICS:
        register_metric(metric)
    yield
    for registry, name in ((METHODS, "brightness_regressor"), (PROBLEMS, "brightness"), (METRICS, "error")):
        del registry._own[name]


@pytest.mark.slow
def test_a_new_problem_is_compared_and_reported(lab, tmp_path: Path, capsys) -> None:
    sweep = ["-m", "attempt=base", *BRIGHTNESS, "optimizer.lr=0.001,0.3", "seed=0,1,2", "split.seed=0"]
    assert lab(*sweep, "hydra.sweep.dir=s", "trainer.max_epochs=10") == 0
    said = capsys.readouterr().out
    comparison = json.loads((tmp_path / "s/comparison.json").read_text())
    assert comparison["metric"] == "error"
    (pair,) = comparison["pairs"]
    assert pair["different"]
    errors = {a["attempt"]: a["error"]["value"] for a in comparison["attempts"]}
    slow, fast = (next(value for name, value in errors.items() if lr in name) for lr in ("0.001", "0.3"))
    assert fast < slow / 2
    assert "absolute error" in said
    assert len(read_csv(tmp_path / "s/summary.csv")) == 2
    report = (tmp_path / "s/report.html").read_text()
    assert "absolute error" in report
    run = next((tmp_path / "s").glob("*0.3*seed_0*"))
    board = EventAccumulator(str(run)).Reload()
    assert board.Tags()["images"]


def test_a_new_problem_resumes_and_its_checkpoint_serves_every_task(
    lab, resumed, product: Path, tmp_path: Path
) -> None:
    run = resumed(Regressor, 2, "attempt=base", *BRIGHTNESS, "trainer.max_epochs=4")
    assert run.problem == "brightness"
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged") == 0
    assert json.loads((tmp_path / "judged/metrics.json").read_text())["metrics"] == run.metrics
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test/hole'}", "hydra.run.dir=new") == 0
    assert len(read_csv(tmp_path / "new/predictions.csv")) == 6


def test_a_problem_says_what_it_learns_from_beside_the_image(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(PROBLEM), "targets", ("mask", "boxes"))
    settings = ["data=folder", f"data.root={product}", "data.image_size=24", "cache.dir=null"]
    data = build_data(compose(*settings, "model.method=brightness_regressor"))
    data.setup()
    batch = next(iter(data.val_dataloader()))
    assert batch["mask"].shape == (len(batch["image"]), 24, 24)
    assert [len(boxes) for boxes in batch["boxes"]] == [int(label > 0) for label in batch["label"]]


def test_no_other_room_knows_a_problem_by_its_name() -> None:
    package = Path(checkpoints.__file__).parents[1]
    names = [name for name in PROBLEMS.names() if name != "brightness"]
    assert {"anomaly", "classification", "detection", "segmentation"} <= set(names)
    for room in ("tasks", "engine", "reporting"):
        for path in (package / room).glob("*.py"):
            text = path.read_text()
            assert not [name for name in names if f'"{name}"' in text or f"problems.{name}" in text], path


def test_what_a_new_problem_lacks_is_said_in_one_line(lab, tmp_path: Path, capsys) -> None:
    assert lab("attempt=base", *BRIGHTNESS, "hydra.run.dir=run") == 0
    assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=out") == 2
    assert "model.method=brightness_regressor cannot be exported" in capsys.readouterr().err
    assert lab("attempt=base", *BRIGHTNESS, "model.backbone=resnet18", "hydra.run.dir=refused") == 2
    assert "model.method=brightness_regressor: its networks are its own" in capsys.readouterr().err
    del METRICS._own["error"]
    assert lab("attempt=base", *BRIGHTNESS, "hydra.run.dir=refused") == 2
    assert "unknown problem 'brightness'" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    register_metric(brightness.METRICS[0])
