"""Large images in tiles: where they lie, how their maps become one, and runs that train on them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import SIZE, write_product
from PIL import Image
from test_export import DEPLOYMENT

from mvtec_lab.cache import ArrayCache
from mvtec_lab.config import AugmentConfig, SplitConfig
from mvtec_lab.data import datamodule
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.frame import Frame
from mvtec_lab.data.images import read_image
from mvtec_lab.data.regions import region_of
from mvtec_lab.data.samples import Sample, seen_in
from mvtec_lab.data.targets import resize_mask
from mvtec_lab.data.tiles import Window, stitch, windows
from mvtec_lab.data.transforms import normalise, resize
from mvtec_lab.engine.pictures import map_at
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import anomaly
from mvtec_lab.evaluation.segmentation import image_score
from mvtec_lab.problems.anomaly.judging import with_pasted_patches
from mvtec_lab.problems.model import load_model
from mvtec_lab.problems.segmentation.base import SegmentationModel
from mvtec_lab.results import RunResult, read_csv

LARGE, TILE = 72, 32  # pixels a side of an image, and of each of its nine tiles
PATCHCORE = ("attempt=patchcore", "model.options.layers=[features.relu1,features.relu2]", f"data.tile={TILE}")
# 32: the least that networks which reconstruct give back
AUTOENCODER = ("attempt=autoencoder", "data.image_size=32", "model.options.latent=8", f"data.tile={TILE}")
FPN = ("attempt=segment/fpn", "model.options.layers=[features.relu1,features.relu2]", "model.options.channels=8")


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A product of large images: 12 to learn from, of which 2 validate, and 10 to test."""
    return write_product(tmp_path / "products/widget", {"good": 5, "hole": 5}, train_good=12, size=LARGE)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here looks at an interval's ends, and a run draws for half of its time."""
    monkeypatch.setattr(anomaly, "RESAMPLES", 50)


def module(product: Path, **settings) -> MVTecDataModule:
    split = SplitConfig(protocol="one_class")
    data = MVTecDataModule(product, image_size=Frame(SIZE, tile=TILE), split=split, batch_size=8, **settings)
    data.setup()
    return data


@pytest.mark.parametrize(("length", "tile"), [(4000, 512), (3000, 512), (1024, 512), (900, 512), (513, 512), (65, 32)])
def test_tiles_cover_the_image_evenly_and_a_defect_of_an_eighth_lies_whole_in_one(length, tile):
    starts = [w.left for w in windows(tile, length, tile)]
    assert starts[0] == 0
    assert starts[-1] + tile == length
    steps = np.diff(starts)
    assert steps.max() - steps.min() <= 1
    assert tile - steps.max() >= tile // 8 - 1
    fewer = np.diff(np.linspace(0, length - tile, max(len(starts) - 1, 1)))  # one tile less would overlap too little
    assert not len(fewer) or tile - fewer.max() < tile // 8


def test_a_side_no_longer_than_a_tile_is_not_cut():
    assert windows(30, 40, 64) == [Window(0, 0, 30, 40)]
    assert windows(64, 64, 64) == [Window(0, 0, 64, 64)]
    assert {(w.top, w.height) for w in windows(30, 200, 64)} == {(0, 30)}


