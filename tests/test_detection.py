"""Detectors: every method trains, is judged, resumed, loaded and compared as any other run of the lab."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import others_slow
from PIL import Image

from mvtec_lab.data.targets import boxes_of
from mvtec_lab.data.transforms import read_picture
from mvtec_lab.engine import features
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.detection import Box, from_text
from mvtec_lab.evaluation.segmentation import ious
from mvtec_lab.models.maps import of_each
from mvtec_lab.models.views import view, viewed_boxes
from mvtec_lab.problems import problem_of
from mvtec_lab.problems.detection import judging
from mvtec_lab.problems.detection.base import DetectionModel, instances
from mvtec_lab.problems.detection.build import class_of
from mvtec_lab.problems.detection.pyramid import Pyramid
from mvtec_lab.problems.detection.views import merged
from mvtec_lab.problems.model import load_model
from mvtec_lab.results import RunResult, read_csv

METHODS = ("fcos", "fasterrcnn", "retinanet", "ssdlite", "maskrcnn")
SIZE = 64
SMALL = ["model.unfreeze=0", "model.options.finest=4", "model.options.channels=32", f"data.image_size={SIZE}"]


def model(tiny_net: str, method: str = "fcos", **settings) -> DetectionModel:
    torch.manual_seed(0)
    given = {"backbone": tiny_net, "weights": None, "image_size": SIZE, "finest": 4, "channels": 32, **settings}
    return class_of(method)(["good", "crack", "hole"], **given)


def targets() -> list[dict[str, torch.Tensor]]:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
    mask[10:30, 20:40] = 1
    one = {"boxes": torch.tensor([[20.0, 10, 40, 30]]), "labels": torch.tensor([1]), "masks": mask[None]}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": mask[:0][None][:0]}
    return [one, {**none, "masks": torch.zeros(0, SIZE, SIZE, dtype=torch.uint8)}]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_a_box_and_an_image_without_one(method: str, tiny_net: str) -> None:
    detector = model(tiny_net, method).train()
    images = torch.randn(2, 3, SIZE, SIZE)
    loss = detector.losses(images, targets())
    loss.backward()
    assert torch.isfinite(loss)
    assert not [name for name, p in detector.named_parameters() if p.grad is not None and "stages" in name]
    for found in detector.found({"image": images}):
        assert found["boxes"].shape[1:] == (4,)
        assert (found["scores"].diff() <= 0).all()
        assert found["labels"].ge(1).all()
        if method == "maskrcnn":
            assert found["masks"].shape[1:] == (1, SIZE, SIZE)


def test_images_are_neither_resized_nor_normalised_again(tiny_net: str) -> None:
    images = torch.randn(2, 3, SIZE, SIZE)
    given, _ = model(tiny_net).network.transform(list(images), None)
    assert torch.equal(given.tensors, images)


def test_batch_normalisation_rests_and_stages_train_as_asked(tiny_net: str) -> None:
    detector = model(tiny_net, unfreeze=1).train()
    stages = detector.network.backbone.stages
    before = {name: value.clone() for name, value in stages.state_dict().items() if "running" in name}
    detector.losses(torch.randn(2, 3, SIZE, SIZE), targets()).backward()
    after = stages.state_dict()
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    trained = {name.split(".")[0] for name, p in stages.named_parameters() if p.grad is not None}
    assert trained == {"stage2"}


def test_every_component_has_its_own_mask_in_the_order_of_the_boxes() -> None:
    mask = torch.zeros(20, 20, dtype=torch.uint8)
    mask[2:5, 10:14] = mask[8:12, 3:6] = 1
    parts = instances(mask, boxes_of(mask.numpy()))
    assert torch.equal(torch.cat([boxes_of(part.numpy()) for part in parts]), boxes_of(mask.numpy()))
    assert instances(mask * 0, torch.zeros(0, 4)).shape == (0, 20, 20)
    touching = instances(mask, torch.tensor([[10.0, 2, 12, 5], [12, 2, 14, 5], [3, 8, 6, 12]]))
    assert touching.sum((1, 2)).tolist() == [6, 6, 12]


@pytest.mark.parametrize("number", range(8))
def test_a_view_moves_boxes_with_their_image(number: int) -> None:
    mask = torch.zeros(20, 20, dtype=torch.uint8)
    mask[2:5, 10:14] = 1
    boxes = viewed_boxes(boxes_of(mask.numpy()), number, 20)
    assert torch.equal(boxes, boxes_of(view(mask, number).contiguous().numpy()))


def test_features_and_images_give_the_same_loss_and_boxes(tiny_net: str) -> None:
    detector = model(tiny_net)
    images = torch.randn(2, 3, SIZE, SIZE)
    kept = {"features": of_each(detector.frozen, images)}
    with detector.reading(kept) as blank:
        assert not blank.any()
        loss = detector.train().losses(blank, targets())
    assert torch.equal(loss, detector.losses(images, targets()))
    for ours, theirs in zip(detector.found(kept), detector.found({"image": images}), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_boxes_of_all_views_are_fused() -> None:
    """A box that every view shows keeps its score; one of a single view gets its share; types stay apart."""
    box, far = torch.tensor([[2.0, 3, 8, 12]]), torch.tensor([[14.0, 1, 18, 5]])
    views = []
    for number in range(4):
        boxes = torch.cat([viewed_boxes(b + (number % 2 if b is box else 0), number, 20) for b in (box, far, box)])
        every = {"boxes": boxes, "labels": torch.tensor([1, 1, 2]), "scores": torch.tensor([0.8, 0.6, 0.4])}
        views.append({name: values[: 3 if number else 2] for name, values in every.items()})
    views[0] = {name: values[:1] for name, values in views[0].items()}
    together = merged(views, 20)
    assert together["labels"].tolist() == [1, 1, 2]
    torch.testing.assert_close(together["scores"], torch.tensor([0.8, 0.45, 0.3]))
    torch.testing.assert_close(together["boxes"][0], torch.tensor([2.5, 3.5, 8.5, 12.5]))
    torch.testing.assert_close(together["boxes"][1], far[0])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    assert merged([nothing] * 8, 20)["boxes"].shape == (0, 4)


def test_a_wrong_type_is_a_mistake_on_the_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had a green frame, and stood behind good images that nothing was found in."""
    kinds = ["good", "good", "crack", "crack", "crack"]
    found = [[], [Box("hole", 0.9, 0, 0, 4, 4)], [], [Box("hole", 0.8, 0, 0, 4, 4)], [Box("crack", 0.7, 0, 0, 4, 4)]]
    dataset: Any = SimpleNamespace(
        samples=[SimpleNamespace(label=kind, path=f"test/{n}.png") for n, kind in enumerate(kinds)],
        shown=lambda i: np.zeros((8, 8, 3), np.uint8),
        place=lambda i: (0, 0, 8, 8),
    )
    judged = judging.Judged(dataset, found, [])
    judged.__dict__["truth"] = [[Box(kind, 1, 0, 0, 4, 4)] * (kind != "good") for kind in kinds]
    assert judged.mistakes(0.5) == ["", "false reject", "escape", "taken for hole", ""]
    shown: dict[str, Any] = {}
    monkeypatch.setattr(
        judging, "sheet", lambda tiles, captions, marks, files: shown.update(captions=captions, marks=marks)
    )
    judged.page(0.5)
    assert [text.split("\n")[0] for text in shown["captions"][::2]] == [
        "escape: crack", "false reject: good", "taken for hole: crack", "crack", "good",
    ]  # fmt: skip
    assert shown["marks"][::2] == [False, False, False, True, True]


