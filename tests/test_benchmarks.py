"""The parts of benchmarks/ that could measure the wrong thing; the timings themselves are no test."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.parametrize("attempt", ["head", "finetune", "augment"])
def test_the_plain_loop_trains_on_the_labs_split(attempt: str, product: Path) -> None:
    from benchmarks import plain, speed

    data = speed.prepare(["data=folder", f"data.root={product}", "data.image_size=32"])
    assert data["classes"] == 3
    assert {name: len(samples) for name, samples in data["splits"].items()} == {"train": 14, "val": 4, "test": 4}
    assert all(("good" in path) == (label == 0) for path, label in data["splits"]["train"])
    image, label = plain.Images(data["splits"]["train"], 32, augment=True)[0]
    assert image.shape == (3, 32, 32)
    assert label == data["splits"]["train"][0][1]

    result = plain.train(attempt, **data, epochs=2)
    assert len(result["epochs"]) == 2
    assert all(seconds > 0 for seconds in result["epochs"])
    assert all(math.isfinite(loss) for loss in result["losses"])
    assert 0 <= result["accuracy"] <= 1


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("finetune", [False, True])
def test_the_plain_network_is_the_labs(backbone: str, finetune: bool) -> None:
    import torch

    from benchmarks import plain
    from mvtec_lab import DefectClassifier

    torch.manual_seed(0)
    theirs = list(plain.network(backbone, None, 3, finetune)[0].parameters())
    torch.manual_seed(0)
    ours = list(DefectClassifier(backbone, 3, weights=None, unfreeze=int(finetune)).parameters())
    assert [p.requires_grad for p in theirs] == [p.requires_grad for p in ours]
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


def test_growths_images_are_a_product(tmp_path: Path) -> None:
    from benchmarks import growth
    from mvtec_lab import MVTecDataModule

    growth.generate(tmp_path / "drawn", 20)
    data = MVTecDataModule(tmp_path / "drawn", image_size=32)
    data.setup()
    counts = data.counts()
    assert {name: sum(split[name] for split in counts.values()) for name in data.classes} == {
        "good": 10,
        "hole": 5,
        "scratch": 5,
    }


def test_a_table_replaces_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import common

    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- one:begin -->\nold\n<!-- one:end -->\nafter\n")
    monkeypatch.setattr(common, "README", readme)
    monkeypatch.setattr(common, "machine", lambda: "here")
    for _ in range(2):
        common.show("one", ["a note"], ["what", "s"], [["x", 0.12345], ["y", 12345]])
    table = "| what | s |\n| --- | --- |\n| x | 0.123 |\n| y | 12,345 |\n\n* a note\n* here\n"
    assert readme.read_text() == f"before\n<!-- one:begin -->\n{table}<!-- one:end -->\nafter\n"
