"""Segmentation: masks are learnt, judged at their own size, predicted and exported, whatever is cached."""

from __future__ import annotations

import gc
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZE, write_product
from PIL import Image

from mvtec_lab import build_data, compose
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import segmentation as masks
from mvtec_lab.evaluation.specs import deciding
from mvtec_lab.models.views import unviewed, view
from mvtec_lab.models.weights import load_file
from mvtec_lab.problems import METHODS, class_of
from mvtec_lab.problems.segmentation.base import SegmentationModel, ious_of, mask_loss
from mvtec_lab.problems.segmentation.decoders import DecoderModel
from mvtec_lab.results import PREDICTIONS, RunResult, read_csv

LAYERS = "model.options.layers=[features.relu1,features.relu2]"
FPN = ["attempt=segment/fpn", LAYERS, "model.options.channels=8"]
KEYS = {"iou", "dice", "pooled_iou", "pixel_ap", "pixel_aupro", "image_auroc", "escapes", "false_rejects"}


def test_figures_of_masks_follow_from_overlap_and_union() -> None:
    rows = [
        {"type": "crack", "overlap": 1, "union": 2},
        {"type": "hole", "overlap": 0, "union": 4},
        {"type": "good", "overlap": 0, "union": 2},
    ]
    figures = masks.mask_figures(rows)
    assert figures["iou"] == pytest.approx((0.5 + 0) / 2)
    assert figures["dice"] == pytest.approx((2 / 3 + 0) / 2)
    assert figures["pooled_iou"] == pytest.approx(1 / 8)  # what is found on a good image counts
    assert figures["pooled_dice"] == pytest.approx(2 / 9)
    assert figures["by_type"]["crack"] == pytest.approx({"iou": 0.5, "dice": 2 / 3})
    assert np.isnan(masks.ious(rows)[2])
    intervals = masks.mask_intervals(rows)
    low, high = intervals["pooled_iou"]
    assert 0 <= low < 1 / 8 < high <= 0.5
    assert intervals["iou"][1] == 1.0  # of two images
    assert masks.mask_intervals(rows[:1])["dice"] is None
    assert masks.mask_figures(rows[2:])["iou"] is None
    with pytest.raises(ValueError, match="cannot be compared"):
        masks.overlap(np.zeros((2, 2)), np.zeros((2, 3)))


def test_the_cut_is_the_one_with_the_best_mean_iou() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:5, 2:5] = True
    score_map = np.where(mask, 0.8, 0.62)
    assert masks.best_map_threshold([score_map], [mask]) == pytest.approx(
        0.65
    )  # of 0.65, 0.7 and 0.75 the nearest to 0.5
    assert masks.best_map_threshold([], []) == 0.5
    rng = np.random.default_rng(0)
    score_maps, wanted = rng.random((3, 8, 8)), rng.random((3, 8, 8)) > 0.6
    by_hand = [
        np.mean(
            [
                np.divide(*masks.overlap(h.astype(np.float32) > map_threshold, w))
                for h, w in zip(score_maps, wanted, strict=True)
            ]
        )
        for map_threshold in masks.MAP_THRESHOLDS
    ]
    assert masks.best_map_threshold(score_maps, wanted) == pytest.approx(masks.MAP_THRESHOLDS[int(np.argmax(by_hand))])


def test_every_view_comes_back() -> None:
    image = torch.arange(32.0).view(2, 4, 4)
    views = [view(image, number) for number in range(8)]
    assert len({str(each.tolist()) for each in views}) == 8
    for number, each in enumerate(views):
        assert torch.equal(unviewed(each, number), image)


def test_the_loss_ignores_dice_on_good_images_and_falls_with_the_overlap() -> None:
    mask = torch.zeros(2, 8, 8, dtype=torch.uint8)
    mask[0, 2:6, 2:6] = 1
    right = torch.where(mask > 0, 8.0, -8.0)
    assert mask_loss(right, mask) < 0.05
    assert mask_loss(-right, mask) > mask_loss(torch.zeros(2, 8, 8), mask) > mask_loss(right, mask)
    good = torch.full((1, 8, 8), -8.0)
    assert mask_loss(good, mask[1:]) == pytest.approx(np.log1p(np.exp(-8)), rel=1e-2)


@pytest.mark.slow
def test_a_run_learns_masks_and_serves_every_task(lab, product: Path, tmp_path: Path) -> None:
    assert deciding("segmentation")[0].key == "iou"
    settings = [*FPN, "trainer.max_epochs=12", "optimizer.lr=0.02", "data.batch_size=4"]
    assert lab(*settings, "hydra.run.dir=run") == 0
    run = RunResult.load(tmp_path / "run")
    assert set(run.metrics["test"]) >= KEYS
    assert run.features == ["test", "train", "val"]
    assert run.metrics["test"]["iou"] > 0.3
    rows = [row for row in read_csv(tmp_path / "run/predictions.csv") if row["split"] == "test"]
    assert {row["iou"] == "" for row in rows if row["type"] == "good"} == {True}
    assert np.nanmean(masks.ious(rows)) == pytest.approx(run.metrics["test"]["iou"])
    assert {"crack", "hole"} == set(run.metrics["test"]["by_type"])
    assert "iou" in run.metrics["test"]["by_type"]["hole"]
    assert (tmp_path / "run/mistakes.jpg").exists()
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged") == 0
    judged = json.loads((tmp_path / "judged/metrics.json").read_text())
    assert judged["metrics"] == run.metrics
    hole = product / "test/hole"
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={hole}", "hydra.run.dir=new") == 0
    found = np.asarray(Image.open(tmp_path / "new/found/000.png.png"))
    assert found.shape == (SIZE, SIZE)
    assert set(np.unique(found)) <= {0, 255}
    assert (tmp_path / "new/found/000.png.jpg").exists()


