"""What the audit finds before training, and what it must not: images that merely look alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from test_real import ROOT

from mvtec_lab import compose
from mvtec_lab.cache import ArrayCache
from mvtec_lab.config import SplitConfig
from mvtec_lab.data.audit import thin_splits
from mvtec_lab.data.cable import generate
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.samples import Sample
from mvtec_lab.problems import problem_of
from mvtec_lab.results import GOOD, RunResult, read_csv, write_csv

SIDE = 160  # pixels of a photograph
EACH = {"train": 6, "val": 5, "test": 5}  # images of each class


def photograph(rng: np.random.Generator, kind: int = 0) -> np.ndarray:
    """A product that lies still: one disc on a bright ground, a print if it has one, and a grain of its own."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    shape = np.where(np.hypot(x, y) < 60, 90.0, 170.0)
    shape += (0, 50 * np.sin(x / 9) * np.cos(y / 12), 50 * np.cos(x / 12 + y / 9))[kind]
    shape += cv2.resize(rng.normal(0, 12, (20, 20)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return (shape[..., None] + rng.normal(0, 3, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clean product of 32 photographs in two classes, with its split in a file beside it."""
    rng = np.random.default_rng(0)
    rows = []
    for label in ("good", "scratch"):
        for i, split in enumerate(split for split, count in EACH.items() for _ in range(count)):
            picture = photograph(rng)
            if label == "scratch":
                picture[70 + i : 74 + i, 40:120] = 230
            path = tmp_path / "clean/test" / label / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
            rows.append({"path": f"test/{label}/{i:02}.png", "split": split})
    write_csv(tmp_path / "clean/split.csv", rows, ["path", "split"])
    return tmp_path / "clean"


TRAIN, VAL, TEST = (f"test/good/{i:02}.png" for i in (0, 6, 11))  # an image of each split


def findings(folder: Path, **options) -> list[str]:
    split = SplitConfig(protocol="file", file=str(folder / "split.csv"))
    data = MVTecDataModule(folder, **{"image_size": 64, "split": split} | options)
    data.setup()
    return data.findings()


def test_a_clean_product_has_no_finding(folder: Path, tmp_path: Path) -> None:
    assert findings(folder) == []
    assert findings(folder, cache=ArrayCache(tmp_path / "c"), image_size=224) == []


def test_the_same_defect_is_no_copy(folder: Path) -> None:
    """One bright bar in every picture, at one of five places, in noise of its own."""
    rng = np.random.default_rng(2)
    for i, path in enumerate(sorted((folder / "test").rglob("*.png"))):
        picture = rng.normal(120, 6, (64, 64, 3))
        picture[i % 5 * 8 :][:6, 8:56] = 230
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    assert findings(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "copy", "said"),
    [
        (TRAIN, TEST, ["1 of 10 test images are in train as well: {copy} is the same file as {source}"]),
        (TRAIN, VAL, ["1 of 10 val images are in train as well: {copy} is the same file as {source}"]),
        (VAL, TEST, ["1 of 10 test images are in val as well: {copy} is the same file as {source}"]),
        (TRAIN, "test/good/01.png", ["1 image(s) twice in train: {copy} is the same file as {source}"]),
        (
            TRAIN,
            "test/scratch/11.png",
            [
                "1 of 10 test images are in train as well: {copy} is the same file as {source}",
                "1 image(s) of two classes: {copy} is the same file as {source}",
            ],
        ),
    ],
)
def test_the_same_file_twice(folder: Path, source: str, copy: str, said: list[str]) -> None:
    shutil.copy(folder / source, folder / copy)
    assert findings(folder) == [text.format(source=source, copy=copy) for text in said]


def jpeg(quality: int) -> Callable[[np.ndarray], np.ndarray]:
    def save(image: np.ndarray) -> np.ndarray:
        return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)

    return save


def moved(right: int, down: int) -> Callable[[np.ndarray], np.ndarray]:
    def move(image: np.ndarray) -> np.ndarray:
        matrix = np.float32([[1, 0, right], [0, 1, down]])
        return cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)

    return move


def crop(share: float) -> Callable[[np.ndarray], np.ndarray]:
    def cut(image: np.ndarray) -> np.ndarray:
        side = round(share * len(image))
        at = (len(image) - side) // 3
        return cv2.resize(image[at : at + side, at : at + side], image.shape[1::-1], interpolation=cv2.INTER_CUBIC)

    return cut


# How a copy was made, and the words of the finding.
SAVED_AGAIN: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "JPEG 85": (jpeg(85), ""),
    "JPEG 60": (jpeg(60), ""),
    "brighter": (lambda image: (image * 1.03).clip(0, 255).astype(np.uint8), ""),
    "shifted": (lambda image: np.roll(image, (2, 1), (0, 1)), ""),
    "moved": (moved(2, -2), ""),  # as 10 pixels of 900
    "trimmed": (lambda image: image[2:-1, 1:-2], "cropped"),
    "smaller": (lambda image: cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA), ""),
    "horizontal flip": (lambda image: image[:, ::-1], "mirrored"),
    "vertical flip": (lambda image: image[::-1], "mirrored"),
    "quarter turn": (lambda image: np.rot90(image, 1), "turned"),
    "half turn": (lambda image: np.rot90(image, 2), "turned"),
    "three quarters": (lambda image: np.rot90(image, 3), "turned"),
    "flip and JPEG": (lambda image: jpeg(75)(np.ascontiguousarray(image[:, ::-1])), "mirrored"),
    "crop of 98%": (crop(0.98), "cropped"),
    "crop of 90%": (crop(0.90), "cropped"),
    "turn, crop and JPEG": (lambda image: jpeg(85)(crop(0.95)(np.rot90(image, 1))), "turned and cropped"),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", SAVED_AGAIN)
def test_a_photograph_saved_again_is_found(folder: Path, tmp_path: Path, change: str) -> None:
    make, how = SAVED_AGAIN[change]
    Image.fromarray(np.ascontiguousarray(make(np.asarray(Image.open(folder / TRAIN))))).save(folder / TEST)
    (found,) = findings(folder)
    assert found.startswith(f"1 of 10 test images are in train as well: {TEST} is nearly the same picture")
    assert found.endswith(f" as {TRAIN}")
    assert change in ("trimmed", "shifted") or (f", {how}," in found if how else "picture as" in found)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["JPEG 60", "brighter", "smaller", "horizontal flip"])
def test_a_photograph_of_a_grid_saved_again_is_found(folder: Path, change: str) -> None:
    """Wires at random places and a little bent: steps that lay one on the other may lead to the next wire."""
    rng = np.random.default_rng(4)
    for path in sorted((folder / "test").rglob("*.png")):
        bent = [cv2.resize(rng.normal(0, 1.2, (6, 6)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for _ in "yx"]
        wires = np.mgrid[:SIDE, :SIDE] + bent + rng.uniform(0, 15, (2, 1, 1))
        picture = 110 + 60 * (wires % 15 < 3).sum(axis=0)[..., None] + rng.normal(0, 3, (SIDE, SIDE, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    assert findings(folder) == []
    make, _ = SAVED_AGAIN[change]
    Image.fromarray(np.ascontiguousarray(make(np.asarray(Image.open(folder / TRAIN))))).save(folder / TEST)
    (found,) = findings(folder)
    assert found.endswith(f" as {TRAIN}")


def test_near_copies_within_a_split_do_no_harm(folder: Path) -> None:
    Image.fromarray(jpeg(85)(np.asarray(Image.open(folder / TRAIN)))).save(folder / "test/good/01.png")
    assert findings(folder) == []


def test_kinds_of_one_product_are_no_copies(folder: Path) -> None:
    """Within each kind the pictures have much in common that they do not share with the others."""
    rng = np.random.default_rng(1)
    for i, path in enumerate(sorted((folder / "test").rglob("*.png"))):
        Image.fromarray(photograph(rng, kind=i % 3)).save(path)
    assert findings(folder) == []


def test_thin_splits(folder: Path) -> None:
    """Of the scratches one image remains in val and none in test."""
    rows = read_csv(folder / "split.csv")
    dropped = {f"test/scratch/{i:02}.png" for i in range(6, 16)} - {"test/scratch/06.png"}
    write_csv(folder / "split.csv", [row for row in rows if row["path"] not in dropped], ["path", "split"])
    assert findings(folder) == [
        "val has 6 image(s): what a training chooses rests on them",
        "class 'scratch' has a single image in val: its figures rest on that one",
        "class 'scratch' has no image in test",
    ]


@pytest.mark.parametrize(
    ("attempt", "chosen"),
    [
        ("base", "the choice of the epoch by val/balanced_accuracy"),
        ("base trainer.monitor=val/loss", "the choice of the epoch by val/loss"),
        ("base model.head=knn", "the choice among attempts"),
        ("segment/fpn", "the choice of the epoch by val/loss and of the thresholds"),
        ("segment/sam_zero model.options.prompts=runs", "the choice of the thresholds"),
        ("detect/fcos", "the choice of the epoch by val/loss and of the threshold"),
        ("detect/maskrcnn", "the choice of the epoch by val/map and of the threshold"),
        ("stfpm", "the threshold"),
        ("lab/where", ""),  # inner folds of all images that it learns choose
        ("patchcore", ""),  # its threshold rests on all good images
    ],
)
def test_a_tiny_validation_set_is_named_with_what_rests_on_it(attempt: str, chosen: str) -> None:
    config = compose(*f"attempt={attempt}".split(), "data.root=somewhere")
    samples = [Sample(f"test/good/{i}.png", GOOD, split="val") for i in range(6)]
    said = thin_splits(samples, problem_of(config.model.method).chosen_on_val(config))
    assert said == [f"val has 6 image(s): {chosen} rests on them"] * bool(chosen)


def test_strict_refuses_a_run_and_a_sweep(lab, product: Path, tmp_path: Path, capsys) -> None:
    """The tiny product's own split is thin already."""
    shutil.copy(product / "test/good/000.png", product / "test/good/001.png")
    for many in ([], ["-m", "attempt=base,cosine"]):
        before = sorted(tmp_path.rglob("*"))
        assert lab(*many, "audit=strict", "cache.dir=null") == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {'job base: ' if many else ''}audit=strict: ")
        assert error.endswith("more): repair it, or audit=warn continues\n")
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before


def test_strict_lets_clean_data_pass_with_their_marks(lab, folder: Path, tmp_path: Path) -> None:
    clean = [f"data.root={folder}", "split.protocol=file", f"split.file={folder / 'split.csv'}", "trainer.max_epochs=1"]
    assert lab("audit=strict", *clean, "hydra.run.dir=run") == 0
    assert RunResult.load(tmp_path / "run").warnings == ["random weights, as asked for"]
    assert lab("audit=strict", *clean, "data.sampler=sqrt", "hydra.run.dir=no") == 2
    assert not (tmp_path / "no").exists()


def test_findings_are_warnings_of_run_sweep_and_description(lab, product: Path, tmp_path: Path) -> None:
    shutil.copytree(product / "test/good", product / "test/fine")  # every good image under a second label
    assert lab("split.val_is_test=true", "data.sampler=sqrt", "hydra.run.dir=run") == 0
    warnings = RunResult.load(tmp_path / "run").warnings
    for said in ("of two classes", "validation = test", "are both on"):
        assert sum(said in warning for warning in warnings) == 1, said
    assert lab("task=describe", "split.val_is_test=true", "data.sampler=sqrt", "hydra.run.dir=d") == 0
    assert json.loads((tmp_path / "d/dataset.json").read_text())["warnings"] == warnings[:-1]  # all but random weights


@pytest.mark.slow
def test_the_sample_has_no_copies(tmp_path: Path) -> None:
    folder = generate(tmp_path)
    for size in (64, 128):
        assert findings(folder, image_size=size, split=SplitConfig(pool="all")) == []


@pytest.mark.mvtec
@pytest.mark.skipif(not (ROOT / "bottle").is_dir(), reason="no MVTec images at hand")
def test_bottles_are_told_apart_and_bottles_saved_again_are_not(tmp_path: Path) -> None:
    photographs = sorted((ROOT / "bottle/test").glob("*/*.png"))
    rows = []
    for i, path in enumerate(photographs):
        target = tmp_path / "test" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())
        rows.append({"path": target.relative_to(tmp_path).as_posix(), "split": ("train", "val", "test")[i % 3]})
    write_csv(tmp_path / "split.csv", rows, ["path", "split"])
    assert findings(tmp_path, image_size=224) == []
    for i, (change, _) in enumerate(SAVED_AGAIN.values()):
        name = f"test/good/again{i}.png"
        Image.fromarray(np.ascontiguousarray(change(np.asarray(Image.open(photographs[3 * i]))))).save(tmp_path / name)
        rows.append({"path": name, "split": "test"})
    write_csv(tmp_path / "split.csv", rows, ["path", "split"])
    for size in (64, 224):
        (said,) = findings(tmp_path, image_size=size)
        assert said.startswith(f"{len(SAVED_AGAIN)} of ")
