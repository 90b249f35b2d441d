"""A checkpoint as an ONNX or OpenVINO file gives what the checkpoint gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ONE_CLASS_METHODS, others_slow
from PIL import Image
from test_anomaly_tasks import SIDE, untrained
from torch import Tensor, nn

from mvtec_lab.engine import onnx
from mvtec_lab.errors import LabError
from mvtec_lab.problems.model import load_model
from mvtec_lab.problems.segmentation.problem import PROBLEM
from mvtec_lab.results import RunResult, read_csv
from mvtec_lab.tasks import export

BESIDE = {"infer.py", "export.json", "model_card.md", "SHA256SUMS"}  # of any model
DEPLOYMENT = Path(__file__).resolve().parents[1] / "docs/deployment.md"


@pytest.fixture
def tiny_export(tiny_net: str, lab, tmp_path: Path):
    """Export an anomaly model to <tmp_path>/out: ``tiny_export("patchcore")`` -> model, checkpoint."""

    def run(method: str, *arguments: str):
        model, ckpt = untrained(method, tiny_net, tmp_path)
        assert lab("task=export", f"ckpt={ckpt}", "hydra.run.dir=out", *arguments) == 0
        return model, ckpt

    return run


@pytest.mark.slow
@pytest.mark.parametrize("method", others_slow([*ONE_CLASS_METHODS, "autoencoder_ssim"], "patchcore", "rotation"))
def test_every_method_is_exported_for_any_batch(method: str, tiny_export, tmp_path: Path) -> None:
    model, _ = tiny_export(method)
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
    near = 1e-3 if method == "memae" else 1e-4  # whether a slot at the edge counts depends on the last digits
    for count in (1, 2, 5):
        images = torch.rand(count, 3, SIDE, SIDE)
        with torch.no_grad():
            wanted = model((images - mean) / std)
        outputs = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(outputs[0], wanted.image, rtol=near, atol=1e-5)
        assert len(outputs) == (1 if wanted.map is None else 2)
        if wanted.map is not None:
            np.testing.assert_allclose(outputs[1], wanted.map, rtol=near, atol=1e-5)
    inside = session.get_modelmeta().custom_metadata_map
    beside = json.loads((tmp_path / "out/export.json").read_text())
    assert inside["method"] == beside["method"] == method.removesuffix("_ssim")
    assert float(inside["threshold"]) == beside["threshold"] == 0.5
    assert json.loads(inside["classes"]) == beside["classes"] == ["good", "defect"]
    assert (beside["map_threshold"], beside["image_size"], inside["white"]) == (0.25, SIDE, "65535")
    assert [output.name for output in session.get_outputs()] == re.findall(r"(\w+) \[", inside["output"])
    assert 0 <= beside["check"]["difference"] <= 1e-4
    assert beside["check"]["of"].startswith("noise")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", *BESIDE}


HEADS = [
    "model.head=linear",
    "model.head=cosine",
    "model.head=fused model.neighbours=3",
    "model.head=retrieval model.neighbours=3",
    "model.head=knn model.neighbours=3",
    "loss.name=group_softmax loss.class_weights=none loss.defer=0.5",
    "loss.posthoc=1",
]


@pytest.mark.slow
@pytest.mark.parametrize("attempt", others_slow(HEADS, HEADS[0], HEADS[2]))
def test_a_classifier_is_exported_with_any_head(attempt: str, lab, product: Path, tmp_path: Path) -> None:
    assert lab("attempt=base", *attempt.split(), "hydra.run.dir=run") == 0
    assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=out") == 0
    about = json.loads((tmp_path / "out/export.json").read_text())
    assert about["classes"] == ["good", "crack", "hole"]
    assert about["check"]["of"] == "the run's test images"
    assert "threshold" not in about
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    sets, inside = RunResult.load(tmp_path / "run").sets, session.get_modelmeta().custom_metadata_map
    for key in ("least", "alpha", "held_out"):
        assert dict(zip(about["classes"], about[key], strict=True)) == sets[key]
        assert json.loads(inside[key]) == about[key]
    for row in [row for row in read_csv(tmp_path / "run/predictions.csv") if row["split"] == "test"]:
        picture = np.array(Image.open(product / row["path"]))
        ((probabilities,),) = session.run(None, {"images": picture.transpose(2, 0, 1)[None].astype(np.float32) / 255})
        assert probabilities == pytest.approx([float(row[f"prob_{n}"]) for n in about["classes"]], abs=1e-4)
        sure = recipe(str(product / row["path"]), 'about["least"]')["sure"]
        assert bool(sure) == (row["certainty"] == "sure")


def test_what_openvino_cannot_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask R-CNN was answered with the first of ten lines, a file of OpenVINO's own source."""
    said = """Exception from src/inference/src/cpp/core.cpp:105:
Check 'false' failed at src/frontends/common_translators/src/unconverted_ops_report.cpp:151:
Model wasn't fully converted. Failed operations detailed log:
-- Loop-17 with a message:
While validating ONNX node '<Node(Loop): Loop_2801>': Exception from src/core/src/shape_util.cpp:66:

Summary:
-- Conversion is failed for: Loop-17
"""

    class Core:
        def read_model(self, model: bytes) -> None:
            raise RuntimeError(said)

    monkeypatch.setattr(onnx, "require", lambda *_: SimpleNamespace(Core=Core))
    why = r"run/best.ckpt cannot be read by OpenVINO \(it has no Loop-17\): give format=onnx$"
    with pytest.raises(LabError, match=why):
        onnx.to_openvino(b"", {}, "run/best.ckpt")


