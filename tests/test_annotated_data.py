"""data=yolo and data=coco: folders as other programs export them, their targets, splits, and what is refused."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import SIZE
from PIL import Image

from mvtec_lab.config import AugmentConfig, SplitConfig
from mvtec_lab.data.annotations import READERS
from mvtec_lab.data.annotations.coco import read_coco, region_of_annotation
from mvtec_lab.data.annotations.yolo import read_yolo, region_of_row
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.data.layouts.mvtec import scan
from mvtec_lab.data.regions import regions_of
from mvtec_lab.data.samples import kinds_of
from mvtec_lab.data.splits import split_samples
from mvtec_lab.errors import LabError

OWN = SplitConfig(protocol="own")


def picture(path: Path, seed: int = 0, size: int = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)).save(path)


def text(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def fill(folder: Path, parts: dict[str, str], rows: str = "1 0.5 0.5 0.25 0.5\n", count: int = 4) -> None:
    """Write images and YOLO labels: parts gives the folder of images and that of labels, every other image is good."""
    for images, labels in parts.items():
        for i in range(count):
            picture(folder / images / f"{i}.png", seed=hash((images, i)) % 1000)
            text(folder / labels / f"{i}.txt", rows if i % 2 else "")


def coco(images: list[str], **changes: object) -> dict:
    """Return a COCO json in which every other image has a hole of 6 x 12 pixels, as a box."""
    return {
        "images": [{"id": i, "file_name": n, "width": SIZE, "height": SIZE} for i, n in enumerate(images)],
        "categories": [{"id": 0, "name": "crack"}, {"id": 7, "name": "hole"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7, "bbox": [9, 6, 6, 12], "iscrowd": 0}
            for i in range(1, len(images), 2)
        ],
    } | changes


@pytest.fixture
def exported(lab, product: Path, tmp_path: Path):
    """Export the tiny product once and return the folder of a format."""
    out = tmp_path / "exported"
    words = ["task=annotate", "data=folder", f"data.root={product}", f"hydra.run.dir={out}"]
    assert lab(*words, "format=[yolo,yolo_seg,coco,coco_polygons]") == 0
    return out


@pytest.mark.parametrize("name", ["yolo", "yolo_seg", "coco", "coco_polygons"])
def test_what_the_lab_exports_comes_back_as_it_was(exported: Path, product: Path, name: str) -> None:
    names = json.loads((exported / "annotations.json").read_text())["names"]
    original = {s.path: s for s in scan(product).samples}
    listed = READERS[name.split("_")[0]](exported / name)
    assert len(listed.samples) == len(names) == 22
    assert not listed.left_out
    for sample in listed.samples:
        before = original[names[Path(sample.path).name]]
        assert sample.label == before.label
        assert sample.split == sample.path.split("/")[1]
        wanted = before.regions(product)
        got = sample.regions(exported / name)
        assert [r.label for r in got] == [r.label for r in wanted]
        np.testing.assert_allclose([r.box for r in got], [r.box for r in wanted], atol=1e-3)
        if name != "yolo":
            assert [r.counts for r in got] == [r.counts for r in wanted]


def test_targets_are_the_same_as_those_of_the_masks(exported: Path, product: Path) -> None:
    names = json.loads((exported / "annotations.json").read_text())["names"]
    for name, targets in (("coco", ["mask", "boxes"]), ("yolo", ["boxes"])):
        listed = READERS[name](exported / name)
        data = MVTecDataset(exported / name, listed.samples, image_size=SIZE, targets=targets)
        before = MVTecDataset(product, image_size=SIZE, targets=targets)
        place = {s.path: i for i, s in enumerate(before.samples)}
        for i, sample in enumerate(data.samples):
            one, other = data[i], before[place[names[Path(sample.path).name]]]
            for key in (*targets, "labels", "label"):
                assert one[key].dtype == other[key].dtype
                assert torch.equal(one[key], other[key]), key


LAYOUTS = {
    "roboflow": (
        {"train/images": "train/labels", "valid/images": "valid/labels", "test/images": "test/labels"},
        {"data.yaml": "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [crack, hole]"},
    ),
    "cvat": (
        {"images/train": "labels/train", "images/val": "labels/val", "images/test": "labels/test"},
        {"data.yaml": "path: .\ntrain: train.txt\nval: val.txt\ntest: test.txt\nnames: {0: crack, 1: hole}"},
    ),
    "cvat 1.1": (
        {"obj_train_data": "obj_train_data"},
        {"obj.names": "crack\nhole\n", "train.txt": "data/obj_train_data/0.png\n"},
    ),
    "label studio": ({"images": "labels"}, {"classes.txt": "crack\nhole\n", "notes.json": "{}"}),
    "ultralytics": (
        {"images/train": "labels/train", "images/val": "labels/val"},
        {"coco8.yaml": "path: ../datasets/coco8\ntrain: images/train\nval: images/val\nnames:\n  0: crack\n  1: hole"},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_yolo_folders_of_other_programs(tmp_path: Path, layout: str) -> None:
    parts, files = LAYOUTS[layout]
    fill(tmp_path, parts)
    for name, content in files.items():
        text(tmp_path / name, content)
    if layout == "cvat":
        for part in ("train", "val", "test"):
            text(tmp_path / f"{part}.txt", "".join(f"data/images/{part}/{i}.png\n" for i in range(4)))
    listed = read_yolo(tmp_path)
    assert not listed.left_out
    assert Counter(s.label for s in listed.samples) == {"good": 2 * len(parts), "hole": 2 * len(parts)}
    splits = dict.fromkeys(("train", "val", "test")[: len(parts)], 4)
    assert Counter(s.split for s in listed.samples) == splits
    assert {r.box for s in listed.samples for r in s.objects} == {(9, 6, 15, 18)}
    lacks = [line for line in listed.notes if "of its own" in line]
    assert len(lacks) == (len(parts) < 3)


def test_coco_folders_of_other_programs(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(4)]
    for part in ("train", "valid"):
        text(tmp_path / "roboflow" / part / "_annotations.coco.json", coco(names))
        text(tmp_path / "cvat/annotations" / f"instances_{part}.json", coco(names))
        for name in names:
            picture(tmp_path / "roboflow" / part / name)
            picture(tmp_path / "cvat/images" / part / name)
    text(tmp_path / "studio/result.json", coco([f"images\\{name}" for name in names]))
    for name in names:
        picture(tmp_path / "studio/images" / name)
    for layout, splits in (("roboflow", ["train", "val"]), ("cvat", ["train", "val"]), ("studio", ["train"])):
        listed = read_coco(tmp_path / layout)
        assert not listed.left_out, layout
        assert Counter(s.split for s in listed.samples) == dict.fromkeys(splits, 4)
        assert Counter(s.label for s in listed.samples) == dict.fromkeys(["good", "hole"], 2 * len(splits))
        assert {r.box for s in listed.samples for r in s.objects} == {(9, 6, 15, 18)}


def test_several_types_in_an_image(tmp_path: Path) -> None:
    fill(tmp_path, {"images/train": "labels/train"}, rows="0 .25 .25 .5 .5\n1 .5 .5 .25 .25\n1 .8 .8 .2 .2\n")
    text(tmp_path / "data.yaml", "train: images/train\nnames: [crack, hole]")
    listed = read_yolo(tmp_path)
    assert {s.label for s in listed.samples} == {"good", "crack"}
    assert kinds_of(listed.samples) == ["crack", "hole"]
    (line,) = [line for line in listed.notes if "several types" in line]
    assert line.startswith("2 image(s) have objects of several types (images/train/1.png first)")
    item = MVTecDataset(tmp_path, listed.samples, image_size=SIZE, targets=["boxes"])[1]
    assert item["labels"].tolist() == [1, 2, 2]
    assert item["boxes"][:2].tolist() == [[0, 0, 12, 12], [9, 9, 15, 15]]  # they overlap, and both stay whole


def test_overlapping_objects_move_with_their_image(tmp_path: Path) -> None:
    fill(tmp_path, {"images/train": "labels/train"}, rows="0 .25 .25 .5 .5\n1 .375 .25 .25 .25\n")
    text(tmp_path / "data.yaml", "train: images/train\nnames: [crack, hole]")
    augment = AugmentConfig(transforms={"HorizontalFlip": {"p": 1.0}})
    data = MVTecDataModule(read_yolo(tmp_path), image_size=SIZE, augment=augment, targets=["boxes"], split=OWN)
    samples = [s for s in data.list_files().samples if s.objects]
    flipped = MVTecDataset(tmp_path, samples, image_size=SIZE, augmentation=data.augmentation, targets=["boxes"])
    item = flipped[0]
    assert item["boxes"].tolist() == [[12, 0, 24, 12], [12, 3, 18, 9]]
    assert item["labels"].tolist() == [1, 2]


def test_boxes_alone_give_no_masks(tmp_path: Path) -> None:
    fill(tmp_path, {f"images/{part}": f"labels/{part}" for part in ("train", "val", "test")})
    text(tmp_path / "data.yaml", "train: images/train\nval: images/val\ntest: images/test\nnames: [crack, hole]")
    listed = read_yolo(tmp_path)
    assert "6 image(s) have boxes alone (images/test/1.png first): they have no mask" in listed.notes
    data = MVTecDataset(tmp_path, listed.samples, image_size=SIZE)
    assert all(data.mask(place) is None for place in range(len(data)))
    with pytest.raises(LabError, match=r"has boxes alone .*, but masks are to be learnt"):
        MVTecDataset(tmp_path, listed.samples, targets=["mask"])


def test_own_parts_are_used_and_missing_ones_are_drawn(tmp_path: Path) -> None:
    fill(tmp_path, {f"images/{part}": f"labels/{part}" for part in ("train", "test")}, count=12)
    text(tmp_path / "data.yaml", "train: images/train\ntest: images/test\nnames: [crack, hole]")
    samples = read_yolo(tmp_path).samples
    splits = split_samples(samples, OWN)
    assert {s.path for s in splits if s.split == "test"} == {s.path for s in samples if "images/test" in s.path}
    assert Counter((s.label, s.split) for s in splits if s.split != "test") == {
        ("good", "train"): 5,
        ("hole", "train"): 5,
        ("good", "val"): 1,
        ("hole", "val"): 1,
    }
    everywhere = split_samples(samples, SplitConfig(protocol="kfold", folds=3))
    assert len({s.path for s in everywhere if s.split}) == 24  # other protocols draw from all images
    alone = split_samples(samples, SplitConfig(protocol="one_class"))
    assert Counter((s.label, s.split) for s in alone) == {
        ("good", "train"): 5,
        ("good", "val"): 1,
        ("hole", ""): 6,
        ("good", "test"): 6,
        ("hole", "test"): 6,
    }
    assert "6 of 24 images take no part in this split" in read_yolo(tmp_path).oddities(alone)
    with pytest.raises(LabError, match="own is for data=coco, data=yolo and folders train/"):
        split_samples([s.__class__(s.path, s.label) for s in samples], OWN)


def test_a_part_that_repeats_another_is_named(tmp_path: Path) -> None:
    fill(tmp_path, {f"images/{part}": f"labels/{part}" for part in ("train", "test")})
    text(tmp_path / "data.yaml", "train: images/train\nval: images/test\ntest: images/test\nnames: [crack, hole]")
    listed = read_yolo(tmp_path)
    assert Counter(s.split for s in listed.samples) == {"train": 4, "test": 4}
    assert "val and test are the same images: they are test alone" in listed.notes


def test_nothing_is_dropped_without_a_word(tmp_path: Path) -> None:
    fill(tmp_path, {"images/train": "labels/train"})
    picture(tmp_path / "images/extra/0.png")
    (tmp_path / "labels/train/2.txt").unlink()
    text(tmp_path / "labels/train/1.txt", "1 .5 .5 .25 .5\n1 .5 .5 .25 .5\n\n")
    text(tmp_path / "data.yaml", "train: images/train\nnames: [crack, hole]")
    listed = read_yolo(tmp_path)
    lines = listed.oddities(listed.samples)
    assert "1 image(s), images/train/2.png first, have no label file: they count as good" in lines
    assert "left out: 1 image(s) that no annotation file names (images/extra/0.png)" in lines
    assert "1 label row(s) repeat another one of their image: each object counts once" in lines


ROWS = {
    "1 .5 .5 .25": "has 4 values: a row is a class and a box",
    "1 .5 .5 .25 .5 .9": "has 6 values",
    "1 .5 .5 .25 x": "is no row of numbers",
    "1 .5 nan .25 .5": "has 5 values",
    "0.5 .5 .5 .25 .5": "has 5 values",
    "1 1.5 .5 .25 .5": "is out of range",
    "1 .9 .5 .4 .5": "lies outside of its image",
    "1 .5 .5 -.25 .5": "is out of range",
    "1 .5 .5 0 .5": "is a box without width or height (0 x 12 pixels at 12, 6): ",
    "2 .5 .5 .25 .5": "has the class 2, which has no name in {folder}/data.yaml (known are 0 crack, 1 hole): add",
    "1 .1 .1 .5 .5 1.2 .9": "lies outside of its image",
    "1 .1 .1 .1 .1 .1 .1": "has corners that enclose no pixel",
}


@pytest.mark.parametrize("row", ROWS)
def test_a_bad_label_row_is_refused(tmp_path: Path, row: str) -> None:
    fill(tmp_path, {"images/train": "labels/train"}, rows=f"0 .5 .5 .2 .2\n{row}\n")
    text(tmp_path / "data.yaml", "train: images/train\nnames: [crack, hole]")
    with pytest.raises(LabError) as error:
        read_yolo(tmp_path)
    said = ROWS[row].replace("{folder}", str(tmp_path))
    assert f"labels/train/1.txt line 2 ({row!r}) {said}" in str(error.value)


def test_rounding_beyond_the_border_is_cut() -> None:
    region = region_of_row("0 0.95 0.5 0.101 0.2", {0: "crack"}, (100, 100), "row")
    assert region.box == pytest.approx((89.95, 40, 100, 60))
    corners = region_of_row("0 -0.001 0 1 0 1 1.001 0 1", {0: "crack"}, (10, 10), "row")
    assert corners.mask().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: text(f / "labels/train/9.txt", ""), "9.txt is of an image that does not exist"),
        (lambda f: picture(f / "images/train/1.jpg"), "share the labels"),
        (lambda f: text(f / "data.yaml", "train: images/trian\nnames: [a, b]"), "train: images/trian does not exist"),
        (lambda f: text(f / "data.yaml", "train: images/train\nnames: [good, good]"), "names gives 'good' twice"),
        (lambda f: text(f / "data.yaml", "train: images/train\nnames: [crack, good]"), "an object of the class 'good'"),
        (lambda f: text(f / "data.yaml", "train: images\nval: [images, images]\nnames: [a, b]"), "in train and in val"),
        (lambda f: text(f / "data.yaml", "- a"), "data.yaml is no YAML file with keys"),
        (lambda f: (f / "data.yaml").unlink(), "has no data.yaml with names"),
        (lambda f: (f / "images/train/1.png").write_bytes(b"x"), "1.png cannot be read"),
    ],
)
def test_a_bad_yolo_folder_is_refused(tmp_path: Path, change, message: str) -> None:
    fill(tmp_path, {"images/train": "labels/train"})
    text(tmp_path / "data.yaml", "train: images/train\nnames: [crack, hole]")
    change(tmp_path)
    with pytest.raises(LabError) as error:
        read_yolo(tmp_path)
    assert message in str(error.value)


def bad(**changes: object) -> dict:
    entry = {"id": 5, "image_id": 1, "category_id": 7, "bbox": [9, 6, 6, 12], **changes}
    return {"annotations": [{k: v for k, v in entry.items() if v is not None}]}


def images_of(**changes: object) -> dict:
    return {"images": [{"id": 1, "file_name": "0.png", "width": SIZE, "height": SIZE, **changes}]}


COCO = [
    (bad(image_id=9), "annotation 5 is of the image 9, which does not exist"),
    (bad(category_id=1), "annotation 5 (1.png) has the class 1, which has no name"),
    (bad(bbox=[9, 6, 0, 12]), "annotation 5 (1.png) is a box without width or height (0 x 12 pixels at 9, 6)"),
    (
        bad(bbox=[9, 6, 0, 12], segmentation=[[1, 1, 5, 1, 5, 5]]),
        "annotation 5 (1.png) is a box without width or height (0 x 12 pixels at 9, 6)",
    ),
    (bad(bbox=[9, 6, 60, 12]), "annotation 5 (1.png) lies outside of its image"),
    (bad(bbox=[9, 6, "a", 12]), "annotation 5 (1.png) is malformed"),
    (bad(bbox=None), "annotation 5 (1.png) has neither bbox nor segmentation"),
    (
        bad(bbox=None, segmentation=[[1, 1, 5, 1]]),
        "annotation 5 (1.png) is malformed (a polygon has three corners or more)",
    ),
    (bad(bbox=None, segmentation=[[1, 1, 5, 1, 5]]), "annotation 5 (1.png) is malformed"),
    (bad(bbox=None, segmentation={"size": [9, 9], "counts": [81]}), "run lengths are of 9 x 9 pixels"),
    (bad(bbox=None, segmentation={"size": [SIZE, SIZE], "counts": [9]}), "its run lengths cover 9 of 576 pixels"),
    (bad(bbox=None, segmentation={"size": [SIZE, SIZE], "counts": [576]}), "it marks no pixel"),
    (bad(bbox=None, segmentation={"size": [SIZE, SIZE], "counts": "0`h9"}), "annotation 5 (1.png) is malformed"),
    (bad(category_id=None), "entry 0 of annotations has no category_id"),
    ({"annotations": [bad()["annotations"][0]] * 2}, "two of its annotations have the id 5"),
    ({"images": images_of()["images"] * 2}, "two of its images have the id 1"),
    ({"images": [*images_of()["images"], *images_of(id=2)["images"]]}, "0.png is twice in train"),
    (images_of(file_name="9.png"), "names the image 9.png, which does not exist"),
    (images_of(width=48), "0.png is 24 x 24, not 48 x 24 pixels"),
    ({"categories": [{"id": 7, "name": "good"}]}, "an object of the class 'good'"),
]


@pytest.mark.parametrize(("changes", "message"), COCO, ids=[message for _, message in COCO])
def test_a_bad_coco_file_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    names = ["0.png", "1.png"]
    for name in names:
        picture(tmp_path / name)
    text(tmp_path / "result.json", coco(names) | changes)
    with pytest.raises(LabError) as error:
        read_coco(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("_annotations.coco.json", "coco"),
        ("classes.txt", "yolo"),
        ("obj.names", "yolo"),
        ("annotations/notes.json", ""),
    ],
)
def test_flat_annotations_are_recognised_by_their_files(tmp_path: Path, file: str, name: str) -> None:
    picture(tmp_path / "a.png")
    text(tmp_path / file, "hole\n")
    with pytest.raises(LabError, match=f"give data={name}$" if name else "but no class folders") as error:
        read_folder(tmp_path)
    assert ("give data=" in str(error.value)) is bool(name)


def test_a_missing_folder_is_one_line_for_every_reader(tmp_path: Path) -> None:
    for read in (read_coco, read_yolo, read_folder):
        with pytest.raises(LabError, match="none"):
            read(tmp_path / "none")


def test_a_list_of_classes_beside_class_folders_is_no_annotation(tmp_path: Path) -> None:
    for label in ("good", "hole"):
        picture(tmp_path / label / "a.png")
    text(tmp_path / "classes.txt", "good\nhole\n")
    assert len(read_folder(tmp_path).samples) == 2


def test_a_json_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="has no COCO json"):
        read_coco(tmp_path)
    text(tmp_path / "result.json", "[]")
    with pytest.raises(LabError, match="is no COCO json"):
        read_coco(tmp_path)
    text(tmp_path / "result.json", "{")
    with pytest.raises(LabError, match="cannot be read"):
        read_coco(tmp_path)


def test_polygons_of_one_object_and_crowds_are_one_object_each(tmp_path: Path) -> None:
    picture(tmp_path / "0.png")
    squares = [[1, 1, 5, 1, 5, 5, 1, 5], [10, 10, 14, 10, 14, 14, 10, 14]]
    runs = {"size": [SIZE, SIZE], "counts": [24 * 3 + 2, 4, 20, 4, 24 * 19 + 18]}
    entries = [
        {"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 1, 13, 13], "segmentation": squares, "iscrowd": 0},
        {"id": 2, "image_id": 0, "category_id": 0, "segmentation": runs, "iscrowd": 1},
    ]
    text(tmp_path / "result.json", coco(["0.png"], annotations=entries))
    listed = read_coco(tmp_path)
    one, crowd = listed.samples[0].objects
    assert (one.box, one.area()) == ((1, 1, 14, 14), 32)
    assert (crowd.box, crowd.area()) == ((3, 2, 5, 6), 8)
    assert "1 crowd region(s) (iscrowd=1, annotation 2 of result.json first) count as one object each" in listed.notes


def test_run_lengths_of_every_kind_are_read() -> None:
    mask = np.random.default_rng(0).random((13, 17)) > 0.6
    (whole,) = [r for r in regions_of(mask, "a") if r.area() == max(r.area() for r in regions_of(mask, "a"))]
    flat = whole.mask().ravel(order="F")
    edges = np.flatnonzero(np.diff(flat.astype(int), prepend=0))
    plain = {"size": [13, 17], "counts": np.diff([0, *edges, flat.size]).tolist()}
    assert region_of_annotation({"segmentation": plain}, "a", (13, 17), "here") == whole
    assert region_of_annotation({"segmentation": whole.rle()}, "a", (13, 17), "here") == whole


def run(lab, *words: str) -> int:
    from mvtec_lab.cli import main

    small = ["model.weights=null", "trainer.max_epochs=1", "trainer.accelerator=cpu", f"data.image_size={SIZE}"]
    return main(["model.backbone=tiny_lab_net", *small, *words])


@pytest.mark.slow
def test_a_run_trains_on_an_annotated_folder_and_sees_a_change(
    lab, exported: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    folder, out = exported / "coco_polygons", tmp_path / "run"
    words = ["data=coco", f"data.root={folder}", f"hydra.run.dir={out}", f"cache.dir={tmp_path / 'cache'}"]
    assert run(lab, *words) == 0
    with (out / "samples.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert Counter(row["split"] for row in rows.values()) == {"train": 14, "val": 4, "test": 4}
    defects = [row for row in rows.values() if row["label"] != "good"]
    assert all(row["mask"].startswith("annotations/instances_") and row["mask_digest"] for row in defects)
    result = json.loads((out / "result.json").read_text())
    assert result["explained"] is not None or result["classes"] == ["good", "crack", "hole"]
    evaluated = ["task=evaluate", f"ckpt={out / 'best.ckpt'}"]
    from mvtec_lab.cli import main

    assert main([*evaluated, f"hydra.run.dir={tmp_path / 'e1'}"]) == 0
    path = folder / "annotations/instances_test.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9, 1, 9]]
    content["annotations"][0]["bbox"] = [1, 1, 8, 8]
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert main([*evaluated, f"hydra.run.dir={tmp_path / 'e2'}"]) == 2
    assert "annotations/instances_test.json has changed" in " ".join(capsys.readouterr().err.split())


def test_defects_are_pasted_by_their_outlines(exported: Path) -> None:
    listed = read_coco(exported / "coco")
    data = MVTecDataModule(listed, image_size=SIZE, augment=AugmentConfig(paste=1.0), targets=["boxes"], split=OWN)
    data.setup()
    dataset = data.dataset("train")
    place = next(i for i, s in enumerate(dataset.samples) if s.objects)
    item = dataset[place, 3]
    assert len(item["boxes"]) == len(item["labels"]) == 1
    assert item["labels"][0] == data.kinds.index(dataset.samples[place].label) + 1
    boxes = MVTecDataModule(read_yolo(exported / "yolo"), augment=AugmentConfig(paste=1.0), split=OWN)
    with pytest.raises(LabError, match=r"augment\.paste cuts defects out by their masks"):
        boxes.scan()


@pytest.mark.slow
def test_a_sweep_folds_an_annotated_folder(lab, exported: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    words = ["-m", "data=coco", f"data.root={exported / 'coco'}", "cv.folds=3", f"hydra.sweep.dir={sweep}"]
    assert run(lab, *words, "attempt=base", f"cache.dir={tmp_path / 'cache'}") == 0
    runs = [json.loads(path.read_text()) for path in sweep.rglob("result.json")]
    assert sum(sum(r["counts"]["test"].values()) for r in runs) == 22


def test_an_annotated_folder_is_written_in_another_format(lab, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    words = ["task=annotate", "data=coco", f"data.root={exported / 'coco_polygons'}", f"hydra.run.dir={out}"]
    assert lab(*words, "format=yolo") == 0
    told = json.loads((out / "annotations.json").read_text())
    assert told["images"] == {"test": 4, "train": 14, "val": 4}
    content = yaml.safe_load((out / "yolo/data.yaml").read_text())
    assert content["names"] == {0: "crack", 1: "hole"}
    assert len(list((out / "yolo/labels").glob("*/*.txt"))) == 22


def test_roots_that_lack_are_refused(lab, tmp_path: Path, capsys) -> None:
    assert run(lab, "data=yolo") == 2
    assert "data=yolo does not know where its images lie: give data.root=FOLDER" in capsys.readouterr().err
    assert run(lab, "data=coco", f"data.root={tmp_path / 'none'}") == 2
    assert "is not a folder" in capsys.readouterr().err