@pytest.mark.parametrize("side", [64, 32, 7])
def test_the_stitched_map_is_what_a_map_of_the_whole_image_is(side):
    height, width, tile = 150, 201, 64
    y, x = np.mgrid[:height, :width].astype(np.float32)
    whole = np.sin(y / 25) + np.cos(x / 30)
    places = windows(height, width, tile)
    maps = [cv2.resize(p.of(whole), (side, side), interpolation=cv2.INTER_AREA) for p in places]
    stitched = stitch(maps, places)
    assert stitched.shape == (round(height * side / tile), round(width * side / tile))
    assert stitched.dtype == np.float32
    wanted = cv2.resize(whole, stitched.shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(stitched - wanted).max() < 0.6 * tile / side / 25  # half a cell of the steepest slope


def test_a_constant_map_stays_one_and_a_peak_stays_in_its_place():
    places = windows(100, 100, 40)
    flat = stitch([np.full((20, 20), 3, np.float32)] * len(places), places)
    np.testing.assert_allclose(flat, 3, rtol=1e-6)
    image = np.zeros((100, 100), np.float32)
    image[62:66, 30:34] = 1
    maps = [cv2.resize(p.of(image), (20, 20), interpolation=cv2.INTER_AREA) for p in places]
    stitched = cv2.resize(stitch(maps, places), (100, 100))
    assert np.abs(np.array(np.unravel_index(stitched.argmax(), stitched.shape)) - (63.5, 31.5)).max() <= 2


def test_overlaps_are_averaged_by_the_distance_from_a_tiles_border():
    places = windows(10, 16, 10)
    assert [p.left for p in places] == [0, 6]
    line = stitch([np.zeros((10, 10), np.float32), np.ones((10, 10), np.float32)], places)[0]
    assert (line[:6] == 0).all()
    assert (line[10:] == 1).all()
    np.testing.assert_allclose(line[6:10], [1 / 8, 3 / 8, 5 / 8, 7 / 8], rtol=1e-6)


def test_the_map_of_a_single_tile_is_the_images():
    score_map = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    assert stitch([score_map], windows(30, 40, 64)) is score_map


def test_images_are_split_and_their_tiles_follow(product):
    data = module(product)
    paths = {split: {s.path for s in data.of_split(split)} for split in ("train", "val", "test")}
    assert sum(map(len, paths.values())) == 22
    for split, of_split in paths.items():
        tiles = data.dataset(split).samples
        assert Counter(s.path for s in tiles) == dict.fromkeys(of_split, 9)
        assert {s.split for s in tiles} == {split}
        assert {s.window for s in tiles} == set(windows(LARGE, LARGE, TILE))
    assert data.counts()["test"] == {"good": 5, "hole": 5}  # of images


def test_a_tile_is_its_part_of_the_image_whatever_is_cached(product, tmp_path):
    plain, cached = module(product), module(product, cache=ArrayCache(tmp_path / "cache"))
    assert sorted(path.name.split("_")[1] for path in (tmp_path / "cache").iterdir()) == ["images", "tiles"]
    tiles, kept = plain.dataset("test"), cached.dataset("test")
    for place in (0, 13, 44):
        sample = tiles.samples[place]
        wanted = resize(sample.window.of(read_image(product / sample.path)), SIZE)
        assert (tiles.picture(place) == wanted).all()
    order = np.random.default_rng(0).permutation(len(tiles)).tolist()  # tiles of an image far apart
    assert torch.equal(tiles[order]["image"], kept[order]["image"])
    assert torch.equal(tiles[order]["image"][3], tiles[order[3]]["image"])


def test_a_file_whose_header_says_another_size_is_named(product, monkeypatch):
    wrong = product / "test/good/001.png"

    def size(path):
        return (90, LARGE, "RGB") if path == wrong else (LARGE, LARGE, "RGB")

    monkeypatch.setattr(datamodule, "image_size", size)
    tiles = module(product).dataset("test")
    with pytest.raises(LabError, match=r"good/001\.png has 72 x 72 pixels, and its header says another size"):
        tiles.pictures_at(list(range(len(tiles))))


def test_training_sees_every_tile_once_and_augments_each(product, tmp_path):
    augment = AugmentConfig(transforms={"HorizontalFlip": {"p": 0.5}})
    loaders = [
        module(product, augment=augment, cache=cache).train_dataloader()
        for cache in (None, ArrayCache(tmp_path / "cache"))
    ]
    first, second = (list(loader) for loader in loaders)
    assert sorted(torch.cat([batch["index"] for batch in first]).tolist()) == list(range(90))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))


def run(lab, name, *arguments):
    assert lab(*arguments, f"hydra.run.dir={name}") == 0
    return RunResult.load(name), read_csv(Path(name, "predictions.csv"))


