"""The methods sam, sam_box and sam_zero, with a tiny SAM: trained, judged, restored, and refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("segment_anything")
pytest.importorskip("timm")

from test_sam import TINY, published, saved

from mvtec_lab.errors import LabError
from mvtec_lab.models.sam import Sam
from mvtec_lab.problems import problem_of
from mvtec_lab.problems.model import load_model
from mvtec_lab.problems.segmentation.methods.sam.base import parts_of
from mvtec_lab.problems.segmentation.methods.sam_box.prompts import Finder, filled, peak
from mvtec_lab.results import BEST, RESULT, SAMPLES

SIDE = 48  # pixels; three cells of SAM's embedding a side


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return saved(published(Sam(TINY, SIDE)), tmp_path / "tiny.pt")


@pytest.fixture
def run(lab, weights: str, tmp_path: Path):
    """Train an attempt on the tiny product, ``run("sam", "model.options.views=1")`` -> its directory."""

    def of(method: str, *arguments: str) -> Path:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        small = [f"model.method={method}", f"data.image_size={SIDE}", f"model.sam_weights={weights}"]
        small.append("data.masks=required")
        small += [] if method == "sam_zero" else ["trainer.max_epochs=2", "model.options.channels=8"]
        assert lab(f"attempt=segment/{method}", *small, f"hydra.run.dir={folder}", *arguments) == 0
        return folder

    return of


@pytest.fixture
def one_class(lab, tmp_path: Path) -> Path:
    layers = "model.options.layers=[features.relu1,features.relu2]"
    assert lab("attempt=patchcore", layers, f"hydra.run.dir={tmp_path / 'good'}") == 0
    return tmp_path / "good" / BEST


def result_of(folder: Path) -> dict:
    return json.loads((folder / RESULT).read_text())


def test_components_have_a_box_and_a_point_inside() -> None:
    mask = np.zeros((20, 30), bool)
    mask[2:10, 3:5] = mask[8:10, 3:15] = mask[2:10, 13:15] = True  # a U, whose box's centre is not in it
    mask[15:18, 20:27] = True
    boxes, points, parts = parts_of(mask)
    assert boxes.tolist() == [[3, 2, 14, 9], [20, 15, 26, 17]]
    assert (parts.sum(0).numpy() == mask).all()
    assert all(part[int(y), int(x)] for part, (x, y) in zip(parts, points, strict=True))
    assert [tuple(part.shape) for part in parts_of(np.zeros((4, 4), bool))] == [(0, 4), (0, 2), (0, 4, 4)]


def test_a_peak_is_what_is_connected_with_the_maximum() -> None:
    heat = np.zeros((8, 8), np.float32)
    heat[1:3, 1:3], heat[1, 1], heat[6, 6] = 5, 9, 6
    assert peak(heat, 4, 8).sum() == 4
    assert peak(heat, 8, 8).sum() == 1
    assert peak(heat, 100, 8).sum() == 4  # half-way to the peak is 4.5
    assert peak(np.ones((8, 8), np.float32), 2, 8).sum() == 0


@pytest.mark.parametrize("method", ["sam", "sam_box"])
def test_a_run_trains_the_decoder_alone_and_its_checkpoint_needs_no_other_file(method: str, run, weights: str) -> None:
    folder = run(method)
    metrics, model = result_of(folder)["metrics"]["test"], load_model(folder / BEST)
    assert 0 <= metrics["iou"] <= 1
    assert ("oracle_iou" in metrics) == (method == "sam_box")
    before, after = torch.load(weights), model.module.sam.state_dict()
    assert torch.equal(before["image_encoder.neck.2.weight"], after["image_encoder.neck.2.weight"])
    key = "mask_decoder.output_upscaling.0.weight"
    assert not torch.equal(before[key], after[key])
    Path(weights).unlink()
    images = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    maps = load_model(folder / BEST).module.probabilities({"image": images})[0]
    assert maps.shape == (3, SIDE // 4, SIDE // 4)
    assert torch.allclose(maps[:1], model.module.probabilities({"image": images[:1]})[0])


@pytest.mark.parametrize("method", ["sam", "sam_box"])
def test_kept_features_and_a_second_run_change_nothing(method: str, run) -> None:
    first, again, uncached = run(method), run(method), run(method, "cache.dir=null")
    rows = [(folder / "predictions.csv").read_bytes() for folder in (first, again, uncached)]
    assert rows[0] == rows[1] == rows[2]


def test_a_one_class_run_prompts_and_its_checkpoint_is_needed_once(run, one_class: Path) -> None:
    folder = run("sam_box", f"model.options.prompts={one_class}")
    one_class.unlink()
    module = load_model(folder / BEST).module
    assert isinstance(module.finder, Finder)
    assert not hasattr(module, "head")
    images = torch.randn(2, 3, SIDE, SIDE)
    assert module.probabilities({"image": images})[0].shape == (2, SIDE // 4, SIDE // 4)


def test_boxes_of_true_masks_never_reach_the_judged_prediction(run, one_class: Path) -> None:
    """With other masks in the batch the judged logits stay the same, and the oracle's do not."""
    module = load_model(run("sam_box", f"model.options.prompts={one_class}") / BEST).module
    images, mask = torch.randn(1, 3, SIDE, SIDE), torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    other = mask.clone()
    other[:, 5:20, 5:20] = 1
    assert torch.equal(*(module.logits({"image": images, "mask": m}) for m in (mask, other)))
    assert not torch.equal(*(module.told({"image": images, "mask": m}) for m in (mask, other)))


