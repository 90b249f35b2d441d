"""The parts of benchmarks/ that could measure the wrong thing; the timings themselves are no test."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_a_large_image_has_a_tiny_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2
    import numpy as np

    from benchmarks import large

    monkeypatch.setattr(large, "HEIGHT", 600)
    monkeypatch.setattr(large, "WIDTH", 800)
    for defect in ("good", "clogged", "scratch", "speck"):
        picture, mask = large.draw(defect, np.random.default_rng(0))
        assert picture.shape == (600, 800, 3)
        _, _, width, height = cv2.boundingRect(mask)
        assert (defect == "good") == (not mask.any())
        assert max(width, height) <= large.DEFECT + 5


@pytest.mark.parametrize("attempt", ["head", "finetune", "full", "augment"])
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
@pytest.mark.parametrize(("attempt", "unfreeze"), [("head", 0), ("finetune", 1), ("full", "all")])
def test_the_plain_network_is_the_labs(backbone: str, attempt: str, unfreeze: int | str) -> None:
    import torch

    from benchmarks import plain
    from mvtec_lab import DefectClassifier

    torch.manual_seed(0)
    theirs = list(plain.network(backbone, None, 3, attempt)[0].parameters())
    torch.manual_seed(0)
    ours = list(DefectClassifier(backbone, 3, weights=None, unfreeze=unfreeze).parameters())
    assert [p.requires_grad for p in theirs] == [p.requires_grad for p in ours]
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


@pytest.mark.parametrize("backbone", ["resnet50", "vit_b_16"])
@pytest.mark.parametrize(("attempt", "unfreeze"), [("finetune", 1), ("full", "all")])
def test_as_much_trains_on_a_gpu_in_the_plain_network(backbone: str, attempt: str, unfreeze: int | str) -> None:
    from benchmarks import plain
    from mvtec_lab import DefectClassifier

    theirs = plain.network(backbone, None, 3, attempt)[0]
    ours = DefectClassifier(backbone, 3, weights=None, unfreeze=unfreeze)
    trained = [sum(p.numel() for p in network.parameters() if p.requires_grad) for network in (theirs, ours)]
    assert trained[0] == trained[1] > 0


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


PEER = """
import json, sys
from pathlib import Path
import numpy as np
job = json.loads(Path(sys.argv[1]).read_text())
tested = sorted((Path(job["root"]) / job["category"] / "test").glob("*/*.png"))
paths = [path.relative_to(Path(job["root"]) / job["category"]).as_posix() for path in tested]
scores = [float("good" not in path) for path in paths]
np.savez(job["out"], paths=paths, scores=scores, maps=np.ones((len(paths), 8, 8)))
found = {"version": "0", "trained": 4, "peak": 1e6, "own_aupro": 0.5, "saving": 0.5}
found |= {"fit": 1e6 + job["fit_workers"], "image": 9.0 - job["score_workers"]}
Path(job["out"]).with_suffix(".json").write_text(json.dumps(found))
"""


@pytest.mark.parametrize("with_peer", [False, True])
def test_both_sides_are_judged_on_the_same_images(
    with_peer: bool,
    tiny_net: str,
    product: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from benchmarks import anomaly, common

    product.rename(tmp_path / "bottle")
    (tmp_path / "peer.py").write_text(PEER)
    shown: list[list[list[str | float]]] = []
    noted: list[str] = []
    monkeypatch.setattr(common, "fresh", lambda function, *args, **kw: common.Measured(function(*args, **kw), 1, 2))
    monkeypatch.setattr(common, "model", lambda name: (None, []))

    def show(name: str, notes: list[str], header: list[str], rows: list[list[str | float]]) -> None:
        noted.extend(notes)
        shown.append([header, *rows])

    monkeypatch.setattr(common, "show", show)
    monkeypatch.setattr(anomaly, "PEER", tmp_path / "peer.py")
    monkeypatch.setattr(anomaly, "BACKBONE", tiny_net)
    sizes = {"layers": ["features.relu1", "features.relu2"], "size": 32, "dimensions": 9}
    monkeypatch.setattr(anomaly, "SETTINGS", anomaly.SETTINGS | sizes)
    peer = ["--peer", sys.executable] if with_peer else []
    monkeypatch.setattr(sys, "argv", ["anomaly", "--data-root", str(tmp_path), "--repeats", "1", *peer])
    anomaly.main()
    assert ("anomalib is left out" in capsys.readouterr().err) != with_peer
    header, *rows = shown[0]
    sides = ["anomalib", "lab"] if with_peer else ["lab"]
    assert [row[:2] for row in rows] == [[method, side] for method in ("patchcore", "padim") for side in sides]
    assert all(len(row) == len(header) for row in rows)
    ours = rows[-1]
    assert float(str(ours[2]).split()[0]) > 0.9  # of all defects, which are plain to see
    assert ("(target 1.000 ± 0.002)" in str(ours[2])) == with_peer
    if with_peer:
        assert rows[0][2:5] == ["1.000", "0.500", "0.150"]  # AUPRO of equal scores: half of the limit
        assert "(target 2)" in str(ours[6])
        assert any("loader workers: 0 for the fit and 2 for the scores" in note for note in noted)


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


def test_the_benchmarks_that_reach_into_a_run_still_fit_it(tiny_net: str, product: Path, tmp_path: Path) -> None:
    from benchmarks import limit, speed, startup

    data = ["data=folder", f"data.root={product}", "data.image_size=24", "data.batch_size=8"]
    settings = [*data, f"model.backbone={tiny_net}", "model.weights=null", "trainer.max_epochs=2", "cache.dir=null"]
    timed = startup.jobs([*settings, "attempt=head,base", "trainer.accelerator=cpu"], str(tmp_path / "sweep"))
    assert [job["wall"] > job["epochs"] > 0 for job in timed] == [True, True]
    assert len(limit.training_epochs([*settings, "attempt=finetune"], str(tmp_path / "run"))) == 2
    bare = limit.bare_epochs([*settings, "attempt=finetune"], 3)
    assert (len(bare["seconds"]), bare["images"]) == (3, 14)
    assert bare["gflop"] > 0
    assert {name: len(part) for name, part in speed.prepare(data)["splits"].items()} == {
        "train": 14,
        "val": 4,
        "test": 4,
    }


def test_the_parts_of_a_step_are_named_as_lightning_names_them(
    tiny_net: str, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gpu

    data = ["data=folder", f"data.root={product}", "data.image_size=24", "data.batch_size=8", "cache.dir=null"]
    tiny = [*data, f"model.backbone={tiny_net}", "model.weights=null", "trainer.accelerator=cpu"]
    monkeypatch.setattr(gpu, "settings", lambda *_: [*tiny, "attempt=full", "trainer.max_epochs=2"])
    rows = gpu.profiled(str(tmp_path), 2)
    assert {*gpu.PARTS.values(), "History.on_before_optimizer_step"} <= {row[0] for row in rows}


def test_calibrations_are_fitted_to_other_folds(tiny_net: str, product: Path, tmp_path: Path) -> None:
    import mvtec_lab as lab
    from benchmarks import calibration

    words = ["data=folder", f"data.root={product}", "data.image_size=32", "model.weights=null", "trainer.max_epochs=1"]
    words += [f"model.backbone={tiny_net}", "trainer.accelerator=cpu"]
    lab.run_sweep("attempt=base", "cv.folds=3", *words, directory=tmp_path)
    rows = calibration.measure([str(tmp_path)])
    assert [name for _, name in rows] == ["none", "temperature", "Dirichlet"]
    none, temperature, _ = rows.values()
    assert temperature[-1] == none[-1]  # accuracy
    assert temperature[0] != none[0]  # loss
    runs = lab.load_runs(tmp_path)
    mean = sum(run.metrics["test"]["loss"] * run.metrics["test"]["images"] for run in runs) / 22
    assert none[0] == pytest.approx(mean, rel=1e-4)
