"""task=describe: what it says, draws and writes of a data set, and what ``describe`` gives to a script."""

from __future__ import annotations

import json
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZE, write_product
from PIL import Image

import mvtec_lab
from mvtec_lab.cli import main
from mvtec_lab.tasks import describe
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


class Page(HTMLParser):
    """A page's addresses, pictures and words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.commands: list[str] = []
        self.words = ""
        self._inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        self.links += [of["href"] or ""] if "href" in of else []
        self.images += [of] if tag == "img" else []
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self._inside:
            self.words += f"{data} "
        if "pre" in self._inside:
            self.commands.append(data)


def test_the_page_to_hand_in(lab, product: Path, tmp_path: Path, capsys) -> None:
    for place in (1, 2, 3):
        shutil.copy(product / "test/crack/000.png", product / f"test/crack/{place:03}.png")
    assert lab("task=describe", f"data.root={product}", "hydra.run.dir=d e") == 0
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=1) == ["page", str(tmp_path / "d e/dataset.html")]
    page = Page(tmp_path / "d e/dataset.html")
    assert "classes 3: good, crack, hole" in page.words
    assert "images used 22 of 26 that were found; the other 4 take no part" in page.words
    assert "train / val / test 14 / 4 / 4" in page.words
    assert "crack 4 1 1 6" in page.words
    assert f"{SIZE} × {SIZE} pixels (26)" in page.words
    assert "PNG, 3 channels of 8 bits (26)" in page.words
    assert "12 objects in 12 of the images found" in page.words
    assert "hole 6 6 Share" in page.words
    assert "hole 6 4.3% 4.3% 4.3%" in page.words
    assert "hole 5 / 5 / 5 5 / 5 / 5 25 / 25 / 25 4.3 / 4.3 / 4.3%" in page.words
    assert "test/crack/000.png" in page.words
    findings = json.loads((tmp_path / "d e/dataset.json").read_text())["warnings"]
    assert any("the same file as" in line for line in findings)
    assert all(" ".join(line.split()) in page.words for line in findings)

    assert len(page.images) == 1 + 3 * 4  # the chart, and four of each class
    assert all((image["src"] or "").startswith("data:image/") for image in page.images)
    assert page.images[0]["alt"] == "Bars of the images of each class: good 10, crack 6, hole 6"
    assert page.images[-1]["alt"] == "test/hole/005.png, an image of class hole, its marked defect outlined"
    assert page.images[1]["alt"] == "test/good/000.png, an image of class good"
    assert all(link.startswith("#") for link in page.links)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["split.protocol=kfold", "split.fold=1", "split.seed=7"],
        ["attempt=patchcore"],
        ["data.defects=merged", "split.protocol=holdout"],
        ["seed=3", "split.val=0.3", "split.per_class=5", "data.good=[hole,good]"],
    ],
    ids=" ".join,
)
def test_the_command_on_the_page_describes_the_same(settings: list[str], lab, product: Path, tmp_path: Path) -> None:
    odd = product.rename(product.with_name("a widget, [new] 50%"))
    assert lab("task=describe", f"data.root='{odd}'", *settings, "hydra.run.dir=one") == 0
    (command,) = Page(tmp_path / "one/dataset.html").commands
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "mvtec_lab", "task=describe"]
    assert main([*words[3:], "hydra.run.dir=two"]) == 0
    one, two = (json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_a_sweep_describes_its_images_and_its_report_links_there(lab, product: Path, tmp_path: Path) -> None:
    write_product(product.with_name("ring"), {"good": 6, "dent": 6}, train_good=1)
    (product.with_name("ring") / "train/good/000.png").write_bytes(b"no image")
    root = [f"data.root={product.parent}", "trainer.max_epochs=1"]
    assert lab("-m", "attempt=base,head", *root, "data.category=widget,ring", "hydra.sweep.dir=s") == 0
    page = Page(tmp_path / "s/dataset.html")
    assert "folder/widget, folder/ring: the images" in page.words
    assert "crack 4 1 1 6" in page.words
    assert "dent" in page.words
    assert "ring/train/good/000.png cannot be read" in page.words
    assert "Images that take no part in this split were not decoded" in page.words
    report = Page(tmp_path / "s/report.html")
    pages = ["report_widget.html", "report_ring.html"]  # of each product
    assert [link for link in report.links if not link.startswith("#")] == [*pages, "dataset.html"]
    assert "task=describe" not in report.words

    # elsewhere the report finds the page of the sweep, whose images need not exist any more
    shutil.rmtree(product.parent)
    assert main(["task=compare", "dirs=[s]", "hydra.run.dir=compared"]) == 0
    links = [link for link in Page(tmp_path / "compared/report.html").links if not link.startswith("#")]
    assert links == [*pages, "../s/dataset.html"]
    again = ["-m", "attempt=base,head", *root, "data.category=widget,ring", "hydra.sweep.dir=s", "resume=true"]
    assert lab(*again) == 0
    assert (tmp_path / "s/dataset.html").is_file()
    assert "dataset.html" in Page(tmp_path / "s/report.html").links


@pytest.mark.slow
def test_a_sweep_leaves_large_masks_to_the_command(lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "PIXELS", 12 * SIZE**2 - 1)  # of 12 masks
    assert lab("-m", "attempt=head", "trainer.max_epochs=1", "hydra.sweep.dir=s") == 0
    assert not (tmp_path / "s/dataset.html").exists()
    (command,) = (text for text in Page(tmp_path / "s/report.html").commands if "task=describe" in text)
    assert command.endswith("hydra.run.dir=s")
    monkeypatch.setattr(describe, "PIXELS", 12 * SIZE**2)
    assert lab("-m", "attempt=head", "trainer.max_epochs=1", "hydra.sweep.dir=s", "resume=true") == 0
    assert Page(tmp_path / "s/report.html").links.count("dataset.html") == 1


@pytest.mark.slow
def test_a_report_without_a_page_of_the_images_shows_the_command(lab, product: Path, tmp_path: Path) -> None:
    assert lab("attempt=head", "trainer.max_epochs=1", "split.val=0.3", "hydra.run.dir=runs/one") == 0
    (tmp_path / "runs/dataset.html").write_text('<meta name="data" content="folder/another">')
    assert main(["task=compare", "dirs=[runs]", "hydra.run.dir=compared"]) == 0
    report = Page(tmp_path / "compared/report.html")
    assert [link for link in report.links if "dataset" in link] == ["dataset.html"]
    assert not (tmp_path / "compared/dataset.html").exists()
    (command,) = (text for text in report.commands if "task=describe" in text)
    assert main(shlex.split(command)[3:]) == 0
    page = Page(tmp_path / "compared/dataset.html")
    assert "validation 0.3" in page.words
    assert main(["task=compare", "dirs=[runs]", "hydra.run.dir=compared"]) == 0
    assert not any("task=describe" in text for text in Page(tmp_path / "compared/report.html").commands)


def test_a_class_too_many_and_no_image_at_all_have_a_page(lab, tmp_path: Path) -> None:
    folder = write_product(tmp_path / "many", {f"type {i:02}": 1 for i in range(60)} | {"good": 3}, train_good=0)
    assert lab("task=describe", f"data.root={folder}", "hydra.run.dir=d") == 0
    page = Page(tmp_path / "d/dataset.html")
    assert "Of 61 classes 48 are shown." in page.words
    assert len(page.images) == 1 + 48
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    assert lab("task=describe", f"data.root={folder}", "hydra.run.dir=e") == 0
    page = Page(tmp_path / "e/dataset.html")
    assert "no image can be read" in page.words
    assert len(page.images) == 1
