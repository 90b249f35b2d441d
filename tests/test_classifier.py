"""The LightningModule: what trains, what rests, what a checkpoint carries."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from conftest import SIZE
from torchvision.models import squeezenet1_1

from mvtec_lab import DefectClassifier, Model, MVTecDataModule, load_model
from mvtec_lab.data.sampling import class_weights
from mvtec_lab.errors import LabError
from mvtec_lab.problems.classification.classifier import TrainingDivergedError


def make(tiny_net: str, classes: int | list[str] = 3, **kwargs) -> DefectClassifier:
    torch.manual_seed(0)
    return DefectClassifier(tiny_net, classes, weights=None, **kwargs)


def batch(n: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randn(n, 3, SIZE, SIZE, generator=generator), "label": torch.arange(n) % 3}


@pytest.mark.parametrize(
    ("unfreeze", "trained"),
    [(0, {"head"}), (1, {"stage2", "head"}), ("all", {"stage1", "stage2", "head"}), (["stage1"], {"stage1", "head"})],
)
def test_unfreeze_says_what_trains(tiny_net: str, unfreeze, trained: set[str]) -> None:
    model = make(tiny_net, unfreeze=unfreeze)
    assert {n for n, c in model.model.named_children() if any(p.requires_grad for p in c.parameters())} == trained


def test_frozen_stages_stay_in_eval_mode(tiny_net: str) -> None:
    model = make(tiny_net, unfreeze=1).train()
    frozen, trained = model.model.stage1, model.model.stage2
    assert not any(m.training for m in frozen.modules())
    assert all(m.training for m in trained.modules())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(batch()["image"])
    moved = {k for k, v in model.state_dict().items() if "running" in k and not torch.equal(v, before[k])}
    assert moved == {k for k in before if k.startswith("model.stage2") and "running" in k}


def test_the_training_loss_is_weighted_and_the_validation_loss_is_not(tiny_net: str) -> None:
    counts = [30, 20, 2]
    weights = class_weights(counts, "inverse").tolist()
    model = make(tiny_net, class_counts=counts, loss={"class_weights": "inverse"}).eval()
    data = batch()
    logged: dict[str, float] = {}
    model.log = lambda name, value, **_: logged.__setitem__(name, float(value))  # type: ignore[method-assign]
    model.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    logits = model(data["image"])
    weighted = F.cross_entropy(logits, data["label"], weight=torch.tensor(weights))
    assert model.training_step(data, 0) == weighted
    model.on_validation_epoch_start()
    model.validation_step(data, 0)
    model.on_validation_epoch_end()
    assert logged["val/loss"] == pytest.approx(float(F.cross_entropy(logits, data["label"])))
    assert logged["val/loss"] != pytest.approx(float(weighted))


def test_nan_stops_and_says_where(tiny_net: str) -> None:
    batches = [batch(4) for _ in range(6)]
    batches[3]["image"][0] = float("nan")
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = pl.Trainer(accelerator="cpu", enable_model_summary=False, **quiet)
    with pytest.raises(TrainingDivergedError, match="the training loss is nan in epoch 1, batch 4"):
        trainer.fit(make(tiny_net, unfreeze="all"), torch.utils.data.DataLoader(batches, batch_size=None))


def quiet_trainer(**settings) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **settings)


def loader(*sizes: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader([batch(n) for n in sizes], batch_size=None)


def test_the_logged_loss_is_the_mean_over_images(tiny_net: str) -> None:
    model = make(tiny_net, unfreeze="all", optimizer={"lr": 1e-12})
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(model, loader(8, 3), loader(8, 3))
    data = [batch(8), batch(3)]
    with torch.no_grad():
        total = sum(F.cross_entropy(model.eval()(b["image"]), b["label"], reduction="sum") for b in data)
    assert trainer.callback_metrics["val/loss"] == pytest.approx(float(total) / 11, rel=1e-5)


@pytest.mark.parametrize("settings", [{"val_check_interval": 0.5}, {"max_steps": 6, "max_epochs": 2}])
def test_training_metrics_are_those_of_all_batches_of_the_epoch(tiny_net: str, settings) -> None:
    model, seen = make(tiny_net, unfreeze="all"), []
    step, start = model.training_step, model.on_train_epoch_start

    def noted(data, batch_idx):
        loss = step(data, batch_idx)
        seen.append((float(loss), len(data["label"])))
        return loss

    model.training_step, model.on_train_epoch_start = noted, lambda: (seen.clear(), start())  # type: ignore[method-assign]
    trainer = quiet_trainer(**{"max_epochs": 1, **settings})
    trainer.fit(model, loader(4, 4, 4, 2), loader(4))
    wanted = sum(loss * n for loss, n in seen) / sum(n for _, n in seen)
    assert trainer.callback_metrics["train/loss"] == pytest.approx(wanted, rel=1e-5)


def test_a_nan_is_found_wherever_the_epoch_ends(tiny_net: str) -> None:
    batches = [batch(4) for _ in range(4)]
    batches[0]["image"][0] = float("nan")
    for settings in ({"val_check_interval": 0.5, "max_epochs": 1}, {"max_steps": 2}):
        with pytest.raises(TrainingDivergedError, match="the training loss is nan in epoch 1, batch 1"):
            quiet_trainer(**settings).fit(
                make(tiny_net, unfreeze="all"), torch.utils.data.DataLoader(batches, batch_size=None), loader(4)
            )


def test_a_module_that_was_validated_can_be_trained(tiny_net: str) -> None:
    model = make(tiny_net)
    quiet_trainer().validate(model, loader(4), verbose=False)
    quiet_trainer(max_epochs=1).fit(model, loader(4), loader(4))


def test_mixed_images_count_as_what_most_of_them_is(tiny_net: str) -> None:
    model = make(tiny_net, optimizer={"lr": 1e-12})
    data = {**batch(6), "target": F.one_hot((torch.arange(6) + 1) % 3, 3).float()}
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(model, torch.utils.data.DataLoader([data], batch_size=None))
    with torch.no_grad():
        right = model.eval()(data["image"]).argmax(1) == data["target"].argmax(1)
    assert trainer.callback_metrics["train/accuracy"] == pytest.approx(float(right.float().mean()))


def test_probabilities_leave_the_mode_alone(tiny_net: str) -> None:
    model = make(tiny_net).train()
    loader = torch.utils.data.DataLoader([{k: v[i] for k, v in batch().items()} for i in range(6)], batch_size=4)
    probabilities = model.probabilities(loader)
    assert probabilities.shape == (6, 3)
    torch.testing.assert_close(torch.from_numpy(probabilities), model.eval()(batch()["image"]).softmax(1).detach())
    assert probabilities.sum(axis=1) == pytest.approx(1)


def test_the_module_trains_tests_and_predicts_in_plain_lightning(tiny_net: str, product: Path, tmp_path: Path) -> None:
    data = MVTecDataModule(product, image_size=SIZE, batch_size=8)
    data.setup()
    model = make(tiny_net, classes=data.classes, unfreeze="all", image_size=SIZE)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, num_sanity_val_steps=0
    )
    trainer.fit(model, datamodule=data)
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    assert set(metrics) == {"test/loss", "test/accuracy", "test/balanced_accuracy", "test/macro_f1"}
    (probabilities,) = trainer.predict(model, dataloaders=data.test_dataloader())
    assert probabilities.shape == (4, 3)

    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    again = DefectClassifier.load_from_checkpoint(tmp_path / "mine.ckpt", weights=None).eval()
    assert again.classes == ["good", "crack", "hole"]
    assert again.hparams["loss"] == model.hparams["loss"]
    assert again.hparams["image_size"] == SIZE
    assert again.weights_name == "random"
    assert not again.training
    images = batch()["image"]
    torch.testing.assert_close(again(images), model.eval()(images))


def test_a_checkpoint_does_not_ask_for_its_weights_again(tiny_net: str, tmp_path: Path) -> None:
    torch.save(squeezenet1_1().state_dict(), tmp_path / "start.pth")
    model = DefectClassifier("squeezenet1_1", 3, weights=str(tmp_path / "start.pth"))
    assert model.weights_name == "file:start.pth"
    Model(model, "classifier", model.classes, 224, 65_535, [0.5] * 3, [0.2] * 3).save(tmp_path / "a.ckpt")
    (tmp_path / "start.pth").unlink()
    again = load_model(tmp_path / "a.ckpt")
    assert again.module.weights_name == "file:start.pth"
    assert (again.mean, again.std) == ([0.5] * 3, [0.2] * 3)


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(LabError, match=r"data\.image_size=224"):
        DefectClassifier("vit_b_16", 3, weights=None, image_size=128)
