"""What a one-class run's best.ckpt is good for afterwards: predict, evaluate, export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ONE_CLASS_METHODS, others_slow
from PIL import Image

from mvtec_lab.engine.model import Model
from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.base import AnomalyDetector
from mvtec_lab.problems.anomaly.models import build_detector
from mvtec_lab.problems.anomaly.problem import BEST_F1_MARK
from mvtec_lab.problems.model import load_model
from mvtec_lab.results import read_csv
from mvtec_lab.sweep import main
from mvtec_lab.tasks import export

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.load")  # deprecated, without a date

LAYERS = "model.options.layers=[features.relu1,features.relu2]"
SIDE = 64  # pixels, the least that all methods take
README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.fixture
def run(lab, tmp_path: Path) -> Path:
    """A PatchCore run whose map threshold is half of the way from the good images' maps to those of defects."""
    assert lab("attempt=patchcore", LAYERS, "hydra.run.dir=run") == 0
    path = tmp_path / "run/best.ckpt"
    detector = load_model(path).module
    checkpoint = torch.load(path, weights_only=True)
    tops = {kind: tops_of(detector, tmp_path / "products/widget/test" / kind) for kind in ("good", "hole")}
    assert max(tops["good"]) < min(tops["hole"])
    checkpoint["about"]["map_threshold"] = (max(tops["good"]) + min(tops["hole"])) / 2
    torch.save(checkpoint, path)
    return path


def tops_of(detector: AnomalyDetector, folder: Path) -> list[float]:
    pictures = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
    images = torch.from_numpy(pictures).movedim(-1, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (detector.mean, detector.std))
    with torch.no_grad():
        heat = detector((images - mean) / std).map
    assert heat is not None
    return heat.amax((1, 2)).tolist()


def made(method: str, net: str, tmp_path: Path) -> tuple[AnomalyDetector, Path]:
    """A detector that saw a few images, not trained, and its checkpoint."""
    torch.manual_seed(0)
    name, ssim = method.removesuffix("_ssim"), method.endswith("_ssim")
    settings = {"backbone": net, "weights": None, "image_size": SIDE, "layers": ["features.relu1", "features.relu2"]}
    detector = build_detector(name, {**settings, "reconstruction": "ssim" if ssim else "l2"}).eval()
    images = torch.randn(9, 3, SIDE, SIDE)
    with torch.no_grad():
        detector.prepare(lambda: images.split(4))
        detector.finish(lambda: images.split(4))
    path = tmp_path / "best.ckpt"
    about = (name, ["good", "defect"], SIDE, 65_535, detector.mean, detector.std)
    Model(detector.eval(), *about, threshold=0.5, map_threshold=0.25).save(path)
    return detector, path


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


def test_predict_goes_on_after_a_broken_image(run: Path, lab, product: Path, tmp_path: Path, capsys) -> None:
    (product / "test/hole/001.png").write_bytes(b"no image")
    assert lab("task=predict", f"ckpt={run}", f"source={product / 'test/hole'}", "hydra.run.dir=out") == 1
    assert "001.png cannot be read (it is no image)" in capsys.readouterr().err
    names = [Path(row["path"]).stem for row in read_csv(tmp_path / "out/predictions.csv")]
    assert names == ["000", "002", "003", "004", "005"]
    assert len(list((tmp_path / "out/maps").iterdir())) == 2 * len(names)


def test_predict_of_a_method_without_maps_says_so(lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab("attempt=gaussian", LAYERS, "hydra.run.dir=run") == 0
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test'}", "hydra.run.dir=out") == 0
    assert capsys.readouterr().out.count("gaussian does not localise: no maps") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.csv", "predictions.jpg"]


def test_evaluate_repeats_the_run(run: Path, lab, tmp_path: Path, capsys) -> None:
    assert lab("task=evaluate", f"ckpt={run}", "hydra.run.dir=again") == 0
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
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert found["metrics"]["test"]["images"] == 26
    assert "pixel_auroc" not in found["metrics"]["test"]
    assert any("3 of these images trained this checkpoint" in line for line in found["warnings"])
    assert any("pixel metrics are left out" in line for line in found["warnings"])


def test_evaluate_changes_of_the_run_s_data_what_is_given_alone(run: Path, product: Path, tmp_path: Path) -> None:
    shutil.copytree(product, tmp_path / "products/other")
    shutil.rmtree(tmp_path / "products/other/test/crack")
    given = [f"data.root={tmp_path / 'products/other'}", "seed=3", "hydra.run.dir=out"]
    assert main(["task=evaluate", f"ckpt={run}", *given]) == 0  # without data=folder, which the run had
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (found["data"], found["category"]) == ("folder", "other")
    assert found["metrics"]["test"]["images"] == 16


def test_evaluate_says_where_the_test_images_chose_the_threshold(lab, tmp_path: Path) -> None:
    assert lab("attempt=gaussian", LAYERS, "threshold.rule=best_f1", "hydra.run.dir=run") == 0
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=out") == 0
    assert BEST_F1_MARK in json.loads((tmp_path / "out/metrics.json").read_text())["warnings"]


@pytest.mark.parametrize("method", others_slow([*ONE_CLASS_METHODS, "autoencoder_ssim"], "patchcore", "spade", "memae"))
def test_every_method_is_exported_for_any_batch(method: str, lab, tiny_net: str, tmp_path: Path) -> None:
    detector, ckpt = made(method, tiny_net, tmp_path)
    assert lab("task=export", f"ckpt={ckpt}", "hydra.run.dir=out") == 0
    inside = {"meta.json": ""}
    model = torch.jit.load(tmp_path / "out/model.ts", _extra_files=inside)
    # A device written into it would stay where map_location moves all the rest.
    assert "Device = prim::Constant" not in str(model.inlined_graph)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (detector.mean, detector.std))
    for count in (1, 2, 5):
        images = torch.rand(count, 3, SIDE, SIDE)
        with torch.no_grad():
            wanted, (scores, maps) = detector((images - mean) / std), model(images)
        torch.testing.assert_close(scores, wanted.image, rtol=1e-4, atol=1e-5)
        if wanted.map is None:
            assert maps is None
        else:
            torch.testing.assert_close(maps, wanted.map, rtol=1e-4, atol=1e-5)
    meta, beside = json.loads(inside["meta.json"]), json.loads((tmp_path / "out/export.json").read_text())
    assert meta.items() <= beside.items()
    assert meta["method"] == method.removesuffix("_ssim")
    assert (meta["threshold"], meta["map_threshold"], meta["image_size"]) == (0.5, 0.25, SIDE)
    assert 0 <= beside["check"]["difference"] <= 1e-4
    assert beside["check"]["of"].startswith("noise")