@pytest.mark.slow
def test_an_image_has_the_highest_score_of_its_tiles_and_one_map(lab, product, tmp_path):
    result, rows = run(lab, "run", *PATCHCORE)
    assert len(rows) == len(read_csv(tmp_path / "run/samples.csv"))  # a row for each image
    assert result.counts["train"]["good"] == 10
    assert result.threshold["map"] is not None
    assert {"mistakes.jpg", "explanations.jpg", "pixels.npz"} <= {path.name for path in (tmp_path / "run").iterdir()}
    model = load_model("run/best.ckpt")
    assert (model.tile, model.frame) == (TILE, Frame(SIZE, tile=TILE))
    for row in [*rows[:2], *rows[-2:]]:  # those that the run's own model scored: validation and test
        image = read_image(product / row["path"])
        pictures = np.stack([resize(w.of(image), SIZE) for w in windows(LARGE, LARGE, TILE)])
        with torch.no_grad():
            scores = model.module(normalise(pictures, model.mean, model.std)).image
        assert float(row["score"]) == pytest.approx(float(scores.max()), rel=1e-5)
    assert result.metrics["test"]["image_auroc"] == 1
    assert result.metrics["test"]["pixel_auroc"] > 0.9


@pytest.mark.slow
def test_neither_caches_nor_batches_change_a_score(lab, product):
    first = run(lab, "first", *PATCHCORE)[1]
    assert run(lab, "uncached", *PATCHCORE, "cache.dir=null")[1] == first
    other = run(lab, "batches", *PATCHCORE, "data.batch_size=5")[1]
    for row, again in zip(first, other, strict=True):
        assert float(again["score"]) == pytest.approx(float(row["score"]), rel=1e-5)


@pytest.mark.slow
def test_evaluate_predict_and_export_follow_the_checkpoint(lab, product, tmp_path, capsys):
    result, rows = run(lab, "run", *PATCHCORE)
    assert lab("task=evaluate", "ckpt=run", "hydra.run.dir=again") == 0
    assert json.loads(Path("again/metrics.json").read_text())["metrics"]["test"] == result.metrics["test"]
    tested = [row for row in rows if row["split"] == "test"]
    assert read_csv(Path("again/predictions.csv")) == tested
    assert lab("task=predict", "ckpt=run", f"source={product / 'test'}", "hydra.run.dir=out") == 0
    found = read_csv(Path("out/predictions.csv"))
    assert [Path(row["path"]).relative_to(product).as_posix() for row in found] == [row["path"] for row in tested]
    for row, before in zip(found, tested, strict=True):
        assert float(row["score"]) == pytest.approx(float(before["score"]), rel=1e-5)
    heat = np.asarray(Image.open("out/maps/hole/000.png.tiff"))
    assert heat.shape == (54, 54)  # 72 pixels at 24 for 32
    mask = np.asarray(Image.open(product / "ground_truth/hole/000_mask.png")) > 0
    heat = cv2.resize(heat, mask.shape[::-1])
    assert heat[mask].mean() > 1.5 * heat[~mask].mean()
    pytest.importorskip("onnxruntime")
    assert lab("task=export", "ckpt=run", "hydra.run.dir=exported") == 0
    report = json.loads(Path("exported/export.json").read_text())
    assert report["tile"] == TILE
    assert "the highest of its tiles" in report["tiles"]
    assert report["check"]["of"] == "the run's test images"
    code = [block.split("```")[0] for block in DEPLOYMENT.read_text().split("```python\n")]
    names: dict[str, Any] = {}
    for row in found[:2]:
        for block in (block for block in code if "InferenceSession" in block or "def starts" in block):
            exec(block.replace("outputs/exported", "exported").replace("new.png", row["path"]), names)
        assert len(names["scores"]) == 9
        assert max(names["scores"]) == pytest.approx(float(row["score"]), rel=1e-4)
    capsys.readouterr()
    assert lab("task=predict", "ckpt=run", f"source={product / 'test'}", "data.tile=16", "hydra.run.dir=no") == 2
    assert "data.tile" in capsys.readouterr().err


