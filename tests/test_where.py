"""Masks, boxes and one-class maps in one sweep: the same folds, the same IoU, one report, one verdict."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import laboratory, write_product
from omegaconf import OmegaConf
from PIL import Image

from mvtec_lab import build_data, compose
from mvtec_lab.config import SplitConfig
from mvtec_lab.data.samples import Sample
from mvtec_lab.data.splits import cross_folds, good_alone, split_samples
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import segmentation
from mvtec_lab.own import CONF
from mvtec_lab.problems.model import load_model
from mvtec_lab.reporting import summary
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import PREDICTIONS, RunResult, read_csv, write_csv

ATTEMPTS = ("base", "segment/fpn", "detect/fcos", "patchcore", "stfpm")
ATTEMPTS_OF_SWEEP = ("segment/fpn", "detect/ssdlite", "patchcore")
SWEEP = [
    "-m", "cv.folds=3", "model.options.layers=[features.relu1,features.relu2]", "model.options.channels=32",
    "model.options.finest=4", "model.unfreeze=0", "hydra.sweep.dir=sweep", "verdict.metric=iou",
]  # fmt: skip


@pytest.fixture
def widget(product: Path) -> Path:
    return write_product(product, train_good=12)


@pytest.fixture(scope="module")
def sweep(tiny_net: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three problems, which no test changes."""
    folder = tmp_path_factory.mktemp("where")
    run = laboratory(tiny_net, write_product(folder / "products/widget", train_good=12), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(*SWEEP, f"attempt={','.join(ATTEMPTS_OF_SWEEP)}", "verdict.reference=patchcore") == 0
    return folder / "sweep"


def paths(samples: list[Sample], split: str) -> set[str]:
    return {s.path for s in samples if s.split == split}


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["test", "all"])
def test_a_fold_tests_the_same_images_whatever_learns(widget: Path, tiny_net: str, pool: str) -> None:
    words = ["data=folder", f"data.root={widget}", f"model.backbone={tiny_net}", "model.weights=null", "split.seed=3"]
    words += ["split.protocol=kfold", "split.folds=3", f"split.pool={pool}", "data.masks=optional"]
    tested = []
    for fold in range(3):
        made = {
            attempt: build_data(compose(f"attempt={attempt}", *words, f"split.fold={fold}"))
            for attempt in ATTEMPTS
            if attempt != "segment/fpn"
        }
        made["segment/fpn"] = build_data(
            compose("attempt=segment/fpn", *[w for w in words if "masks" not in w], f"split.fold={fold}")
        )
        of_fold = {attempt: paths(data.samples, "test") for attempt, data in made.items()}
        assert len({frozenset(images) for images in of_fold.values()}) == 1
        tested.append(of_fold["patchcore"])
        samples = made["patchcore"].samples
        learnt = paths(samples, "train") | paths(samples, "val")
        assert not learnt & tested[-1]
        assert all(path.startswith("train/good/") for path in learnt)
        assert len(learnt) == 12 - len([path for path in tested[-1] if path.startswith("train/")])
        assert min(len(paths(samples, "train")), len(paths(samples, "val"))) > 0
        assert made["patchcore"].contents().keys() == made["base"].contents().keys()
    assert len(set.union(*tested)) == sum(map(len, tested)) == (22 if pool == "test" else 34)


def test_a_group_that_a_fold_tests_is_not_learnt_from() -> None:
    samples = [Sample(f"{part}/good/{i:02}.png", "good") for part in ("train", "test") for i in range(9)]
    samples += [Sample(f"test/hole/{i:02}.png", "hole") for i in range(20, 29)]
    split = SplitConfig(protocol="kfold", folds=3, group_by=r"(\d\d)")  # train/good/04 and test/good/04 are one part
    for fold in range(3):
        split.fold = fold
        drawn = split_samples(samples, split)
        alone = good_alone(drawn, samples, split)
        assert paths(alone, "test") == paths(drawn, "test")
        tested = {s.group for s in alone if s.split == "test"}
        assert tested & {f"{i:02}" for i in range(9)}
        assert not tested & {s.group for s in alone if s.split in ("train", "val")}
        assert {s.label for s in alone if s.split in ("train", "val")} == {"good"}
    split.folds, split.fold = 2, 0
    few = [s for s in samples if s.path[:5] == "test/" or s.path[11:13] < "04"]
    drawn = split_samples(few, split)
    with pytest.raises(LabError, match=r"train/good has \d image\(s\) or group\(s\), too few"):
        good_alone(drawn, few, split)


