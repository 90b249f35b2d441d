"""The lab's own recipe: what parts see, what the memory finds, and runs of model.method=descriptors."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import write_product
from PIL import Image

from mvtec_lab.errors import LabError
from mvtec_lab.models import maps
from mvtec_lab.problems.classification.methods.descriptors.fitting import _by_content
from mvtec_lab.problems.classification.methods.descriptors.heads import HEADS, deal, fit_head
from mvtec_lab.problems.classification.methods.descriptors.maps import Seen
from mvtec_lab.problems.classification.methods.descriptors.masks import Masks
from mvtec_lab.problems.classification.methods.descriptors.memory import Memory
from mvtec_lab.problems.classification.methods.descriptors.parts import (
    Anomaly,
    Block,
    Local,
    Residual,
    Setting,
    Where,
    pooled,
)
from mvtec_lab.results import PREDICTIONS

SIDE, WIDTHS = 6, (3, 5)
SETTINGS = ("model.method=descriptors", "model.options.layers=[features.relu1,features.relu2]", "model.options.views=2")


def remembered(images: int = 8, shown: torch.Tensor | None = None) -> tuple[Memory, torch.Tensor]:
    """Return a memory of good images, each with values of its own in every cell, and their patches."""
    patches = torch.from_numpy(np.random.default_rng(0).normal(size=(images, SIDE**2, sum(WIDTHS)))).float()
    memory = Memory(WIDTHS, SIDE, images)
    visible = torch.ones(SIDE**2) if shown is None else shown
    memory.learn(((each, visible) for each in patches), range(images))
    return memory, patches


def seen(patches: torch.Tensor, memory: Memory) -> Seen:
    return Seen(list(patches.T.view(1, -1, SIDE, SIDE).split(WIDTHS, 1)), memory)


def test_a_good_patch_in_a_wrong_place_is_near_anywhere_and_far_in_place():
    memory, patches = remembered()
    moved = patches[0].clone()
    moved[0] = patches[1, -1]  # from the opposite corner
    image = seen(moved, memory)
    assert image.free.max() < 0.02  # half precision
    assert image.local[0] > 0.2
    assert image.local[1:].max() < 0.02


def test_a_backbone_without_maps_is_answered_with_those_that_work(monkeypatch: pytest.MonkeyPatch):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 224 * 224, 2))
    monkeypatch.setattr(maps, "_random", lambda backbone: network)
    monkeypatch.setattr(maps, "_nodes", lambda backbone: ["0", "1"])
    with pytest.raises(LabError, match="vit has no map with cells of 8 pixels: give a convolutional backbone"):
        maps._last("vit", (8, 16, 32))


def test_padding_has_no_part():
    shown = torch.ones(SIDE, SIDE)
    shown[:2] = 0
    memory, patches = remembered(shown=shown.flatten())
    loud = patches[0].clone()
    loud[: 2 * SIDE] = 1e3
    pixels = shown[None].repeat_interleave(4, 1).repeat_interleave(4, 2) > 0
    setting = Setting(["good", "crack"], WIDTHS, SIDE)
    for part in (Anomaly(setting), Residual(setting), Local(setting), Where(setting)):
        rows = [
            part.rows(Seen(list(each.T.view(1, -1, SIDE, SIDE).split(WIDTHS, 1)), memory, pixels))
            for each in (patches[0], loud)
        ]
        torch.testing.assert_close(*rows)
        assert len(rows[0]) == sum(block.width for block in part.blocks)


def test_parts_look_where_an_image_is_unlike_good_ones():
    memory, patches = remembered()
    defect = patches[0].clone()
    defect[7] += 40
    image = seen(defect, memory)
    setting = Setting(["good", "crack"], WIDTHS, SIDE)
    torch.testing.assert_close(Anomaly(setting).rows(image), image.patches[7], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(Residual(setting).rows(image), image.away[7], rtol=1e-2, atol=1e-2)
    small, wide = (Where(setting).rows(seen(each, memory)) for each in (defect, patches[0] + 40))
    ranks = Where(setting)._ranks
    assert small[0] == pytest.approx(float(image.local[7].log()), abs=1e-4)
    assert (small[ranks : ranks + 4] < wide[ranks : ranks + 4]).all()  # one cell, and all of them
    assert small[-SIDE * SIDE :].argmax() == 7


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_does_not_see_what_its_inner_folds_leave_out(kind: str):
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    rows = rng.normal(size=(30, 40)) + 4 * np.eye(40)[labels]
    groups = [place // 3 for place in range(30)]
    asked: list[tuple[np.ndarray, np.ndarray]] = []

    def given(fitting: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append((fitting, others))
        return rows[fitting], rows[others]

    fitted = fit_head(kind, given, [Block(30), Block(10, 0.5)], labels, deal(labels, groups))
    assert fitted.chosen
    assert (fitted.layer(rows).argmax(1) == labels).all()
    np.testing.assert_allclose(fitted.probabilities.sum(1), 1)
    tested = np.concatenate([others for _, others in asked])
    assert sorted(tested) == list(range(30))  # each image once
    for fitting, others in asked:
        assert not {groups[place] for place in fitting} & {groups[place] for place in others}


@pytest.mark.parametrize("kind", HEADS)
def test_identical_images_are_all_as_likely_of_each_class(kind: str):
    labels, rows = np.arange(12) % 3, np.ones((12, 5))
    fitted = fit_head(kind, lambda a, b: (rows[a], rows[b]), [Block(5)], labels, np.arange(12) % 4)
    logits = fitted.layer(rows)
    np.testing.assert_allclose(logits - logits.mean(1, keepdims=True), 0, atol=1e-9)


def test_noise_is_not_told_apart_by_out_of_fold_predictions():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    rows = rng.normal(size=(60, 200))
    fitted = fit_head("logistic", lambda a, b: (rows[a], rows[b]), [Block(200)], labels, deal(labels, range(60)))
    assert (fitted.layer(rows).argmax(1) == labels).mean() == 1  # what it was fitted on says nothing
    assert 0.25 < (fitted.probabilities.argmax(1) == labels).mean() < 0.75


def test_the_only_image_of_a_class_is_left_out_of_no_fold():
    labels = np.array([0] * 7 + [1])
    folds = deal(labels, range(8))
    assert folds[-1] == -1
    assert sorted(folds[:7]) == [0, 0, 1, 1, 2, 3, 4]


def predictions(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / PREDICTIONS).open() as file:
        return {row["path"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_run_is_judged_evaluated_and_predicts_alike(lab, product: Path, tmp_path: Path, capsys):
    parts = "model.options.parts=[global,anomaly,residual,local,where]"
    assert lab(*SETTINGS, parts, "hydra.run.dir=run") == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["metrics"]["test"]["balanced_accuracy"] > 0.6  # random weights, 14 + 4 images
    assert result["decided"]["memory"] == "4 of 4 good images"
    assert (tmp_path / "run/best.ckpt").stat().st_size < 8e6
    rows = predictions(tmp_path / "run")
    assert lab(*SETTINGS, parts, "hydra.run.dir=plain", "cache.dir=null") == 0
    assert predictions(tmp_path / "plain") == rows
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged") == 0
    judged = predictions(tmp_path / "judged")
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test'}", "hydra.run.dir=new") == 0
    assert "not guaranteed: the 18 held-out images were judged by inner folds, whose models" in capsys.readouterr().out
    new = {"test/" + path.split("test/")[-1]: row for path, row in predictions(tmp_path / "new").items()}
    for path, row in rows.items():
        if row["split"] == "test":
            assert float(judged[path]["prob_crack"]) == pytest.approx(float(row["prob_crack"]), abs=1e-5)
            assert float(new[path]["prob_crack"]) == pytest.approx(float(row["prob_crack"]), abs=1e-5)


def test_validation_is_judged_by_models_that_have_not_seen_it(lab, tmp_path: Path):
    """The model itself was fitted on these images: its own word on them would be far too good."""
    from mvtec_lab import load_model

    assert lab(*SETTINGS, "model.options.parts=[global]", "hydra.run.dir=run") == 0
    model = load_model(tmp_path / "run/best.ckpt")
    held_out, column = model.module.hparams["held_out"], 1 + model.classes.index("crack")
    assert len(held_out) == 14 + 4
    rows = [row for row in predictions(tmp_path / "run").values() if row["split"] == "val"]
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["validates_by"] == "inner folds"
    assert len(rows) == result["metrics"]["val"]["images"] == 14 + 4  # training images validate as well
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert result["metrics"]["val"]["accuracy"] == pytest.approx(right / 18)
    assert not any("val" in line.split() for line in result["warnings"])  # four images of val are no small validation
    learnt = {name: sum(result["counts"][split][name] for split in ("train", "val")) for name in result["classes"]}
    assert result["sets"]["held_out"] == learnt  # all of them choose the sets, by the inner folds' word on them
    own = sorted((values[column] for (values,) in held_out.values() if values[0] == column - 1), reverse=True)
    assert len(own) == learnt["crack"] < 9
    assert result["sets"]["least"]["crack"] == pytest.approx(own[-1])  # the least of all, as alpha is 1 / (n + 1)
    for row in rows:
        assert any(
            values[column] == pytest.approx(float(row["prob_crack"]), abs=1e-5) for (values,) in held_out.values()
        )


def test_training_that_is_thinned_out_validates_by_inner_folds_beside_val(lab, product: Path, tmp_path: Path, capsys):
    """What was thinned out is not learnt back from val: its images are new to the model, and validate as they are."""
    settings, both = (*SETTINGS, "model.options.parts=[global]", "data.imbalance=2"), "the model itself and inner folds"
    assert lab(*settings, "hydra.run.dir=run") == 0
    assert f"validation by {both}" in " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "run/result.json").read_text())
    learnt, val = (sum(result["counts"][split].values()) for split in ("train", "val"))
    assert learnt < 14
    assert result["metrics"]["val"]["images"] == learnt + val
    assert sum(result["sets"]["held_out"].values()) == learnt + val
    rows = {path: row for path, row in predictions(tmp_path / "run").items() if row["split"] == "val"}
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "data.imbalance=2", "hydra.run.dir=judged") == 0
    assert f"val, {both}" in capsys.readouterr().out
    judged = {path: row for path, row in predictions(tmp_path / "judged").items() if row["split"] == "val"}
    for path, row in rows.items():
        assert float(judged[path]["prob_crack"]) == pytest.approx(float(row["prob_crack"]), abs=1e-5)
    assert result["validates_by"] == both
    assert lab("task=predict", "ckpt=run", f"source={product}", "hydra.run.dir=new") == 0
    assert f"held-out images were judged by {both}" in " ".join(capsys.readouterr().out.split())
    others = write_product(tmp_path / "monday/widget", {"good": 5, "crack": 5, "hole": 5}, size=26)
    assert lab("task=evaluate", "ckpt=run", f"data.root={others}", "hydra.run.dir=others") == 0
    assert "inner folds" not in capsys.readouterr().out  # they have judged none of these images


@pytest.mark.slow
def test_the_names_of_the_files_do_not_matter(lab, product: Path, tmp_path: Path):
    """Which good images are remembered and how inner folds are dealt depends on what the files hold."""
    parts = ("model.options.parts=[global,local]", "model.options.memory=2", "split.protocol=file")
    with (product / "split.csv").open("w") as file:
        file.write("path,split\n")
        for number, path in enumerate(sorted(product.glob("test/*/*.png"))):
            file.write(f"{path.relative_to(product)},{('train', 'train', 'val', 'test')[number % 4]}\n")
    runs = []
    for name in ("run", "renamed"):
        split = product / "split.csv"
        assert lab(*SETTINGS, *parts, f"split.file={split}", "seed=0", f"hydra.run.dir={name}") == 0
        runs.append(predictions(tmp_path / name))
        if name == "run":
            for path in sorted(product.glob("*/*/*.png")):
                path.rename(path.with_name(f"x{99 - int(path.name[:3]):03}{path.name[3:]}"))
            lines = (line.rpartition("/") for line in split.read_text().splitlines()[1:])
            again = (f"{folder}/x{99 - int(rest[:3]):03}{rest[3:]}" for folder, _, rest in lines)
            split.write_text("path,split\n" + "\n".join(again) + "\n")
    first, second = runs
    assert len(first) == len(second) > 10
    for path, row in first.items():
        folder, _, name = path.rpartition("/")
        other = second[f"{folder}/x{99 - int(name[:3]):03}{name[3:]}"]
        assert {**row, "path": ""} == {**other, "path": ""}


@pytest.mark.parametrize("side", [7, 8, 18, 28])
def test_the_coarse_map_is_that_of_an_adaptive_maximum(side: int):
    scores = torch.rand(side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pooled(scores, 7), F.adaptive_max_pool2d(scores[None], 7).flatten())


@pytest.mark.slow
def test_a_file_for_the_line_gives_what_the_checkpoint_gives(lab, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    parts = "model.options.parts=[global,anomaly,residual,local,where,masks]"
    sizes = {"coarse": 56, "uneven": 72}  # 14 and 18 cells a side, of which the coarse map makes 7
    runs = {
        "run": (),
        "padded": ("data.fit=letterbox",),
        **{name: (f"data.image_size={s}",) for name, s in sizes.items()},
    }
    for name, settings in runs.items():
        assert lab(*SETTINGS, parts, *settings, f"hydra.run.dir={name}") == 0
        assert lab("task=export", f"ckpt={name}/best.ckpt", f"hydra.run.dir={name}_file") == 0
        exported = json.loads((tmp_path / f"{name}_file/export.json").read_text())
        assert exported["output"] == "probabilities [1, 3]"
        assert exported["check"]["difference"] < 1e-5


def test_images_that_validated_were_learnt_and_evaluate_says_so(lab, capsys):
    assert lab(*SETTINGS, "model.options.parts=[global]", "hydra.run.dir=run") == 0
    capsys.readouterr()
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "split.protocol=test_only", "hydra.run.dir=judged") == 0
    output = capsys.readouterr()
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=own") == 0
    own = capsys.readouterr()
    assert "trained this checkpoint" not in own.out + own.err  # val is judged by the inner folds
    assert "18 of these images trained this checkpoint" in output.out + output.err


def test_without_spare_good_images_it_compares_with_those_that_it_learns_from(lab, product: Path, tmp_path: Path):
    shutil.rmtree(product / "train")
    assert lab(*SETTINGS, "model.options.parts=[global,local]", "hydra.run.dir=run") == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert not any("are learnt" in line for line in result["warnings"])  # nothing is wrong with it
    said = "8 of 8 good images, which are learnt as well: each image is compared with those of other inner folds"
    assert result["decided"]["memory"] == said


def test_mistakes_are_answered(lab, product: Path, capsys):
    said = {
        ("model.options.parts=[global,locl]",): "'locl'",
        ("model.options.parts=[global,global]",): "parts names a part twice",
        ("model.options.parts=[global,masks]", "model.options.alone=[masks,masks]"): "alone names a part twice",
        ("model.options.parts=[global,masks]", "model.options.alone=[mask]"): "'mask': did you mean masks?",
        ("model.options.parts=[global]", "model.options.memory=9"): "looks at good patches",
        ("model.unfreeze=1",): "model.unfreeze",
        ("model.head=cosine",): "model.head",
        ("optimizer.lr=0.1",): "optimizer.lr",
    }
    for settings, line in said.items():
        assert lab(*SETTINGS, *settings, "hydra.run.dir=run") == 2
        assert line in capsys.readouterr().err
    assert not (product.parent.parent / "run").exists()


def test_one_image_of_a_class_and_equal_scores_are_marked(lab, product: Path, tmp_path: Path):
    for path in sorted((product / "test/hole").iterdir())[3:]:
        path.unlink()
    assert lab(*SETTINGS, "model.options.parts=[global,anomaly]", "hydra.run.dir=run") == 0
    assert np.isfinite(json.loads((tmp_path / "run/result.json").read_text())["metrics"]["test"]["balanced_accuracy"])


def test_a_memory_larger_than_what_is_free_is_refused(lab, monkeypatch, capsys):
    import psutil

    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert lab(*SETTINGS, "model.options.parts=[local]", "hydra.run.dir=run") != 0
    assert "give a smaller model.options.memory" in capsys.readouterr().err


@pytest.mark.slow
def test_maps_that_the_cache_keeps_are_those_of_the_parts(lab, tmp_path: Path):
    """What is shown of lab/anomaly are distances to patches anywhere, and of lab/local to those in place."""
    for name, parts in {"anomaly": "anomaly", "local": "local", "plain": "local"}.items():
        cache = ("cache.dir=null",) if name == "plain" else ()
        assert lab(*SETTINGS, f"model.options.parts=[global,{parts}]", *cache, f"hydra.run.dir={name}") == 0
    assert (tmp_path / "local/explanations.jpg").read_bytes() == (tmp_path / "plain/explanations.jpg").read_bytes()


def test_copies_of_an_image_are_held_out_one_by_one(lab, product: Path, tmp_path: Path):
    from mvtec_lab import load_model

    for kind in ("crack", "hole"):
        paths = sorted((product / "test" / kind).iterdir())
        for original, copy in zip(paths[::2], paths[1::2], strict=False):
            shutil.copy(original, copy)
    assert lab(*SETTINGS, "model.options.parts=[global]", "hydra.run.dir=run") == 0
    held_out = load_model(tmp_path / "run/best.ckpt").module.hparams["held_out"]
    assert sum(map(len, held_out.values())) == 18
    assert len(held_out) < 18


@pytest.mark.slow
def test_attempts_run_on_the_tiny_product_letterboxed(lab, tmp_path: Path):
    for name in ("global", "where"):
        settings = ("data.fit=letterbox", "data.image_size=32", "model.options.layers=[features.relu1,features.relu2]")
        assert lab(f"attempt=lab/{name}", "model.method=descriptors", *settings, f"hydra.run.dir={name}") == 0


@pytest.mark.slow
@pytest.mark.parametrize("images", [8, 20])
def test_good_images_that_are_learnt_from_are_no_nearer_to_themselves(
    images: int, lab, product: Path, tmp_path: Path, monkeypatch
):
    """Two classes of the same noise: nothing can be learnt, not even which images the memory is made of."""
    from mvtec_lab import load_model
    from mvtec_lab.problems.classification.methods.descriptors import memory

    monkeypatch.setattr(memory, "DIRECTIONS", 2)  # of 24 channels, as 64 of hundreds: they fit the images they are of

    for folder in ("train", "test", "ground_truth"):
        shutil.rmtree(product / folder)
    rng = np.random.default_rng(0)
    for kind in ("good", "crack"):
        (product / "test" / kind).mkdir(parents=True)
        for number in range(8):
            base = rng.integers(90, 160, (1, 1, 3)) + rng.integers(-20, 20, (24, 24, 3))
            Image.fromarray(base.astype(np.uint8)).save(product / "test" / kind / f"{number:03}.png")
    assert lab(*SETTINGS, "model.options.parts=[where]", "data.masks=optional", "hydra.run.dir=run") == 0
    held_out = load_model(tmp_path / "run/best.ckpt").module.hparams["held_out"]
    rows = np.array([row for copies in held_out.values() for row in copies])
    assert (rows[:, 1:].argmax(1) == rows[:, 0]).mean() < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["anomaly", "anomaly,masks"])
def test_inner_folds_compare_with_no_good_image_that_they_judge(parts: str, lab, product: Path, monkeypatch):
    """Each row says which good images it has to do with: those of the judged fold would tell what is good there."""
    from mvtec_lab.problems.classification.methods.descriptors import fitting, model

    shutil.rmtree(product / "train")
    images: list[fitting.Images] = []
    looked, filled, heads = [], fitting.remember, model.fit_heads

    def remember(memory: Memory, of: fitting.Images, places: Sequence[int]) -> Memory:
        images.append(of)
        memory = filled(memory, of, places)
        memory.held = torch.zeros(22).index_fill(0, torch.tensor(places), 1.0)  # by the images' places
        return memory

    def inspected(kind: str, rows: Any, blocks: Any, alone: Any, labels: np.ndarray, folds: np.ndarray) -> Any:
        own = images[0].folds
        assert sorted(own.values()) == sorted(folds.tolist())
        for fold in np.unique(folds[folds >= 0]):
            judged = [place for place, of in own.items() if of == fold]
            for of_part in rows(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)):
                looked.append(fold)
                assert of_part.any()
                assert not of_part.reshape(len(of_part), -1, 22)[:, :, judged].any()
        return heads(kind, rows, blocks, alone, labels, folds)

    monkeypatch.setattr(fitting, "remember", remember)
    monkeypatch.setattr(model, "fit_heads", inspected)
    monkeypatch.setattr(Anomaly, "rows", lambda self, seen: seen.memory.held)
    monkeypatch.setattr(Masks, "sums", lambda self, seen, marked, label: (seen.memory.held,))
    monkeypatch.setattr(Masks, "learn", lambda self, sums: setattr(self, "learnt", sums[0]))
    monkeypatch.setattr(Masks, "rows", lambda self, seen: self.learnt + seen.memory.held)
    for part in (Anomaly, Masks):
        monkeypatch.setattr(part, "blocks", property(lambda self: [Block(22)]))
    assert lab(*SETTINGS, f"model.options.parts=[{parts}]", "cache.dir=null", "hydra.run.dir=run") == 0
    assert sorted(looked) == sorted([*range(5)] * 2)


def test_copies_of_a_file_are_of_one_group_whatever_they_are_called() -> None:
    """A copy in another inner fold gave away what is held out."""
    numbers = _by_content(["a", "b", "c", "d", "e"], ["z", "y", "z", "x", "w"])
    assert numbers == [3, 2, 3, 1, 0]  # in the order of the files' digests
    assert _by_content(["a", "a", "b", "c"], ["z", "x", "x", "y"]) == [0, 0, 0, 1]  # a group with a copy of another's
    assert _by_content(["q", "r"], ["z", "z"]) == [0, 0]


@pytest.mark.slow
def test_a_default_that_changes_later_changes_no_earlier_run(lab, tmp_path: Path, capsys, monkeypatch):
    """Checkpoints without their parts were described by today's, and broke: a run writes down all of its options."""
    from mvtec_lab.models.weights import load_file, save_file
    from mvtec_lab.problems.classification.methods.descriptors import METHOD

    named = ("attempt=base", "hydra.sweep.dir=sweep")
    assert lab("-m", *SETTINGS, *named) == 0
    run = tmp_path / "sweep/base"
    result, written = json.loads((run / "result.json").read_text()), (run / "config.yaml").read_text()
    assert result["by_default"] == ["parts", "memory", "tune", "head"]
    assert "memory: 50" in written
    assert "- where" in written

    default = METHOD.options["parts"].default
    monkeypatch.setitem(METHOD.options, "parts", replace(METHOD.options["parts"], default=["global", "anomaly"]))
    assert lab("task=evaluate", f"ckpt={run}", "hydra.run.dir=judged") == 0
    assert predictions(tmp_path / "judged") == predictions(run)
    began = (run / "best.ckpt").stat().st_mtime_ns
    assert lab("-m", *SETTINGS, *named, "resume=true") == 0
    assert (run / "best.ckpt").stat().st_mtime_ns == began
    assert lab("-m", *SETTINGS, *named, "model.options.memory=40", "resume=true") == 2
    assert "model.options.memory=50, now 40" in capsys.readouterr().err

    content = load_file(run / "best.ckpt")
    assert content["hyper_parameters"].pop("parts") == default
    (tmp_path / "old").mkdir()
    save_file(content, tmp_path / "old/best.ckpt")
    assert lab("task=evaluate", "ckpt=old", "hydra.run.dir=refused") == 2
    error = capsys.readouterr().err
    assert "old/best.ckpt is no checkpoint of this version's descriptors: its head reads" in error
    assert "and the parts global, anomaly give" in error
    assert "train that run again" in error