@pytest.mark.slow
def test_the_exported_file_gives_the_same_maps(lab, tmp_path: Path) -> None:
    assert lab(*FPN, "hydra.run.dir=run") == 0
    assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=file") == 0
    report = json.loads((tmp_path / "file/export.json").read_text())
    assert report["check"]["difference"] < 1e-4
    assert report["output"] == f"score [N], map [N, {SIZE // 2}, {SIZE // 2}], types [N, 2]"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_caches_and_workers_change_nothing(precision: str, lab, tmp_path: Path) -> None:
    # another order in memory of an image would take other kernels
    settings = ["model.options.views=8", f"trainer.precision={precision}"]
    for name, further in {"a": [], "b": ["cache.dir=null", "data.num_workers=1"]}.items():
        assert lab(*FPN, *settings, f"hydra.run.dir={name}", *further) == 0
    a, b = (load_file(tmp_path / name / "best.ckpt")["state_dict"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    metrics = [RunResult.load(tmp_path / name).metrics for name in "ab"]
    rows = [read_csv(tmp_path / name / PREDICTIONS) for name in "ab"]
    assert metrics[0] == metrics[1]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_methods_that_read_other_layers_do_not_share_features(lab, tmp_path: Path) -> None:
    for name, further in {
        "one": ["model.options.layers=[features.relu2]"],
        "two": [],
        "alone": ["cache.dir=null"],
    }.items():
        assert lab(*FPN, *further, f"hydra.run.dir={tmp_path / name}") == 0
    of_two, alone = (RunResult.load(tmp_path / name).metrics for name in ("two", "alone"))
    assert of_two["test"] == alone["test"]


@pytest.mark.slow
def test_what_else_is_predicted_changes_nothing(lab, product: Path, tmp_path: Path) -> None:
    assert lab(*FPN, "hydra.run.dir=run") == 0
    for size in (1, 5):
        batches = [f"data.batch_size={size}", f"hydra.run.dir=new{size}"]
        assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test'}", *batches) == 0
    one, five = (read_csv(tmp_path / f"new{size}" / PREDICTIONS) for size in (1, 5))
    assert len(one) == 22
    assert one == five
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test/hole'}", "hydra.run.dir=part") == 0
    assert [row for row in one if "/hole/" in row["path"]] == read_csv(tmp_path / "part" / PREDICTIONS)


def test_the_iou_of_validation_is_followed(lab, tmp_path: Path) -> None:
    """A segmenter's history had its losses alone."""
    logits = torch.full((3, 2, 2), -5.0)
    logits[0, :, 0] = logits[2, 0, 0] = 5
    wanted = torch.zeros(3, 2, 2, dtype=torch.uint8)
    wanted[0, 0, 0] = wanted[1, 1, 1] = 1  # the third one is good
    assert ious_of(logits, wanted).tolist() == [0.5, 0.0]
    assert ious_of(logits[2:], wanted[2:]).shape == (0,)
    assert lab(*FPN, "trainer.max_epochs=3", "optimizer.lr=0.01", "hydra.run.dir=run") == 0
    followed = [float(row["val/iou"]) for row in read_csv(tmp_path / "run/history.csv")]
    assert len({*followed}) == 3
    assert all(0 <= value <= 1 for value in followed)


@pytest.mark.slow
def test_a_resumed_run_gives_the_same_result(resumed) -> None:
    resumed(SegmentationModel, 2, *FPN, "trainer.max_epochs=4")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells mapped files on Linux alone")
def test_a_sweep_keeps_no_features_of_the_runs_before(lab, tmp_path: Path) -> None:
    assert lab("-m", *FPN, "seed=0,1", "trainer.max_epochs=1", "hydra.sweep.dir=s") == 0
    gc.collect()
    mapped = Path("/proc/self/maps").read_text()
    assert list((tmp_path / "cache").glob("*.npy"))
    assert str(tmp_path / "cache") not in mapped


@pytest.mark.slow
def test_unfrozen_stages_train_and_are_not_kept(lab, tmp_path: Path) -> None:
    assert lab(*FPN, "model.unfreeze=1", "hydra.run.dir=run") == 0
    run, frozen = RunResult.load(tmp_path / "run"), tmp_path / "frozen"
    assert lab(*FPN, f"hydra.run.dir={frozen}") == 0
    assert run.features == []
    assert run.parameters["trained"] > RunResult.load(frozen).parameters["trained"]


@pytest.mark.parametrize("name", ["deeplab", "fcn", "fpn", "lraspp"])
def test_logits_begin_where_few_pixels_are_defective(tiny_net: str, name: str) -> None:
    layers = ["features.relu1", "features.relu2"] if name in ("fpn", "lraspp") else ["features.relu2"]
    options = {"layers": layers, "types": "pixel", **({"channels": 8} if name == "fpn" else {})}
    kinds = [f"kind {i}" for i in range(7)]  # with the mask 8 outputs: no other layer of 8 channels is one
    settings = {"backbone": tiny_net, "weights": None, "image_size": SIZE, "classes": ["good", *kinds]}
    decoder = class_of(METHODS[name], DecoderModel)(**settings, **options).eval().decoder
    with torch.no_grad():
        for layer in decoder.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.zero_()
        logits = decoder([torch.zeros(1, 8, 12, 12), torch.zeros(1, 16, 6, 6)][-len(layers) :])
    assert logits[:, 0].mean() == pytest.approx(-2.0)
    if name == "fpn":
        assert all((layer.bias.abs() < 1).all() for layer in decoder.sides)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplab", "fcn", pytest.param("lraspp", marks=pytest.mark.slow)])
def test_torchvisions_heads_train_over_any_backbone(lab, tmp_path: Path, name: str) -> None:
    assert lab(f"attempt=segment/{name}", LAYERS, "hydra.run.dir=run") == 0
    run = RunResult.load(tmp_path / "run")
    assert run.method == name
    assert set(run.metrics["test"]) >= KEYS


@pytest.mark.slow
def test_the_rule_of_the_threshold_says_on_which_images_it_was_chosen(lab, product: Path, tmp_path: Path) -> None:
    rows = "path,split\n" + "".join(
        f"test/{kind}/{i:03}.png,{split}\n"
        for kind, splits in {"good": ["train", "val", "test"], "crack": ["train", "train", "test"]}.items()
        for i, split in enumerate(splits)
    )
    (tmp_path / "split.csv").write_text(rows)
    of_method = [
        "model.method=fpn",
        *FPN[1:],
        "data.masks=required",
        "trainer.max_epochs=1",
    ]  # the attempt draws split.val
    for name, (given, rule) in {
        "drawn": ([], "of best F1 on validation"),
        "same": (["split.val_is_test=true"], "of best F1 on the test images"),
        "listed": (["split.protocol=file", "split.file=split.csv"], "of 0.5, as validation has no defect"),
    }.items():
        assert lab(*of_method, *given, f"hydra.run.dir={name}") == 0
        assert RunResult.load(tmp_path / name).threshold["rule"] == rule
    assert lab("task=evaluate", "ckpt=drawn/best.ckpt", "hydra.run.dir=judged") == 0
    assert "rule" not in json.loads((tmp_path / "judged/metrics.json").read_text())["threshold"]


def test_good_training_images_take_part_on_request(lab, tmp_path: Path) -> None:
    assert lab(*FPN, "split.pool=all", "hydra.run.dir=run") == 0
    counts = RunResult.load(tmp_path / "run").counts
    assert sum(by_class["good"] for by_class in counts.values()) == 14


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["split.protocol=one_class"], "only a one-class method learns from good images"),
        (["data.masks=optional"], "give data.masks=required"),
        (["model.options.views=3"], "give one of 1, 2, 4, 8"),
        (["loss.class_weights=sqrt"], "by cross-entropy and Dice"),
        (["threshold.quantile=0.9"], "validation chooses the thresholds"),
        (["model.head=cosine"], "predicts pixels"),
        (["trainer.monitor=val/accuracy"], "lowest val/loss"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(lab, capsys, tmp_path: Path, given: list[str], said: str) -> None:
    assert lab(*FPN, *given, "hydra.run.dir=run") == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_images_without_masks_are_named_and_no_advice_leads_back(tmp_path: Path) -> None:
    product = write_product(tmp_path / "widget")
    settings = ["data=folder", f"data.root={product}", "cache.dir=null"]

    def refused(*more: str) -> str:
        with pytest.raises(LabError) as raised:
            build_data(compose(*more, *settings))
        assert str(raised.value).count(str(product)) == 1
        return str(raised.value)

    mask = product / "ground_truth/hole/002_mask.png"
    mask.write_bytes(b"none")
    assert "ground_truth/hole/002_mask.png cannot be read (it is not an image): this" in refused("attempt=segment/fpn")
    mask.unlink()
    assert "test/hole/002.png has no mask" in refused("attempt=segment/fpn")
    shutil.rmtree(product / "ground_truth")
    for attempt in ("segment/fpn", "detect/fcos"):  # these refuse data.masks=optional by itself
        line = refused(f"attempt={attempt}", "data.masks=required")  # as data=mvtec does
        advice = re.search(r"give (.*), which needs none", line)[1].split()
        build_data(compose("data.masks=required", *settings, *advice))
    assert "give data.masks=optional" in refused("attempt=head", "data.masks=required")
