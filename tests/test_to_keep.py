"""``split.test=0``: the model to keep of an attempt that a cross-validation has chosen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvtec_lab.results import RunResult

SAID = "no image is tested (split.test=0)"
RECIPE = ("model.method=descriptors", "model.options.layers=[features.relu1,features.relu2]", "model.options.views=1")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [(), (*RECIPE, "model.options.parts=[global]")], ids=["network", "recipe"])
def test_a_model_to_keep_learns_what_would_be_tested_and_says_so(
    settings: tuple[str, ...], lab, product: Path, tmp_path: Path, capsys
) -> None:
    assert lab("-m", *settings, "attempt=base", "split.test=0", "hydra.sweep.dir=sweep") == 0
    printed = capsys.readouterr().out
    assert "has no test accuracy" in printed
    assert "Untested" in printed
    assert SAID in " ".join(printed.split())
    run = RunResult.load(tmp_path / "sweep/base")
    assert run.untested
    assert "test" not in run.metrics
    images = len([*product.glob("test/*/*.png")])
    assert sum(sum(run.counts[split].values()) for split in ("train", "val")) == images
    assert run.metrics["val"]["images"] == (images if settings else sum(run.counts["val"].values()))
    report = (tmp_path / "sweep/report.html").read_text(encoding="utf-8")
    assert "no test images" in report
    assert SAID in report
    source = product / "test/crack/000.png"
    assert lab("task=predict", "ckpt=sweep", f"source={source}", "hydra.run.dir=new") == 0
    assert "no image has tested this model" in capsys.readouterr().out
    assert lab("task=evaluate", "ckpt=sweep", "hydra.run.dir=own") == 2
    assert "split.protocol=test_only" in capsys.readouterr().err
    new = ("data=folder", f"data.root={product}", "data.masks=optional", "split.protocol=test_only")
    assert lab("task=evaluate", "ckpt=sweep", *new, "hydra.run.dir=judged") == 0
    assert f"{images} of these images trained" in "".join(capsys.readouterr()) or not settings
    assert json.loads((tmp_path / "judged/metrics.json").read_text())["metrics"]["test"]["images"] == images


def test_what_needs_test_images_says_so(lab, product: Path, tmp_path: Path, capsys) -> None:
    said = {
        ("attempt=patchcore",): "it learns from no image of test/",
        ("attempt=segment/fpn",): "give a small share, split.test=0.05",
        ("split.val_is_test=true",): "leaves no image that validates",
        ("split.test=-0.1",): "split.test",
        ("split.protocol=kfold",): "split.test=0.0 does nothing for split.protocol=kfold",
        ("task=predict", "ckpt=run", "source=."): "split.test=0.0 does nothing for task=predict: leave it out",
    }
    for settings, line in said.items():
        assert lab("split.test=0" if "split.test" not in settings[0] else "seed=0", *settings, "hydra.run.dir=run") == 2
        assert line in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_model_to_keep_stands_beside_what_was_tested(lab, tmp_path: Path, capsys) -> None:
    """The others are compared and named; it is a row of its own, and a sentence."""
    assert lab("-m", "attempt=base,cosine", "cv.folds=3", "trainer.max_epochs=1", "hydra.sweep.dir=sweep") == 0
    assert lab("attempt=base", "split.test=0", "trainer.max_epochs=1", "hydra.run.dir=final") == 0
    capsys.readouterr()
    assert lab("task=compare", "dirs=[sweep,final]", "hydra.run.dir=both") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "No single attempt can be named" not in printed
    assert "Without test images (split.test=0), and so not compared: base split.test=0." in printed
    both, alone = (json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("both", "sweep"))
    assert both["best"] == alone["best"]
    assert both["headline"] == alone["headline"]
    assert both["pairs"] == alone["pairs"]
    names = [attempt["attempt"] for attempt in both["attempts"]]
    assert sorted(names) == ["base", "base split.test=0", "cosine"]
