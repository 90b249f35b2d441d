"""What a one-class run's best.ckpt is good for afterwards: predict, evaluate, export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mvtec_lab.cli import main
from mvtec_lab.engine.model import Model
from mvtec_lab.errors import LabError
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.anomaly.base import AnomalyModel
from mvtec_lab.problems.anomaly.models import build_anomaly_model
from mvtec_lab.problems.anomaly.problem import BEST_F1_MARK
from mvtec_lab.problems.model import load_model
from mvtec_lab.results import RunResult, read_csv

LAYERS = "model.options.layers=[features.relu1,features.relu2]"
SIDE = 64  # pixels, the least that all methods take


@pytest.fixture
def fitted(lab, tmp_path: Path) -> Path:
    """The checkpoint of a PatchCore run."""
    assert lab("attempt=patchcore", LAYERS, "hydra.run.dir=run") == 0
    return tmp_path / "run/best.ckpt"


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    """The same with a map threshold half of the way from the good images' maps to those of defects."""
    anomaly_model = load_model(fitted).module
    checkpoint = torch.load(fitted, weights_only=True)
    tops = {kind: tops_of(anomaly_model, tmp_path / "products/widget/test" / kind) for kind in ("good", "hole")}
    assert max(tops["good"]) < min(tops["hole"])
    checkpoint["about"]["map_threshold"] = (max(tops["good"]) + min(tops["hole"])) / 2
    torch.save(checkpoint, fitted)
    return fitted


def tops_of(anomaly_model: AnomalyModel, folder: Path) -> list[float]:
    pictures = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
    images = torch.from_numpy(pictures).movedim(-1, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (anomaly_model.mean, anomaly_model.std))
    with torch.no_grad():
        heat = anomaly_model((images - mean) / std).map
    assert heat is not None
    return heat.amax((1, 2)).tolist()


def untrained(method: str, net: str, tmp_path: Path) -> tuple[AnomalyModel, Path]:
    """An anomaly model that saw a few images, not trained, and its checkpoint."""
    torch.manual_seed(0)
    name, ssim = method.removesuffix("_ssim"), method.endswith("_ssim")
    options = {"layers": ["features.relu1", "features.relu2"], "reconstruction": "ssim" if ssim else "l2"}
    options = {option: value for option, value in options.items() if option in METHODS[name].options}
    anomaly_model = build_anomaly_model(name, backbone=net, weights=None, image_size=SIDE, **options).eval()
    images = torch.randn(9, 3, SIDE, SIDE)
    with torch.no_grad():
        anomaly_model.prepare(lambda: images.split(4))
        anomaly_model.finish(lambda: images.split(4))
    path = tmp_path / "best.ckpt"
    about = (name, ["good", "defect"], SIDE, 65_535, anomaly_model.mean, anomaly_model.std)
    Model(anomaly_model.eval(), *about, threshold=0.5, map_threshold=0.25).save(path)
    return anomaly_model, path


@pytest.mark.slow
def test_predict_names_defects_and_shows_where(run: Path, lab, product: Path, tmp_path: Path, capsys) -> None:
    source = tmp_path / "new"
    shutil.copytree(product / "test/hole", source / "line 1")
    shutil.copytree(product / "test/good", source / "line 2")
    wide = Image.open(product / "test/hole/000.png").convert("L").resize((90, 30))
    for name in ("wide.jpg", "wide.png", "wide.jpg.png"):  # without suffixes the names of two, and then of others
        wide.save(source / name)
    assert lab("task=predict", f"ckpt={run}", f"source={source}", "hydra.run.dir=out") == 0
    rows = {Path(row["path"]).relative_to(source).as_posix(): row for row in read_csv(tmp_path / "out/predictions.csv")}
    assert list(rows) == sorted(rows)
    known = {row["path"]: row for row in read_csv(tmp_path / "run/predictions.csv")}
    for name, row in rows.items():
        assert row["prediction"] == ("defect" if float(row["score"]) > float(row["threshold"]) else "good")
        if name.startswith("line"):
            before = known[name.replace("line 1", "test/hole").replace("line 2", "test/good")]
            assert float(row["score"]) == pytest.approx(float(before["score"]), rel=1e-4)
            assert row["prediction"] == before["prediction"]
    maps = tmp_path / "out/maps"
    written = {path.relative_to(maps).as_posix() for path in maps.rglob("*.*")}
    assert written == {name + suffix for name in rows for suffix in (".jpg", ".tiff")}
    for name in ("000", "005"):
        heat = np.asarray(Image.open(maps / f"line 1/{name}.png.tiff"))
        assert heat.dtype == np.float32
        mask = np.asarray(Image.open(product / f"ground_truth/hole/{name}_mask.png")) > 0
        heat = cv2.resize(heat, mask.shape[::-1])
        assert heat[mask].mean() > 1.5 * heat[~mask].mean()
        assert colourful(maps / f"line 1/{name}.png.jpg")
        assert not colourful(maps / f"line 2/{name}.png.jpg")
    assert Image.open(maps / "wide.jpg.jpg").size == (320, 107)  # of the image's proportions
    out = capsys.readouterr().out
    called = sum(row["prediction"] == "defect" for row in rows.values())
    assert f"{called} of {len(rows)} called a defect" in out
    assert out.index("line 1/000.png") < out.index("line 2/000.png")
    assert (tmp_path / "out/predictions.jpg").is_file()


