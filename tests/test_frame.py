"""The square that images are brought into: squeezed as ever, or letterboxed, and what stands in it agrees."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import SIZE, others_slow
from PIL import Image

from mvtec_lab.cache import ArrayCache
from mvtec_lab.config import AugmentConfig
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.frame import Frame, border, inside
from mvtec_lab.data.regions import box_around
from mvtec_lab.data.samples import Sample
from mvtec_lab.data.targets import boxes_of, resize_mask
from mvtec_lab.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise, resize
from mvtec_lab.engine.model import ABOUT
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.segmentation import spread
from mvtec_lab.models.views import unviewed, view
from mvtec_lab.problems import padding
from mvtec_lab.problems.anomaly.base import Scores
from mvtec_lab.problems.anomaly.models import build_anomaly_model
from mvtec_lab.problems.anomaly.scores import score
from mvtec_lab.problems.classification.classifier import DefectClassifier
from mvtec_lab.problems.detection.base import DetectionModel
from mvtec_lab.problems.detection.views import kept_inside
from mvtec_lab.problems.model import load_model
from mvtec_lab.problems.scored import overlap_row
from mvtec_lab.problems.segmentation.base import SegmentationModel
from mvtec_lab.results import RunResult, read_csv

BOX = Frame(64, "letterbox")
SIZES = [(60, 120), (120, 60), (50, 170), (400, 130), (100, 100)]


def wide(product: Path, times: int = 2) -> Path:
    """Make every image and mask of a product that many times as wide, with nothing to see on the right."""
    rng = np.random.default_rng(0)
    for path in product.rglob("*.png"):
        image = np.asarray(Image.open(path))
        shape = (image.shape[0], (times - 1) * image.shape[1], *image.shape[2:])
        right = np.zeros(shape, np.uint8) if image.ndim == 2 else rng.integers(90, 120, shape, dtype=np.uint8)
        Image.fromarray(np.concatenate([image, right], axis=1)).save(path)
    return product


def seen(image: np.ndarray, frame: Frame = BOX) -> torch.Tensor:
    return normalise(resize(image, frame)[None], IMAGENET_MEAN, IMAGENET_STD)


def test_a_number_is_the_frame_of_that_size(product: Path) -> None:
    frames = [MVTecDataModule(product, image_size=size) for size in (SIZE, Frame(SIZE))]
    for data in frames:
        data.setup()
    one, other = (data.images(data.samples)[[0, 1]]["image"] for data in frames)
    assert torch.equal(one, other)
    assert frames[0].content(frames[0].samples) == frames[1].content(frames[1].samples)


def test_a_letterbox_of_squares_is_said(product: Path) -> None:
    for of_squares in (True, False):
        data = MVTecDataModule(product if of_squares else wide(product), image_size=Frame(SIZE, "letterbox"))
        data.setup()
        assert any("changes nothing" in line for line in data.warnings) == of_squares


def test_an_unknown_fit_is_named() -> None:
    with pytest.raises(LabError, match=r"unknown data\.fit 'leterbox': did you mean letterbox"):
        Frame(64, "leterbox")


def test_a_circle_stays_a_circle() -> None:
    image = np.full((100, 200, 3), 255, np.uint8)
    cv2.circle(image, (120, 50), 30, (0, 0, 0), -1)
    dark = (resize(image, BOX) < 80).all(axis=2)
    x0, y0, x1, y1 = box_around(dark)
    assert [x1 - x0, y1 - y0] == pytest.approx([61 * 64 / 200] * 2, abs=1)
    assert dark.sum() == pytest.approx(np.pi * (61 * 64 / 400) ** 2, rel=0.1)
    x0, y0, x1, y1 = box_around((resize(image, 64) < 80).all(axis=2))
    assert (y1 - y0) / (x1 - x0) == pytest.approx(2, rel=0.1)  # squeezed, it does not


@pytest.mark.parametrize("size", SIZES)
def test_mask_box_and_map_of_a_defect_agree(size: tuple[int, int]) -> None:
    """Within a pixel of the square, which is several of the image."""
    mask = np.zeros(size, bool)
    mask[10:37, 21:44] = True
    own = np.array(box_around(mask))
    (box,) = boxes_of(resize_mask(mask, BOX)).numpy()
    np.testing.assert_allclose(BOX.into(own, size), box, atol=1)
    np.testing.assert_allclose(BOX.out_of(BOX.into(own, size), size), own)
    image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
    picture = resize(image, BOX)
    top, left, height, width = BOX.place(size)
    assert max(height, width) == 64
    assert (picture[:top] == border(BOX.cut(picture, size))).all()
    assert (picture[:, left + width :] == border(BOX.cut(picture, size))).all()
    np.testing.assert_allclose(box_around(BOX.cut(picture, size)[..., 0] > 127), box - [left, top] * 2, atol=1)
    for cells in (64, 32):  # a map over the square, as a network gives it
        heat = cv2.resize(resize_mask(mask, BOX).astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA)
        found = spread(BOX.cut(heat, size), size) > 0.5
        np.testing.assert_allclose(box_around(found), own, atol=max(size) / cells)


def test_squeezing_is_what_it_was(product: Path) -> None:
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        image, mask = rng.integers(0, 256, (height, width, 3), np.uint8), rng.random((height, width)) > 0.7
        smaller = min(width, 64), min(height, 64)
        picture = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(resize(image, 64), cv2.resize(picture, (64, 64), interpolation=cv2.INTER_CUBIC))
        cover = cv2.resize(mask.astype(np.float32), smaller, interpolation=cv2.INTER_AREA)
        cover = cv2.resize(cover, (64, 64), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(resize_mask(mask, 64), cover > 0.5)
        assert Frame(64).cut(picture, (height, width)) is picture
    data = MVTecDataModule(product, image_size=SIZE)
    data.setup()
    key = data.content(data.samples)
    assert key.keys() == {"images", "size", "rules"}  # entries of earlier versions are still met
    assert key["rules"].keys() == {"version", "opencv", "pillow", "white"}


def test_each_fit_has_its_own_entries_in_the_cache(product: Path, tmp_path: Path) -> None:
    wide(product)
    pictures, keys = [], []
    for fit in ("letterbox", "squeeze", "letterbox"):
        data = MVTecDataModule(product, image_size=Frame(SIZE, fit), cache=ArrayCache(tmp_path / "c"))
        data.setup()
        pictures.append(data.dataset("test")[0]["image"])
        keys.append(data.content(data.samples))
    assert keys[0] == keys[2] != keys[1]  # of features as well
    assert len(list((tmp_path / "c").glob("*.npy"))) == 2
    assert torch.equal(pictures[0], pictures[2])
    assert not torch.equal(pictures[0], pictures[1])


@pytest.mark.parametrize("size", SIZES)
def test_padding_is_recognised(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    middle = [side // 2 for side in size]
    image[middle[0] : middle[0] + 4], image[:, middle[1] : middle[1] + 4] = 127, 127  # inside, the colour is no padding
    top, left, height, width = BOX.place(size)
    place = torch.zeros(1, 64, 64, dtype=torch.bool)
    place[:, top : top + height, left : left + width] = True
    assert torch.equal(inside(seen(image)), place)
    for number in range(8):
        assert torch.equal(unviewed(inside(view(seen(image), number)), number), place)
    smaller = torch.nn.functional.interpolate(seen(image), (32, 32), mode="bilinear", antialias=True)
    near = torch.nn.functional.max_pool2d(place.float(), 2)[0] > 0
    assert (inside(smaller)[0] ^ near).float().mean() < 0.1  # as another run that says where to look sees it
    assert inside(seen(np.full((*size, 3), 9, np.uint8))).all()  # a covered lens shows a blank image, not none


def test_smoothing_leaves_padding_out() -> None:
    """A rim is as high as the middle, and what a network says of the padding is nowhere."""
    part = inside(seen(np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8)))
    scores = torch.full((1, 16, 16), 1e6)
    scores[:, 4:12] = 3.0
    blurred = padding.within(scores, part, lambda maps: torch.nn.functional.avg_pool2d(maps, 5, 1, 2))
    assert blurred[:, 4:12].allclose(torch.tensor(3.0))
    assert not blurred[:, :4].any()
    assert not blurred[:, 12:].any()


def test_a_bank_holds_no_patch_of_padding(tiny_net: str) -> None:
    options = {"backbone": tiny_net, "weights": None, "layers": ["features.relu1", "features.relu2"], "coreset": 1.0}
    images = np.random.default_rng(0).integers(0, 256, (4, 60, 120, 3), np.uint8)
    squares = torch.cat([seen(image) for image in images])
    banks = []
    for padded in (True, False):
        model = build_anomaly_model("patchcore", image_size=64, padded=padded, **options).eval()
        model.prepare(lambda: squares.split(2))
        banks.append(len(model.model.bank))
    assert banks == [4 * 16 * 32, 4 * 32 * 32]


def test_a_place_that_only_padding_covers_is_filled_from_the_image(tiny_net: str) -> None:
    options = {"backbone": tiny_net, "weights": None, "layers": ["features.relu1"]}
    images = np.random.default_rng(0).integers(0, 256, (4, 60, 120, 3), np.uint8)
    squares = torch.cat([seen(image) for image in images])
    model = build_anomaly_model("rad", image_size=64, padded=True, **options).eval()
    model.prepare(lambda: squares.split(3))
    bank = model.model.banks[0].bank  # 32 x 32 places; the image lies in rows 8 to 23
    assert torch.equal(bank[:8], bank[8].expand(8, -1, -1, -1))
    assert torch.equal(bank[24:], bank[23].expand(8, -1, -1, -1))
    assert not torch.equal(bank[9], bank[8])


@pytest.mark.parametrize(
    "method",
    ["patchcore", "padim", "spade", "rad", "stfpm", "supersimplenet", "draem", "autoencoder", "memae", "fanogan"],
)
def test_no_map_says_anything_of_padding(method: str, tiny_net: str) -> None:
    torch.manual_seed(0)
    options = {"backbone": tiny_net, "weights": None}
    if method in ("patchcore", "padim", "spade", "rad", "stfpm", "supersimplenet"):
        options["layers"] = ["features.relu1", "features.relu2"]
    images = np.random.default_rng(0).integers(0, 256, (6, 60, 120, 3), np.uint8)
    squares = torch.cat([seen(image) for image in images])
    model = build_anomaly_model(method, image_size=64, padded=True, **options).eval()
    with torch.no_grad():
        model.prepare(lambda: squares.split(3))
        model.finish(lambda: squares.split(3))
        scores = model(squares.flip(3))
    assert scores.map is not None
    side = scores.map.shape[-1]
    assert not scores.map[:, : side // 4].any()
    assert not scores.map[:, side - side // 4 :].any()
    assert (scores.map[:, side // 2] > 0).any()
    assert scores.image.isfinite().all()


def test_boxes_end_with_the_image() -> None:
    part = torch.zeros(64, 64, dtype=torch.bool)
    part[16:48] = True
    boxes = torch.tensor([[2.0, 10, 20, 30], [0, 0, 9, 16], [5, 20, 70, 60], [1, 48, 5, 64]])
    found = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]), "masks": torch.ones(4, 1, 64, 64)}
    kept = kept_inside(found, part)
    assert kept["boxes"].tolist() == [[2, 16, 20, 30], [5, 20, 64, 48]]
    assert kept["scores"].tolist() == pytest.approx([0.9, 0.7])
    assert kept["masks"].sum((1, 2, 3)).tolist() == [32 * 64] * 2


def test_a_pasted_defect_stays_in_a_narrow_image(product: Path) -> None:
    """An object that fills a strip fills less than a tenth of the square: it is looked for in the image alone."""
    wide(product, 12)
    frame = Frame(192, "letterbox")
    data = MVTecDataModule(product, image_size=frame, augment=AugmentConfig(paste=1.0), targets=["mask"])
    data.setup()
    dataset = data.dataset("train")
    moved = 0
    for place, sample in enumerate(dataset.samples):
        for seed in range(4):
            picture, mask = dataset.view((place, seed))
            top, _, height, _ = dataset.place(place)
            assert mask is not None
            assert mask.any() == (sample.label != "good")
            for beside in (slice(0, top), slice(top + height, None)):
                assert (picture[beside] == picture[0, 0]).all()
                assert not mask[beside].any()
            moved += sample.label != "good" and not np.array_equal(picture, dataset.picture(place))
    assert moved > 8


def test_an_image_is_shown_in_its_proportions(product: Path) -> None:
    wide(product)
    dataset = MVTecDataset(product, [Sample("test/hole/000.png", "hole")], image_size=Frame(SIZE, "letterbox"))
    assert dataset.picture(0).shape == (SIZE, SIZE, 3)
    assert dataset.shown(0).shape == (SIZE // 2, SIZE, 3)
    np.testing.assert_array_equal(dataset.padded(0, dataset.shown(0)), dataset.picture(0))
    data = MVTecDataModule(product, image_size=Frame(64, "letterbox", tile=32))
    data.setup()
    assert data.dataset("test").shown(0).shape == (48, 64, 3)  # a tile of 24 x 32 pixels


LAYERS = "model.options.layers=[features.relu1,features.relu2]"
LETTERBOX = ("data.fit=letterbox", "data.image_size=64")
RUNS = {
    "classification": ["attempt=base"],
    "anomaly": ["attempt=patchcore", LAYERS],
    "by place": ["attempt=rad", LAYERS, "model.options.score=max"],
    "tiles": ["attempt=patchcore", LAYERS, "data.tile=32"],  # of 24 x 32 pixels: an image is 24 high
    "segmentation": ["attempt=segment/fpn", LAYERS, "optimizer.lr=0.02", "trainer.max_epochs=6"],
    "segmented tiles": ["attempt=segment/fpn", LAYERS, "optimizer.lr=0.02", "trainer.max_epochs=6", "data.tile=32"],
    "boxes and masks": [
        *("attempt=detect/maskrcnn", "model.options.finest=4", "model.options.channels=32", "model.unfreeze=0"),
        *("optimizer.lr=3e-3", "trainer.max_epochs=6"),
    ],
    "detection": [
        *("attempt=detect/fcos", "model.options.finest=4", "model.options.channels=32", "model.unfreeze=0"),
        *("optimizer.lr=3e-3", "trainer.max_epochs=4"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("problem", others_slow(RUNS, "classification", "anomaly", "tiles", "segmentation"))
def test_a_letterboxed_run_is_judged_and_used_as_it_was_trained(
    problem: str, lab, product: Path, tmp_path: Path
) -> None:
    """Whatever data.fit says by then, evaluate gives the run's figures and predict the run's rows."""
    wide(product)
    assert lab(*RUNS[problem], *LETTERBOX, "hydra.run.dir=run") == 0
    run, rows = RunResult.load(tmp_path / "run"), read_csv(tmp_path / "run/predictions.csv")
    assert load_model(tmp_path / "run/best.ckpt").frame == Frame(64, "letterbox", 32 if "tiles" in problem else None)
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged") == 0
    assert json.loads((tmp_path / "judged/metrics.json").read_text())["metrics"] == run.metrics
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test'}", "hydra.run.dir=new") == 0
    new = {str(Path(row["path"]).relative_to(product)): row for row in read_csv(tmp_path / "new/predictions.csv")}
    value = "prob_hole" if problem == "classification" else "score"
    for row in rows:
        if row["path"] in new:
            assert float(new[row["path"]][value]) == pytest.approx(float(row[value]), abs=2e-5), row["path"]
    if problem in ("anomaly", "by place"):
        assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=out") == 0
        about = json.loads((tmp_path / "out/export.json").read_text())
        assert (about["fit"], "place" in about) == ("letterbox", True)
        session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
        square = resize(np.asarray(Image.open(product / "test/hole/000.png")), BOX)
        outputs = session.run(None, {"images": (square / 255).astype(np.float32).transpose(2, 0, 1)[None]})
        assert float(outputs[0][0]) == pytest.approx(float(new["test/hole/000.png"]["score"]), rel=1e-4)
        assert not outputs[1][0, :16].any()
    if problem == "tiles":
        with Image.open(tmp_path / "new/maps/hole/000.png.tiff") as heat:
            assert heat.size == (96, 48)
    if problem in ("anomaly", "by place"):
        with Image.open(tmp_path / "new/maps/hole/000.png.tiff") as heat:
            assert heat.size == (64, 32)  # of the image alone
        with Image.open(tmp_path / "new/maps/hole/000.png.jpg") as drawn:
            assert drawn.width == 2 * drawn.height
    if problem in ("segmentation", "segmented tiles"):
        for row in rows:
            found = tmp_path / "new/found" / f"{Path(row['path']).relative_to('test')}.png"
            mask = np.asarray(Image.open(found)) > 0
            assert mask.shape == (SIZE, 2 * SIZE)
            assert new[row["path"]]["mask_share"] == f"{mask.mean():.6g}"
    if problem == "boxes and masks":
        assert all(np.asarray(Image.open(f)).shape == (SIZE, 2 * SIZE) for f in (tmp_path / "new/found").rglob("*.png"))
        assert run.metrics["test"]["iou"] is not None
    if problem in ("detection", "boxes and masks"):
        for file in (tmp_path / "new/found").rglob("*.json"):
            of_image = json.loads(file.read_text())
            corners = np.array([box["box"] for box in of_image["boxes"]]).reshape(-1, 4)
            assert (of_image["width"], of_image["height"]) == (2 * SIZE, SIZE)
            assert (corners >= 0).all()
            assert (corners <= [2 * SIZE, SIZE] * 2).all()


def test_maps_that_are_the_masks_have_their_figures(lab, product: Path, tmp_path: Path, monkeypatch) -> None:
    """A map over the square is cut to the image before it is compared with the mask's file."""

    def probabilities(self: SegmentationModel, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["mask"][:1].float(), torch.zeros(1, len(self.kinds))

    wide(product)
    monkeypatch.setattr(SegmentationModel, "probabilities", probabilities)
    assert lab(*RUNS["segmentation"], *LETTERBOX, "hydra.run.dir=run") == 0
    test = RunResult.load(tmp_path / "run").metrics["test"]
    assert test["iou"] > 0.8
    assert test["pixel_ap"] > 0.95


def test_scores_of_an_anomaly_model_are_of_the_image(product: Path) -> None:
    wide(product)
    data = MVTecDataModule(product, image_size=BOX, targets=["mask"])
    data.setup()
    dataset = data.images(data.of_split("test"))

    class Exact(torch.nn.Module):
        def scored(self, images: torch.Tensor) -> Scores:
            masks = dataset.small_masks(list(range(len(dataset)))).float()
            assert len(images) == len(masks)
            return Scores(masks.amax((1, 2)), masks)

    _, maps = score(Exact(), dataset, 100, torch.device("cpu"))  # type: ignore[arg-type]
    assert maps is not None
    rows = [overlap_row(dataset, place, maps[place], 0.5) for place in range(len(dataset))]
    assert min(float(row["iou"] or 1) for row in rows) > 0.75


def test_boxes_that_are_the_masks_are_all_found(lab, product: Path, tmp_path: Path, monkeypatch) -> None:
    def found(self: DetectionModel, batch: Mapping[str, Any], views: int = 1) -> list[dict[str, torch.Tensor]]:
        pairs = list(zip(batch["boxes"], batch["labels"], strict=True))[::views]
        return [{"boxes": b, "labels": k, "scores": torch.full((len(b),), 0.9)} for b, k in pairs]

    wide(product)
    monkeypatch.setattr(DetectionModel, "found", found)
    assert lab(*RUNS["detection"], *LETTERBOX, "hydra.run.dir=run") == 0
    test = RunResult.load(tmp_path / "run").metrics["test"]
    assert test["map50"] == 1
    assert test["map"] > 0.7


def test_a_peak_on_the_defect_is_in_its_mask(lab, product: Path, tmp_path: Path, monkeypatch) -> None:
    def maps(classifier: DefectClassifier, images: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heat = (images[:, 0] - images[:, 2]).abs()  # cracks are red, holes are blue
        highest = heat.flatten(1).argmax(1)
        return heat / heat.amax((1, 2), keepdim=True), torch.stack([highest // 64, highest % 64], 1)

    wide(product)
    monkeypatch.setattr("mvtec_lab.problems.classification.classifier.activation_maps", maps)
    assert lab(*RUNS["classification"], *LETTERBOX, "hydra.run.dir=run") == 0
    explained = RunResult.load(tmp_path / "run").explained
    assert explained is not None
    assert explained["peak_in_mask"] == explained["images"] > 0


def test_what_a_segmenter_says_of_padding_does_not_count(lab, product: Path, tmp_path: Path, monkeypatch) -> None:
    """It is the same from images and from kept features: the score of an image is that of its own places."""
    wide(product)
    assert lab(*RUNS["segmentation"], *LETTERBOX, "hydra.run.dir=run") == 0
    model = load_model(tmp_path / "run/best.ckpt")
    monkeypatch.setattr(type(model.module), "judged", lambda self, views: (torch.ones(1, 16, 16), torch.zeros(1, 2)))
    dataset = MVTecDataset(product, [Sample("test/hole/000.png", "hole")], image_size=BOX)
    image = dataset[[0]]["image"]
    kept = {"features": torch.zeros(model.module.views, 4), "inside": dataset.inside(0)[None]}
    for batch in ({"image": image}, {**kept, "inside": kept["inside"].expand(model.module.views, -1, -1)}):
        maps, _ = model.module.probabilities(batch)
        assert maps[0, 4:12].all()
        assert not maps[0, :4].any()
        assert not maps[0, 12:].any()


@pytest.mark.slow
def test_a_resumed_run_ends_as_if_it_had_not_stopped(resumed, product: Path) -> None:
    wide(product)
    resumed(DefectClassifier, 2, "attempt=finetune", "data.fit=letterbox", "trainer.max_epochs=4")


def test_an_older_checkpoint_is_of_squeezed_images(lab, product: Path, tmp_path: Path) -> None:
    assert lab("attempt=base", "hydra.run.dir=run") == 0
    content = torch.load(tmp_path / "run/best.ckpt", weights_only=True)
    del content[ABOUT]["fit"]
    torch.save(content, tmp_path / "run/best.ckpt")
    assert load_model(tmp_path / "run/best.ckpt").frame == Frame(SIZE)
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged") == 0
