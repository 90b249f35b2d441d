"""Public data sets in their own layouts, as miniatures that are made from the published descriptions."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZE
from PIL import Image
from test_layouts import draw_masks, fill

from mvtec_lab.cli import main
from mvtec_lab.config import PUBLIC, SplitConfig
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.images import digests, mask_share, odd_masks, read_mask
from mvtec_lab.data.layouts import LAYOUTS, read_folder, recognise
from mvtec_lab.data.layouts.mvtec import scan
from mvtec_lab.data.splits import split_samples
from mvtec_lab.errors import LabError
from mvtec_lab.results import read_csv


def visa(root: Path) -> Path:
    """candle of VisA: 16 normal and 7 anomalous images, of which one has two types of defects."""
    folder = root / "candle"
    fill(folder / "Data/Images/Normal", 16, "{:04}.JPG")
    fill(folder / "Data/Images/Anomaly", 7, "{:03}.JPG")
    folder.joinpath("Data/Masks/Anomaly").mkdir(parents=True)
    for i in range(7):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[2:6, 3:9] = 1 + i % 3  # the number of the type, nearly black
        Image.fromarray(mask).save(folder / f"Data/Masks/Anomaly/{i:03}.png")
    normal = [f"candle/Data/Images/Normal/{i:04}.JPG" for i in range(16)]
    pairs = [(f"candle/Data/Images/Anomaly/{i:03}.JPG", f"candle/Data/Masks/Anomaly/{i:03}.png") for i in range(7)]
    types = [
        "foreign",
        "melded",
        "melded",
        '"melded,wax melded out"',
        "melded",
        "melded",
        "foreign",
    ]
    annotated = [f"{path},normal," for path in normal] + [
        f"{p},{t},{m}" for (p, m), t in zip(pairs, types, strict=True)
    ]
    (folder / "image_anno.csv").write_text("\n".join(["image,label,mask", *annotated]) + "\n")
    divided = [f"candle,{'train' if i < 11 else 'test'},normal,{path}," for i, path in enumerate(normal)]
    divided += [f"candle,test,anomaly,{path},{mask}" for path, mask in pairs]
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(["object,split,label,image,mask", *divided]) + "\n")
    return folder


def loco(root: Path) -> Path:
    """breakfast_box of MVTec LOCO AD: up to two masks for an image, each of another grey value."""
    folder = root / "breakfast_box"
    for part, count in (("train", 8), ("validation", 3), ("test", 5)):
        fill(folder / part / "good", count)
    for kind in ("logical_anomalies", "structural_anomalies"):
        fill(folder / "test" / kind, 5)
        for i in range(5):
            masks = folder / "ground_truth" / kind / f"{i:03}"
            draw_masks(masks, 1, "{:03}.png", (2, 3, 6, 7))
            if i == 0:
                other = np.zeros((SIZE, SIZE), np.uint8)
                other[10:12, 10:20] = 249
                Image.fromarray(other).save(masks / "001.png")
    (folder / "defects_config.json").write_text(
        json.dumps([{"defect_name": "missing_almonds", "pixel_value": 255, "saturation_threshold": 1.0}])
    )
    (folder / "readme.txt").write_text("about")
    return folder


def mvtec_ad2(root: Path) -> Path:
    """can of MVTec AD 2: two lights for each scene of the public test, private tests without labels."""
    folder = root / "can"
    fill(folder / "train/good", 8, "{:03}_regular.png")
    fill(folder / "validation/good", 3, "{:03}_regular.png")
    for light in ("regular", "overexposed"):
        for kind in ("good", "bad"):
            fill(folder / f"test_public/{kind}", 4, f"{{:03}}_{light}.png")
        draw_masks(folder / "test_public/ground_truth/bad", 4, f"{{:03}}_{light}_mask.png")
    fill(folder / "test_private", 3, "{:03}_regular.png")
    fill(folder / "test_private_mixed", 3, "{:03}_mixed.png")
    return folder


def btad(root: Path) -> Path:
    """Product 01 of BTAD: images are BMP, their masks PNG."""
    folder = root / "01"
    fill(folder / "train/ok", 8, "{:04}.bmp")
    fill(folder / "test/ok", 5, "{:04}.bmp")
    fill(folder / "test/ko", 6, "{:04}.bmp")
    draw_masks(folder / "ground_truth/ko", 6, "{:04}.png")
    return folder


def real_iad(root: Path) -> Path:
    """audiojack of Real-IAD: two views of each part, masks beside the images, a list of them in realiad_jsons."""
    folder = root / "realiad_256/audiojack"
    listed: dict[str, list[dict]] = {"train": [], "test": []}

    def add(part: str, kind: str, serial: int) -> None:
        place = f"{'OK' if kind == 'OK' else f'NG/{kind}'}/S{serial:04}"
        name = f"audiojack_{serial:04}_{'OK' if kind == 'OK' else 'NG_' + kind}_C{{}}_20230922"
        fill(folder / place, 2, name + ".jpg")
        if kind != "OK":
            draw_masks(folder / place, 2, name + ".png")
        for view in range(2):
            mask = None if kind == "OK" else f"{place}/{name.format(view)}.png"
            path = f"{place}/{name.format(view)}.jpg"
            listed[part].append({"category": "audiojack", "anomaly_class": kind, "image_path": path, "mask_path": mask})

    for serial in range(1, 5):
        add("train", "OK", serial)
    for serial in range(5, 8):
        add("test", "OK", serial)
    for kind in ("BX", "HS"):
        for serial in range(1, 4):
            add("test", kind, serial)
    (root / "realiad_jsons").mkdir(parents=True)
    content = {"meta": {"normal_class": "OK", "prefix": "audiojack/"}, **listed}
    (root / "realiad_jsons/audiojack.json").write_text(json.dumps(content))
    return folder


MINIATURES: dict[str, Callable[[Path], Path]] = {
    "visa": visa, "loco": loco, "mvtec_ad2": mvtec_ad2, "btad": btad, "real_iad": real_iad,
}  # fmt: skip
COUNTS = {  # (class, the data set's own part) -> images
    "visa": {
        ("good", "train"): 11, ("good", "test"): 5,
        ("melded", "test"): 4, ("foreign", "test"): 2, ("combined", "test"): 1,
    },
    "loco": {
        ("good", "train"): 8, ("good", "val"): 3, ("good", "test"): 5,
        ("logical_anomalies", "test"): 5, ("structural_anomalies", "test"): 5,
    },
    "mvtec_ad2": {("good", "train"): 8, ("good", "val"): 3, ("good", "test"): 8, ("bad", "test"): 8},
    "btad": {("good", ""): 13, ("ko", ""): 6},  # as MVTec AD's: the folders say it
    "real_iad": {("good", "train"): 8, ("good", "test"): 6, ("BX", "test"): 6, ("HS", "test"): 6},
}  # fmt: skip


def test_every_public_data_set_has_a_miniature() -> None:
    assert set(MINIATURES) == set(COUNTS) == set(PUBLIC)
    assert set(PUBLIC) < set(LAYOUTS)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_layout_is_recognised_and_read(tmp_path: Path, name: str) -> None:
    folder = MINIATURES[name](tmp_path)
    assert recognise(folder) == recognise(folder, name) == name
    listed = read_folder(folder, name)
    assert Counter((s.label, s.split) for s in listed.samples) == COUNTS[name]
    assert listed.mask_problems == []
    defects = [s for s in listed.samples if s.label != "good"]
    assert all(s.mask for s in defects)
    assert not any(s.mask for s in listed.samples if s.label == "good")
    assert all(s.read_mask(folder).any() for s in defects)
    data = MVTecDataset(folder, listed.samples, image_size=SIZE, targets=["mask", "boxes"])
    assert all(data[i]["mask"].any() == (s.label != "good") for i, s in enumerate(data.samples))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_data_set_learns_good_images_and_tests_its_own(tmp_path: Path, name: str) -> None:
    folder = MINIATURES[name](tmp_path)
    data = MVTecDataModule(read_folder(folder, name), image_size=SIZE, split=SplitConfig(protocol="one_class"))
    data.scan()
    trained = {s.label for s in data.of_split("train")}
    assert trained == {"good"}
    tested = Counter(s.label for s in data.of_split("test"))
    wanted = Counter({label: n for (label, part), n in COUNTS[name].items() if part in ("test", "")})
    assert tested == (wanted if name != "btad" else {"good": 5, "ko": 6})
    if name in ("loco", "mvtec_ad2"):
        assert {s.path.split("/")[0] for s in data.of_split("val")} == {"validation"}
    drawn = split_samples(data.listed.samples, SplitConfig(protocol="holdout")) if name != "visa" else []
    assert Counter(s.label for s in drawn if s.split) == (tested if drawn else {})  # a classifier's: the test images
    if drawn:
        assert not [line for line in data.listed.oddities(drawn) if "take no part" in line]  # train/good waits


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_data_set_runs_by_its_name(lab, tiny_net: str, tmp_path: Path, name: str) -> None:
    folder = MINIATURES[name](tmp_path / "public")
    words = [
        f"data={name}", f"data.root={folder.parent}", f"data.category={folder.name}",
        "model.options.layers=[features.relu1]",
        f"model.backbone={tiny_net}", "model.weights=null", f"data.image_size={SIZE}", "cache.dir=null",
        "trainer.accelerator=cpu", "attempt=patchcore", "hydra.run.dir=run",
    ]  # fmt: skip
    assert main(words) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["data"], result["category"]) == (name, folder.name)
    assert result["metrics"]["test"]["pixel_aupro"] is not None
    assert main(["task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged"]) == 0
    judged = json.loads((tmp_path / "judged/metrics.json").read_text())
    assert judged["metrics"]["test"]["pixel_aupro"] == result["metrics"]["test"]["pixel_aupro"]
    assert not [line for line in judged["warnings"] if "trained this checkpoint" in line]


def test_masks_of_one_image_are_merged(tmp_path: Path) -> None:
    folder = loco(tmp_path)
    mask = folder / "ground_truth/logical_anomalies/000"
    assert read_mask(mask).sum() == 4 * 4 + 2 * 10
    assert mask_share(mask) == pytest.approx(36 / SIZE**2)
    sample = next(s for s in read_folder(folder).samples if s.path == "test/logical_anomalies/000.png")
    assert sample.mask == "ground_truth/logical_anomalies/000"
    assert len(sample.regions(folder)) == 2
    before = digests([mask])
    Image.fromarray(np.full((SIZE, SIZE), 255, np.uint8)).save(mask / "001.png")
    assert digests([mask]) != before
    assert "marks 100% of its image" in odd_masks([mask])[0]
    Image.new("L", (5, 5)).save(mask / "001.png")
    with pytest.raises(LabError, match="its masks differ in size"):
        read_mask(mask)


def test_any_layout_may_have_a_folder_of_masks(product: Path) -> None:
    before = {s.path: s.read_mask(product) for s in scan(product).samples if s.mask}
    for mask in (product / "ground_truth/hole").iterdir():
        inner = mask.parent / mask.stem.removesuffix("_mask")
        inner.mkdir()
        mask.rename(inner / "000.png")
    found = scan(product)
    assert found.mask_problems == []
    after = {s.path: s.read_mask(product) for s in found.samples if s.mask}
    assert before.keys() == after.keys()
    assert all((before[path] == after[path]).all() for path in before)


def test_images_of_a_scene_and_of_a_part_stay_together(tmp_path: Path) -> None:
    for name in ("mvtec_ad2", "real_iad"):
        samples = read_folder(MINIATURES[name](tmp_path / name)).samples
        groups = Counter(s.group for s in samples if s.split == "test")
        assert set(groups.values()) == {2}
        splits = split_samples(samples, SplitConfig(protocol="kfold", folds=3))
        homes: dict[str, set[str]] = {}
        for s in splits:
            homes.setdefault(s.group, set()).add(s.split)
        assert all(len(where) == 1 for where in homes.values())


def test_private_tests_of_mvtec_ad2_are_left_out_by_name(tmp_path: Path) -> None:
    listed = read_folder(mvtec_ad2(tmp_path))
    assert {reason: len(paths) for reason, paths in listed.left_out.items()} == {
        "image(s) of the private tests, whose labels are not published": 6
    }


def test_visa_without_its_division_is_drawn_from_all(tmp_path: Path) -> None:
    folder = visa(tmp_path)
    shutil.rmtree(tmp_path / "split_csv")
    listed = read_folder(folder, "visa")
    assert {s.split for s in listed.samples} == {""}
    assert listed.notes == [
        f"{tmp_path / 'split_csv/1cls.csv'} does not exist: train and test images are drawn from all"
    ]


def test_real_iad_needs_its_list(tmp_path: Path) -> None:
    folder = real_iad(tmp_path)
    file = tmp_path / "realiad_jsons/audiojack.json"
    content = json.loads(file.read_text())
    content["test"][0]["image_path"] = "OK/S9999/none.jpg"
    file.write_text(json.dumps(content))
    with pytest.raises(LabError, match=r"audiojack.json entry 0 of test: OK/S9999/none.jpg does not exist"):
        read_folder(folder, "real_iad")
    file.write_text("{}")
    with pytest.raises(LabError, match="is no list of Real-IAD"):
        read_folder(folder, "real_iad")
    file.unlink()
    with pytest.raises(LabError, match=r"unpack realiad_jsons.zip beside .*realiad_256, so that realiad_jsons/aud"):
        read_folder(folder, "real_iad")


def test_a_wrong_name_or_level_is_answered(product: Path, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"is in MVTec AD's layout, not in VisA's .*: give data=folder"):
        recognise(product, "visa")
    btad(tmp_path / "BTech_Dataset_transformed")
    with pytest.raises(LabError, match=r"give data.category=NAME for one of its products \(01\): data.category=01"):
        recognise(tmp_path / "BTech_Dataset_transformed", "btad")
    with pytest.raises(LabError, match=r"does not hold BTAD's layout .*, but .*/BTech_Dataset_transformed/01 does"):
        recognise(tmp_path, "btad")


def test_the_samples_of_mvtecs_layout_are_as_before(lab, product: Path, tmp_path: Path) -> None:
    """The rows of samples.csv decide what is resumed, evaluated and compared: their form must not change."""
    assert lab("hydra.run.dir=run") == 0
    rows = read_csv(tmp_path / "run/samples.csv")
    assert rows[4]["path"] == rows[4]["group"] == "test/crack/000.png"
    assert rows[4]["mask"] == "ground_truth/crack/000_mask.png"
    assert [row["path"].split("/")[1] for row in rows] == ["good"] * 4 + ["crack"] * 6 + ["good"] * 10 + ["hole"] * 6
    assert all(not row["split"] for row in rows[:4])
