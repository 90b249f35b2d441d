"""The built-in sample: its layout, its determinism, its masks, and what it does to a folder that lies there already."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mvtec_lab.data import cable
from mvtec_lab.data.cable import COUNTS, MARKER, draw, generate
from mvtec_lab.errors import LabError

DEFECTS = [name for name in COUNTS if name != "good"]
TINY = {"good": 2, "bent_wire": 1, "combined": 2}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tiny(root: Path) -> Path:
    return generate(root, size=48, counts=TINY, train_good=3)


def test_layout_and_counts(tmp_path: Path) -> None:
    folder = generate(tmp_path / "new", size=32, train_good=5)
    found = Counter(p.parent.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    expected = {"train/good": 5} | {f"test/{name}": n for name, n in COUNTS.items()}
    assert found == expected | {f"ground_truth/{name}": COUNTS[name] for name in DEFECTS}
    assert (sum(COUNTS.values()), cable.TRAIN_GOOD) == (150, 224)  # MVTec's own numbers
    assert folder == tmp_path / "new" / "cable"
    assert [p.name for p in folder.parent.iterdir()] == ["cable"]  # no temporary folder stays
    image = cv2.imread(str(folder / "test/poke_insulation/009.png"), cv2.IMREAD_UNCHANGED)
    mask = cv2.imread(str(folder / "ground_truth/poke_insulation/009_mask.png"), cv2.IMREAD_UNCHANGED)
    assert image.shape == (32, 32, 3)
    assert mask.shape == (32, 32)


def test_same_bytes_twice_and_whatever_the_counts(tmp_path: Path) -> None:
    one, two = files(tiny(tmp_path / "1")), files(tiny(tmp_path / "2"))
    assert one == two
    more = files(generate(tmp_path / "3", size=48, counts={"combined": 3, "good": 3}, train_good=1))
    shared = [name for name in one if name in more and name != MARKER]
    assert len(shared) == 1 + 2 + 2 + 2  # train good, test good, combined and its masks
    assert all(one[name] == more[name] for name in shared)
    images = [data for name, data in one.items() if name.endswith(".png")]
    assert len(set(images)) == len(images)
    other = files(generate(tmp_path / "4", size=48, counts=TINY, train_good=3, seed=1))
    assert not set(images) & set(other.values())


def test_png_channels_are_in_order(tmp_path: Path) -> None:
    written = cv2.imread(str(tiny(tmp_path) / "test/good/000.png"))  # cv2 reads BGR
    assert written[..., 2].mean() > written[..., 0].mean()  # copper and brown outweigh the one blue conductor


def test_good_has_an_empty_mask() -> None:
    image, mask = draw("good", np.random.default_rng(0), 64)
    assert image.shape == (64, 64, 3)
    assert image.dtype == mask.dtype == np.uint8
    assert mask.shape == (64, 64)
    assert not mask.any()


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("seed", range(4))
def test_the_mask_is_where_the_image_changed(defect: str, seed: int) -> None:
    good, _ = draw("good", np.random.default_rng(seed), 128)
    bad, mask = draw(defect, np.random.default_rng(seed), 128)
    assert set(np.unique(mask)) == {0, 255}
    assert mask.mean() < 255 / 3
    change = np.abs(bad.astype(int) - good).max(axis=2)  # the same cable, light and noise: the defect alone differs
    near = cv2.dilate(mask, np.ones((5, 5), np.uint8)) > 0  # the blur spreads a change by some two pixels
    assert change[~near].max() <= 2
    assert (change[mask > 0] > 25).mean() > 0.3  # visible: a third of the mask by a tenth of the range


@pytest.mark.parametrize("size", [32, 64])
def test_every_defect_has_a_mask_at_small_sizes(size: int) -> None:
    assert all(draw(defect, np.random.default_rng(k), size)[1].any() for defect in DEFECTS for k in range(3))


def test_combined_marks_two_defects() -> None:
    parts = [cv2.connectedComponents(draw("combined", np.random.default_rng(k), 128)[1])[0] - 1 for k in range(8)]
    assert max(parts) >= 2


def test_unknown_defect_names_the_near_miss(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="did you mean bent_wire"):
        draw("bend_wire", np.random.default_rng(0), 32)
    with pytest.raises(LabError, match="did you mean bent_wire"):
        generate(tmp_path, size=32, counts={"bend_wire": 1}, train_good=1)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_sample_is_left_untouched(tmp_path: Path) -> None:
    folder = tiny(tmp_path)
    (folder / "test/good/000.png").write_bytes(b"mine")
    assert tiny(tmp_path) == folder
    assert (folder / "test/good/000.png").read_bytes() == b"mine"


def test_a_sample_of_an_older_version_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(tmp_path)
    expected = files(folder)
    marker = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps(marker | {"version": 0}))
    (folder / "test/good/stale.png").write_bytes(b"old")
    assert files(tiny(tmp_path)) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["cable"]
    monkeypatch.setattr(cable, "VERSION", cable.VERSION + 1)
    assert json.loads((tiny(tmp_path) / MARKER).read_text())["version"] == cable.VERSION


@pytest.mark.parametrize("change", [{"size": 32}, {"counts": {"good": 1}}, {"train_good": 1}, {"seed": 1}])
def test_other_arguments_replace_the_sample(tmp_path: Path, change: dict[str, Any]) -> None:
    before = files(tiny(tmp_path))
    assert files(generate(tmp_path, **({"size": 48, "counts": TINY, "train_good": 3} | change))) != before


@pytest.mark.parametrize("marker", [None, "[1]", '{"note": "my own"}', "not json"])
def test_a_foreign_folder_is_an_error_and_left_alone(tmp_path: Path, marker: str | None) -> None:
    (tmp_path / "cable/test").mkdir(parents=True)
    (tmp_path / "cable/test/mine.png").write_bytes(b"mine")
    if marker is not None:
        (tmp_path / "cable" / MARKER).write_text(marker)
    before = files(tmp_path)
    with pytest.raises(LabError, match=r"data\.root"):
        tiny(tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize("older", [False, True])
def test_another_process_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool) -> None:
    if older:
        generate(tmp_path, size=32, counts={"good": 1}, train_good=1)
    theirs = tiny(tmp_path / "elsewhere")
    expected = files(theirs)
    draw_to = cable._draw_to

    def meanwhile(*args: object) -> None:
        draw_to(*args)  # type: ignore[arg-type]
        if args[3:] == ("train", "good", 0):  # the other process ends while we draw
            if older:
                (tmp_path / "cable").rename(tmp_path / "elsewhere/old")
            theirs.rename(tmp_path / "cable")
            (tmp_path / "cable/theirs").touch()

    monkeypatch.setattr(cable, "_draw_to", meanwhile)
    assert set(files(tiny(tmp_path))) == {*expected, "theirs"}
    assert not list(tmp_path.glob(".cable-*"))
