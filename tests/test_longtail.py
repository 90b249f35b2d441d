"""The attempts of the long tail: what trains when, what predicts, what a checkpoint carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from conftest import SIZE, others_slow, write_product

from mvtec_lab import DefectClassifier, MVTecDataModule, config, load_model
from mvtec_lab.config import RETRIEVING, SplitConfig
from mvtec_lab.data.sampling import class_weights
from mvtec_lab.errors import LabError
from mvtec_lab.own import CONF
from mvtec_lab.problems.classification import HEADS
from mvtec_lab.problems.classification.generator import Generated
from mvtec_lab.problems.classification.losses import GroupSoftmax
from mvtec_lab.results import RunResult, read_csv

CLASSES = ["good", "crack", "hole"]
ATTEMPTS = sorted(path.stem for path in (CONF / "attempt/longtail").glob("*.yaml"))
# Each of these has a part of the code to itself; the others run with the slow tests.
FAST = ("bags", "class_balanced_focal", "dac", "knn", "ldam_drw", "mixup", "paste", "posthoc", "rac")


def probabilities(run_dir: Path) -> np.ndarray:
    rows = [row for row in read_csv(run_dir / "predictions.csv") if row["split"] == "test"]
    return np.array([[float(v) for k, v in row.items() if k.startswith("prob_")] for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("attempt", others_slow(ATTEMPTS, *FAST))
def test_an_attempt_trains_predicts_and_comes_back(attempt: str, lab, product: Path, tmp_path: Path) -> None:
    epochs = [] if attempt == "knn" else ["trainer.max_epochs=6"]
    assert lab(f"attempt=longtail/{attempt}", "hydra.run.dir=run", *epochs) == 0
    result = RunResult.load(tmp_path / "run")
    p = probabilities(tmp_path / "run")
    assert p.sum(axis=1) == pytest.approx(1, abs=1e-4)
    assert result.completed
    assert result.luck == (attempt != "knn" or result.weights == "random")
    assert not [w for w in result.warnings if "weighted twice" in w]
    again = load_model(tmp_path / "run/best.ckpt").module
    data = MVTecDataModule(product, image_size=SIZE, split=SplitConfig(pool="all"))
    data.setup()
    np.testing.assert_allclose(again.probabilities(data.test_dataloader()), p, atol=1e-4)


def test_every_head_of_the_configuration_is_a_class() -> None:
    assert sorted(config.HEADS) == HEADS.names()
    assert tuple(name for name in config.HEADS if HEADS[name].learns) == RETRIEVING


def test_the_study_is_all_of_them() -> None:
    text = (CONF / "study/longtail.yaml").read_text()
    named = text.split("attempt:")[1].split()[0].split(",")
    assert sorted(named) == [f"longtail/{attempt}" for attempt in ATTEMPTS]


@pytest.mark.slow
@pytest.mark.parametrize("attempt", others_slow(["rac", "dac", "bags", "ldam_drw", "paste"], "dac"))
@pytest.mark.parametrize("views", others_slow(["null", "1"], "1"))
def test_neither_caches_nor_workers_change_a_result(attempt: str, views: str, lab, tmp_path: Path) -> None:
    arguments = [f"attempt=longtail/{attempt}", "trainer.max_epochs=4", "augment=standard", f"augment.views={views}"]
    assert lab(*arguments, "hydra.run.dir=one") == 0
    assert lab(*arguments, "hydra.run.dir=two", "cache.dir=null", "data.num_workers=1") == 0
    assert RunResult.load(tmp_path / "one").metrics == RunResult.load(tmp_path / "two").metrics
    assert (probabilities(tmp_path / "one") == probabilities(tmp_path / "two")).all()


def classifier(tiny_net: str, **kwargs) -> DefectClassifier:
    torch.manual_seed(0)
    given = {"classes": CLASSES, "class_counts": [8, 2, 2], "image_size": SIZE, **kwargs}
    return DefectClassifier(tiny_net, weights=None, **given)


def batch(n: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, SIZE, SIZE, generator=generator)
    return {"image": images, "label": torch.arange(n) % 3, "index": torch.arange(n)}


GROUPS = {"name": "group_softmax", "class_weights": "none", "defer": 0.5}


class Trainer:
    """What a module and its callbacks ask of their trainer, without one."""

    max_epochs, current_epoch, is_last_batch = 10, 0, True

    def __init__(self, model: DefectClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.callbacks = model, model.configure_callbacks()
        self.optimizers = [torch.optim.Adam(model.trained_parameters or model.parameters())]
        monkeypatch.setattr(DefectClassifier, "trainer", self)
        monkeypatch.setattr(DefectClassifier, "current_epoch", property(lambda _: self.current_epoch))
        monkeypatch.setattr(model, "log", lambda *_, **__: None)
        monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)

    def begin_epoch(self) -> None:
        for callback in self.callbacks:
            callback.on_train_epoch_start(self, self.model)  # type: ignore[arg-type]


def test_deferred_weights_begin_when_they_should(tiny_net: str, monkeypatch) -> None:
    weights = torch.tensor(class_weights([8, 2, 2], "inverse")).float()
    model = classifier(tiny_net, loss={"class_weights": "inverse", "defer": 0.8}).eval()
    trainer, data = Trainer(model, monkeypatch), batch(8)
    for epoch, weight in ((0, None), (7, None), (8, weights), (9, weights)):
        trainer.current_epoch = epoch
        trainer.begin_epoch()
        assert model.deferring == (weight is None)
        expected = F.cross_entropy(model(data["image"]), data["label"], weight)
        assert model.training_step(data, 0) == expected


def test_groups_train_the_last_layer_alone_after_the_plain_classifier(tiny_net: str, monkeypatch) -> None:
    model = classifier(tiny_net, loss=GROUPS, unfreeze=1)
    trainer, data = Trainer(model, monkeypatch), batch()
    assert isinstance(model.criterion, GroupSoftmax)
    assert not model.criterion.deferred  # what comes from a checkpoint predicts with its groups
    trainer.begin_epoch()
    assert model.criterion.deferred
    assert model.model.stage2[0].weight.requires_grad
    model.training_step(data, 0).backward()
    assert not model.model.head[-1].weight.grad[3:].any()
    model.zero_grad()

    trainer.current_epoch = 5
    trainer.optimizers[0].state[model.model.head[-1].weight] = {"step": 5}
    trainer.begin_epoch()
    assert not model.criterion.deferred
    assert not trainer.optimizers[0].state
    assert not model.model.stage2[0].weight.requires_grad
    begun = model.model.head[-1].weight.detach().clone()
    torch.testing.assert_close(begun[3], begun[0])  # good against defect: starts from good
    model.training_step(data, 0).backward()
    assert not model.model.head[-1].weight.grad[:3].any()
    trainer.current_epoch = 6
    trainer.begin_epoch()
    assert torch.equal(model.model.head[-1].weight, begun)  # begins once


def test_the_checkpoint_is_chosen_once_everything_has_begun(lab, tmp_path: Path) -> None:
    """With a learning rate of nothing the last epochs are no better than the first ones."""
    settings = ["attempt=longtail/ldam_drw", "trainer.max_epochs=5", "scheduler=step", "scheduler.step_size=1"]
    assert lab(*settings, "scheduler.gamma=1e-6", "optimizer.lr=1e-9", "hydra.run.dir=run") == 0
    assert RunResult.load(tmp_path / "run").best_epoch == 5


@pytest.mark.parametrize("unfreeze", [0, 1, "all"])
@pytest.mark.parametrize("head", ["fused", "retrieval", "knn"])
def test_retrieval_asks_the_backbone_as_it_was(head: str, unfreeze, tiny_net: str, monkeypatch) -> None:
    model, data = classifier(tiny_net, head=head, unfreeze=unfreeze), batch()
    Trainer(model, monkeypatch)
    model.eval()
    embeddings = model.head.embed(model.model.extract(data["image"]))
    expected = torch.nn.Sequential(*list(model.model)[:-1])(data["image"])
    torch.testing.assert_close(embeddings, expected)  # before training, both are the same
    model.learn(embeddings.detach(), data["label"], 0)
    model.train()
    for _ in range(3):  # of steps that change the trained stages
        loss = model.training_step(data, 0)
        if head == "knn":
            assert loss is None
            break
        loss.backward()
        torch.optim.SGD(model.trained_parameters, 1.0).step()
    model.eval()
    torch.testing.assert_close(model.head.embed(model.model.extract(data["image"])), expected)


def test_a_training_image_never_finds_itself(tiny_net: str, monkeypatch) -> None:
    """Twelve images, each its own nearest: with the vote of one neighbour all would be right."""
    model, data = classifier(tiny_net, head="knn", neighbours=1), batch()
    Trainer(model, monkeypatch)
    model.eval()
    model.learn(model.head.embed(model.model.extract(data["image"])), data["label"], 0)
    assert (model(data["image"]).argmax(1) == data["label"]).all()
    model.training_step(data, 0)
    assert model.train_metrics["accuracy"].compute() < 1


def test_generated_features_join_the_batch_and_nothing_else(tiny_net: str, monkeypatch) -> None:
    model, data = classifier(tiny_net, generate=True), batch()
    data["label"] = torch.tensor([0] * 8 + [1, 1, 2, 2])
    Trainer(model, monkeypatch)
    said = model.eval().learn(model.model.extract(data["image"]).detach(), data["label"], 0)
    assert said
    assert "crack" in said
    seen = []
    original = model.criterion.forward
    monkeypatch.setattr(model.criterion, "forward", lambda *a: seen.append(a[1]) or original(*a))
    model.on_train_batch_end(model.training_step(data, 0), data, 0)
    assert len(seen[0]) > 12
    assert set(seen[0][12:].tolist()) <= {1, 2}
    assert model.train_metrics["accuracy"]._update_count == 1
    assert int(model.train_metrics["balanced_accuracy"].confmat.sum()) == 12
    assert not [key for key in model.state_dict() if "generated" in key]


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"backbone": "squeezenet1_1", "head": "cosine"}, "ends in a convolution"),
        ({"backbone": "squeezenet1_1", "head": "knn"}, "ends in a convolution"),
        ({"backbone": "squeezenet1_1", "loss": GROUPS}, "ends in a convolution"),
        ({"head": "knn", "class_counts": [3, 1, 1]}, "model.neighbours=5 is more than the 4 training images"),
        ({"loss": {"name": "ldam", "class_weights": "none"}, "class_counts": None}, "needs class_counts"),
        ({"generate": True, "unfreeze": 1}, "give unfreeze=0"),
        ({"generate": True, "head": "knn"}, "give unfreeze=0 and head=linear"),
        ({"head": "coisne"}, "did you mean cosine"),
        ({"loss": {"class_weights": "inverse"}, "class_counts": None}, "needs class_counts"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(tiny_net: str, kwargs: dict, said: str) -> None:
    given = {"classes": CLASSES, "class_counts": [8, 2, 2], "image_size": 64, **kwargs}
    with pytest.raises(LabError, match=said):
        DefectClassifier(given.pop("backbone", tiny_net), weights=None, **given)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["attempt=longtail/rac", "model.neighbours=40"], "model.neighbours=40 is more than the"),
        (["attempt=longtail/rac,longtail/knn", "model.neighbours=40", "-m"], "model.neighbours=40 is more than the"),
        (["attempt=longtail/dac", "model.unfreeze=1"], "give model.unfreeze=0"),
        (["attempt=longtail/bags", "loss.bins=[5,1]"], "loss.bins=[5, 1] divides no counts"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    arguments: list[str], said: str, lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_product(tmp_path / "products/widget")
    assert lab(*arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("config.yaml"))


def test_what_must_know_the_images_says_so(tiny_net: str, product: Path, tmp_path: Path) -> None:
    data = MVTecDataModule(product, image_size=SIZE)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    for kwargs in ({"generate": True}, {"head": "knn"}):
        with pytest.raises(LabError, match="call learn"):
            trainer.fit(classifier(tiny_net, **kwargs), datamodule=data)


def test_margins_are_cosines_whatever_the_scale(tiny_net: str) -> None:
    model = classifier(tiny_net, loss={"name": "ldam", "class_weights": "none"}, head="cosine", scale=5.0)
    certain = torch.tensor([[-5.0, -5.0, 5.0]])  # 2.5 of margin leave 7.5 between them
    assert model.criterion(certain, torch.tensor([2])).item() == pytest.approx(2 * np.exp(-7.5), rel=0.01)


def test_few_generated_features_are_not_rounded_away() -> None:
    generated = Generated(torch.zeros(3, 16), torch.tensor([1, 1, 2]), 60, (), (), (), ())
    torch.manual_seed(0)
    drawn = [len(generated.join(torch.zeros(6, 16), torch.zeros(6).long())[1]) - 6 for _ in range(1000)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.05)


def test_nothing_is_said_to_train_that_does_not(tiny_net: str) -> None:
    assert not classifier(tiny_net, head="knn").trained_parameters
    alone, fused = (classifier(tiny_net, head=head) for head in ("retrieval", "fused"))
    head = sum(p.numel() for p in fused.model.head.parameters())
    assert sum(p.numel() for p in fused.trained_parameters) - sum(p.numel() for p in alone.trained_parameters) == head


def test_sampler_and_loss_that_both_balance_are_found(lab, tmp_path: Path) -> None:
    assert lab("attempt=longtail/logit_adjustment", "data.sampler=inverse", "hydra.run.dir=run") == 0
    warnings = RunResult.load(tmp_path / "run").warnings
    assert any("data.sampler=inverse and loss.name=logit_adjustment are both on" in w for w in warnings)