def test_cross_folds_leave_each_image_out_once_and_part_no_group() -> None:
    samples = [Sample(f"train/good/{i:03}.png", "good", group=f"part{i // 2}") for i in range(42)]
    val, train = samples[:8], samples[8:]
    folds = cross_folds(train, val, 0)
    assert folds[0] == val
    assert sorted(s.path for fold in folds for s in fold) == [s.path for s in samples]
    assert sorted(map(len, folds)) == [6, 6, 6, 8, 8, 8]  # 17 groups of two, at most four to a fold
    assert sum(len({s.group for s in fold}) for fold in folds) == 21
    assert folds == cross_folds(train, val, 0) != cross_folds(train, val, 1)
    assert [len(fold) for fold in cross_folds(samples[4:6], samples[:4], 0)] == [4, 2]


@pytest.mark.parametrize("layout", ["{part}/images", "images/{part}"])  # Roboflow's, and COCO's and YOLO's own
def test_good_images_of_an_annotated_test_part_are_never_learnt_from(layout: str) -> None:
    parts = {part: layout.format(part=part) for part in ("train", "test")}
    samples = [
        Sample(f"{folder}/{i:02}.png", "hole" if i % 2 else "good", split=part)
        for part, folder in parts.items()
        for i in range(20)
    ]
    split = SplitConfig(protocol="kfold", folds=2)
    drawn = split_samples(samples, split)
    learnt = [s.path for s in good_alone(drawn, samples, split) if s.split in ("train", "val")]
    assert learnt == [s.path for s in drawn if s.label == "good" and s.split != "test" and "train" in s.path]


@pytest.mark.slow
def test_masks_boxes_and_maps_share_folds_report_and_verdict(sweep: Path) -> None:
    runs = {(run.attempt, run.fold): run for run in load_runs(sweep)}
    assert len(runs) == 9
    for fold in range(3):
        masks, boxes, maps = (runs[name, fold] for name in ("segment/fpn", "detect/ssdlite", "patchcore"))
        assert maps.counts["train"] == {"good": 10, "defect": 0}
        rows = {run.attempt: _tested(run) for run in (masks, boxes, maps)}
        assert rows["segment/fpn"].keys() == rows["detect/ssdlite"].keys() == rows["patchcore"].keys()
        for path, row in rows["patchcore"].items():
            assert (row["iou"] == "") == path.startswith("test/good/")
        mean = np.mean([float(row["iou"]) for row in rows["patchcore"].values() if row["iou"]])
        assert maps.metrics["test"]["iou"] == pytest.approx(mean, abs=1e-5)
        assert min(run.fit_seconds for run in (masks, boxes, maps)) > 0
        assert min(run.seconds_per_image for run in (masks, boxes, maps)) > 0
        assert min(run.peak_mib for run in (masks, boxes, maps)) > 0
    content = json.loads((sweep / "comparison.json").read_text())
    assert content["metric"] == "iou, map50"
    by_names = {(pair["first"], pair["second"]): pair for pair in content["pairs"]}
    pair = by_names["segment/fpn", "patchcore"]
    assert (pair["metric"], pair["test_sets"], pair["images"], pair["refused"]) == ("iou", 3, 22, None)
    values = [[runs[name, fold].metrics["test"]["iou"] for fold in range(3)] for name in ("segment/fpn", "patchcore")]
    assert pair["difference"]["value"] == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert pair["image_p"] is not None
    assert by_names["detect/ssdlite", "patchcore"]["refused"] == (
        "they are judged by different metrics (IoU and mAP50)"
    )
    said = " ".join(content["verdict"])
    assert "Validation cannot choose among these 2 attempts" in said  # a one-class run has no IoU on validation
    assert "Compared with patchcore (IoU" in said
    page = (sweep / "report.html").read_text()
    assert "3-fold cross-validation, trained on train/good, 0.2 of it held out" in page
    assert len(re.findall("<h2[^>]*>Against patchcore", page)) == 1
    assert page.count('<th class="left lines">test ') == 2  # masks and maps have a table, detectors have one
    rows = {row["attempt"]: row for row in read_csv(sweep / "summary.csv")}
    assert float(rows["patchcore"]["test_iou"]) == pytest.approx(np.mean(values[1]))
    assert rows["detect/ssdlite"]["test_iou"] == ""
    assert all(float(row[key]) > 0 for row in rows.values() for key in ("fit_seconds", "seconds_per_image", "peak_mib"))


