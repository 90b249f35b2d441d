"""Backbones of timm, in stages by timm's own groups."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import others_slow
from timm.models._registry import _model_entrypoints
from torch import nn

from mvtec_lab.errors import LabError
from mvtec_lab.models import weights
from mvtec_lab.models.backbones import build, check_image_size, stages
from mvtec_lab.models.names import look, timm_names
from mvtec_lab.models.weights import IMAGENET_MEAN, WeightsUnavailable, load_weights, normalisation
from mvtec_lab.results import RunResult

NETWORKS = {
    "resnet18": 5,
    "mobilenetv3_small_050": 8,  # the last one is the neck behind the pooling
    "convnext_atto": 6,
    "vit_tiny_patch16_224": 13,
    "swin_tiny_patch4_window7_224": 5,
    "densenet121": 5,
}


@pytest.mark.parametrize("name", others_slow(NETWORKS, "mobilenetv3_small_050", "vit_tiny_patch16_224"))
def test_a_network_is_the_same_function_in_stages(name: str) -> None:
    torch.manual_seed(0)
    original = timm.create_model(name, num_classes=7).eval()
    model = build(f"timm/{name}", 7, weights=original.state_dict()).eval()
    assert len(stages(model)) == NETWORKS[name]
    last = [child for child in model.get_submodule("head").modules() if isinstance(child, nn.Linear)][-1]
    last.load_state_dict(original.get_classifier().state_dict())
    values = images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        for child in model:
            values = child(values)
        torch.testing.assert_close(values, original(images), rtol=1e-4, atol=1e-5)
    counts = [sum(p.numel() for p in network.parameters()) for network in (model, original)]
    assert counts[0] == counts[1]


def test_names_are_known_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timm_names() == frozenset(_model_entrypoints)
    for name in ("timm/resnet18", "timm/resnet50.a1_in1k", "timm/tv_resnext50_32x4d"):
        look(name, "DEFAULT", 99)  # how many stages it has, timm alone knows
    with pytest.raises(LabError, match="unknown backbone 'timm/resnet81': did you mean timm/resnet18"):
        look("timm/resnet81", "DEFAULT")
    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.setattr("mvtec_lab.models.names.find_spec", lambda _: None)
    with pytest.raises(
        LabError, match=r'timm/resnet18 needs timm, which is not installed: pip install "mvtec_lab\[timm'
    ):
        look("timm/resnet18", "DEFAULT")


def test_normalisation_and_size_are_those_of_timm() -> None:
    assert normalisation("timm/vit_tiny_patch16_224", "DEFAULT")[0] == (0.5, 0.5, 0.5)
    assert normalisation("timm/resnet18", "DEFAULT")[0] == IMAGENET_MEAN
    with pytest.raises(LabError, match=r"data.image_size=128 does not fit timm/vit_tiny_patch16_224: give .*=224"):
        check_image_size("timm/vit_tiny_patch16_224", 128)


def test_weights_come_from_a_file_or_from_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, original = "timm/mobilenetv3_small_050", timm.create_model("mobilenetv3_small_050", num_classes=3)
    torch.save(original.state_dict(), tmp_path / "mine.pth")
    loaded = load_weights(name, str(tmp_path / "mine.pth"))
    assert torch.equal(build(name, 5, weights=loaded.state_dict).stage1[0].weight, original.conv_stem.weight)  # type: ignore[index, union-attr]
    monkeypatch.setattr(weights, "_unreachable", {name: "no network"})
    with pytest.raises(WeightsUnavailable, match=rf"weights of {name} cannot be fetched \(no network\): give"):
        load_weights(name, "DEFAULT")
    monkeypatch.setattr(weights, "_unreachable", {})
    monkeypatch.setattr(weights, "builder", lambda _: lambda pretrained=False: original)
    assert load_weights(name, "DEFAULT").name == "lamb_in1k"


def test_what_cannot_be_used_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="unknown backbone 'timm/resnet81': did you mean timm/resnet18"):
        build("timm/resnet81", 2)
    with pytest.raises(LabError, match="timm/efficientformer_l1 does not run its modules one after the other"):
        build("timm/efficientformer_l1", 2)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(LabError, match=r'timm/resnet18 needs timm .*: pip install "mvtec_lab\[timm\]"'):
        build("timm/resnet18", 2)


def test_a_run_and_its_checkpoint(lab, product: Path, tmp_path: Path) -> None:
    settings = ["model.backbone=timm/mobilenetv3_small_050", "data.image_size=32", "trainer.max_epochs=1"]
    assert lab("attempt=base", *settings, "hydra.run.dir=run") == 0
    result = RunResult.load(tmp_path / "run")
    assert result.backbone == "timm/mobilenetv3_small_050"
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test/hole'}", "hydra.run.dir=out") == 0
