"""task=describe: what it says, draws and writes of a data set, and what ``describe`` gives to a script."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZE, write_product
from PIL import Image

import mvtec_lab
from mvtec_lab.tasks.describe import Description

BLUE = (86, 180, 233)  # of outlines and boxes


def described(root: Path, *settings: str, data: str = "folder") -> Description:
    return mvtec_lab.describe(mvtec_lab.compose(f"data={data}", f"data.root={root}", *settings))


def blue(picture: np.ndarray) -> int:
    return int((np.abs(picture.astype(int) - BLUE).max(axis=2) < 8).sum())


def test_a_script_gets_counts_chart_and_examples(product: Path, tmp_path: Path, lab) -> None:
    description = described(product)
    assert lab("task=describe", f"data.root={product}", "hydra.run.dir=d") == 0
    assert json.loads((tmp_path / "d/dataset.json").read_text()) == description.facts
    assert description.facts["counts"] == {"good": 10, "crack": 6, "hole": 6}

    bars = description.chart().axes[0].patches
    assert [bar.get_width() for bar in bars[:3]] == [*description.facts["classes_by_split"]["train"].values()]
    assert sum(bar.get_width() for bar in bars) == 22
    together = described(product, "split.val_is_test=true").chart().axes[0].patches
    assert sum(bar.get_width() for bar in together) == 22  # an image of both val and test is drawn once

    examples = description.examples(3)
    assert [*examples] == ["good", "crack", "hole"]
    assert [*examples["crack"]] == ["test/crack/000.png", "test/crack/002.png", "test/crack/005.png"]
    assert all(blue(tile) for tile in examples["hole"].values())
    assert not any(blue(tile) for tile in examples["good"].values())
    assert len(description.examples(100)["hole"]) == 6
    assert list(product.parent.rglob("dataset.*")) == []


def test_an_example_keeps_its_proportions_and_shows_boxes(tmp_path: Path, lab) -> None:
    wide = Image.fromarray(np.full((20, 60, 3), 90, np.uint8))
    for name in ("000.png", "001.png", "002.png"):
        (tmp_path / "boxes/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "boxes/labels").mkdir(parents=True, exist_ok=True)
        wide.save(tmp_path / "boxes/images" / name)
        (tmp_path / "boxes/labels" / name.replace("png", "txt")).write_text("0 0.75 0.5 0.2 0.4\n")
    (tmp_path / "boxes/data.yaml").write_text("names: [dent]\n")
    description = described(tmp_path / "boxes", data="yolo")
    (tile,) = description.examples()["dent"].values()
    assert tile.shape == (107, 320, 3)
    rows, columns = np.nonzero(np.abs(tile.astype(int) - BLUE).max(axis=2) < 8)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(0.75 * 320, abs=2)
    assert np.ptp(columns) == pytest.approx(0.2 * 320, abs=6)
    assert np.ptp(rows) == pytest.approx(0.4 * 107, abs=6)


def test_the_formats_of_the_files_are_told(tmp_path: Path, lab) -> None:
    folder = write_product(tmp_path / "p", {"good": 4, "crack": 3}, train_good=0)
    grey = Image.fromarray(np.full((SIZE, SIZE), 3000, np.uint16))
    grey.save(folder / "test/good/000.png")
    Image.open(folder / "test/crack/000.png").save(folder / "test/crack/000.jpg")
    (folder / "test/crack/000.png").unlink()
    facts = described(folder).facts
    assert {tuple(of.values()) for of in facts["formats"]} == {("PNG", 3, 8, 5), ("PNG", 1, 16, 1), ("JPEG", 3, 8, 1)}