def test_zero_shot_needs_prompts_and_trains_nothing(run, lab, weights: str, one_class: Path, capsys) -> None:
    folder = run("sam_zero", f"model.options.prompts={one_class}")
    assert result_of(folder)["parameters"]["trained"] == 0
    before, after = torch.load(weights), load_model(folder / BEST).module.sam.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items() if key.startswith("mask_decoder"))
    capsys.readouterr()
    small = [f"data.image_size={SIDE}", "data.masks=required", f"model.sam_weights={weights}"]
    assert lab("attempt=segment/sam_zero", "model.method=sam_zero", *small) == 2
    assert "trains nothing, so nothing says where to look: give model.options.prompts=CKPT" in capsys.readouterr().err


def test_prompts_of_another_kind_and_an_export_are_one_line(run, tmp_path: Path) -> None:
    folder = run("sam")
    model = load_model(folder / BEST)
    with pytest.raises(LabError, match=r"model.method=sam has no ONNX file: .*: use task=predict"):
        problem_of("sam").exported(model)
    with pytest.raises(LabError, match=r"prompts=.* is a run of sam: give best.ckpt of a detector or"):
        Finder.of(str(folder / BEST), 12)
    with pytest.raises(LabError, match="cannot be read"):
        Finder.of(str(tmp_path / "none.ckpt"), 12)


def test_prompts_of_a_run_that_saw_the_test_images_are_refused(run, lab, one_class: Path, capsys) -> None:
    rows = (one_class.parent / SAMPLES).read_text().splitlines()
    (one_class.parent / SAMPLES).write_text("\n".join(row.replace(",test,", ",train,") for row in rows) + "\n")
    capsys.readouterr()
    with pytest.raises(AssertionError):
        run("sam_box", f"model.options.prompts={one_class}")
    assert "was trained on 4 of the images that this run is judged on" in capsys.readouterr().err
    (one_class.parent / SAMPLES).unlink()
    with pytest.raises(AssertionError):
        run("sam_box", f"model.options.prompts={one_class}")
    assert "has no samples.csv beside it" in capsys.readouterr().err


def test_boxes_of_a_detector_are_filled() -> None:
    boxes = np.array([[1.2, 2.0, 3.6, 3.9], [7.9, 7.9, 8, 8]])
    marked = np.zeros((8, 8))
    marked[2:4, 1:4] = marked[7, 7] = 1
    assert (filled(boxes, 8) == marked).all()
    assert filled(np.zeros((0, 4)), 8).sum() == 0


def test_another_method_takes_no_sam_weights(lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab("model.sam_weights=file.pt") == 2
    assert "model.sam_weights=file.pt" in capsys.readouterr().err