def test_a_flat_box_is_one_line_that_names_its_file(lab, product: Path, tmp_path: Path, capsys) -> None:
    yolo = tmp_path / "yolo"
    (yolo / "images/train").mkdir(parents=True)
    (yolo / "labels/train").mkdir(parents=True)
    (yolo / "data.yaml").write_text("train: images/train\nnames: [crack, hole]\n")
    for place, path in enumerate(sorted((product / "test/hole").glob("*.png"))):
        shutil.copy(path, yolo / f"images/train/{place}.png")
        (yolo / f"labels/train/{place}.txt").write_text("1 .5 .5 0 .5\n" if place == 3 else "1 .5 .5 .2 .5\n")
    assert lab("attempt=detect/fcos", *SMALL, "data=yolo", f"data.root={yolo}") == 2
    assert "labels/train/3.txt line 1 ('1 .5 .5 0 .5') is a box without width or height" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_backbone_without_maps_is_one_line(tiny_net: str) -> None:
    with pytest.raises(LabError, match="vit_b_16 has no map with cells of 8 to 32 pixels"):
        Pyramid("vit_b_16", None, 0, 32, 8)
    with pytest.raises(LabError, match=f"{tiny_net} has no map with cells of 8"):
        model(tiny_net, finest=8)


def test_maps_of_real_backbones_are_found() -> None:
    for name in ("resnet18", "mobilenet_v2"):
        pyramid = Pyramid(name, None, 0, 32, 8)
        assert pyramid.cells == [8, 16, 32, 64]
        assert [values.shape[2] for values in pyramid(torch.zeros(1, 3, 128, 128)).values()] == [16, 8, 4, 2]