def colourful(path: Path) -> bool:
    picture = np.asarray(Image.open(path)).astype(int)
    return bool((picture.max(2) - picture.min(2)).max() > 60)


@pytest.mark.slow
def test_predict_goes_on_after_a_broken_image(run: Path, lab, product: Path, tmp_path: Path, capsys) -> None:
    (product / "test/hole/001.png").write_bytes(b"no image")
    assert lab("task=predict", f"ckpt={run}", f"source={product / 'test/hole'}", "hydra.run.dir=out") == 1
    assert "001.png cannot be read (it is not an image)" in capsys.readouterr().err
    names = [Path(row["path"]).stem for row in read_csv(tmp_path / "out/predictions.csv")]
    assert names == ["000", "002", "003", "004", "005"]
    assert len(list((tmp_path / "out/maps").iterdir())) == 2 * len(names)


def test_predict_of_a_method_without_maps_says_so(lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab("attempt=gaussian", LAYERS, "hydra.run.dir=run") == 0
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test'}", "hydra.run.dir=out") == 0
    assert capsys.readouterr().out.count("gaussian does not localise: no maps") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "predicted.json",
        "predictions.csv",
        "predictions.jpg",
        "report.html",
        "run.log",
    ]


def test_evaluate_repeats_the_run(fitted: Path, lab, tmp_path: Path, capsys) -> None:
    assert lab("task=evaluate", f"ckpt={fitted}", "hydra.run.dir=again") == 0
    again, before = (json.loads((tmp_path / name).read_text()) for name in ("again/metrics.json", "run/result.json"))
    assert again["metrics"]["test"] == before["metrics"]["test"]
    assert again["threshold"]["value"] == before["threshold"]["value"]
    assert again["threshold"]["map"] is not None
    rows = [row for row in read_csv(tmp_path / "run/predictions.csv") if row["split"] == "test"]
    assert read_csv(tmp_path / "again/predictions.csv") == rows
    assert {path.name for path in (tmp_path / "again").iterdir()} >= {"mistakes.jpg", "explanations.jpg", "pixels.npz"}
    out = capsys.readouterr().out
    assert "AUPRO" in out
    assert "crack" in out


def test_evaluate_takes_another_product_and_names_images_that_trained(
    run: Path, lab, product: Path, tmp_path: Path
) -> None:
    other = tmp_path / "products/other"  # without train/good, and without masks
    shutil.copytree(product / "test", other / "test")
    for path in (product / "train/good").iterdir():  # three trained, one chose the threshold
        (other / "test/good" / f"seen_{path.name}").symlink_to(path)
    assert lab("task=evaluate", f"ckpt={run}", f"data.root={other}", "hydra.run.dir=out") == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["metrics"]["test"]["images"] == 26
    assert "pixel_auroc" not in metrics["metrics"]["test"]
    assert any("3 of these images trained this checkpoint" in line for line in metrics["warnings"])
    assert any("pixel metrics are left out" in line for line in metrics["warnings"])


