"""Small promises of training that a mistake would break without a word."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import SIZE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mvtec_lab.cache import ArrayCache
from mvtec_lab.config import OPTIMIZERS, Config
from mvtec_lab.data import images
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.checkpoints import Checkpoints
from mvtec_lab.engine.history import History
from mvtec_lab.engine.setup import training_seed
from mvtec_lab.models.optim import build_optimizer, build_scheduler
from mvtec_lab.results import RunResult, read_csv


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("val/balanced_accuracy", [0.5, 0.8, 0.8, 0.8], 1),
        ("val/balanced_accuracy", [0.5, 0.5, 0.4], 0),
        ("val/loss", [0.5, 0.3, 0.3, 0.4], 1),
    ],
)
def test_the_earliest_of_equal_checkpoints_is_kept(
    monitor: str, values: list[float], best: int, tmp_path: Path
) -> None:
    checkpoints, module = Checkpoints(tmp_path, monitor, {}), pl.LightningModule()
    module.register_buffer("epoch", torch.zeros(()))
    for epoch, value in enumerate(values):
        module.epoch.fill_(epoch)
        trainer = SimpleNamespace(current_epoch=epoch, global_step=epoch, callback_metrics={monitor: value})
        checkpoints.on_train_epoch_end(trainer, module)  # type: ignore[arg-type]
    assert checkpoints.best["epoch"] == best
    assert float(checkpoints.best["state_dict"]["epoch"]) == best


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_uses_weight_decay(name: str) -> None:
    """Without a slope of the loss, decay alone moves a weight."""
    after = []
    for decay in (0.0, 0.1):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = build_optimizer(name, [weight], 0.1, decay, 0.9)
        weight.grad = torch.zeros(3)
        optimizer.step()
        after.append(weight.detach())
    assert torch.equal(after[0], torch.ones(3))
    assert (after[1] < 1).all()


class Losses(pl.LightningModule):
    """Logs losses that are given, epoch by epoch, and follows the plateau schedule."""

    def __init__(self, **losses: list[float]) -> None:
        super().__init__()
        self.weight, self.losses = torch.nn.Parameter(torch.ones(1)), losses
        self.rates: list[float] = []

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.log("train/loss", self.losses["train"][self.current_epoch], on_epoch=True, on_step=False)
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.weight.sum()

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("val/loss", self.losses["val"][self.current_epoch])
        self.log("val/accuracy", self.losses["train"][self.current_epoch])

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer("sgd", self.parameters(), 1.0, 0.0, 0.0)
        schedule = build_scheduler("plateau", optimizer, epochs=4, steps=4, step_size=1, gamma=0.1, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


@pytest.mark.filterwarnings("ignore")
def test_the_plateau_schedule_watches_the_validation_loss() -> None:
    falling, flat = [0.4, 0.3, 0.2, 0.1], [0.4, 0.4, 0.4, 0.4]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    rates = []
    for module in (Losses(train=falling, val=flat), Losses(train=flat, val=falling)):
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=4, num_sanity_val_steps=0, enable_model_summary=False, **quiet
        )
        trainer.fit(module, torch.utils.data.DataLoader([0]), torch.utils.data.DataLoader([0]))
        rates.append(module.rates)
    assert rates[0] == pytest.approx([1.0, 1.0, 0.1, 0.01])
    assert rates[1] == [1.0] * 4


def test_other_rules_of_decoding_are_another_key_of_the_cache(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> int:
        data = MVTecDataModule(product, image_size=SIZE, cache=ArrayCache(tmp_path / "c"))
        data.setup()
        return len(list((tmp_path / "c").glob("*.npy")))

    assert (kept(), kept()) == (1, 1)
    for number, (rule, value) in enumerate({"version": -1, "opencv": "0", "pillow": "0"}.items(), start=2):
        monkeypatch.setattr(images, "RULES", {**images.RULES, rule: value})
        assert kept() == number


def test_every_fold_and_repeat_draws_its_own_seed() -> None:
    def seed(fold: int, repeat: int = 0, run: int = 0, protocol: str = "kfold") -> int:
        config = Config(seed=run)
        config.split.protocol, config.split.folds, config.split.fold, config.split.seed = protocol, 5, fold, repeat
        return training_seed(config)

    seeds = [seed(fold, repeat, run) for fold in range(5) for repeat in range(3) for run in range(3)]
    assert len(set(seeds)) == len(seeds)
    assert seed(2, 1, 1) == seed(2, 1, 1)
    assert [seed(0, run=run, protocol="holdout") for run in range(3)] == [0, 1, 2]


def test_every_step_has_its_own_point_on_the_curves(lab, tmp_path: Path) -> None:
    assert lab("attempt=finetune", "scheduler=onecycle", "data.batch_size=4", "hydra.run.dir=run") == 0
    board = EventAccumulator("run").Reload()
    rates, norms = ([(e.step, e.value) for e in board.Scalars(f"optimizer/{key}")] for key in ("lr", "grad_norm"))
    assert [step for step, _ in rates] == [step for step, _ in norms] == list(range(8))  # 14 images, two epochs
    assert len({value for _, value in rates}) > 6
    rows = read_csv(tmp_path / "run/history.csv")
    means = [sum(value for _, value in norms[start : start + 4]) / 4 for start in (0, 4)]
    assert [float(row["grad_norm"]) for row in rows] == pytest.approx(means, rel=1e-5)


def test_epochs_are_counted_from_one_in_every_file(lab, tmp_path: Path) -> None:
    """result.json, history.csv and TensorBoard said 13 of the epoch that was 14 in the terminal and the report."""
    assert lab("attempt=finetune", "trainer.max_epochs=3", "trainer.monitor=val/loss", "hydra.run.dir=run") == 0
    log = (tmp_path / "run/run.log").read_text()
    (said,) = re.findall(r"best epoch (\d) of 3", log)
    rows = read_csv(tmp_path / "run/history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] == re.findall(r"epoch (\d)/3 ", log)
    assert {event.value for event in EventAccumulator("run").Reload().Scalars("optimizer/epoch")} == {1, 2, 3}
    run = RunResult.load(tmp_path / "run")
    losses = [float(row["val/loss"]) for row in rows]
    assert run.best_epoch == int(said) == losses.index(min(losses)) + 1
    history = History(tmp_path / "history.csv")
    history.load_state_dict({"rows": [{"epoch": 0, "seconds": 1.0}]})  # of a run that an older version began
    assert [row["epoch"] for row in history.rows] == [1]


@pytest.mark.parametrize(
    ("attempt", "module"),
    [
        pytest.param("base", "problems.classification.outcome"),
        pytest.param("base", "problems.classification.explanations", marks=pytest.mark.slow),
        pytest.param("padim", "problems.anomaly.scores", marks=pytest.mark.slow),
        pytest.param("segment/fpn", "problems.segmentation.pictures", marks=pytest.mark.slow),
        pytest.param("detect/ssdlite", "problems.detection.judging", marks=pytest.mark.slow),
    ],
)
def test_every_sheet_names_its_files(lab, tmp_path: Path, monkeypatch, attempt: str, module: str) -> None:
    at_home, named = importlib.import_module(f"mvtec_lab.{module}"), []
    whole = at_home.sheet

    def sheet(images: list, captions: list[str], *args: Any, files: list[str], **options: Any) -> Any:
        assert len(files) == len(captions)
        named.extend(file for file in files if file)
        for file, caption in zip(files, captions, strict=True):
            assert not file or file.split("/")[-2] in caption  # of the class that the image has
        return whole(images, captions, *args, files=files, **options)

    monkeypatch.setattr(at_home, "sheet", sheet)
    settings = {
        "padim": ["model.options.layers=[features.relu1,features.relu2]"],
        "segment/fpn": ["model.options.layers=[features.relu1,features.relu2]", "model.options.channels=8"],
        "detect/ssdlite": ["model.options.finest=4", "model.options.channels=32"],
    }
    assert lab(f"attempt={attempt}", *settings.get(attempt, []), "hydra.run.dir=run") == 0
    assert named
    assert all((tmp_path / "products/widget" / file).is_file() for file in named)


def test_the_curves_of_an_epoch_that_diverged_are_kept(lab) -> None:
    assert lab("attempt=full", "optimizer=sgd", "optimizer.lr=1e38", "hydra.run.dir=run") == 1
    assert EventAccumulator("run").Reload().Scalars("optimizer/grad_norm")