@pytest.mark.slow
@pytest.mark.parametrize("method", others_slow(METHODS, "fcos"))
def test_a_detector_is_trained_judged_and_used(method: str, lab, product: Path, tmp_path: Path) -> None:
    # two epochs at the lower rate of two-stage detectors leave scores so alike that rounding reorders them
    assert lab(f"attempt=detect/{method}", *SMALL, "optimizer.lr=3e-3", "hydra.run.dir=run") == 0
    run = RunResult.load(tmp_path / "run")
    test = run.metrics["test"]
    assert {"map50", "map", "box_recall", "image_auroc", "intervals", "by_type"} <= test.keys()
    assert set(test["by_type"]) == {"crack", "hole"}
    rows = read_csv(tmp_path / "run/predictions.csv")
    sides = [(row["label"], len(from_text(row["truth"]))) for row in rows]
    assert all(count == int(label != "good") for label, count in sides)
    assert run.threshold is not None
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged") == 0
    assert json.loads((tmp_path / "judged/metrics.json").read_text())["metrics"] == run.metrics
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test/hole'}", "hydra.run.dir=new") == 0
    written = json.loads((tmp_path / "new/found/000.png.json").read_text())
    assert written["width"] == 24
    assert len(read_csv(tmp_path / "new/predictions.csv")) == 6
    assert (tmp_path / "new/found/000.png.jpg").exists()
    assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=out") == 0
    loaded, session = load_model(tmp_path / "run/best.ckpt"), onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    assert json.loads((tmp_path / "out/export.json").read_text())["output"].startswith(
        "boxes [K, 4], labels [K], scores"
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (loaded.mean, loaded.std))
    picture = torch.from_numpy(read_picture(product / "test/hole/000.png", SIZE))
    image = picture.permute(2, 0, 1)[None].float() / 255
    (found,) = loaded.module.found({"image": (image - mean) / std}, 8)
    outputs = session.run(None, {"images": image.numpy()})
    names = [output.name for output in session.get_outputs()]
    assert set(names) == found.keys()
    assert len(found["boxes"]) or method == "retinanet"  # two epochs leave its scores below the least that count
    for name, values in zip(names, outputs, strict=True):
        np.testing.assert_allclose(values, found[name], rtol=1e-3, atol=1e-3)
    assert ("iou" in test, "overlap" in rows[0]) == (method == "maskrcnn",) * 2
    if method == "maskrcnn":
        of_test = [row for row in rows if row["split"] == "test"]
        assert test["iou"] == pytest.approx(np.nanmean(ious(of_test)))
        assert {"iou", "dice", "pooled_iou"} <= test["intervals"].keys()
        assert np.asarray(Image.open(tmp_path / "new/found/000.png.png")).shape == (24, 24)


@pytest.mark.parametrize("method", others_slow(METHODS, "fcos", "fasterrcnn"))
def test_kept_maps_and_images_of_any_size_give_the_same_boxes(method: str, tiny_net: str) -> None:
    module = model(tiny_net, method, image_size=40).eval()  # no multiple of 32, to which TorchVision pads
    assert module.frozen is not None
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        from_maps = module.found({"features": module.frozen(images)})
    for one, other in zip(module.found({"image": images}), from_maps, strict=True):
        assert len(one["boxes"]) or method == "retinanet"  # whose untrained scores are below the least
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_image_without_a_box_is_good_wherever_it_is_judged(lab, tmp_path: Path, monkeypatch) -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    monkeypatch.setattr(DetectionModel, "detect", lambda self, images: [dict(nothing) for _ in images])
    assert lab("attempt=detect/fcos", *SMALL, "hydra.run.dir=run") == 0
    run = RunResult.load(tmp_path / "run")
    assert run.threshold is not None
    assert run.threshold == {"value": 0, "rule": "as an image without a box is good"}
    assert {row["prediction"] for row in read_csv(tmp_path / "run/predictions.csv")} == {"good"}
    assert run.metrics["test"]["false_alarm_rate"] == 0


@pytest.mark.slow
def test_pyramids_of_other_maps_do_not_share_features(lab, tmp_path: Path) -> None:
    for finest in (4, 2):
        chosen = [f"model.options.finest={finest}", "model.options.views=1", "trainer.max_epochs=1"]
        assert lab("attempt=detect/ssdlite", *SMALL, *chosen, f"hydra.run.dir=run{finest}") == 0
        assert RunResult.load(tmp_path / f"run{finest}").features == ["test", "train", "val"]


@pytest.mark.slow
def test_kept_maps_change_nothing_in_mixed_precision(lab, tmp_path: Path) -> None:
    for name, further in {"a": [], "b": ["cache.dir=null"]}.items():
        mixed = ["trainer.precision=bf16-mixed", "trainer.max_epochs=1", "model.options.views=2"]
        assert lab("attempt=detect/ssdlite", *SMALL, *mixed, *further, f"hydra.run.dir={name}") == 0
    kept, without = (RunResult.load(tmp_path / name) for name in "ab")
    assert (kept.features, without.features) == (["test", "train", "val"], [])
    assert kept.metrics == without.metrics
    assert read_csv(tmp_path / "a/predictions.csv") == read_csv(tmp_path / "b/predictions.csv")


