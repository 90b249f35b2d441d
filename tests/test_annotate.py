"""task=annotate: what is written is read back by the programs that it is for, and compared with the masks."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import SIZE, write_product
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from mvtec_lab.data.annotations import read_coco, read_yolo
from mvtec_lab.data.annotations.export import unique_names
from mvtec_lab.data.annotations.yolo import box_row, polygon_row
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.images import read_mask
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.data.layouts.mvtec import scan
from mvtec_lab.data.regions import (
    Region,
    iou,
    joined,
    mask_of_polygons,
    merged,
    polygons_of,
    region_of,
    regions_of,
)
from mvtec_lab.data.targets import boxes_of
from mvtec_lab.errors import LabError
from mvtec_lab.tasks.describe import _print

ALL = "format=[yolo,yolo_seg,coco,coco_polygons,masks]"


@pytest.fixture
def annotated(lab, product: Path, tmp_path: Path):
    """Run task=annotate on the tiny product and return its directory: ``annotated("format=yolo")``."""

    def run(*arguments: str) -> Path:
        out = tmp_path / f"annotations{len(list(tmp_path.glob('annotations*')))}"
        words = ["task=annotate", "data=folder", f"data.root={product}", f"hydra.run.dir={out}", *arguments]
        assert lab(*words) == 0
        return out

    return run


def facts(out: Path) -> dict:
    return json.loads((out / "annotations.json").read_text())


def masks(product: Path) -> dict[str, np.ndarray]:
    """Return the true mask of every test image by the name that its copy gets."""
    samples = [s for s in scan(product).samples if s.path.startswith("test/")]
    empty = np.zeros((SIZE, SIZE), bool)
    return {s.path.replace("/", "__"): read_mask(product / s.mask) if s.mask else empty for s in samples}


def irregular(seed: int, size: tuple[int, int] = (41, 37)) -> np.ndarray:
    """Return a mask of blobs, with holes and diagonal links."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal(size), (0, 0), 2)
    return noise > np.quantile(noise, 0.7)


def test_a_region_is_a_component_with_its_box_and_exact_outline() -> None:
    mask = irregular(0)
    regions = regions_of(mask, "crack")
    boxes = sorted(boxes_of(mask).tolist())
    assert len(boxes) > 3
    assert sorted(list(r.box) for r in regions) == boxes
    assert (merged(regions) == mask).all()
    assert sum(np.count_nonzero(r.mask()) for r in regions) == mask.sum()
    diagonal = np.eye(4, dtype=bool)
    assert [r.box for r in regions_of(diagonal, "crack")] == [(0, 0, 4, 4)]
    assert regions_of(np.zeros((3, 3), bool), "crack") == []


def test_a_box_without_an_outline_marks_its_pixels() -> None:
    mask = Region("crack", (1.2, 2.0, 3.4, 2.3), (5, 6)).mask()
    assert np.argwhere(mask).tolist() == [[2, 1], [2, 2]]


def test_polygons_follow_the_edges_of_pixels() -> None:
    for seed in range(5):
        filled = irregular(seed)
        for region in regions_of(filled, "crack"):
            outline = region.mask().astype(np.uint8)
            outlines, _ = cv2.findContours(outline, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            whole = cv2.drawContours(outline.copy(), outlines, -1, 1, cv2.FILLED) > 0  # holes are filled
            assert iou(mask_of_polygons(polygons_of(region.mask()), region.size), whole) == 1
    single = np.zeros((4, 4), bool)
    single[1, 2] = True
    assert sorted(map(tuple, polygons_of(single)[0].tolist())) == [(2, 1), (2, 2), (3, 1), (3, 2)]


def test_the_parts_of_an_object_are_linked_without_a_width() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:6, 3:8] = mask[10:15, 12:18] = mask[16:19, 1:4] = True
    polygons = polygons_of(mask)
    assert len(polygons) == 3
    assert iou(mask_of_polygons([joined(polygons)], mask.shape), mask) == 1


