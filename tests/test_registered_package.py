"""A package that is installed from a folder adds a backbone, a loss, a metric and a method by entry points."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvtec_lab.evaluation.specs import METRICS
from mvtec_lab.models.backbones import BACKBONES
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.classification import LOSSES
from mvtec_lab.results import RunResult, read_csv

ROOT = Path(__file__).resolve().parents[1]
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "lab-extras"
version = "1.0"

[project.entry-points."mvtec_lab.backbones"]
own_net = "lab_extras.networks:OwnNet"
broken_net = "lab_extras.broken:Net"

[project.entry-points."mvtec_lab.losses"]
brier = "lab_extras.networks:brier"

[project.entry-points."mvtec_lab.methods"]
mean_image = "lab_extras:MEAN_IMAGE"
half_method = "lab_extras:HALF_METHOD"

[project.entry-points."mvtec_lab.metrics"]
sureness = "lab_extras.metrics:SURENESS"
"""
FILES = {
    "__init__.py": """
from mvtec_lab.problems.base import Method, Option

POWER = {"power": Option(int, "the power of the errors", default=2, least=1)}
MEAN_IMAGE = Method("mean_image", "anomaly", home="lab_extras.methods:MeanImage", trains=False, draws=False,
                    backbone=False, options=POWER)
HALF_METHOD = Method("half_method", "anomaly", home="lab_extras.methods:Half", trains=False, backbone=False)
""",
    "broken.py": "import a_library_that_nobody_has\n",
    "networks.py": """
import torch
from torch import nn

from mvtec_lab import register_backbone


@register_backbone("own_net", stages=["start", "rest"])
class OwnNet(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.start = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU())
        self.rest = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.rest(self.start(images)).mean((2, 3)))


def brier(logits, target, weight=None):
    shares = nn.functional.one_hot(target, logits.shape[1])
    return (logits.softmax(1) - shares).square().sum(1).mean()
""",
    "metrics.py": """
import numpy as np

from mvtec_lab.evaluation.specs import Metric


def confidences(rows):
    return np.array([max(float(row[key]) for key in row if key.startswith("prob_")) for row in rows])


SURENESS = Metric("sureness", "classification", "sureness", heading="sure", decides=True, of_images=confidences)
""",
    "methods.py": """
import torch

import lab_extras
from mvtec_lab.problems.anomaly.base import AnomalyModel, Scores


class MeanImage(AnomalyModel):
    method = lab_extras.MEAN_IMAGE

    def __init__(self, **settings):
        super().__init__(**settings)
        self.register_buffer("expected", torch.zeros(0))

    def prepare(self, batches):
        self.expected = torch.cat(list(batches())).mean(0)

    def forward(self, images):
        errors = (images - self.expected).abs().pow(self.options["power"]).mean(1)
        return Scores(errors.amax((1, 2)), errors)


class Half(AnomalyModel):
    method = lab_extras.HALF_METHOD
""",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed into."""
    source, target = tmp_path_factory.mktemp("lab-extras"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "lab_extras").mkdir()
    for name, text in FILES.items():
        (source / "lab_extras" / name).write_text(text)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", target, source]
    subprocess.run(list(map(str, command)), check=True, cwd=source, capture_output=True)
    return target


@pytest.fixture
def extras(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, on the path of this process until the test ends."""
    monkeypatch.syspath_prepend(installed)
    importlib.invalidate_caches()
    for table in (BACKBONES, LOSSES, METHODS, METRICS):
        monkeypatch.setattr(table, "_own", dict(table._own))
        monkeypatch.setattr(table, "_packages", None)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "lab_extras"]:
        del sys.modules[name]


OWN = ["attempt=base", "model.backbone=own_net", "loss.name=brier", "verdict.metric=sureness"]


@pytest.mark.slow
def test_a_run_with_a_backbone_loss_and_metric_of_a_package(extras, lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab(*OWN, "model.unfreeze=[rest]", "hydra.run.dir=run") == 0
    result = RunResult.load(tmp_path / "run")
    assert result.backbone == "own_net"
    rows = [row for row in read_csv(tmp_path / "run/predictions.csv") if row["split"] == "test"]
    mean = sum(max(float(row[f"prob_{name}"]) for name in ("good", "crack", "hole")) for row in rows) / len(rows)
    assert result.metrics["test"]["sureness"] == pytest.approx(mean)
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test/hole'}", "hydra.run.dir=out") == 0
    assert len(read_csv(tmp_path / "out/predictions.csv")) == 6
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=again") == 0
    again = json.loads((tmp_path / "again/metrics.json").read_text())
    assert again["metrics"]["test"]["sureness"] == pytest.approx(mean)


@pytest.mark.slow
def test_a_run_with_a_method_of_a_package(extras, lab, product: Path, tmp_path: Path) -> None:
    settings = ["model.method=mean_image", "split.protocol=one_class", "model.options.power=3"]
    given = ["data=folder", f"data.root={product}", "data.image_size=24", "trainer.accelerator=cpu", "cache.dir=null"]
    from mvtec_lab.cli import main

    assert main([*settings, *given, "hydra.run.dir=run"]) == 0
    result = RunResult.load(tmp_path / "run")
    assert (result.method, result.problem) == ("mean_image", "anomaly")
    assert result.metrics["test"]["image_auroc"] > 0.9
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test/hole'}", "hydra.run.dir=out") == 0
    assert {row["prediction"] for row in read_csv(tmp_path / "out/predictions.csv")} == {"defect"}
    assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=exported") == 0


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        (["model.backbone=broken_net"], r"'broken_net' of lab_extras.broken:Net (lab-extras) cannot be imported"),
        (["model.backbone=own_nett"], "unknown backbone 'own_nett': did you mean own_net, broken_net?"),
        (["loss.name=briar"], "unknown loss.name 'briar': did you mean brier?"),
        (["verdict.metric=surness"], "unknown verdict.metric 'surness': did you mean sureness?"),
        (
            ["model.method=mean_image", "split.protocol=one_class", "model.options.pover=3"],
            "unknown option of mean_image 'pover': did you mean power?",
        ),
        (
            ["model.method=half_method", "split.protocol=one_class"],
            "the method 'half_method' (lab_extras.methods:Half) has no forward, prepare: see AnomalyModel",
        ),
    ],
)
def test_mistakes_are_answered_with_one_line(
    settings: list[str], answer: str, extras, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    from mvtec_lab.cli import main

    monkeypatch.chdir(tmp_path)
    given = ["data=folder", f"data.root={product}", "data.image_size=24", "trainer.accelerator=cpu", "cache.dir=null"]
    assert main([*settings, *given, "hydra.run.dir=run"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert answer in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_sweep_in_other_processes_knows_the_package(installed: Path, product: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    path = os.pathsep.join(map(str, (ROOT, installed)))
    given = ["data=folder", f"data.root={product}", "data.image_size=24", "trainer.accelerator=cpu", "cache.dir=null"]
    command = [sys.executable, "-m", "mvtec_lab", "-m", *OWN, "seed=0,1", "trainer.max_epochs=2", "model.weights=null"]
    command += [*given, "hydra/launcher=parallel", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = read_csv(tmp_path / "sweep/summary.csv")
    assert [row["failed"] for row in rows] == ["0"]
    assert 0 < float(rows[0]["test_sureness"]) < 1