@pytest.mark.slow
def test_a_threshold_says_which_images_chose_it(lab, tmp_path: Path) -> None:
    for setting, images in {
        "split.val_is_test=true": "the test images",
        "split.val_is_test=false": "validation",
    }.items():
        small = ["model.options.views=1", "trainer.max_epochs=1", "hydra.run.dir=" + images.split()[-1]]
        assert lab("attempt=detect/ssdlite", *SMALL, *small, setting) == 0
        threshold = RunResult.load(tmp_path / images.split()[-1]).threshold
        assert threshold is not None
        assert threshold["rule"] == f"of best F1 on {images}"


def test_a_detector_is_timed_from_pixels_where_its_maps_are_kept(lab, tmp_path: Path, monkeypatch) -> None:
    taken, found = [], DetectionModel.found

    def watched(self, batch, *views):
        taken.append(batch)
        return found(self, batch, *views)

    monkeypatch.setattr(DetectionModel, "found", watched)
    assert lab("attempt=detect/ssdlite", *SMALL, "trainer.max_epochs=1", "hydra.run.dir=run") == 0
    assert RunResult.load(tmp_path / "run").features == ["test", "train", "val"]
    timed = [batch for batch in taken if "features" not in batch]
    images = RunResult.load(tmp_path / "run").counts["test"]
    assert len(timed) == 1 + min(features.TIMED, sum(images.values()))  # the first one before the clock starts


@pytest.mark.slow
@pytest.mark.parametrize(("monitor", "best", "epochs"), [("val/map", 2, 4), ("val/loss", 5, 5)])
def test_a_detector_stops_early_by_what_chooses_its_epoch(
    lab, tmp_path: Path, monkeypatch, monitor: str, best: int, epochs: int
) -> None:
    def log(self: DetectionModel) -> None:
        epoch = self.current_epoch
        self.log_dict({"val/loss": 1.0 - epoch / 10, "val/map": min(epoch, 1) / 2, "val/map50": 0.5})

    monkeypatch.setattr(DetectionModel, "monitor", monitor)
    monkeypatch.setattr(DetectionModel, "on_validation_epoch_end", log)
    chosen = ["model.options.views=1", "trainer.patience=2", "trainer.max_epochs=5", "hydra.run.dir=run"]
    assert lab("attempt=detect/ssdlite", *SMALL, *chosen) == 0
    run = RunResult.load(tmp_path / "run")
    assert (run.best_epoch, run.epochs) == (best, epochs)


@pytest.mark.slow
@pytest.mark.parametrize("method", others_slow(METHODS, "fcos"))
def test_a_detector_resumes_to_the_same_result(method: str, resumed) -> None:
    resumed(DetectionModel, 1, f"attempt=detect/{method}", *SMALL, "trainer.max_epochs=3")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("model.options.channels=40", "model.options.channels=40 is no multiple of 32"),
        ("trainer.monitor=val/accuracy", "the method says which epoch is kept"),
        ("split.protocol=one_class", "only a one-class method learns from good images alone"),
        ("augment.mix=mixup", "it finds boxes, with losses of its own"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(setting: str, line: str, lab, capsys) -> None:
    assert lab("attempt=detect/fcos", setting) == 2
    assert line in " ".join(capsys.readouterr().err.split())


def test_a_split_without_defects_is_one_line(lab, product: Path, tmp_path: Path, capsys) -> None:
    paths = [p.relative_to(product).as_posix() for p in sorted((product / "test").rglob("*.png"))]
    splits = ["val" if "good/000" in p else "test" if "001" in p else "train" for p in paths]
    lines = [f"{path},{split}" for path, split in zip(paths, splits, strict=True)]
    (tmp_path / "split.csv").write_text("\n".join(["path,split", *lines]))
    assert lab("attempt=detect/fcos", *SMALL, "split.protocol=file", "split.file=split.csv") == 2
    assert "no defect in val, where boxes are to be found: raise split.val" in " ".join(capsys.readouterr().err.split())


def test_a_defect_without_a_mask_is_one_line(lab, product: Path, capsys) -> None:
    (product / "ground_truth/hole/000_mask.png").unlink()
    assert lab("attempt=detect/fcos", *SMALL, "data.masks=optional") == 2
    assert "hole/000.png has no mask to learn from" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("ask", ["predictions", "exported"])
def test_a_detector_whose_run_was_stopped_says_that_it_has_no_threshold(ask: str) -> None:
    model: Any = SimpleNamespace(method="fcos", threshold=None, module=None)
    with pytest.raises(LabError, match=r"fcos has no threshold, as its run was stopped.*resume=true"):
        getattr(problem_of("fcos"), ask)(model, *([[]] if ask == "predictions" else []))