@pytest.mark.slow
def test_the_report_says_of_each_picture_what_its_method_drew(sweep: Path) -> None:
    """Masks had the caption of one-class maps, and boxes were said to score whole images."""
    html = (sweep / "report.html").read_text(encoding="utf-8")
    parts = html.split("<summary><h3>")[1:]
    mine = {name: next(part for part in parts if part.startswith(f"{name}</h3>")) for name in ATTEMPTS_OF_SWEEP}
    assert "which few good images reach" in mine["patchcore"]
    assert "Typical masks" in mine["segment/fpn"]
    assert "Blue: true boxes" in mine["detect/ssdlite"]
    tables = re.split("<h2[^>]*>Results", html)[1].split("<h2")[0]
    assert "IoU and Dice are means over the defect images." in tables  # IoU judges, so it has no column of its own
    assert "pixel\nAP" in tables
    assert "pooled" not in tables  # nor has what counts all pixels
    for name in ("segment/fpn", "detect/ssdlite"):
        assert "few good images reach" not in mine[name]
        assert "scores whole images" not in mine[name]


@pytest.mark.slow
def test_detectors_are_compared_by_boxes_although_one_draws_masks(sweep: Path, tmp_path: Path) -> None:
    for run in load_runs(sweep):
        folder = tmp_path / "all" / Path(run.run_dir).relative_to(sweep)
        shutil.copytree(run.run_dir, folder)
        if run.attempt == "detect/ssdlite":
            drawn = RunResult.load(Path(shutil.copytree(folder, tmp_path / f"drawn/{run.fold}")))
            rows = [{**row, "overlap": 1, "union": 2} for row in read_csv(folder / PREDICTIONS)]
            write_csv(Path(drawn.run_dir) / PREDICTIONS, rows, list(rows[0]))
            drawn.attempt = "detect/drawn"
            drawn.metrics["test"]["iou"] = drawn.metrics["val"]["iou"] = 0.5
            drawn.save()
    of_all = compare(load_runs(tmp_path))
    judged = {attempt.name: attempt.metric.key for attempt in of_all.attempts}
    assert judged == {"segment/fpn": "iou", "patchcore": "iou", "detect/ssdlite": "map50", "detect/drawn": "map50"}
    (pair,) = (pair for pair in of_all.pairs if {pair.first, pair.second} == {"detect/ssdlite", "detect/drawn"})
    assert pair.difference is not None
    assert pair.difference.value == 0
    tables = [{row["attempt"]: row for row in part} for part in summary.parts(summary.summarise(of_all))]
    assert [*map(set, tables)] == [{"segment/fpn", "patchcore"}, {"detect/ssdlite", "detect/drawn"}]
    assert "test_iou" in [column.key for column in summary.shown(list(tables[1].values()))]
    assert tables[1]["detect/drawn"]["test_iou"] == pytest.approx(0.5)
    alone = compare([run for run in load_runs(tmp_path) if run.attempt != "detect/ssdlite"])
    assert {attempt.metric.key for attempt in alone.attempts} == {"iou"}


@pytest.mark.slow
def test_any_metric_that_all_have_compares_all(sweep: Path, lab) -> None:
    assert lab("task=compare", f"dirs=[{sweep}]", "verdict.metric=image_auroc", "verdict.reference=null") == 0
    (folder,) = {path.parent for path in Path("outputs").rglob("comparison.json")}
    assert (folder / "report.html").read_text().count('<th class="left lines">test ') == 1
    pairs = json.loads((folder / "comparison.json").read_text())["pairs"]
    assert len(pairs) == 2  # the runs' own reference stands
    assert all(pair["metric"] == "image_auroc" and pair["refused"] is None for pair in pairs)


def _tested(run: RunResult) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in read_csv(Path(run.run_dir) / PREDICTIONS) if row["split"] == "test"}