@pytest.mark.slow
def test_a_run_that_lacks_its_defaults_repeats_one_that_has_them(lab, tmp_path: Path, capsys):
    """Older runs wrote down what was given alone, and methods beside them have options of their own."""
    for seed in (0, 1):
        parts = "model.options.parts=[global]"
        assert lab("attempt=base", *SETTINGS, parts, f"seed={seed}", "split.seed=0", f"hydra.run.dir=both/{seed}") == 0
    assert lab("attempt=base", "trainer.max_epochs=1", "split.seed=0", "seed=1", "hydra.run.dir=both/2") == 0
    path = tmp_path / "both/0/config.yaml"
    settings = yaml.safe_load(path.read_text())
    for name in ("views", "layers", "parts"):
        settings["model"]["options"].setdefault(name, None)
    given = {name: settings["model"]["options"][name] for name in ("views", "layers", "parts")}
    settings["model"]["options"] = given
    path.write_text(yaml.safe_dump(settings))
    result = json.loads((tmp_path / "both/0/result.json").read_text())
    del result["by_default"]
    (tmp_path / "both/0/result.json").write_text(json.dumps(result))
    capsys.readouterr()
    assert lab("task=compare", "dirs=[both]", "hydra.run.dir=compared") == 0
    attempts = json.loads((tmp_path / "compared/comparison.json").read_text())["attempts"]
    runs = {each["attempt"].partition(" trainer.")[0]: each["runs"] for each in attempts}
    assert runs == {"base model.method=descriptors": 2, "base model.method=classifier": 1}
