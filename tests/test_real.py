"""Real MVTec images, where they are at hand: MVTEC_ROOT, or a folder shared/mvtec beside the checkout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mvtec_lab.cli import main
from mvtec_lab.data.catalogue import CATEGORIES
from mvtec_lab.results import RunResult

ROOT = Path(os.environ.get("MVTEC_ROOT") or Path(__file__).resolve().parents[2] / "shared" / "mvtec")
pytestmark = [pytest.mark.mvtec, pytest.mark.skipif(not (ROOT / "bottle").is_dir(), reason="no MVTec images at hand")]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_bottle_is_described_as_published(tmp_path: Path) -> None:
    assert main(["task=describe", "data=mvtec", f"data.root={ROOT}", "data.category=bottle", "hydra.run.dir=run"]) == 0
    facts = json.loads((tmp_path / "run" / "dataset.json").read_text())
    bottle = CATEGORIES["bottle"]
    assert facts["found"] == facts["official"]
    assert facts["found"]["train/good"] == bottle.train
    assert facts["num_classes"] == 4
    assert facts["dimensions"] == [{"width": 900, "height": 900, "mode": "RGB", "images": 209 + 83}]
    assert 0 < facts["mask_coverage"]["broken_small"]["mean"] < facts["mask_coverage"]["broken_large"]["mean"] < 1


@pytest.mark.slow
def test_a_run_on_bottle_is_the_same_twice(tmp_path: Path) -> None:
    common = ["attempt=all_of_them", "data=mvtec", f"data.root={ROOT}", "data.category=bottle", "data.image_size=64"]
    common += ["model.backbone=shufflenet_v2_x0_5", "model.weights=null", "trainer.max_epochs=2"]
    assert main([*common, "hydra.run.dir=one"]) == 0
    assert main([*common, "hydra.run.dir=two", "data.num_workers=2"]) == 0
    one, two = (RunResult.load(tmp_path / name) for name in ("one", "two"))
    assert one.metrics == two.metrics
    assert one.metrics["test"]["images"] == 16
