"""Where curves go: TensorBoard's order, and MLflow and Weights & Biases where they are installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mvtec_lab.engine import loggers
from mvtec_lab.results import RunResult

EPOCHS = "trainer.max_epochs=2"


def scalars(folder: Path) -> list[str]:
    return sorted(EventAccumulator(str(folder)).Reload().Tags()["scalars"])


def test_tensorboard_opens_on_losses_of_training_and_validation_in_one_chart(lab, tmp_path: Path) -> None:
    assert lab("attempt=finetune", EPOCHS, "hydra.run.dir=run") == 0
    train, val = (EventAccumulator(str(tmp_path / "run" / part)).Reload() for part in ("train", "val"))
    assert [len(part.Scalars("loss")) for part in (train, val)] == [2, 2]
    assert {"metrics/accuracy"} <= set(train.Tags()["scalars"]) & set(val.Tags()["scalars"])
    assert "metrics/recall_crack" in val.Tags()["scalars"]
    own = EventAccumulator(str(tmp_path / "run")).Reload()
    shown = {*own.Tags()["scalars"], *own.Tags()["images"], *train.Tags()["scalars"], *val.Tags()["scalars"]}
    order = list(dict.fromkeys(tag.partition("/")[0] for tag in sorted(shown)))
    assert order[:4] == ["loss", "metrics", "optimizer", "pictures"]
    assert {"pictures/first_batch", "pictures/confusion/test"} <= set(own.Tags()["images"])


@pytest.mark.slow
def test_hyperparameters_are_those_that_vary(lab, tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    def shown(folder: str) -> set[str]:
        events = EventAccumulator(str(tmp_path / folder)).Reload()
        content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        return set(HParamsPluginData.FromString(content).session_start_info.hparams)

    assert lab("-m", "attempt=base", "optimizer.lr=0.1,0.01", EPOCHS, "hydra.sweep.dir=s") == 0
    assert shown("s/base-optimizer.lr_0.1") == {"attempt", "seed", "optimizer.lr"}
    assert lab("attempt=base", EPOCHS, "hydra.run.dir=run") == 0
    assert {"optimizer.lr", "data.batch_size", "augment.transforms"} <= shown("run")  # a run by itself: the usual ones


def test_what_is_no_logger_or_not_installed_is_refused(lab, tmp_path: Path, capsys, monkeypatch) -> None:
    assert lab("trainer.logger=tensorbord", "hydra.run.dir=run") == 2
    assert "unknown trainer.logger 'tensorbord': did you mean tensorboard?" in capsys.readouterr().err
    assert lab("trainer.logger=[]", "hydra.run.dir=run") == 2
    assert "names no logger: give tensorboard, mlflow, wandb" in capsys.readouterr().err
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == "mlflow" else find_spec(name))
    for words in (["hydra.run.dir=run"], ["-m", "seed=0,1", "hydra.sweep.dir=run"]):
        assert lab("trainer.logger=[tensorboard,mlflow]", *words) == 2
        said = capsys.readouterr().err
        assert 'trainer.logger=mlflow needs an extra: pip install "mvtec_lab[mlflow]", or leave it out' in said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def mlflow_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list]:
    """Return a function that gives the runs that MLflow has, in a database of this test's own."""
    mlflow = pytest.importorskip("mlflow")
    from mlflow.tracking._tracking_service import utils

    monkeypatch.setattr(utils, "_tracking_uri", None)  # Lightning sets it, for the whole process
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address := f"sqlite:///{tmp_path}/mlflow.db")

    def runs() -> list:
        client = mlflow.MlflowClient(address)
        return client.search_runs([client.get_experiment_by_name("mvtec_lab").experiment_id])

    return runs


def test_mlflow_has_every_run_and_the_verdict(lab, tmp_path: Path, mlflow_runs) -> None:
    grid = ("-m", "attempt=base,head", EPOCHS, "trainer.logger=[tensorboard,mlflow]")
    assert lab(*grid, "hydra.sweep.dir=s") == 0
    verdict = json.loads((tmp_path / "s/comparison.json").read_text())["verdict"]
    runs = {run.info.run_name: run for run in mlflow_runs()}
    assert set(runs) == {"base", "head"}
    for name, run in runs.items():
        result = RunResult.load(tmp_path / "s" / name)
        assert run.info.status == "FINISHED"
        assert run.data.tags["sweep"] == "s"
        assert run.data.tags["mlflow.note.content"] == "\n".join(verdict)
        assert run.data.params["attempt"] == name
        assert run.data.metrics["test_accuracy"] == pytest.approx(result.metrics["test"]["accuracy"])
        assert {"train/loss", "val/loss"} <= set(run.data.metrics)
        assert run.data.metrics["epoch"] == 2
        assert list((tmp_path / "s" / name).glob("events.*"))


def test_a_resumed_run_goes_on_in_mlflow(lab, resumed, tmp_path: Path, mlflow_runs) -> None:
    from mvtec_lab.problems.classification.classifier import DefectClassifier

    resumed(DefectClassifier, 2, "attempt=head", "trainer.max_epochs=4", "trainer.logger=mlflow")
    names = {run.info.run_name: run for run in mlflow_runs()}
    assert names["run"].data.metrics["epoch"] == 4
    assert sum(run.info.run_name == "run" for run in mlflow_runs()) == 1
    assert names["run"].info.status == "FINISHED"
    assert not list((tmp_path / "run").rglob("events.*"))


def test_weights_and_biases_logs_offline_into_the_run(lab, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    grid = ("-m", "attempt=base,head", EPOCHS, "trainer.logger=wandb")
    assert lab(*grid, "hydra.sweep.dir=s") == 0
    names = set()
    for name in ("base", "head"):
        (folder,) = (tmp_path / "s" / name / "wandb").glob("offline-run-*")
        (file,) = folder.glob("run-*.wandb")
        assert file.stat().st_size > 1000
        names.add(json.loads((tmp_path / "s" / name / "loggers.json").read_text())["wandb"])
        assert file.stem.endswith(tuple(names))
        assert b"test_accuracy" in file.read_bytes()
    assert len(names) == 2  # a run of its own for each
    verdict = json.loads((tmp_path / "s/comparison.json").read_text())["verdict"]
    (folder,) = (tmp_path / "s/wandb").glob("offline-run-*")  # and one for the verdict, in the same group
    (file,) = folder.glob("run-*.wandb")
    assert all(line.encode() in file.read_bytes() for line in (verdict[0], verdict[-1]))
