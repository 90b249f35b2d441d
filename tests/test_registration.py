"""Names that users add in Python, and those of installed packages."""

from __future__ import annotations

import importlib.metadata
import runpy
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from conftest import write_product
from torch import Tensor, nn

from mvtec_lab import compose, load_model, problems, register_backbone, register_loss
from mvtec_lab.errors import LabError
from mvtec_lab.models.backbones import BACKBONES, build, names, stages
from mvtec_lab.models.weights import load_weights
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.classification import LOSSES
from mvtec_lab.problems.classification.losses import Criterion
from mvtec_lab.registry import Registry


@pytest.fixture(autouse=True)
def _names_leave_with_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (BACKBONES, LOSSES):
        monkeypatch.setattr(table, "_own", dict(table._own))


class Mine(nn.Module):
    """Two parts and a head, none of which has TorchVision's name."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())
        self.top = nn.Conv2d(4, 8, 3, stride=2)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.top(self.body(images)).mean((2, 3)))


def test_a_backbone_registered_in_python() -> None:
    assert register_backbone("mine", stages=["body.0", "body.1", "top"])(Mine) is Mine
    assert "mine" in names()
    original = Mine().eval()
    model = build("mine", 3, weights=original.state_dict()).eval()
    assert stages(model) == ["body_0", "body_1", "top"]
    model.get_submodule("head")[-1].load_state_dict({k: v[:3] for k, v in original.head.state_dict().items()})  # type: ignore[index]
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images), original(images)[:, :3])
    assert load_weights("mine", None).name == "random"


@pytest.mark.parametrize(
    ("parts", "answer"),
    [
        (["body"], "Mine is not just features"),  # the order is checked by running both
        (["body", "tip"], "the backbone 'mine' declares stages that its network does not have: .*tip"),
        ([], "Mine is not just features"),
    ],
)
def test_stages_that_are_not_the_network_s(parts: list[str], answer: str) -> None:
    register_backbone("mine", stages=parts)(type("Mine", (Mine,), {}))
    with pytest.raises(LabError, match=answer):
        build("mine", 3)


def test_a_builder_that_needs_arguments() -> None:
    register_backbone("mine")(lambda depth: Mine())
    with pytest.raises(LabError, match=r"'mine' cannot be built: TypeError: .*depth"):
        build("mine", 3)


def test_a_loss_registered_in_python() -> None:
    @register_loss("brier")
    def brier(logits: Tensor, target: Tensor, weight: Tensor | None = None, *, gamma: float = 1.0) -> Tensor:
        shares = nn.functional.one_hot(target, logits.shape[1])
        return gamma * (logits.softmax(1) - shares).square().sum(1).mean()

    loss = Criterion("brier", 2, gamma=2.0)(torch.zeros(1, 2), torch.tensor([0]))
    assert loss.item() == pytest.approx(1.0)
    with pytest.raises(LabError, match="unknown option of loss brier 'gama': did you mean gamma"):
        Criterion("brier", 2, gama=2.0)
    assert compose("loss.name=brier", "loss.gamma=2").loss.gamma == 2  # as a loss of the lab's own that takes it
    with pytest.raises(LabError, match=r"loss\.margin=1\.0 does nothing for loss\.name=brier"):
        compose("loss.name=brier", "loss.margin=1")


def test_two_registrations_of_one_name() -> None:
    register_backbone("mine")(Mine)
    register_backbone("mine")(Mine)  # a module that is imported twice
    with pytest.raises(LabError, match=r"two registrations of the backbone 'mine': .*Mine and .*<lambda>: give one"):
        register_backbone("mine")(lambda: Mine())
    with pytest.raises(LabError, match="two registrations of the backbone 'resnet18': TorchVision has one"):
        register_backbone("resnet18")(Mine)
    with pytest.raises(LabError, match=r"two registrations of the loss 'focal': .*losses:focal and .*Mine"):
        register_loss("focal")(Mine)


def points(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    found = [EntryPoint("mine", value, "mvtec_lab.backbones") for value in values]
    listed = {"mvtec_lab.backbones": found}
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: listed.get(group, []))


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        (
            ["nowhere:Mine"],
            r"'mine' of nowhere:Mine .* cannot be imported \(ModuleNotFoundError.*: repair or uninstall",
        ),
        (["math:none"], r"'mine' of math:none .* cannot be imported \(AttributeError"),
        (["math:pi"], r"the backbone 'mine' \(3.14\d*\) is not callable"),
        (["a:Mine", "b:Mine"], r"two registrations of the backbone 'mine': a:Mine .* and b:Mine .*: uninstall one"),
    ],
)
def test_a_package_s_mistakes(values: list[str], answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, *values)
    with pytest.raises(LabError, match=answer) as caught:
        Registry("backbone", require=["__call__"])["mine"]
    assert "\n" not in str(caught.value)


def test_a_name_may_be_registered_in_the_module_of_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, f"{__name__}:Mine")
    table: Registry = Registry("backbone", {"own": "math:pi"})
    assert table.register("mine", Mine) is Mine
    assert table.names() == ["mine", "own"]


def test_a_value_must_have_what_its_kind_needs() -> None:
    table: Registry = Registry("method", require=["prepare", "forward"])
    with pytest.raises(LabError, match=r"the method 'mine' \(.*Mine\) has no prepare"):
        table.register("mine", Mine)
    with pytest.raises(LabError, match="unknown method 'mine'"):
        table["mine"]


SCRIPT = """
import sys
from mvtec_lab import register_method
from mvtec_lab.cli import main
from mvtec_lab.problems.anomaly.base import AnomalyModel, Scores
from mvtec_lab.problems.base import Method


@register_method
class MeanImage(AnomalyModel):
    method = Method("mean_image", "anomaly", home="script:MeanImage", trains=False, draws=False, backbone=False)

    def __init__(self, **settings):
        super().__init__(**settings)
        self.register_buffer("mean_image", __import__("torch").zeros(1))

    def prepare(self, batches):
        self.mean_image = sum(images.sum(0) for images in batches()) / sum(len(images) for images in batches())

    def forward(self, images):
        maps = (images - self.mean_image).abs().mean(1)
        return Scores(maps.amax((1, 2)), maps)


sys.exit(main(sys.argv[1:]))
"""


def test_a_script_registers_a_method_under_its_own_name(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_product(product, train_good=12)
    (tmp_path / "script.py").write_text(SCRIPT)
    data = ["data=folder", f"data.root={product}", "data.image_size=24", "cache.dir=null", "trainer.accelerator=cpu"]
    settings = ["attempt=patchcore", "model.method=mean_image", "data.masks=optional"]
    with monkeypatch.context() as patch:  # as in a process of its own, whose end takes the name with it
        patch.chdir(tmp_path)
        patch.setattr(sys, "argv", ["script.py", *settings, *data, "hydra.run.dir=run"])
        patch.setattr(METHODS, "_own", dict(METHODS._own))
        patch.setattr(problems, "REGISTERED", {})
        with pytest.raises(SystemExit, match="0"):
            runpy.run_path("script.py", run_name="__main__")
    with pytest.raises(LabError, match="method 'mean_image', which is not registered here: run the script"):
        load_model(tmp_path / "run/best.ckpt")
