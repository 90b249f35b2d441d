"""Which files count as images, for training, describing and predicting alike; what is left out is said."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from mvtec_lab.data.layouts.mvtec import scan
from mvtec_lab.data.listing import list_images, natural
from mvtec_lab.errors import LabError
from mvtec_lab.results import read_csv

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
needs_any_name = pytest.mark.skipif(sys.platform != "linux", reason="file names are any bytes")


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    """A folder of images as cameras, colleagues and operating systems leave it."""
    folder = tmp_path / "delivery"
    for name in ("10.png", "9.png", "a.webp", "line 1/000.JPG", ".cache/000.png"):
        put(folder / name)
    (folder / "._9.png").write_bytes(b"macOS keeps attributes here")
    (folder / "notes.txt").write_text("taken on Monday")
    (folder / "Thumbs.db").write_bytes(b"litter")
    put(tmp_path / "elsewhere/b.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder / "line 1")
    (tmp_path / "elsewhere/back").symlink_to(folder)
    return folder


def test_every_image_is_listed_once(delivery: Path) -> None:
    found = list_images(delivery, deep=True)
    names = [path.relative_to(delivery).as_posix() for path in found.images]
    assert names == ["9.png", "10.png", "a.webp", "line 1/000.JPG", "linked/b.png"]
    left_out = {Path(path).relative_to(delivery).as_posix() for paths in found.left_out.values() for path in paths}
    assert left_out == {"._9.png", ".cache", "notes.txt", "again", "linked/back"}
    assert found.unusable == []
    flat = list_images(delivery)
    assert [path.name for path in flat.images] == ["9.png", "10.png", "a.webp"]
    assert [path.name for path in flat.folders] == ["again", "line 1", "linked"]


def test_names_with_superscripts_sort() -> None:
    assert sorted(["10.png", "²", "9.png"], key=natural) == ["9.png", "10.png", "²"]


def test_predict_takes_what_it_can_and_names_the_rest(
    lab, product: Path, delivery: Path, tmp_path: Path, capsys
) -> None:
    assert lab("hydra.run.dir=run") == 0
    (delivery / "nowhere.png").symlink_to(tmp_path / "gone.png")
    for i in range(25):
        (delivery / f"broken_{i}.png").write_bytes(b"")
    capsys.readouterr()
    predict = ["task=predict", "ckpt=run/best.ckpt"]
    assert lab(*predict, f"source={delivery}", "hydra.run.dir=out") == 1
    error = capsys.readouterr().err
    names = [Path(row["path"]).name for row in read_csv(tmp_path / "out/predictions.csv")]
    assert names == ["9.png", "10.png", "a.webp", "000.JPG", "b.png"]
    assert "left out: 2 hidden file(s) or folder(s) (._9.png, .cache)" in error
    assert "left out: 1 file(s) that are not images (notes.txt)" in error
    assert f"{delivery / 'broken_0.png'} cannot be read (it is empty)" in error
    assert error.count("cannot be read (it is empty)") == 20
    assert (tmp_path / "out/run.log").read_text().count("cannot be read (it is empty)") == 25
    assert "error: 26 image(s) or folder(s) cannot be read (named above, 6 of them in run.log alone), 5 image" in error
    # none at all: nothing is written
    for path in delivery.glob("[!b]*"):
        path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)
    assert lab(*predict, f"source={delivery}", "hydra.run.dir=none") == 2
    assert "has no image that can be read: " in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@needs_pipes
def test_pipes_are_not_waited_for(lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab("hydra.run.dir=run") == 0
    os.mkfifo(tmp_path / "pipe.png")
    assert lab("task=predict", "ckpt=run/best.ckpt", "source=pipe.png", "hydra.run.dir=out") == 2
    assert "source=pipe.png is a pipe or another special file" in capsys.readouterr().err
    os.mkfifo(product / "test/crack/pipe.png")
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test/crack'}", "hydra.run.dir=out") == 0
    assert "left out: 1 pipe(s) or other special file(s) (pipe.png)" in capsys.readouterr().err
    assert "test/crack/pipe.png" not in [s.path for s in scan(product).samples]
    for key in ("ckpt", "split.file"):
        task = "evaluate" if key == "ckpt" else "train"
        assert lab(f"task={task}", f"{key}=pipe.png", f"split.protocol={'file' if key != 'ckpt' else 'holdout'}") == 2
        assert "pipe.png" in capsys.readouterr().err


@pytest.mark.slow
@needs_any_name
def test_names_that_are_no_text(lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab("hydra.run.dir=run") == 0
    odd = os.fsdecode(b"test/crack/\xff.png")
    shutil.copy(product / "test/crack/000.png", product / odd)
    capsys.readouterr()
    said = r"crack/\udcff.png cannot be used (its name is not UTF-8): rename it"
    for task in (["task=train"], ["task=describe"], ["-m", "attempt=base,cosine"]):
        assert lab(*task, "hydra.run.dir=other", "hydra.sweep.dir=other") == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not (tmp_path / "other").exists()
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test/crack'}", "hydra.run.dir=out") == 1
    assert said in capsys.readouterr().err
    assert len(read_csv(tmp_path / "out/predictions.csv")) == 6
    for words in (
        f"source={product / odd}",
        f"data.root={os.fsdecode(bytes([255]))}",
        os.fsdecode(b"hydra.run.dir=\xff"),
    ):
        assert lab("task=predict", "ckpt=run/best.ckpt", words) == 2
        error = capsys.readouterr().err
        assert r"\udcff" in error
        assert "cannot be used (it is no UTF-8): rename the file or folder" in error
        assert error.count("\n") == 1
    (product / odd).unlink()
    (product / "test/crack" / os.fsdecode(b"\xff.txt")).write_text("not an image")
    assert lab("hydra.run.dir=left_out") == 0
    assert any(
        r"(test/crack/\udcff.txt)" in line
        for line in json.loads((tmp_path / "left_out/result.json").read_text())["warnings"]
    )


def test_masks_match_exactly(product: Path) -> None:
    for old, new in (("000", "1"), ("001", "1.5")):
        (product / f"test/hole/{old}.png").rename(product / f"test/hole/{new}.png")
        (product / f"ground_truth/hole/{old}_mask.png").rename(product / f"ground_truth/hole/{new}_mask.png")
    (product / "ground_truth/hole/1_mask.png").unlink()
    found = scan(product)
    masks = {s.path: s.mask for s in found.samples}
    assert masks["test/hole/1.5.png"] == "ground_truth/hole/1.5_mask.png"
    assert masks["test/hole/1.png"] is None
    assert found.mask_problems == ["test/hole/1.png has no mask in ground_truth/hole/"]


def test_doubles_are_an_error(product: Path) -> None:
    twin = put(product / "test/hole/000.jpg")
    with pytest.raises(LabError, match=r"hole/000.jpg and test/hole/000.png share the mask .*hole/000_mask.png: give"):
        scan(product)
    twin.unlink()
    put(product / "ground_truth/hole/000.bmp")
    with pytest.raises(LabError, match=r"hole/000.png has two masks, .*hole/000_mask.png and .*hole/000.bmp: remove"):
        scan(product)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("train/good", "train/Good", "Good must be called good: rename it"),
        ("test/good", "test/GOOD", "GOOD must be called good: rename it"),
        ("train", "Train", "Train must be called train: rename it"),
        ("ground_truth", "Ground_Truth", "Ground_Truth must be called ground_truth: rename it"),
        ("ground_truth/hole", "ground_truth/Hole", "Hole must be called hole: rename it"),
        ("test", "pictures/test", "the split has a single class, good, and a classifier"),
        (
            "test/crack",
            "test/crack/inside",
            "left out: 6 image(s) in a folder inside a class folder (test/crack/inside",
        ),
    ],
)
def test_a_layout_that_is_nearly_right(lab, product: Path, capsys, old: str, new: str, said: str) -> None:
    (product / old).rename(product / "moved")
    (product / new).parent.mkdir(parents=True, exist_ok=True)
    (product / "moved").rename(product / new)
    assert lab() == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_nested_images_are_left_out_by_name(product: Path, tmp_path: Path) -> None:
    put(product / "test/hole/monday/000.png")
    put(product / "test/hole/monday/deeper/001.png")
    found = scan(product)
    assert Counter(s.label for s in found.samples)["hole"] == 6
    assert [len(paths) for paths in found.left_out.values()] == [2]


def test_describe_where_no_image_can_be_read(lab, product: Path, tmp_path: Path) -> None:
    for path in (product / "test").rglob("*.png"):
        path.write_bytes(b"")
    shutil.rmtree(product / "train")
    assert lab("task=describe", "hydra.run.dir=d") == 0
    facts = json.loads((tmp_path / "d/dataset.json").read_text())
    assert sum("it is empty" in warning for warning in facts["warnings"]) == 22
    assert not (tmp_path / "d/dataset.jpg").exists()


def test_describe_for_a_one_class_method(lab, product: Path, tmp_path: Path) -> None:
    (product / "test/hole/000.png").write_bytes(b"")
    assert lab("task=describe", "attempt=patchcore", "hydra.run.dir=d") == 0
    facts = json.loads((tmp_path / "d/dataset.json").read_text())
    assert facts["classes_by_split"]["train"] == {"good": 3, "crack": 0, "hole": 0}
    assert facts["imbalance_ratio"] == 1
