"""A run's images stay its own: a sweep, a resumed run and an evaluation notice files that are gone, new or changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import write_product
from PIL import Image, ImageOps

from mvtec_lab.cli import main
from mvtec_lab.problems.classification.problem import Classification
from mvtec_lab.results import RunResult, read_csv

LAYERS = "model.options.layers=[features.relu1,features.relu2]"


def lose_a_class(product: Path) -> str:
    shutil.rmtree(product / "test/hole")
    shutil.rmtree(product / "ground_truth/hole")
    return "test/hole/000.png is gone"


def change_an_image(product: Path) -> str:
    change(product / "test/hole/002.png")
    return "test/hole/002.png has changed"


def change(path: Path) -> None:
    ImageOps.invert(Image.open(path)).save(path)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lose_a_class, change_an_image])
def test_a_sweep_trains_on_the_files_that_its_check_found(damage, lab, product, tmp_path, monkeypatch, capsys) -> None:
    said, judge = [], Classification.judge

    def judge_and_damage(*arguments):
        judgement = judge(*arguments)
        said.append(damage(product))
        return judgement

    monkeypatch.setattr(Classification, "judge", staticmethod(judge_and_damage))
    assert lab("-m", "attempt=base,cosine", "trainer.max_epochs=1", "cache.dir=null", "hydra.sweep.dir=s") != 0
    assert len(said) == 1
    assert RunResult.load(tmp_path / "s/base").completed
    second = RunResult.load(tmp_path / "s/cosine")
    assert not second.completed
    assert f"{product} holds other files than when this sweep was checked: {said[0]}" in (second.error or "")
    assert capsys.readouterr().err.count("error: ") == 1


def test_samples_csv_lists_digests_and_result_json_absolute_paths(lab, product: Path, tmp_path: Path) -> None:
    assert lab("data.root=products/widget", "trainer.max_epochs=1", "hydra.run.dir=run") == 0
    assert "root: products/widget" in (tmp_path / "run/config.yaml").read_text()
    assert RunResult.load(tmp_path / "run").paths == {"data.root": str(product)}
    rows = {row["path"]: row for row in read_csv(tmp_path / "run/samples.csv")}
    digests = {row["digest"] for row in rows.values() if row["split"]}
    assert {len(digest) for digest in digests} == {32}
    assert len(digests) == 22
    assert rows["train/good/000.png"]["digest"] == ""  # takes no part: not read
    assert len(rows["test/hole/000.png"]["mask_digest"]) == 32


@pytest.fixture(params=["finetune", "patchcore"])
def ckpt(request, lab, product: Path, tmp_path: Path) -> Path:
    """A run that was given its data by a relative path."""
    more = [LAYERS] if request.param == "patchcore" else ["trainer.max_epochs=1"]
    assert lab(f"attempt={request.param}", "data.root=products/widget", *more, "hydra.run.dir=run") == 0
    return tmp_path / "run/best.ckpt"


def evaluate(ckpt: Path, *arguments: str) -> int:
    return main(["task=evaluate", f"ckpt={ckpt}", *arguments])


@pytest.mark.slow
def test_a_class_that_is_gone_is_named_by_its_files(ckpt: Path, product: Path, capsys) -> None:
    gone = lose_a_class(product)
    assert evaluate(ckpt, "hydra.run.dir=judged") == 2
    said = capsys.readouterr().err
    assert f"holds other files than the run of {ckpt}: {gone}" in said
    assert "restore them" in said


@pytest.mark.slow
def test_a_run_is_evaluated_on_its_own_images(ckpt: Path, product: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_product(elsewhere / "products/widget", {"good": 6, "crack": 4, "hole": 4})  # the same words, other images
    monkeypatch.chdir(elsewhere)
    assert evaluate(ckpt, "hydra.run.dir=judged") == 0
    known = {(row["split"], row["path"], row["prediction"]) for row in read_csv(tmp_path / "run/predictions.csv")}
    judged = {(row["split"], row["path"], row["prediction"]) for row in read_csv(elsewhere / "judged/predictions.csv")}
    assert judged == {row for row in known if "good" not in row[1] or row[1].startswith("test/")}
    capsys.readouterr()

    change(product / "test/crack/001.png")
    assert evaluate(ckpt, "hydra.run.dir=changed") == 2
    error = capsys.readouterr().err
    assert f"{product} holds other files than the run of {ckpt}: test/crack/001.png has changed: restore them" in error
    assert error.count("\n") == 1
    assert not (elsewhere / "changed").exists()
    assert evaluate(ckpt, f"data.root={product}", "hydra.run.dir=asked_for") == 0

    product.rename(tmp_path / "products/moved")
    assert evaluate(ckpt, "hydra.run.dir=lost") == 2  # the other folder of that name is not the run's
    assert "holds other files than the run" in capsys.readouterr().err


def test_images_that_trained_are_known_wherever_they_lie(lab, product: Path, tmp_path: Path) -> None:
    assert lab("attempt=finetune", "trainer.max_epochs=1", "hydra.run.dir=run") == 0
    product.rename(tmp_path / "moved")
    settings = [f"data.root={tmp_path / 'moved'}", "split.seed=1", "hydra.run.dir=judged"]
    assert evaluate(tmp_path / "run/best.ckpt", *settings) == 0
    warnings = json.loads((tmp_path / "judged/metrics.json").read_text())["warnings"]
    assert any("trained this checkpoint" in warning for warning in warnings)


@pytest.mark.slow
def test_a_checkpoint_alone_is_not_judged_on_the_sample(ckpt: Path, product: Path, tmp_path: Path, capsys) -> None:
    alone = tmp_path / "alone/best.ckpt"
    alone.parent.mkdir()
    shutil.copy(ckpt, alone)
    capsys.readouterr()
    assert evaluate(alone, "hydra.run.dir=judged") == 2
    error = capsys.readouterr().err
    assert "alone/best.ckpt has no config.yaml of its run beside it" in error
    assert "give data=" in error
    assert not (tmp_path / "judged").exists()
    assert evaluate(alone, "data=folder", f"data.root={product}", "hydra.run.dir=judged") == 0
