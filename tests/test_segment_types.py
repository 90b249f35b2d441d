"""The type of a segmented defect: named by the maps within its mask, by classes of its pixels, or not at all."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from mvtec_lab.evaluation import segmentation as masks
from mvtec_lab.problems.segmentation.types import PixelTypes, RegionTypes
from mvtec_lab.results import RunResult, read_csv

FPN = [
    *("attempt=segment/fpn", "model.options.layers=[features.relu1,features.relu2]", "model.options.channels=8"),
    *("model.options.views=2", "trainer.max_epochs=8", "optimizer.lr=0.02", "data.batch_size=4"),
]
ABOUT_TYPES = {"type_accuracy", "balanced_type_accuracy"}


def test_types_are_counted_over_the_defects() -> None:
    rows = [
        {"type": kind, "found_type": named, "overlap": 1, "union": 1}
        for kind, named in (
            ("crack", "crack"),
            ("crack", "good"),
            ("crack", "hole"),
            ("hole", "hole"),
            ("good", "hole"),
        )
    ]
    figures, intervals = masks.mask_figures(rows), masks.mask_intervals(rows)
    assert figures["type_accuracy"] == pytest.approx(2 / 4)  # a passed defect has no type; a good image never counts
    assert figures["balanced_type_accuracy"] == pytest.approx((1 / 3 + 1) / 2)
    assert figures["by_type"]["crack"]["type_accuracy"] == pytest.approx(1 / 3)
    for key in ABOUT_TYPES:
        low, high = intervals[key]
        assert 0 < low < figures[key] < high < 1
    unnamed = masks.mask_figures([{**row, "found_type": ""} for row in rows])
    assert not ABOUT_TYPES & unnamed.keys()


def test_discriminants_name_types_by_the_maps_within_the_mask() -> None:
    torch.manual_seed(0)
    type_model, cover = RegionTypes(["crack", "hole", "stain"], [2, 3]), torch.zeros(1, 8, 8)
    cover[:, 2:4, 2:6] = 1
    maps = [torch.randn(1, 2, 8, 8), torch.randn(1, 3, 4, 4)]
    maps[0][:, :, 2:4, 2:6] = 7.0
    evidence = type_model.evidence(maps, cover)
    assert torch.allclose(evidence[0, :2], torch.full((2,), 7.0), atol=1e-3)  # of what lies outside nothing counts
    assert evidence[0, -1] == pytest.approx(np.log(8 / 64), abs=1e-3)
    crack, hole = torch.randn(2, 12, 6).numpy() + np.array([[[0.0]], [[4.0]]])
    type_model.fit(np.concatenate([crack, hole]), ["crack"] * 12 + ["hole"] * 12)
    p = type_model(torch.tensor(np.concatenate([crack, hole]), dtype=torch.float32))
    assert p.argmax(1).tolist() == [0] * 12 + [1] * 12
    assert p[:, 2].max() == 0  # a type without a training image is never named
    type_model.fit(crack, ["hole"] * 12)
    assert type_model(torch.zeros(1, 6)).argmax() == 1


def test_a_single_image_of_a_type_is_named_by_the_nearest_mean() -> None:
    type_model, rng = RegionTypes(["crack", "hole", "stain"], [5]), np.random.default_rng(0)
    evidence = np.concatenate([rng.normal(0, 1, (1, 6)), rng.normal(9, 1, (3, 6)), rng.normal(-9, 1, (1, 6))])
    kinds = ["crack", *["hole"] * 3, "stain"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scikit-learn's covariance of a single image
        said = type_model.fit(evidence, kinds)
        assert "crack" in str(said)
        assert "nearest mean" in str(said)
        named = type_model(torch.tensor(evidence + 1, dtype=torch.float32)).argmax(1)
        assert [type_model.kinds[k] for k in named] == kinds
        type_model.fit(evidence[[0, 1, 4]], ["crack", "hole", "stain"])  # as many images as types
        assert type_model(torch.tensor(evidence, dtype=torch.float32)).argmax(1).tolist() == [0, 1, 1, 1, 2]


def test_pixels_outside_of_a_defect_say_nothing_of_types() -> None:
    type_model, mask = PixelTypes(["crack", "hole"], []), torch.zeros(3, 8, 8, dtype=torch.uint8)
    mask[0, :4], mask[1, 0, 0] = 1, 1  # the third image is good
    logits = torch.zeros(3, 2, 4, 4, requires_grad=True)
    batch = {"mask": mask, "label": torch.tensor([1, 2, 0]), "mixed": torch.zeros(3, dtype=torch.bool)}
    loss = type_model.loss(logits, batch, first=1)
    assert loss.item() == pytest.approx(np.log(2))
    loss.backward()
    assert (logits.grad[0, :, :2] != 0).all()
    assert logits.grad[0, :, 2:].abs().sum() == logits.grad[2].abs().sum() == 0
    assert logits.grad[0].abs().sum() == pytest.approx(logits.grad[1].abs().sum())  # each defect counts alike
    assert logits.grad[0, 0, 0, 0] < 0 < logits.grad[1, 0, 0, 0]
    cover = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    given = torch.tensor([[[[9.0, -9.0], [-9.0, -9.0]], [[-9.0, 9.0], [9.0, 9.0]]]])
    assert type_model.evidence([], cover, given)[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
    assert type_model.loss(logits, {**batch, "mask": 0 * mask}, 1) == 0
    only = type_model.loss(logits + torch.arange(3.0)[:, None, None, None], {**batch, "mixed": batch["label"] == 1}, 1)
    assert torch.equal(only, type_model.loss(logits[1:], {key: values[1:] for key, values in batch.items()}, 1))


@pytest.mark.slow
def test_a_type_named_by_region_leaves_the_masks_as_they_are(lab, product: Path, tmp_path: Path) -> None:
    for name in ("region", "none"):
        assert lab(*FPN, f"model.options.types={name}", f"hydra.run.dir={name}") == 0
    run, bare = (RunResult.load(tmp_path / name).metrics["test"] for name in ("region", "none"))
    assert run["type_accuracy"] > 0.8  # a bar is red, a hole is blue
    assert not ABOUT_TYPES & bare.keys()
    for key in ("iou", "dice", "pooled_iou", "pixel_ap", "image_auroc"):
        assert run[key] == bare[key]
    rows = [row for row in read_csv(tmp_path / "region/predictions.csv") if row["split"] == "test"]
    assert {row["found_type"] for row in rows} <= {"good", "crack", "hole"}
    assert masks.mask_figures(rows)["type_accuracy"] == pytest.approx(run["type_accuracy"])
    assert {row["found_type"] for row in read_csv(tmp_path / "none/predictions.csv")} == {""}
    assert lab("task=evaluate", "ckpt=region/best.ckpt", "hydra.run.dir=judged") == 0
    assert json.loads((tmp_path / "judged/metrics.json").read_text())["metrics"]["test"] == run
    source = product / "test/hole"
    assert lab("task=predict", "ckpt=region/best.ckpt", f"source={source}", "hydra.run.dir=new") == 0
    said = [row["found_type"] for row in read_csv(tmp_path / "new/predictions.csv")]
    assert said.count("hole") >= 5


@pytest.fixture
def annotated(lab, product: Path, tmp_path: Path) -> Path:
    """The tiny product in COCO's format, where most holes have a far smaller crack beside it."""
    words = ["task=annotate", "data=folder", f"data.root={product}", f"hydra.run.dir={tmp_path / 'exported'}"]
    assert lab(*words, "format=coco") == 0
    for file in (tmp_path / "exported/coco").rglob("*.json"):
        content = json.loads(file.read_text())
        if "annotations" not in content:
            continue
        numbers = {category["name"]: category["id"] for category in content["categories"]}
        for number, one in enumerate([a for a in content["annotations"] if a["category_id"] == numbers["hole"]]):
            if number % 3 < 2:
                corners = [[0, 0, 2, 0, 2, 2, 0, 2]]
                crack = {"id": 10_000 + number, "category_id": numbers["crack"], "segmentation": corners}
                content["annotations"].append({**one, **crack, "bbox": [0, 0, 2, 2], "area": 4})
        file.write_text(json.dumps(content))
    return tmp_path / "exported/coco"


