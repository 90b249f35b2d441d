"""Facts that a method declares are true of its class and are read without torch; own methods run as the lab's do."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ONE_CLASS_METHODS, SIZE
from torch import Tensor

from mvtec_lab import load_model, problems, register_method
from mvtec_lab.errors import LabError
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.anomaly.base import AnomalyModel, Batches, Scores
from mvtec_lab.problems.anomaly.models import build_anomaly_model
from mvtec_lab.problems.base import Method, checked_options
from mvtec_lab.results import RunResult


def test_every_folder_is_a_method() -> None:
    assert set(METHODS.names()) >= {"classifier", *ONE_CLASS_METHODS}
    with pytest.raises(LabError, match="unknown method 'patchcor': did you mean patchcore"):
        _ = METHODS["patchcor"]


@pytest.mark.parametrize("name", ONE_CLASS_METHODS)
def test_a_method_is_what_its_class_is(name: str, tiny_net: str) -> None:
    method = METHODS[name]
    layers = {"layers": ["features.relu1", "features.relu2"]} if "layers" in method.options else {}
    model = build_anomaly_model(name, backbone=tiny_net, weights=None, **layers)
    assert model.method is method
    assert method.name == name
    assert (type(model).loss is not AnomalyModel.loss) == method.trains
    with pytest.raises(LabError, match="unknown backbone 'none'") if method.backbone else nullcontext():
        build_anomaly_model(name, backbone="none", weights=None, **layers)


class MeanImage(AnomalyModel):
    """Measure the distance of each pixel from the mean good image, as a method of somebody else might."""

    method = Method("mean_image", "anomaly", home=f"{__name__}:MeanImage", trains=False, draws=False, backbone=False)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register_buffer("expected", torch.zeros(0))

    def prepare(self, batches: Batches) -> None:
        self.expected = torch.cat(list(batches())).mean(0)

    def forward(self, images: Tensor) -> Scores:
        errors = (images - self.expected).square().mean(1)
        return Scores(errors.mean((1, 2)), errors)


class Idle(AnomalyModel):
    """Lack all that a method has."""


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Register a method; its name leaves with the test."""
    monkeypatch.setattr(METHODS, "_own", dict(METHODS._own))
    monkeypatch.setattr(problems, "REGISTERED", dict(problems.REGISTERED))
    return lambda method: METHODS.register(method.name, method)


def test_a_registered_method_is_run_and_loaded_as_any_other(own, lab, product: Path, tmp_path: Path) -> None:
    assert register_method(MeanImage) is MeanImage
    assert lab("attempt=patchcore", "model.method=mean_image", f"hydra.run.dir={tmp_path / 'run'}") == 0
    result = RunResult.load(tmp_path / "run")
    assert (result.method, result.backbone, result.epochs) == ("mean_image", "none", 0)
    assert result.metrics["test"]["pixel_auroc"] > 0.9
    model = load_model(tmp_path / "run/best.ckpt")
    assert isinstance(model.module, MeanImage)
    assert model.module.expected.shape == (3, SIZE, SIZE)


def test_the_method_on_the_page_of_one_s_own_runs(
    own, lab, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[1] / "docs/own.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "AnomalyModel" in block)
    (tmp_path / "my_method.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("my_method")
    monkeypatch.delitem(sys.modules, "my_method")
    settings = ("attempt=patchcore", "model.method=median_image")
    assert lab(*settings, "model.options.worst=0.05", f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert RunResult.load(tmp_path / "run").metrics["test"]["pixel_auroc"] > 0.9
    model = load_model(tmp_path / "run/best.ckpt")
    assert model.module.options == {"worst": 0.05}
    assert problems.class_of(module.METHOD, AnomalyModel) is type(model.module)
    assert lab(*settings, "model.options.worst=2", f"hydra.run.dir={tmp_path / 'other'}") == 2


@pytest.mark.parametrize(
    ("home", "trains", "says"),
    [
        ("no_such_package:Mine", False, "cannot be imported .*No module named 'no_such_package'"),
        (f"{__name__}:Nothing", False, "cannot be imported .*no attribute 'Nothing'"),
        (f"{__name__}:SIZE", False, "is no anomaly model: derive it from .*AnomalyModel"),
        (f"{__name__}:Idle", False, "has no method, forward, prepare: see AnomalyModel"),
        (f"{__name__}:MeanImage", True, "has no loss: see AnomalyModel"),
    ],
)
def test_a_registered_method_that_lacks_something_is_one_line(own, home: str, trains: bool, says: str) -> None:
    own(Method("mine", "anomaly", home=home, trains=trains))
    with pytest.raises(LabError, match=rf"^the method 'mine' \({home}\) {says}"):
        build_anomaly_model("mine")


def test_methods_are_known_without_torch() -> None:
    code = (
        "import sys; from mvtec_lab.problems import METHODS; [METHODS[n] for n in METHODS.names()]; "
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("patchcore", {"coreste": 0.1}, "unknown option of patchcore 'coreste': did you mean coreset"),
        ("rotation", {"coreset": 0.1}, "model.method=rotation has no options: leave out model.options.coreset"),
        ("patchcore", {"coreset": 0.0}, "model.options.coreset=0.0 is out of range: give a number above 0, up to 1"),
        ("patchcore", {"coreset": float("nan")}, "model.options.coreset=nan is out of range"),
        ("memae", {"slots": 1}, "model.options.slots=1 is out of range: give 2 to 100000"),
        ("nearest", {"neighbours": 2.5}, "model.options.neighbours=2.5 is not a whole number: good images"),
        ("padim", {"dimensions": True}, "model.options.dimensions=True is not a whole number"),
        ("spade", {"layers": "layer2"}, r"model.options.layers=layer2 is not names in brackets, \[a,b\]"),
        ("autoencoder", {"reconstruction": "l1"}, "unknown model.options.reconstruction 'l1': known are l2, ssim"),
    ],
)
def test_a_wrong_option_is_one_line(method: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(LabError, match=says):
        checked_options(METHODS[method], options)


def test_an_option_that_is_not_given_has_its_default() -> None:
    assert checked_options(METHODS["memae"], {"latent": None, "slots": 50}) == {
        "score": None,
        "latent": 64,
        "slots": 50,
    }
    assert checked_options(METHODS["patchcore"], {"coreset": 1}) == {"score": None, "layers": None, "coreset": 1}
