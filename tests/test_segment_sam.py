"""The methods sam, sam_box and sam_zero, with a tiny SAM: trained, judged, restored, and refused in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("segment_anything")
pytest.importorskip("timm")

from conftest import others_slow
from test_devices import run_lab
from test_sam import TINY, TINY_2, published, saved

from mvtec_lab import compose, problems
from mvtec_lab.cli import main
from mvtec_lab.config import SplitConfig
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise
from mvtec_lab.engine.checkpoints import Checkpoints
from mvtec_lab.engine.model import Model
from mvtec_lab.errors import LabError
from mvtec_lab.models.sam import Sam
from mvtec_lab.models.views import view
from mvtec_lab.problems import problem_of
from mvtec_lab.problems.detection.build import class_of as detection_class_of
from mvtec_lab.problems.model import load_model
from mvtec_lab.problems.scored import Scored
from mvtec_lab.problems.segmentation.base import SegmentationModel
from mvtec_lab.problems.segmentation.judging import _oracle_iou
from mvtec_lab.problems.segmentation.methods.sam.base import parts_of
from mvtec_lab.problems.segmentation.methods.sam.model import SamMask
from mvtec_lab.problems.segmentation.methods.sam_box.model import SamBox
from mvtec_lab.problems.segmentation.methods.sam_box.prompts import (
    MOST,
    Finder,
    of_logits,
    peak,
    require_unseen,
    table,
    viewed_prompts,
    weighed,
)
from mvtec_lab.problems.segmentation.methods.sam_zero.model import SamZero
from mvtec_lab.results import BEST, PREDICTIONS, RESULT, SAMPLES, read_csv, write_csv

SIDE = 48  # pixels; three cells of SAM's embedding a side


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return saved(published(Sam(TINY, SIDE)), tmp_path / "tiny.pt")


def settings(method: str, weights: str) -> list[str]:
    words = [f"attempt=segment/{method}", f"model.method={method}", f"data.image_size={SIDE}"]
    return [*words, f"model.sam_weights={weights}", "data.masks=required"]


@pytest.fixture
def run(product: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Train an attempt on the tiny product, ``run("sam", "model.options.views=1")`` -> its directory."""
    monkeypatch.chdir(tmp_path)

    def of(method: str, *arguments: str) -> Path:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        own = ["trainer.max_epochs=2", "model.options.channels=8"]
        if any(word.startswith("model.options.prompts=") for word in arguments):  # then some of these do nothing
            own = own[:1] if method != "sam_zero" else []
        data = ["data=folder", f"data.root={product}", "trainer.accelerator=cpu", f"cache.dir={tmp_path / 'cache'}"]
        assert main([*settings(method, weights), *data, *own, f"hydra.run.dir={folder}", *arguments]) == 0
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("method", others_slow(["sam", "sam_box"], "sam_box"))
def test_kept_features_and_a_second_run_change_nothing(method: str, run) -> None:
    first, again, uncached = run(method), run(method), run(method, "cache.dir=null")
    rows = [(folder / "predictions.csv").read_bytes() for folder in (first, again, uncached)]
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.slow
def test_a_one_class_run_prompts_and_its_checkpoint_is_needed_once(run, one_class: Path) -> None:
    folder = run("sam_box", f"model.options.prompts={one_class}")
    one_class.unlink()
    module = load_model(folder / BEST).module
    assert isinstance(module.finder, Finder)
    assert not hasattr(module, "head")
    images = torch.randn(2, 3, SIDE, SIDE)
    assert module.probabilities({"image": images})[0].shape == (2, SIDE // 4, SIDE // 4)


@pytest.mark.slow
def test_boxes_of_true_masks_never_reach_the_judged_prediction(run, one_class: Path) -> None:
    """With other masks in the batch the judged logits stay the same, and the oracle's do not."""
    module = load_model(run("sam_box", f"model.options.prompts={one_class}") / BEST).module
    images, mask = torch.randn(1, 3, SIDE, SIDE), torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    other = mask.clone()
    other[:, 5:20, 5:20] = 1
    assert torch.equal(*(module.logits({"image": images, "mask": m}) for m in (mask, other)))
    assert not torch.equal(*(module.oracle({"image": images, "mask": m}) for m in (mask, other)))


@pytest.mark.slow
def test_one_command_sets_tuned_and_untuned_rows_side_by_side(product: Path, weights: str, tmp_path: Path) -> None:
    data = ["data=folder", f"data.root={product}", f"data.image_size={SIDE}", f"cache.dir={tmp_path / 'cache'}"]
    small = ["trainer.max_epochs=2", "model.options.channels=8", f"model.sam_weights={weights}", *data]
    assert main(["-m", "attempt=segment/sam_box,segment/sam_zero", *small, f"hydra.sweep.dir={tmp_path / 'both'}"]) == 0
    rows = read_csv(tmp_path / "both/summary.csv")
    assert [row["attempt"] for row in rows] == ["segment/sam_box", "segment/sam_zero"]
    assert all(0 <= float(row["test_oracle_iou"]) <= 1 for row in rows)


@pytest.mark.slow
def test_every_fold_takes_the_prompts_of_its_own_run(
    product: Path, weights: str, one_class: Path, tmp_path: Path
) -> None:
    for fold in (0, 1):
        shutil.copytree(one_class.parent, tmp_path / f"boxes-split.fold_{fold}")
    data = ["data=folder", f"data.root={product}", f"data.image_size={SIDE}", f"cache.dir={tmp_path / 'cache'}"]
    prompts = f"model.options.prompts={tmp_path}/boxes-split.fold_${{split.fold}}/best.ckpt"
    both = tmp_path / "both"
    sweep = ["-m", "attempt=segment/sam_zero", "cv.folds=2", prompts, f"model.sam_weights={weights}", *data]
    assert main([*sweep, f"hydra.sweep.dir={both}"]) == 0
    for fold in (0, 1):
        text = (both / f"segment_sam_zero-split.fold_{fold}/config.yaml").read_text()
        assert f"boxes-split.fold_{fold}/best.ckpt" in text
    (row,) = read_csv(both / "summary.csv")  # one attempt of two runs, although each has a path of its own
    assert (row["attempt"], row["completed"]) == ("segment/sam_zero", "2")


def test_a_point_is_where_the_defect_is_widest(run, monkeypatch: pytest.MonkeyPatch) -> None:
    module, asked = load_model(run("sam_zero", "model.options.prompt=point") / BEST).module, []

    def decode(embedding, **prompts):
        asked.append(prompts)
        return torch.zeros(1, SIDE // 4, SIDE // 4)

    monkeypatch.setattr(module.sam, "decode", decode)
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    mask[0, 5:40, 5:8] = mask[0, 30:40, 5:40] = 1  # an L, whose box's centre is not in it
    module.oracle({"image": torch.randn(1, 3, SIDE, SIDE), "mask": mask})
    (prompts,) = asked
    assert list(prompts) == ["points"]
    x, y = prompts["points"][0].int().tolist()
    assert mask[0, y - 4 : y + 4, x - 4 : x + 4].all()


@pytest.mark.slow
@pytest.mark.parametrize("prompted", [True, False])
def test_zero_shot_leaves_sam_as_it_is(prompted: bool, run, weights: str, one_class: Path) -> None:
    folder = run("sam_zero", *([f"model.options.prompts={one_class}"] if prompted else []))
    result, module = result_of(folder), load_model(folder / BEST).module
    assert (result["parameters"]["trained"] == 0) == prompted
    assert "oracle_iou" in result["metrics"]["test"]
    before, after = torch.load(weights), module.sam.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items() if not key.startswith("image_enc"))
    assert hasattr(module, "head") == (not prompted)


@pytest.mark.slow
def test_one_cache_entry_serves_every_method(run, one_class: Path, tmp_path: Path) -> None:
    for method in ("sam", "sam_box", "sam_zero"):
        run(method, f"cache.dir={tmp_path / 'shared'}")
    maps = list((tmp_path / "shared").glob("*file_tiny.pt*.npy"))
    assert len(maps) == 1
    run("sam_box", f"cache.dir={tmp_path / 'shared'}", f"model.options.prompts={one_class}")
    more = sorted((path.stat().st_size, path) for path in (tmp_path / "shared").glob("*file_tiny.pt*.npy"))
    assert len(more) == 2
    assert more[1][1] == maps[0]  # another run's prompts are kept beside SAM's maps, not with a copy of them
    assert more[0][0] < more[1][0] / 4


@pytest.mark.slow
@pytest.mark.parametrize("method", others_slow(["sam", "sam_box"], "sam_box"))
def test_a_resumed_run_gives_the_same_result(method: str, resumed, weights: str) -> None:
    resumed(SegmentationModel, 2, *settings(method, weights), "trainer.max_epochs=4", "model.options.channels=8")


@pytest.mark.slow
def test_prompts_are_found_again_where_their_run_has_another_threshold(run, one_class: Path, tmp_path: Path) -> None:
    """Its weights are the same, but not what it calls a defect."""
    content, prompts = torch.load(one_class), f"model.options.prompts={one_class}"
    run("sam_zero", prompts)
    for key, factor in (("threshold", 100.0), ("map_threshold", 1e-3)):
        torch.save({**content, "about": {**content["about"], key: content["about"][key] * factor}}, one_class)
        kept, uncached = run("sam_zero", prompts), run("sam_zero", prompts, "cache.dir=null")
        assert (kept / PREDICTIONS).read_text() == (uncached / PREDICTIONS).read_text()


@pytest.mark.slow
def test_prompts_of_another_kind_and_an_export_are_one_line(run, tmp_path: Path) -> None:
    folder = run("sam")
    model = load_model(folder / BEST)
    with pytest.raises(LabError, match=r"model.method=sam has no ONNX file: .*: use task=predict"):
        problem_of("sam").exported(model)
    with pytest.raises(LabError, match=r"prompts=.* is a run of sam, which marks no place: give best.ckpt of"):
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


@pytest.mark.slow
def test_a_sweep_that_would_fail_for_its_files_is_refused_before_it_begins(
    lab, weights: str, product: Path, one_class: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(folder: str, *arguments: str) -> str:
        capsys.readouterr()
        data = ["data=folder", f"data.root={product}", "trainer.accelerator=cpu", "cache.dir=null"]
        words = [*settings("sam_zero", weights), *data, *arguments]
        assert main(words) == 2
        assert not (tmp_path / folder).exists()
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0
        return error

    sweep = ["-m", "hydra.sweep.dir=sweep", "seed=0,1"]
    for into, words in (("sweep", sweep), ("run", ["hydra.run.dir=run"])):
        missing = f"model.options.prompts={tmp_path}/none.ckpt"
        assert f"{missing} cannot be read (No such file or directory)" in refused(into, *words, missing)
        other = f"model.options.prompts={weights}"
        assert f"{other} is no checkpoint of a run" in refused(into, *words, other)
        wrong = f"model.sam_weights={tmp_path}/none.pt"
        assert f"{wrong} does not exist" in refused(into, *words, wrong)
    # Prompts that have seen an image of the last fold's test part alone: the folds before are sound.
    rows = read_csv(one_class.parent / SAMPLES)
    last = MVTecDataModule(product, split=SplitConfig(protocol="kfold", folds=3, fold=2))
    last.scan()
    seen = last.of_split("test")[0].path
    write_csv(
        one_class.parent / SAMPLES, [{**r, "split": "train" if r["path"] == seen else ""} for r in rows], [*rows[0]]
    )
    folds = ["-m", "hydra.sweep.dir=sweep", "cv.folds=3", f"model.options.prompts={one_class}"]
    error = refused("sweep", *folds)
    assert "fold_2: model.options.prompts=" in error
    assert "was trained on 1 of the images" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen", [{"val_is_test": True}, {"threshold": {"value": 1.0, "rule": "best_f1", "map": 1.0}}]
)
def test_prompts_of_a_run_that_chose_on_the_test_images_are_refused(chosen, one_class, product: Path) -> None:
    data = MVTecDataModule(product)
    data.scan()
    require_unseen(str(one_class), data)
    result = one_class.parent / RESULT
    result.write_text(json.dumps(json.loads(result.read_text()) | chosen))
    with pytest.raises(LabError, match="chose its epoch or threshold on 4 of the images that this run is judged on"):
        require_unseen(str(one_class), data)
    result.unlink()
    with pytest.raises(LabError, match=r"has no result\.json beside it"):
        require_unseen(str(one_class), data)


def test_prompts_of_a_map_are_its_components_each_as_sure_as_its_peak() -> None:
    logits = torch.full((8, 8), -3.0)
    logits[1:3, 1:5], logits[1, 2], logits[6, 6] = 0.5, 2.0, 1.0
    prompts = of_logits(logits)
    assert prompts.shape == (MOST, 7)
    assert prompts[:2, :4].tolist() == [[4, 4, 19, 11], [24, 24, 27, 27]]  # whole cells, the first and last pixels
    assert prompts[1, 4:6].tolist() == [25.5, 25.5]
    whole = np.kron(np.asarray(logits > 0), np.ones((4, 4)))
    assert torch.equal(prompts[:2, :4], parts_of(whole)[0])  # as in training
    assert prompts[:2, 6].tolist() == pytest.approx(torch.tensor([2.0, 1.0]).sigmoid().tolist())
    assert not prompts[2:].any()
    assert not of_logits(torch.full((8, 8), -1.0)).any()


def test_the_surest_prompts_are_kept() -> None:
    sure = torch.linspace(0.1, 0.9, MOST + 4)
    kept = table(torch.arange(4.0 * len(sure)).view(-1, 4), torch.zeros(len(sure), 2), sure)
    assert kept[:, 6].tolist() == pytest.approx(sure.flip(0)[:MOST].tolist())
    assert kept[0, 0] == 4 * (len(sure) - 1)


def test_a_mask_is_as_probable_as_its_prompt_is_certain() -> None:
    logits = torch.tensor([[-30.0, 0.0, 2.0, 40.0]]).view(1, 1, 4).repeat(2, 1, 1)
    found = weighed(logits, torch.tensor([0.25, 1.0]))
    assert torch.allclose(found[0].sigmoid(), logits[0].sigmoid() * 0.25)
    assert torch.allclose(found[1].sigmoid(), logits[1].sigmoid(), atol=2e-4)
    assert found.isfinite().all()


@pytest.mark.slow
def test_a_detector_says_where_and_how_surely(one_class: Path) -> None:
    finder = Finder.of(str(one_class), SIDE)
    finder.model.threshold, finder.model.image_size = 0.4, SIDE
    boxes = torch.tensor([[1.0, 2, 9, 8, 0.8], [20, 20, 30, 40, 0.5], [0, 0, 5, 5, 0.3]])
    prompts = finder._of_boxes(boxes)
    assert prompts[:3, :6].tolist() == [[1, 2, 8, 7, 4.5, 4.5], [20, 20, 29, 39, 24.5, 29.5], [0] * 6]
    assert prompts[0, 6] > prompts[1, 6] > 0.5
    good = finder._of_boxes(boxes - torch.tensor([0, 0, 0, 0, 0.5]))
    assert (good[:, 6] > 0).sum() == 1
    assert good[0, 6] < 0.5  # an image's score has no ties, and stays below what is called a defect
    assert not finder._of_boxes(boxes[:0]).any()


@pytest.mark.parametrize("number", range(8))
def test_prompts_move_with_the_views_of_their_image(number: int) -> None:
    mask = torch.zeros(SIDE, SIDE)
    mask[4:12, 20:40] = 1
    boxes, points, _ = parts_of(mask.numpy())
    prompts = viewed_prompts(table(boxes, points, torch.tensor([0.8])), number, SIDE)
    moved = view(mask, number)
    x, y = prompts[0, 4:6].int().tolist()
    assert torch.equal(prompts[:1, :4], parts_of(moved.numpy())[0])
    assert moved[y, x]
    assert not prompts[1:].any()


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_what_finds_prompts_sees_images_as_they_are(
    cached: bool, run, one_class: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A one-class model never saw a mirrored image, and its threshold is one of images as they are."""
    asked, forward = [], Finder.forward

    def noted(self: Finder, images: torch.Tensor) -> torch.Tensor:
        asked.append(images)
        return forward(self, images)

    monkeypatch.setattr(Finder, "forward", noted)
    run("sam_box", f"model.options.prompts={one_class}", *([] if cached else ["cache.dir=null"]))
    distinct = {image.numpy().tobytes() for images in asked for image in images.contiguous()}
    assert 0 < len(distinct) <= 22  # the images of test/, of which each has four views


@pytest.mark.slow
@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"white": 4095}, "with data.white=4095, this run with 65535: give data.white=4095"),
        ({"tile": 32}, "sees tiles of 32 pixels, this run whole images: give data.tile=32"),
        ({"fit": "letterbox"}, "data.fit=letterbox, this run with squeeze: give data.fit=letterbox"),
    ],
    ids=["16 bits", "tiles", "letterbox"],
)
def test_prompts_of_a_run_that_sees_images_otherwise_are_refused(run, one_class: Path, capsys, about, why) -> None:
    content = torch.load(one_class)
    torch.save({**content, "about": {**content["about"], **about}}, one_class)
    with pytest.raises(AssertionError):
        run("sam_box", f"model.options.prompts={one_class}")
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "given", "idle"),
    [
        ("sam_zero", "model.options.prompts=a.ckpt", "trainer.max_epochs=3"),
        ("sam_zero", "model.options.prompts=a.ckpt", "optimizer.lr=0.01"),
        ("sam_zero", "model.options.prompts=a.ckpt", "model.options.channels=8"),
        ("sam_box", "model.options.prompts=a.ckpt", "model.options.channels=8"),
        ("sam_box", "model.options.prompt=point", "model.options.jitter=0.2"),
    ],
)
def test_what_other_options_leave_without_effect_is_refused(method: str, given: str, idle: str, capsys) -> None:
    assert main([f"attempt=segment/{method}", given, idle]) == 2
    assert f"{idle} does nothing for model.method={method}" in capsys.readouterr().err
    config = compose(f"attempt=segment/{method}", given)
    assert not problems.idle(config, {given.split("=")[0]: ""})  # what the attempt's file sets may rest


@pytest.mark.slow
def test_a_resumed_run_refuses_prompts_of_a_run_that_was_trained_again(
    run, one_class: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    prompts, step = f"model.options.prompts={one_class}", SegmentationModel.training_step

    def stopped(self: SegmentationModel, batch: dict, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModel, "training_step", stopped)
        patch.setattr("mvtec_lab.engine.checkpoints.EVERY", -1.0)
        with pytest.raises(AssertionError):
            run("sam_box", prompts)
    folder = tmp_path / "run0"
    assert result_of(folder)["paths"]["model.options.prompts"] == str(one_class)
    content = torch.load(one_class)
    torch.save({**content, "about": {**content["about"], "threshold": 100.0}}, one_class)
    with pytest.raises(AssertionError):
        run("sam_box", prompts, f"hydra.run.dir={folder}", "resume=true")
    assert f"run0 began with another content of {prompts}" in capsys.readouterr().err


def test_prompts_of_true_masks_are_judged_as_the_others_are(
    run, product: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all views, and cut where the judged masks are."""
    module, asked = load_model(run("sam_zero") / BEST).module, []

    def oracle(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        asked.append(batch["image"])
        cells = torch.nn.functional.avg_pool2d(batch["mask"].float(), 4)
        return torch.logit(0.1 + 0.3 * (cells > 0.5).float())

    monkeypatch.setattr(module, "oracle", oracle)
    data = MVTecDataModule(product, image_size=SIDE, targets=("mask",))
    data.setup()
    test = Scored(data.dataset("test"), np.zeros(0), None)
    assert _oracle_iou(data, module, test, 0.25) > 0.5
    assert len(asked) == module.views * sum(sample.label != "good" for sample in data.of_split("test"))
    assert torch.equal(asked[1], view(asked[0], 1))
    assert _oracle_iou(data, module, test, 0.45) == 0


def test_the_best_epoch_holds_no_copy_of_what_is_frozen(weights: str, one_class: Path, tmp_path: Path) -> None:
    module = SamBox(sam_weights=weights, image_size=SIDE, prompts=str(one_class))
    checkpoints = Checkpoints(tmp_path, "val/loss", {})
    checkpoints.on_train_epoch_end(
        SimpleNamespace(callback_metrics={"val/loss": 1.0}, current_epoch=0, global_step=1), module
    )
    now, best = module.state_dict(), checkpoints.best["state_dict"]
    assert now.keys() == best.keys()
    shared = {key.split(".")[0] + "." + key.split(".")[1] for key in now if best[key].data_ptr() == now[key].data_ptr()}
    assert shared == {"sam.image_encoder", "finder.network"}
    assert all(torch.equal(value, best[key]) for key, value in now.items())


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("model", [SamMask, SamBox, SamZero])
def test_every_batch_gives_all_that_trains_a_gradient(model: type, second: bool, weights: str) -> None:
    """Several devices wait for each other's gradients."""
    torch.manual_seed(0)
    module = model(sam_weights=weights, image_size=SIDE, channels=8)
    if second:  # SAM 2's decoder
        plan = {**module.hparams, "architecture": asdict(TINY_2)}
        module = model(**plan)
    mask = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
    for _ in range(2):  # without a defect, and with one
        module.zero_grad()
        module.loss({"image": torch.randn(2, 3, SIDE, SIDE), "mask": mask}).backward()
        assert not [name for name, p in module.named_parameters() if p.requires_grad != (p.grad is not None)]
        mask[0, 8:20, 8:30] = 1
    assert any(p.requires_grad for p in module.sam.parameters()) == (model is not SamZero)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sam", "sam_box"])
def test_two_processes_train_one_run(method: str, product: Path, weights: str, tmp_path: Path) -> None:
    data = ["data=folder", f"data.root={product}", "data.batch_size=1", "model.options.channels=8", "cache.dir=null"]
    small = ["trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.devices=2", "hydra.run.dir=run"]
    run_lab(tmp_path, "-m", "mvtec_lab", *settings(method, weights), *data, *small)
    assert result_of(tmp_path / "run")["epochs"] == 2


def test_a_detector_of_another_size_and_normalisation_prompts(tiny_net: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {"backbone": tiny_net, "weights": None, "image_size": 64, "finest": 4, "channels": 32}
    detector = detection_class_of("fcos")(["good", "crack"], **given).eval()
    model = Model(detector, "fcos", ["good", "crack"], 64, 65535, [0.5] * 3, [0.25] * 3, threshold=0.0)
    model.save(tmp_path / BEST)
    finder = Finder.of(str(tmp_path / BEST), 128)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    prompts = finder(normalise(images, IMAGENET_MEAN, IMAGENET_STD))[0]
    (found,) = problem_of("fcos").predict(model, normalise(images, model.mean, model.std))
    assert found.boxes is not None
    assert len(found.boxes) >= 1
    assert prompts[0, :4].tolist() == pytest.approx((found.boxes[0, :4] * 2 - [0, 0, 1, 1]).tolist(), abs=0.1)
    assert 0.5 < prompts[0, 6] < 1


def test_another_method_takes_no_sam_weights(lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab("model.sam_weights=file.pt") == 2
    assert "model.sam_weights=file.pt" in capsys.readouterr().err