@pytest.mark.slow
@pytest.mark.parametrize("types", ["region", "pixel"])
def test_images_of_several_types_say_nothing_of_types(lab, annotated: Path, tmp_path: Path, types: str) -> None:
    words = ["data=coco", f"data.root={annotated}", f"model.options.types={types}", "trainer.max_epochs=1"]
    assert lab(*FPN, *words, "hydra.run.dir=run") == 0
    run = RunResult.load(tmp_path / "run")
    (said,) = [line for line in run.warnings if "neither learnt nor judged" in line]
    mixed = int(said.split()[0])
    assert mixed > 0
    rows = read_csv(tmp_path / "run/predictions.csv")
    left_out = [row for row in rows if row["type"] == "hole" and row["found_type"] == ""]
    assert 0 < len(left_out) <= mixed
    assert all(row["iou"] for row in left_out)  # its mask counts
    assert all(row["found_type"] for row in rows if row["type"] == "crack")


def test_types_that_the_model_does_not_know_are_not_judged(lab, product: Path, tmp_path: Path) -> None:
    assert lab(*FPN, "trainer.max_epochs=1", "hydra.run.dir=run") == 0
    for part in ("test", "ground_truth"):
        (product / part / "hole").rename(product / part / "stain")
    of_other = [f"data.root={product}", "data=folder", "hydra.run.dir=judged"]
    assert lab("task=evaluate", "ckpt=run/best.ckpt", *of_other) == 0
    content = json.loads((tmp_path / "judged/metrics.json").read_text())
    assert not ABOUT_TYPES & content["metrics"]["test"].keys()
    assert any("knows the types crack, hole, but the data has stain" in line for line in content["warnings"])
    assert {row["found_type"] for row in read_csv(tmp_path / "judged/predictions.csv")} == {""}


def test_types_by_pixels_are_learnt_beside_the_mask(lab, tmp_path: Path) -> None:
    assert lab(*FPN, "model.options.types=pixel", "trainer.max_epochs=12", "hydra.run.dir=run") == 0
    run = RunResult.load(tmp_path / "run")
    assert run.metrics["test"]["type_accuracy"] > 0.8
    assert run.metrics["test"]["iou"] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("types", ["region", "pixel"])
def test_the_exported_file_names_types(lab, tmp_path: Path, types: str) -> None:
    import onnx

    assert lab(*FPN, f"model.options.types={types}", "data.image_size=26", "hydra.run.dir=run") == 0
    assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=file") == 0
    report = json.loads((tmp_path / "file/export.json").read_text())
    assert report["output"] == "score [N], map [N, 13, 13], types [N, 2]"
    assert report["types"] == ["crack", "hole"]
    file = onnx.load(tmp_path / "file/model.onnx")
    assert {entry.key: entry.value for entry in file.metadata_props}["types"] == '["crack", "hole"]'