def test_evaluate_judges_class_folders_whole(run: Path, lab, product: Path, tmp_path: Path) -> None:
    shutil.copytree(product / "test", tmp_path / "monday")
    arguments = ["task=evaluate", f"ckpt={run}", f"data.root={tmp_path / 'monday'}"]
    for protocol in ([], ["split.protocol=test_only"]):
        assert lab(*arguments, *protocol, f"hydra.run.dir={len(protocol)}") == 0
    drawn, whole = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "01")
    assert drawn["metrics"]["test"]["images"] < whole["metrics"]["test"]["images"] == 22
    assert any("of 22 images are judged" in line for line in drawn["warnings"])


def test_evaluate_changes_of_the_run_s_data_what_is_given_alone(run: Path, product: Path, tmp_path: Path) -> None:
    shutil.copytree(product, tmp_path / "products/other")
    shutil.rmtree(tmp_path / "products/other/test/crack")
    given = [f"data.root={tmp_path / 'products/other'}", "seed=3", "hydra.run.dir=out"]
    assert main(["task=evaluate", f"ckpt={run}", *given]) == 0  # without data=folder, which the run had
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["data"], metrics["category"]) == ("folder", "other")
    assert metrics["metrics"]["test"]["images"] == 16


def test_evaluate_says_where_the_test_images_chose_the_threshold(lab, tmp_path: Path) -> None:
    assert lab("attempt=gaussian", LAYERS, "threshold.rule=best_f1", "hydra.run.dir=run") == 0
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=out") == 0
    judged = json.loads((tmp_path / "out/metrics.json").read_text())
    assert BEST_F1_MARK in judged["warnings"]
    threshold = RunResult.load(tmp_path / "run").threshold
    assert threshold["rule"] == "best_f1"
    # The rule is not the one of the command that judges.
    assert judged["threshold"] == {key: threshold[key] for key in ("value", "map")}


@pytest.mark.slow
def test_sixteen_bit_images_are_scaled_alike_wherever_a_checkpoint_goes(
    lab, product: Path, tmp_path: Path, capsys
) -> None:
    """12-bit grey levels in 16-bit files: the training images' rule goes with the checkpoint."""
    for path in [*product.glob("train/*/*.png"), *product.glob("test/*/*.png")]:
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(grey * 16).save(path)  # a 12-bit camera
    assert lab("attempt=patchcore", LAYERS, "hydra.run.dir=run") == 0
    assert load_model(tmp_path / "run/best.ckpt").white == 4095
    known = {row["path"]: float(row["score"]) for row in read_csv(tmp_path / "run/predictions.csv")}
    Image.fromarray(np.full((30, 30), 60_000, np.uint16)).save(product / "test/hole/zz.png")
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test'}", "hydra.run.dir=out") == 0
    for row in read_csv(tmp_path / "out/predictions.csv")[:-1]:
        assert float(row["score"]) == pytest.approx(known[Path(row["path"]).relative_to(product).as_posix()], rel=1e-4)
    assert "zz.png first, have values above 4095: these become white" in capsys.readouterr().err
    (product / "test/hole/zz.png").unlink()
    assert lab("task=describe", "hydra.run.dir=described") == 0
    assert json.loads((tmp_path / "described/dataset.json").read_text())["white"] == 4095
    assert lab("attempt=base", "hydra.run.dir=classifier") == 0
    assert load_model(tmp_path / "classifier/best.ckpt").white == 4095


def test_one_way_loads_the_checkpoint_of_any_problem(lab, tiny_net: str, tmp_path: Path, capsys) -> None:
    _, ckpt = untrained("nearest", tiny_net, tmp_path)
    assert load_model(ckpt).method == "nearest"
    assert lab("attempt=base", "hydra.run.dir=run") == 0
    for name in ("best.ckpt", "last.ckpt"):
        assert load_model(tmp_path / "run" / name).classes == ["good", "crack", "hole"]
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(LabError, match=r"other\.ckpt is no checkpoint of a run: give a run's best\.ckpt or last\.ckpt"):
        load_model(tmp_path / "other.ckpt")
    for task in ("evaluate", "predict", "export"):
        assert lab(f"task={task}", "hydra.run.dir=out") == 2
        assert f"task={task} needs ckpt=FILE" in capsys.readouterr().err
    assert lab("attempt=base", f"model.weights={ckpt}", "hydra.run.dir=out") == 2
    assert capsys.readouterr().err.startswith("error: ")