@pytest.mark.slow
def test_images_no_larger_than_a_tile_are_judged_as_without_tiles(lab, product):
    plain = run(lab, "plain", *PATCHCORE[:2])
    tiled = run(lab, "tiled", *PATCHCORE[:2], f"data.tile={LARGE}")
    assert tiled[1] == plain[1]
    assert tiled[0].metrics == plain[0].metrics
    assert tiled[0].threshold == plain[0].threshold
    assert set(tiled[0].warnings) - set(plain[0].warnings) == {"data.tile=72 cuts no image: none has a longer side"}


@pytest.mark.slow
def test_a_method_that_trains_sees_tiles_and_repeats(lab, product):
    first, rows = run(lab, "first", *AUTOENCODER)
    assert "10 good images (90 tiles of 32 pixels)" in Path("first/run.log").read_text()
    again, same = run(lab, "again", *AUTOENCODER, "cache.dir=null")
    assert (again.metrics, same) == (first.metrics, rows)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gaussian", "padim"])
def test_other_methods_judge_tiles_as_well(lab, product, method):
    layers = "features.relu2" if method == "gaussian" else "features.relu1,features.relu2"
    result, rows = run(lab, "run", f"attempt={method}", f"model.options.layers=[{layers}]", f"data.tile={TILE}")
    assert len(rows) == 12 + 10
    assert ("pixel_auroc" in result.metrics["test"]) == (method == "padim")


@pytest.mark.slow
def test_a_made_defect_lies_in_one_tile_of_each_image(product, lab):
    good = module(product).dataset("val")
    whole, tiles = with_pasted_patches(good, 0)
    assert (len(whole), len(tiles)) == (2, 18)
    changed = [place for place in range(18) if (tiles[[place]]["image"] != good[[place]]["image"]).any()]
    assert [place // 9 for place in changed] == [0, 1]
    assert all((whole.picture(k) == tiles.picture(place)).all() for k, place in enumerate(changed))
    result, _ = run(lab, "run", *PATCHCORE, "threshold.rule=synthetic")
    assert result.metrics["val"]["images"] == 24


def test_a_drawn_map_keeps_a_peak_that_is_smaller_than_a_pixel():
    heat = np.zeros((900, 1200), np.float32)
    heat[451, 333] = 7
    assert map_at(heat, (90, 100)).max() == 7
    small = np.random.default_rng(0).random((5, 6)).astype(np.float32)
    np.testing.assert_array_equal(map_at(small, (50, 60)), cv2.resize(small, (60, 50)))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("attempt=base",), "it learns the class of a whole image, and most tiles of a defective image show no defect"),
        (("attempt=detect/fcos",), "boxes across tiles are not joined yet"),
        ((*FPN, "augment.paste=0.5"), "augment.paste=0.5 pastes defects onto whole images, and data.tile=32"),
        (("attempt=patchcore", "data.tile=8"), "data.tile=8 is out of range"),
    ],
)
def test_what_cannot_judge_tiles_says_why_and_what_does(lab, product, capsys, arguments, why):
    assert lab("data.tile=32", *arguments, "hydra.run.dir=no") == 2
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert why in line
    assert not Path("no").exists()


@pytest.mark.slow
def test_a_checkpoint_of_before_there_were_tiles_is_read(lab, product):
    run(lab, "run", *PATCHCORE[:2])
    content = torch.load("run/best.ckpt", weights_only=True)
    del content["about"]["tile"]
    torch.save(content, "old.ckpt")
    assert load_model("old.ckpt").tile is None