def test_rows_have_digits_enough_for_a_large_image() -> None:
    region = Region("crack", (1, 2, 9000, 7001), (7003, 9001))
    index, *values = box_row(region, 3).split()
    x, y, w, h = map(float, values)
    assert index == "3"
    box = [(x - w / 2) * 9001, (y - h / 2) * 7003, (x + w / 2) * 9001, (y + h / 2) * 7003]
    np.testing.assert_allclose(box, region.box, atol=0.01)
    corners = np.array([[0, 0], [9001, 0], [4567, 7003]])
    shares = np.array(polygon_row(corners, region.size, 0).split()[1:], float).reshape(-1, 2)
    np.testing.assert_allclose(shares * [9001, 7003], corners, atol=0.01)


def test_names_are_unique_over_types_suffixes_and_case() -> None:
    paths = ["test/crack/000.png", "test/good/000.png", "test/good/000.jpg", "test/good/A.png", "test/good/a.png"]
    names = unique_names([*paths, "test__good/000.png"])
    assert names["test/crack/000.png"] == "test__crack__000.png"
    stems = [Path(name).stem.casefold() for name in names.values()]
    assert len(set(stems)) == len(stems) == 6
    assert names["test/good/000.jpg"].endswith(".jpg")


def test_coco_is_read_by_pycocotools_and_its_run_lengths_are_the_masks(annotated, product: Path) -> None:
    out, true, count = annotated("format=[coco]"), masks(product), 0
    for split, images in facts(out)["images"].items():
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(out / f"coco/annotations/instances_{split}.json"))
            found = coco.loadRes([{**a, "score": 1.0} for a in coco.dataset["annotations"]])
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["crack", "hole"]
        assert len(coco.imgs) == images == len(list((out / f"coco/images/{split}").iterdir()))
        for number, image in coco.imgs.items():
            annotations = found.loadAnns(found.getAnnIds(number))
            parts = [coco.annToMask(a).astype(bool) for a in annotations]
            union = np.logical_or.reduce([np.zeros((SIZE, SIZE), bool), *parts])
            assert (union == true[image["file_name"]]).all()
            for a, part in zip(annotations, parts, strict=True):
                assert a["area"] == part.sum()
                assert a["bbox"] == rle.toBbox(a["segmentation"]).tolist()
            count += len(parts)
    assert count == 12


def test_polygons_of_coco_say_what_they_lose(annotated, product: Path, capsys) -> None:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[2:22, 2:22], mask[6:18, 6:18] = 255, 0  # a ring: a polygon fills its hole
    Image.fromarray(mask).save(product / "ground_truth/hole/000_mask.png")
    out = annotated("format=[coco_polygons,yolo_seg]")
    expected = (400 - 144) / 400
    files = [json.loads(path.read_text()) for path in (out / "coco_polygons/annotations").iterdir()]
    for content in files:
        assert content["info"]["polygons"]["iou_worst"] == pytest.approx(expected)
        assert content["info"]["polygons"]["worst_image"] == "test__hole__000.png"
        assert all(isinstance(a["segmentation"], list) for a in content["annotations"])
    printed = capsys.readouterr().out
    assert printed.count("0.6400 at worst (test__hole__000.png)") == 2


def test_yolo_labels_are_the_boxes_of_the_masks(annotated, product: Path) -> None:
    out, true = annotated("format=yolo"), masks(product)
    content = yaml.safe_load((out / "yolo/data.yaml").read_text())
    assert content["names"] == {0: "crack", 1: "hole"}
    assert "path" not in content  # a program would take a relative one from a folder of its own
    seen = set()
    for split in ("train", "val", "test"):
        images = sorted((out / "yolo" / content[split]).iterdir())
        labels = sorted((out / "yolo/labels" / split).iterdir())
        assert [p.stem for p in images] == [p.stem for p in labels]
        for image, label in zip(images, labels, strict=True):
            rows = np.array([line.split() for line in label.read_text().splitlines()], float).reshape(-1, 5)
            kind = image.name.split("__")[1]
            assert set(rows[:, 0]) == ({{"crack": 0, "hole": 1}[kind]} if kind != "good" else set())
            (x, y), (w, h) = rows[:, 1:3].T, rows[:, 3:].T
            boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1) * SIZE
            np.testing.assert_allclose(boxes, boxes_of(true[image.name]).numpy(), atol=1e-3)
            assert (product / facts(out)["names"][image.name]).read_bytes() == image.read_bytes()
            seen.add(image.name)
    assert seen == true.keys()