@pytest.mark.slow
def test_openvino_is_another_format(tiny_export, tmp_path: Path, capsys) -> None:
    openvino = pytest.importorskip("openvino")
    model, _ = tiny_export("patchcore", "format=openvino")
    assert re.search(r"model.onnx [\d.]+ MiB, model.xml [\d.]+ MiB: patchcore", capsys.readouterr().out)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.onnx", "model.xml", "model.bin", *BESIDE}
    read = openvino.Core().read_model(tmp_path / "out/model.xml")
    assert float(read.get_rt_info(["model_info", "threshold"]).astype(str)) == 0.5
    images = torch.rand(3, 3, SIDE, SIDE)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
    with torch.no_grad():
        wanted = model((images - mean) / std)
    for values, output in zip(wanted, onnx.openvino_runner(read)(images), strict=True):
        np.testing.assert_allclose(output, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("module", "arguments"), [("onnxscript", []), ("openvino", ["format=openvino"])])
def test_a_library_that_is_not_installed_is_named(
    module: str, arguments: list[str], tiny_net: str, lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    _, ckpt = untrained("rotation", tiny_net, tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    assert lab("task=export", f"ckpt={ckpt}", "hydra.run.dir=out", *arguments) == 2
    extra = module.replace("script", "")
    assert re.search(rf'an ONNX file needs {module} .*: pip install "mvtec_lab\[{extra}\]"', capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def recipe(path: str, then: str) -> dict[str, Any]:
    """What the page's recipe gives of an image: its first block, and the one that reads these outputs."""
    blocks = [block.split("```")[0] for block in DEPLOYMENT.read_text().split("```python\n")]
    (first,) = (block for block in blocks if "InferenceSession" in block)
    (second,) = (block for block in blocks if then in block)
    names: dict[str, Any] = {}
    exec(first.replace("outputs/exported", "out").replace("new.png", path) + second, names)
    return names


@pytest.fixture
def new_images(product: Path, tmp_path: Path) -> Path:
    """Images of a product, twice as wide as those that a model learns from."""
    folder = tmp_path / "new"
    folder.mkdir()
    for kind in ("good", "crack", "hole"):
        for place in range(3):
            picture = cv2.imread(str(product / f"test/{kind}/{place:03}.png"))
            cv2.imwrite(str(folder / f"{kind}{place}.png"), cv2.resize(picture, (96, 48)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fit", others_slow(["squeeze", "letterbox"], "squeeze"))
def test_the_page_s_recipe_gives_the_masks_of_predict(fit: str, lab, new_images: Path, tmp_path: Path) -> None:
    layers = "model.options.layers=[features.relu1,features.relu2]"
    settings = [layers, "model.options.channels=8", "trainer.max_epochs=12", "optimizer.lr=0.02", "data.batch_size=4"]
    assert lab("attempt=segment/fpn", *settings, f"data.fit={fit}", "hydra.run.dir=run") == 0
    assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=out") == 0
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={new_images}", "hydra.run.dir=predicted") == 0
    use = json.loads((tmp_path / "out/export.json").read_text())["use"]
    assert all(word in use for word in ("score above threshold", "map_threshold", "types"))
    rows = read_csv(tmp_path / "predicted/predictions.csv")
    assert {row["prediction"] for row in rows} == {"good", "defect"}
    marked = []
    for row in rows:
        names, found = recipe(row["path"], 'outputs["map"]'), tmp_path / "predicted/found" / Path(row["path"]).name
        assert float(names["outputs"]["score"][0]) == pytest.approx(float(row["score"]), abs=1e-5)
        assert names["defect"] == (row["prediction"] == "defect")
        written = np.array(Image.open(f"{found}.png")) > 0
        assert (names["mask"] != written).mean() < 1e-3  # a pixel may lie at the threshold
        assert names["kind"] == (row["found_type"] if names["defect"] else None)
        assert row["mask_share"] == f"{written.mean():.6g}"
        marked.append((bool(names["defect"]), bool(written.any())))
    assert all(defect >= mask for defect, mask in marked)
    assert fit == "letterbox" or all(defect == mask for defect, mask in marked)  # trained on squares, it sees less here
    assert any(mask for _, mask in marked)


def test_an_image_that_is_called_good_has_an_empty_mask_everywhere(lab, new_images: Path, tmp_path: Path) -> None:
    assert lab("attempt=segment/fpn", "model.options.layers=[features.relu1,features.relu2]", "hydra.run.dir=run") == 0
    model, image = load_model(tmp_path / "run/best.ckpt"), np.zeros((30, 40, 3), np.uint8)
    model.map_threshold = 0.0  # so that every pixel would be in the mask
    for threshold, prediction, share, marked in ((1.0, "good", 0.0, 0), (0.0, "defect", 1.0, 255)):
        model.threshold = threshold
        (of_image,) = PROBLEM.predict(model, torch.rand(1, 3, model.image_size, model.image_size))
        assert of_image.files is not None
        files = of_image.files(image)
        assert (of_image.row["prediction"], float(of_image.row["mask_share"])) == (prediction, share)
        assert (files[".png"] == marked).all()
        assert (files[".jpg"] != image).any() == bool(marked)


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["squeeze", "letterbox"])
def test_the_page_s_recipe_gives_the_boxes_of_predict(fit: str, lab, new_images: Path, tmp_path: Path) -> None:
    small = ["model.unfreeze=0", "model.options.finest=4", "model.options.channels=32", "data.image_size=64"]
    small.append(f"data.fit={fit}")
    assert lab("attempt=detect/fcos", *small, "optimizer.lr=3e-3", "trainer.max_epochs=8", "hydra.run.dir=run") == 0
    assert lab("task=export", "ckpt=run/best.ckpt", "hydra.run.dir=out") == 0
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={new_images}", "hydra.run.dir=predicted") == 0
    assert "pixels of the square image" in json.loads((tmp_path / "out/export.json").read_text())["use"]
    some = 0
    for row in read_csv(tmp_path / "predicted/predictions.csv"):
        names = recipe(row["path"], 'outputs["boxes"]')
        written = json.loads((tmp_path / "predicted/found" / f"{Path(row['path']).name}.json").read_text())["boxes"]
        some += len(written)
        assert names["kinds"] == [box["label"] for box in written]
        np.testing.assert_allclose(
            names["boxes"].reshape(-1, 4), np.reshape([b["box"] for b in written], (-1, 4)), atol=0.1
        )
        assert (row["prediction"] == "good") == (not written)
    assert some


@pytest.mark.slow
def test_the_page_s_recipe_for_an_exported_model_scores_as_predict(lab, tiny_export, tmp_path: Path) -> None:
    """Line-scan images are far longer than they are wide: one side shrinks, the other one grows."""
    _, ckpt = tiny_export("patchcore")
    source = tmp_path / "new"
    source.mkdir()
    rng = np.random.default_rng(0)
    for name, (height, width) in {"tall": (300, 20), "wide": (20, 300), "small": (20, 30), "large": (200, 90)}.items():
        picture = rng.integers(90, 120, (height, width, 3), dtype=np.uint8)
        picture[height // 2 : height // 2 + 3] = 250
        cv2.imwrite(str(source / f"{name}.png"), picture)
    assert lab("task=predict", f"ckpt={ckpt}", f"source={source}", "hydra.run.dir=predicted") == 0
    for row in read_csv(tmp_path / "predicted/predictions.csv"):
        names = recipe(row["path"], 'outputs["map"]')
        assert float(names["outputs"]["score"][0]) == pytest.approx(float(row["score"]), rel=1e-4)
        assert names["defect"] == (row["prediction"] == "defect")
        assert names["heat"].shape == np.array(Image.open(row["path"])).shape[:2]


@pytest.mark.slow
def test_an_exported_file_needs_no_torch_and_refuses_other_sizes(tiny_export, tmp_path: Path) -> None:
    model, _ = tiny_export("patchcore")
    code = (
        "import sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession('out/model.onnx')\n"
        f"score, heat = session.run(None, {{'images': numpy.full((2, 3, {SIDE}, {SIDE}), 0.5, numpy.float32)}})\n"
        "assert not {'mvtec_lab', 'torch'} & set(sys.modules)\n"
        "print(*score.tolist(), *heat.shape)\n"
        "try: session.run(None, {'images': numpy.zeros((1, 3, 9, 9), numpy.float32)})\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    values = done.stdout.splitlines()[0].split()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
    with torch.no_grad():
        wanted = model((torch.full((2, 3, SIDE, SIDE), 0.5) - mean) / std)
    assert [float(value) for value in values[:2]] == pytest.approx(wanted.image.tolist(), rel=1e-4)
    assert [int(value) for value in values[2:]] == list(wanted.map.shape)
    assert f"index: 2 Got: 9 Expected: {SIDE}" in done.stdout


@pytest.mark.slow
def test_an_export_that_differs_is_refused_and_leaves_nothing(
    tiny_net: str, lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    _, ckpt = untrained("rotation", tiny_net, tmp_path)
    monkeypatch.setattr(onnx.Normalised, "forward", lambda self, images: self.network(images - self.mean))
    assert lab("task=export", f"ckpt={ckpt}", "hydra.run.dir=out") == 2
    assert re.search(r"cannot be exported: score of noise image \d differs by \S+ of its", capsys.readouterr().err)
    worst = onnx.Difference(np.inf, 0, 3, (1, 2), [])
    monkeypatch.setattr(export, "difference", lambda *_: worst)
    assert lab("task=export", f"ckpt={ckpt}", "hydra.run.dir=out") == 2
    assert "score of noise image 3 has 1 row(s), the checkpoint's has 2: use" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def apart(wanted: tuple[Tensor, ...], given: tuple[Tensor, ...], single: bool = False) -> onnx.Difference:
    images = torch.zeros(1 if single else len(wanted[0]), 3, 4, 4)
    return onnx.difference(lambda seen: wanted, images, lambda seen: given, images, [len(images)], 1e-4, single)


@pytest.mark.parametrize("place", [0, 1])
def test_an_exported_file_that_gives_nan_differs(place: int) -> None:
    wanted = torch.ones(2), torch.ones(2, 4, 4)
    given = [values.clone() for values in wanted]
    given[place].view(2, -1)[1, 0] = float("nan")
    worst = apart(wanted, tuple(given))
    assert not worst.share <= 1
    assert (worst.output, worst.image) == (place, 1)


def test_a_network_that_onnx_cannot_hold_is_refused_in_one_line() -> None:
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (images.sum((1, 2, 3)) * len(images),)

    with pytest.raises(
        LabError, match=r"mine\.ckpt cannot be written as ONNX \(the file would take 2 images .*: use"
    ) as caught:
        onnx.to_onnx(Fixed(), ["score"], 8, {}, "mine.ckpt")
    assert "\n" not in str(caught.value)


BOXES, SCORES = torch.tensor([[1.0, 2, 8, 9], [30, 4, 40, 9]]), torch.tensor([0.4, 0.4 + 3e-8])


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [
        ((BOXES.flip(0), SCORES.flip(0)), 0, 1e-6),  # rows of nearly equal score may change places
        ((BOXES.flip(0) + 1, SCORES.flip(0)), 0.01, 0.1),
        ((BOXES[[0, 0]], SCORES), 0.5, 1),  # a box is lost, and another one is there twice
        ((BOXES[:1], SCORES[:1]), np.inf, np.inf),
        ((BOXES[[0, 1, 1]], SCORES[[0, 1, 1]]), np.inf, np.inf),  # one box twice
        ((BOXES[:0], SCORES[:0]), np.inf, np.inf),
    ],
)
def test_boxes_are_compared_one_to_one(given: tuple[Tensor, ...], least: float, most: float) -> None:
    worst = apart((BOXES, SCORES), given, single=True)
    assert least <= worst.share <= most
    assert worst.rows == (len(given[0]), 2)
    assert apart((BOXES[:0], SCORES[:0]), given, single=True).share == (np.inf if len(given[0]) else 0)


def test_what_rounding_moves_across_a_cut_is_no_difference() -> None:
    """Two boxes at cuts of their own: each has two right places, which noise shows, and the second one may be lost."""

    def network(image: Tensor) -> tuple[Tensor, ...]:
        first, second = image[0, 0, 0, :2].tolist()
        boxes = [[1.0 + (first > 0), 2, 8, 9], [30.0, 4, 40, 9], [5.0, 5, 7, 7]]
        return torch.tensor(boxes if second > 0 else boxes[::2]), torch.full((2 + (second > 0),), 0.5)

    def share(*boxes: list[float]) -> float:
        given = torch.tensor(boxes), torch.full((len(boxes),), 0.5)
        return onnx.difference(network, image, lambda seen: given, image, [1], 1e-4, single=True).share

    image, firm = torch.zeros(1, 3, 4, 4), [5.0, 5, 7, 7]
    for first in ([1.0, 2, 8, 9], [2.0, 2, 8, 9]):
        assert share(first, firm) == share(first, [30.0, 4, 40, 9], firm) == 0
    assert share([1.5, 2, 8, 9], firm) > 0.01  # neither place
    assert share([2.0, 2, 8, 9], [30.0, 4, 41, 9], firm) > 0.01
    assert share([2.0, 2, 8, 9], [30.0, 4, 40, 9]) > 0.05  # no noise loses this one
    assert share([1.0, 2, 8, 9], [2.0, 2, 8, 9], firm) > 0.5  # both places at once
    assert share(firm) == np.inf  # neither is there
    assert share([1.0, 2, 8, 9], firm, firm) > 0.5
    image = torch.full((1, 3, 4, 4), 1e-3)  # farther from the cut than rounding
    assert share([2.0, 2, 8, 9], [30.0, 4, 40, 9], firm) == 0
    assert share([1.0, 2, 8, 9], [30.0, 4, 40, 9], firm) > 0.01