@pytest.mark.parametrize(
    "attempt", others_slow(["model.head=linear", "model.head=knn model.neighbours=3"], "model.head=linear")
)
def test_a_classifier_is_exported_as_well(attempt: str, lab, product: Path, tmp_path: Path) -> None:
    assert lab("attempt=base", *attempt.split(), "hydra.run.dir=run") == 0
    assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=out") == 0
    found = json.loads((tmp_path / "out/export.json").read_text())
    assert found["classes"] == ["good", "crack", "hole"]
    assert found["check"]["of"] == "the run's test images"
    model = torch.jit.load(tmp_path / "out/model.ts")
    for row in [row for row in read_csv(tmp_path / "run/predictions.csv") if row["split"] == "test"]:
        picture = np.array(Image.open(product / row["path"]))
        probabilities = model(torch.from_numpy(picture).movedim(-1, 0)[None].float() / 255)[0]
        assert probabilities.tolist() == pytest.approx([float(row[f"prob_{n}"]) for n in found["classes"]], abs=1e-4)


def test_the_readme_s_recipe_for_an_exported_model_scores_as_predict(lab, tiny_net: str, tmp_path: Path) -> None:
    """Line-scan images are far longer than they are wide: one side shrinks, the other one grows."""
    _, ckpt = made("patchcore", tiny_net, tmp_path)
    assert lab("task=export", f"ckpt={ckpt}", "hydra.run.dir=out") == 0
    source = tmp_path / "new"
    source.mkdir()
    rng = np.random.default_rng(0)
    for name, (height, width) in {"tall": (300, 20), "wide": (20, 300), "small": (20, 30), "large": (200, 90)}.items():
        picture = rng.integers(90, 120, (height, width, 3), dtype=np.uint8)
        picture[height // 2 : height // 2 + 3] = 250
        cv2.imwrite(str(source / f"{name}.png"), picture)
    assert lab("task=predict", f"ckpt={ckpt}", f"source={source}", "hydra.run.dir=predicted") == 0
    (recipe,) = (block for block in README.read_text().split("```python\n") if "torch.jit.load" in block)
    for row in read_csv(tmp_path / "predicted/predictions.csv"):
        code = recipe.split("```")[0].replace("outputs/exported", "out").replace("new.png", row["path"])
        names: dict[str, object] = {}
        exec(code.replace(", 224", f", {SIDE}"), names)
        assert float(names["score"]) == pytest.approx(float(row["score"]), rel=1e-4)


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
    assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=exported") == 0
    assert json.loads((tmp_path / "exported/export.json").read_text())["white"] == 4095
    assert lab("task=describe", "hydra.run.dir=described") == 0
    assert json.loads((tmp_path / "described/dataset.json").read_text())["white"] == 4095
    assert lab("attempt=base", "hydra.run.dir=classifier") == 0
    assert load_model(tmp_path / "classifier/best.ckpt").white == 4095


@pytest.mark.slow
def test_an_export_needs_nothing_but_torch(tiny_net: str, lab, tmp_path: Path) -> None:
    detector, ckpt = made("patchcore", tiny_net, tmp_path)
    assert lab("task=export", f"ckpt={ckpt}", "hydra.run.dir=out") == 0
    code = (
        "import sys, torch\n"
        "model = torch.jit.load('out/model.ts')\n"
        f"score, heat = model(torch.full((2, 3, {SIDE}, {SIDE}), 0.5))\n"
        "assert not {'mvtec_lab', 'torchvision', 'pytorch_lightning'} & set(sys.modules)\n"
        "print(*score.tolist(), *heat.shape)\n"
        f"try: model(torch.zeros(1, 3, 9, 9))\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()[0].split()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (detector.mean, detector.std))
    with torch.no_grad():
        wanted = detector((torch.full((2, 3, SIDE, SIDE), 0.5) - mean) / std)
    assert [float(value) for value in said[:2]] == pytest.approx(wanted.image.tolist(), rel=1e-4)
    assert [int(value) for value in said[2:]] == list(wanted.map.shape)
    assert f"give float32 images [N, 3, {SIDE}, {SIDE}], RGB in [0, 1]" in done.stdout


def test_an_export_that_differs_is_refused_and_leaves_nothing(
    tiny_net: str, lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    _, ckpt = made("rotation", tiny_net, tmp_path)
    right = export._script

    def wrong(model, about):
        return right(model, {**about, "mean": [0.1, 0.1, 0.1]})

    monkeypatch.setattr(export, "_script", wrong)
    assert lab("task=export", f"ckpt={ckpt}", "hydra.run.dir=out") == 2
    assert "cannot be exported: the file's values differ by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_way_loads_the_checkpoint_of_any_problem(lab, tiny_net: str, tmp_path: Path, capsys) -> None:
    _, ckpt = made("nearest", tiny_net, tmp_path)
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