def test_masks_hold_the_class_index(annotated, product: Path) -> None:
    out, true = annotated("format=masks"), masks(product)
    names = json.loads((out / "masks/classes.json").read_text())
    assert names == ["background", "crack", "hole"]
    for path in (out / "masks/masks").glob("*/*.png"):
        values = np.asarray(Image.open(path))
        kind = path.name.split("__")[1]
        index = names.index(kind) if kind != "good" else 0
        assert (values == np.where(true[path.name], index, 0)).all()
        assert (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) == values).all()


def test_torchvisions_detection_models_take_the_targets(annotated, product: Path) -> None:
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    from mvtec_lab.data.datamodule import MVTecDataModule

    data = MVTecDataModule(product, image_size=32, targets=["mask", "boxes"])
    data.setup()
    dataset = data.dataset("test")
    labels = [sample.label for sample in dataset.samples]
    items = [dataset[labels.index("good")], dataset[labels.index("hole")]]
    assert [len(item["boxes"]) for item in items] == [0, 1]
    targets = []
    for item in items:
        parts = [region.mask() for region in regions_of(item["mask"].numpy(), "")]
        stacked = torch.from_numpy(np.stack(parts)) if parts else torch.zeros(0, 32, 32)
        targets.append({"boxes": item["boxes"], "labels": item["labels"], "masks": stacked.to(torch.uint8)})
    network = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=len(data.kinds) + 1, min_size=32, max_size=32
    )
    losses = network([item["image"] for item in items], targets)
    assert "loss_mask" in losses
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.skipif(importlib.util.find_spec("ultralytics") is None, reason="needs ultralytics, which is AGPL-3.0")
@pytest.mark.parametrize("kind", ["yolo", "yolo_seg"])
def test_ultralytics_accepts_every_label_file(annotated, kind: str, tmp_path: Path, monkeypatch) -> None:
    for key, value in {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "0", "YOLO_CONFIG_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    from ultralytics.data.utils import check_det_dataset, img2label_paths, verify_image_label

    out = annotated(f"format=[{kind}]")
    content = check_det_dataset(str(out / kind / "data.yaml"), autodownload=False)
    assert content["nc"] == 2
    objects = 0
    for split in ("train", "val", "test"):
        images = [str(path) for path in Path(content[split]).iterdir()]
        for image, label in zip(images, img2label_paths(images), strict=True):
            assert os.path.isfile(label)  # noqa: PTH113
            result = verify_image_label((image, label, "", False, 2, 0, 0, False))
            missing, found, empty, corrupt, message = result[5:]
            assert (missing, found, corrupt, message) == (0, 1, 0, "")
            assert empty == ("good" in image)
            objects += len(result[1])
    assert objects == 12


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["split.pool=all"], {"train": 16, "val": 5, "test": 5}),
        (["split.protocol=kfold", "split.folds=4", "split.fold=1"], {"train": 12, "val": 4, "test": 6}),
        (["split.val_is_test=true"], {"train": 18, "test": 4}),
        (["split.group_by='([a-z]+/)00[01]'"], None),
    ],
)
def test_the_split_is_the_labs_own(annotated, product: Path, arguments: list[str], expected) -> None:
    out = annotated("format=[yolo]", *arguments)
    told = facts(out)
    splits = {path.name: path.parent.name for path in (out / "yolo/images").glob("*/*")}
    assert len(splits) == sum(told["images"].values())
    if expected is not None:
        assert told["images"] == expected
    else:
        for kind in ("good", "crack", "hole"):
            assert splits[f"test__{kind}__000.png"] == splits[f"test__{kind}__001.png"]
    content = yaml.safe_load((out / "yolo/data.yaml").read_text())
    assert content["val"] == ("images/val" if "val" in told["images"] else "images/test")


