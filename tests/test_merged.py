"""data.defects=merged: one class of all defects, for every problem and wherever the types come from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import SIZE, write_product
from test_public_layouts import real_iad, visa

from mvtec_lab.cli import main
from mvtec_lab.config import SplitConfig
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.data.regions import Region
from mvtec_lab.data.samples import Sample, Scan, kinds_of
from mvtec_lab.data.splits import split_samples
from mvtec_lab.errors import LabError
from mvtec_lab.results import RunResult, read_csv

MAPS = "model.options.layers=[features.relu1,features.relu2]"
# At a lower rate two epochs leave scores so alike that rounding reorders them.
DETECTOR = ["model.unfreeze=0", "model.options.finest=4", "model.options.channels=32", "optimizer.lr=3e-3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        ("head", []),
        ("patchcore", [MAPS]),
        ("segment/fpn", [MAPS, "model.options.channels=8"]),
        ("detect/fcos", [*DETECTOR, f"data.image_size={SIZE}"]),
    ],
)
def test_every_problem_learns_one_class_of_defects(lab, tmp_path: Path, attempt: str, words: list[str]) -> None:
    product = write_product(tmp_path / "rare", {"good": 8, "crack": 6, "hole": 2}, train_good=6)
    words = [f"attempt={attempt}", *words, f"data.root={product}", "data.defects=merged", "hydra.run.dir=run"]
    assert lab(*words) == 0
    run = RunResult.load(tmp_path / "run")
    assert set(run.classes) <= {"good", "defect"}
    assert "defect" in run.classes
    assert {row["label"] for row in read_csv(tmp_path / "run/samples.csv")} == {"good", "defect"}
    assert main(["task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged"]) == 0
    judged = json.loads((tmp_path / "judged/metrics.json").read_text())["metrics"]["test"]
    assert judged == run.metrics["test"]


@pytest.mark.slow
def test_types_do_not_matter_to_what_learns_good_images(lab, product: Path, tmp_path: Path) -> None:
    for name in ("types", "merged"):
        assert lab("attempt=patchcore", MAPS, f"data.defects={name}", f"hydra.run.dir={name}") == 0
    types, merged = (RunResult.load(tmp_path / name).metrics["test"] for name in ("types", "merged"))
    assert {*types["by_type"]} == {"crack", "hole"}
    assert {*merged["by_type"]} == {"defect"}
    assert types["image_auroc"] == merged["image_auroc"]
    assert types["pixel_aupro"] == merged["pixel_aupro"]


def test_too_few_of_a_type_names_the_remedy(lab, tmp_path: Path, capsys) -> None:
    root = f"data.root={write_product(tmp_path / 'rare', {'good': 8, 'crack': 6, 'hole': 2})}"
    for words, most in (([], "holdout (at least 3)"), (["-m", "cv.folds=3"], "3 folds (at least 3)")):
        assert lab(*words, root) == 2
        said = capsys.readouterr().err
        assert f"class 'hole' has 2 image(s) or group(s), too few for {most}" in said
        assert "or give data.defects=merged (one class of all defects), or split.protocol=file" in said
    assert lab("-m", root, "cv.folds=9", "data.defects=merged") == 2
    said = capsys.readouterr().err
    assert "class 'good' has 8 image(s)" in said
    assert "data.defects=merged (one" not in said


def test_types_of_published_data_sets_are_merged(tmp_path: Path) -> None:
    folder = visa(tmp_path)
    with pytest.raises(LabError, match=r"class 'combined' has 1 image.*data.defects=merged"):
        split_samples(read_folder(folder).samples, SplitConfig())
    merged = read_folder(folder, defects="merged")
    assert Counter(s.label for s in merged.samples) == {"good": 16, "defect": 7}
    assert {s.label for s in split_samples(merged.samples, SplitConfig()) if s.split == "test"} == {"good", "defect"}
    assert [s.mask for s in merged.samples] == [s.mask for s in read_folder(folder).samples]
    assert {s.label for s in read_folder(real_iad(tmp_path), defects="merged").samples} == {"good", "defect"}


def test_objects_are_merged_with_their_images() -> None:
    objects = tuple(Region(kind, (0, 0, 2, 2), (8, 8)) for kind in ("crack", "hole"))
    scan = Scan(Path("x"), [Sample("a.png", "crack", "x.json", "a", "", objects), Sample("b.png", "good")], notes=["n"])
    merged = scan.of_two_classes()
    assert kinds_of(merged.samples) == ["defect"]
    assert [region.box for region in merged.samples[0].objects] == [region.box for region in objects]
    assert not merged.samples[0].mixed
    assert merged.notes == ["n"]
    assert kinds_of(scan.samples) == ["crack", "hole"]