def test_a_map_is_a_mask_above_what_good_images_reach(lab, widget: Path, tmp_path: Path) -> None:
    assert lab("attempt=patchcore", SWEEP[2], f"hydra.run.dir={tmp_path / 'run'}") == 0
    run, model = RunResult.load(tmp_path / "run"), load_model(tmp_path / "run/best.ckpt")
    assert run.threshold["map"] == model.map_threshold
    for path, row in _tested(run).items():
        picture = cv2.resize(cv2.imread(str(widget / path))[..., ::-1], (model.image_size, model.image_size))
        image = (torch.tensor(picture / 255).movedim(2, 0) - torch.tensor(model.mean)[:, None, None]) / torch.tensor(
            model.std
        )[:, None, None]
        with torch.no_grad():
            heat = model.module(image[None].float()).map[0].numpy()
        found = cv2.resize(heat, (24, 24)) > model.map_threshold
        mask = np.zeros((24, 24), bool)
        if "good" not in path:
            mask = np.array(Image.open(widget / f"ground_truth{path[4:-4]}_mask.png")) > 0
        assert [int(row["overlap"]), int(row["union"])] == [(found & mask).sum(), (found | mask).sum()]


@pytest.mark.slow
def test_without_mask_there_is_no_iou_and_without_maps_no_column(lab, widget: Path, tmp_path: Path) -> None:
    shutil.rmtree(widget / "ground_truth/crack")
    patchcore = ["attempt=patchcore", SWEEP[2]]
    assert lab(*patchcore, f"hydra.run.dir={tmp_path / 'runs/some'}") == 0
    some = RunResult.load(tmp_path / "runs/some")
    known = {kind: values["iou"] for kind, values in some.metrics["test"]["by_type"].items()}
    assert (known["crack"], known["hole"] is None) == (None, False)
    assert {row["union"] for path, row in _tested(some).items() if "crack" in path} == {""}
    shutil.rmtree(widget / "ground_truth")
    assert lab(*patchcore, "seed=1", f"hydra.run.dir={tmp_path / 'runs/none'}") == 0
    assert "iou" not in RunResult.load(tmp_path / "runs/none").metrics["test"]
    nearest = ["attempt=nearest", "model.options.neighbours=2", "model.options.layers=[features.relu2]"]
    assert lab(*nearest, f"hydra.run.dir={tmp_path / 'runs/nearest'}") == 0
    assert "union" not in next(iter(_tested(RunResult.load(tmp_path / "runs/nearest")).values()))
    assert [a.estimate("iou") is None for a in compare(load_runs(tmp_path / "runs")).attempts] == [False, True]
    file = tmp_path / "runs/some" / PREDICTIONS
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([header, *(line.rsplit(",", 3)[0] + ",,," for line in lines)]) + "\n")
    (reason,) = compare(load_runs(tmp_path / "runs")).damaged
    assert "no image has a value of IoU" in reason


def test_figures_count_defects_whose_mask_is_known() -> None:
    rows = [{"type": "crack", "overlap": "1", "union": "2"}, {"type": "hole", "overlap": "", "union": ""}]
    rows += [{"type": "hole"}, {"type": "good", "overlap": "0", "union": "2"}]
    figures = segmentation.mask_figures(rows)
    assert figures["iou"] == 0.5
    assert figures["pooled_iou"] == pytest.approx(1 / 4)
    assert figures["by_type"]["hole"] == {"iou": None, "dice": None}
    assert np.isnan(segmentation.ious(rows)[1:]).all()


@pytest.mark.slow
def test_the_study_runs_every_attempt_of_its_grid_and_another_joins(lab, tmp_path: Path) -> None:
    widget = write_product(tmp_path / "larger", {"good": 6, "crack": 6, "hole": 6}, train_good=8, size=64)
    small = [f"data.root={widget}", "data.image_size=64", "model.backbone=mobilenet_v2"]
    study = ["-m", "+study=where", *small, "cv.folds=null", "hydra.sweep.dir=where"]
    assert lab(*study, "trainer.max_epochs=1") == 0
    attempts = OmegaConf.load(CONF / "study/where.yaml").hydra.sweeper.params.attempt.split(",")
    runs = load_runs(tmp_path / "where")
    assert {run.attempt for run in runs} == set(attempts)
    assert all(run.completed for run in runs)
    assert lab(*study, "attempt=padim", "resume=true") == 0
    comparison = json.loads((tmp_path / "where/comparison.json").read_text())
    assert {a["attempt"] for a in comparison["attempts"]} == {*attempts, "padim"}
    assert (comparison["reference"], comparison["metric"]) == ("patchcore", "iou, map50")