@pytest.mark.slow
def test_a_sweep_writes_every_fold(lab, product: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    words = ["task=annotate", "data=folder", f"data.root={product}", "cv.folds=3", f"hydra.sweep.dir={sweep}"]
    assert lab("-m", *words) == 0
    tested = [p.name for p in sweep.rglob("images/test/*")]
    assert sorted(tested) == sorted(masks(product))


def test_min_area_says_what_it_leaves_out(annotated, product: Path, capsys) -> None:
    path = product / "ground_truth/crack/001_mask.png"
    mask = np.array(Image.open(path))
    mask[:] = 0
    mask[1, 1] = mask[10:20, 10:20] = 255
    Image.fromarray(mask).save(path)
    assert sum(facts(annotated("format=coco"))["objects"][s].get("crack", 0) for s in ("train", "val", "test")) == 7
    told = facts(annotated("format=coco", "min_area=30"))
    assert {"image": "test/crack/001.png", "area": 1} in told["dropped"]
    assert len(told["dropped"]) == 7  # and six holes of 25 pixels
    assert "min_area=30 leaves out 7 object(s) of 7 image(s)" in capsys.readouterr().out
    assert "6 image(s) have no other, so that they look good" in told["warnings"][-1]


def test_what_has_no_place_is_refused_before_anything_is_written(lab, product: Path, tmp_path: Path, capsys) -> None:
    def refused(*arguments: str) -> str:
        words = ["task=annotate", "data=folder", f"data.root={product}", f"hydra.run.dir={tmp_path / 'out'}"]
        assert lab(*words, *arguments) == 2
        assert not (tmp_path / "out").exists()
        return " ".join(capsys.readouterr().err.split())

    path = product / "ground_truth/hole/002_mask.png"
    content = path.read_bytes()
    path.unlink()
    assert "test/hole/002.png has no mask in ground_truth/hole/: annotations need it" in refused()
    Image.new("L", (SIZE, SIZE + 1), 255).save(path)
    assert "002_mask.png is 24 x 25 but test/hole/002.png is 24 x 24" in refused()
    Image.new("L", (SIZE, SIZE)).save(path)
    assert "002.png cannot be annotated (its mask ground_truth/hole/002_mask.png marks nothing)" in refused()
    path.write_bytes(content)
    assert "unknown format 'yoloseg': did you mean yolo_seg" in refused("format=[coco,yoloseg]")
    assert "format=[] is not what task=annotate writes" in refused("format=[]")
    assert "data.image_size=9 does nothing for task=annotate" in refused("data.image_size=9")
    (product / "test/good/003.png").write_bytes(b"broken")
    assert "003.png cannot be read" in refused()


def test_a_grey_mask_is_named_alike_by_annotate_describe_and_the_audit(
    annotated, lab, product: Path, tmp_path: Path
) -> None:
    name = product / "ground_truth/hole/002_mask.png"
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[4:8, 4:8], mask[3, 4:8] = 255, 100
    Image.fromarray(mask).save(name)
    assert not [line for line in facts(annotated("format=coco"))["warnings"] if "between" in line]  # an edge's grey
    Image.fromarray(np.tile(np.linspace(0, 199, SIZE).astype(np.uint8), (SIZE, 1))).save(name)
    told = facts(annotated("format=coco"))["warnings"]
    assert lab("task=describe", "data=folder", f"data.root={product}", f"hydra.run.dir={tmp_path / 'd'}") == 0
    described = json.loads((tmp_path / "d/dataset.json").read_text())["warnings"]
    data = MVTecDataModule(product)
    data.setup()
    lines = [[line for line in warnings if "between" in line] for warnings in (told, described, data.findings())]
    assert lines[0] == lines[1] == lines[2]
    assert lines[0][0].startswith(f"1 mask(s), {name} first, have values between 0 and their maximum")


@pytest.mark.mvtec
@pytest.mark.skipif(not os.environ.get("MVTEC_ROOT"), reason="needs MVTEC_ROOT")
def test_bottle_has_68_objects(lab, tmp_path: Path) -> None:
    out = tmp_path / "bottle"
    words = ["data=mvtec", "data.category=bottle", ALL, f"hydra.run.dir={out}"]
    assert lab("task=annotate", *words) == 0
    assert sum(sum(of_split.values()) for of_split in facts(out)["objects"].values()) == 68
    content = json.loads((out / "coco_polygons/annotations/instances_test.json").read_text())
    assert content["info"]["polygons"]["iou_worst"] > 0.9999


def test_two_products_in_one_test_folder_do_not_collide(tmp_path: Path) -> None:
    folder = write_product(tmp_path / "p")
    paths = [s.path for s in scan(folder).samples]
    assert len({name.casefold() for name in unique_names(paths).values()}) == len(paths)
    assert region_of(np.ones((2, 3), bool), "crack").box == (0, 0, 3, 2)


def test_describe_shows_the_objects_and_the_sizes_of_their_boxes(lab, product: Path, tmp_path: Path, capsys) -> None:
    path = product / "ground_truth/hole/000_mask.png"
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[0:2, 0:4] = mask[10:16, 10:12] = 255
    Image.fromarray(mask).save(path)
    assert lab("task=describe", "data=folder", f"data.root={product}", f"hydra.run.dir={tmp_path / 'd'}") == 0
    told = json.loads((tmp_path / "d/dataset.json").read_text())["objects"]
    assert told["hole"]["objects"] == 7
    assert told["hole"]["images"] == 6
    widths, heights = [5] * 5 + [4, 2], [5] * 5 + [2, 6]
    assert told["hole"]["width"] == np.quantile(widths, [0.25, 0.5, 0.75]).tolist()
    shares = np.multiply(widths, heights) / SIZE**2
    assert told["hole"]["share"] == pytest.approx(np.quantile(shares, [0.25, 0.5, 0.75]).tolist())
    assert told["crack"]["height"] == [3, 3, 3]
    printed = capsys.readouterr().out
    assert "5/5/5" in printed
    assert "20/20/20" in printed


def test_a_folder_of_annotations_says_how_it_is_read(annotated) -> None:
    out = annotated("format=[masks,coco,yolo]")
    for name in ("coco", "yolo"):
        with pytest.raises(LabError, match=f"{name} has annotations in {name.upper()}'s format: give data={name}"):
            read_folder(out / name)
    for read in (read_folder, read_coco, read_yolo):
        with pytest.raises(LabError, match=r"masks holds masks by class index .*: write format=coco"):
            read(out / "masks")
    (out / "masks/README.txt").write_text("of ours")
    with pytest.raises(LabError, match="masks holds masks by class index"):
        read_folder(out / "masks")


def test_the_folder_around_the_formats_says_which_one_is_read(annotated, capsys) -> None:
    out = annotated("format=[masks,coco,yolo]")
    advice = {name: f"give data={name} data.root={out / name}" for name in ("coco", "yolo")}
    command = f"python -m mvtec_lab task=describe {advice['coco'].removeprefix('give ')}"
    assert capsys.readouterr().out.splitlines()[-1].endswith(command)
    for read, name in ((read_coco, "coco"), (read_yolo, "yolo"), (read_folder, "coco")):
        with pytest.raises(LabError) as error:  # annotations.json, which lies there, is the lab's own
            read(out)
        assert str(error.value).endswith(advice[name])
    for read, name in ((read_coco, "yolo"), (read_yolo, "coco")):
        with pytest.raises(LabError, match=f": give data={name}$"):
            read(out / name)


def test_describe_of_boxes_alone_fits_a_terminal(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    sizes = {"width": [101, 202, 303], "height": [1101, 1202, 1303], "share": [0.0123, 0.234, 0.345]}
    facts = {
        "data": "coco",
        "category": "x",
        "num_classes": 2,
        "classes": ["good", "contamination"],
        "images_used": 2,
        "counts": {"good": 1, "contamination": 1},
        "classes_by_split": {part: {"good": 1, "contamination": 1} for part in ("train", "val", "test")},
        "split": {"val_is_test": False},
        "found": {},
        "official": None,
        "dimensions": [],
        "white": None,
        "imbalance_ratio": 1.0,
        "mask_coverage": {},
        "objects": {"contamination": {"objects": 1234, "images": 1234, **sizes}},
        "warnings": [],
    }
    _print(facts, tmp_path)
    printed = capsys.readouterr().out
    assert "mask coverage" not in printed
    assert all(text in printed for text in ("101/202/303", "1101/1202/1303", "1.2/23/34%", "contamination"))