def test_a_tile_is_of_the_class_that_its_part_of_the_mask_says(product):
    data = module(product, targets=("mask",))
    tiles, images = data.dataset("test"), data.images(data.of_split("test"))
    for place in (k for k, s in enumerate(images.samples) if s.label == "hole"):
        mask, path = images.mask(place), images.samples[place].path
        of_image = [(k, s) for k, s in enumerate(tiles.samples) if s.path == path]
        assert {s.label for _, s in of_image} == {"hole", "good"}
        for k, tile in of_image:
            part = tile.window.of(mask)
            assert tile.label == ("hole" if part.any() else "good")
            assert tiles[k]["mask"].any().item() == part.any()
            assert (tiles[k]["mask"].numpy() == resize_mask(part, SIZE)).all()
    counts = Counter(s.label for s in data.dataset("test").samples)
    assert counts["good"] > 5 * counts["hole"]


def test_a_tile_has_the_annotated_objects_that_reach_into_it(tmp_path):
    small, large = np.zeros((2, 60, 60), bool)
    small[5:8, 5:8] = True
    large[5:10, 12:40] = True
    objects = (region_of(small, "dot"), region_of(large, "crack"))
    sample = Sample("a.png", "crack", "a.json", objects=objects)
    places = [Window(0, 0, 13, 13), Window(0, 20, 14, 14), Window(40, 0, 14, 14)]
    left, middle, empty = seen_in(sample, tmp_path, places)
    assert left == {"label": "dot", "objects": objects}  # 9 pixels of it, 5 of the crack
    assert [r.label for r in middle["objects"]] == ["crack"]
    assert empty == {"label": "good", "mask": None, "objects": ()}


@pytest.mark.slow
def test_segmentation_learns_tiles_and_judges_images(lab, product, tmp_path):
    arguments = (*FPN, f"data.tile={TILE}", "trainer.max_epochs=4")
    result, rows = run(lab, "run", *arguments)
    assert "tiles of 32 pixels" in Path("run/run.log").read_text()
    assert len(rows) == result.counts["val"]["good"] + result.counts["val"]["defect"] + result.metrics["test"]["images"]
    _, same = run(lab, "again", *arguments, "cache.dir=null")
    for row, other in zip(rows, same, strict=True):
        assert float(other["score"]) == pytest.approx(float(row["score"]), rel=1e-4)
    assert lab("task=evaluate", "ckpt=run", "hydra.run.dir=judged") == 0
    assert read_csv(Path("judged/predictions.csv")) == rows
    tested = [row for row in rows if row["split"] == "test"]
    model = load_model("run/best.ckpt")
    image = read_image(product / tested[0]["path"])
    pictures = np.stack([resize(w.of(image), SIZE) for w in windows(LARGE, LARGE, TILE)])
    maps, _ = model.module.probabilities({"image": normalise(pictures, model.mean, model.std)})
    assert float(tested[0]["score"]) == pytest.approx(max(map(image_score, maps.numpy())), rel=1e-5)
    assert lab("task=predict", "ckpt=run", f"source={product / 'test'}", "hydra.run.dir=out") == 0
    found = {Path(row["path"]).relative_to(product).as_posix(): row for row in read_csv(Path("out/predictions.csv"))}
    for row in tested:
        assert float(found[row["path"]]["score"]) == pytest.approx(float(row["score"]), rel=1e-4)
        assert found[row["path"]]["found_type"] == row["found_type"]
    mask = np.asarray(Image.open(Path("out/found") / f"{tested[0]['path'].removeprefix('test/')}.png"))
    assert mask.shape == (LARGE, LARGE)


@pytest.mark.slow
def test_segmentation_of_tiles_resumes(resumed, product):
    resumed(SegmentationModel, 2, *FPN, f"data.tile={TILE}", "trainer.max_epochs=4", "data.sampler=inverse")


def test_masks_of_images_no_larger_than_a_tile_are_as_without_tiles(lab, product):
    (plain, rows), (tiled, same) = (run(lab, name, *FPN, f"data.tile={t}") for name, t in (("a", "null"), ("b", LARGE)))
    assert (tiled.metrics, same) == (plain.metrics, rows)
