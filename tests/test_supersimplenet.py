"""SuperSimpleNet's losses, and that known defects train beside good images: with masks, without, and none at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SIZE, write_product
from PIL import Image

from mvtec_lab.cli import compose
from mvtec_lab.config import SplitConfig
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.data.samples import Sample
from mvtec_lab.data.splits import good_alone, split_samples
from mvtec_lab.evaluation import anomaly
from mvtec_lab.problems.anomaly.methods.supersimplenet.model import (
    SuperSimpleNet,
    blots,
    focal,
    pools,
    truncated_l1,
)
from mvtec_lab.problems.anomaly.models import build_anomaly_model
from mvtec_lab.problems.model import build_data, load_model
from mvtec_lab.results import PREDICTIONS, RunResult, read_csv

LAYERS = "model.options.layers=[features.relu1,features.relu2]"
ALONE = ("attempt=supersimplenet", LAYERS, "data.batch_size=4")
MIXED = ("attempt=supersimplenet_mixed", LAYERS, "data.batch_size=4")
KFOLD = ("split.protocol=kfold", "split.folds=3")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here looks at an interval's ends."""
    monkeypatch.setattr(anomaly, "RESAMPLES", 50)


@pytest.fixture
def widget(product: Path) -> Path:
    """The tiny product with enough good images to learn from: 10 train, 2 validate."""
    return write_product(product, train_good=12)


def test_a_margin_on_either_side_is_enough() -> None:
    logits = torch.tensor([-0.6, -0.5, 0.0, 0.7, 0.1])
    anomalous = torch.tensor([False, False, False, True, True])
    # Good: 0, 0, 0.5 of three; anomalous: 0, 0.4 of two.
    torch.testing.assert_close(truncated_l1(logits, anomalous), torch.tensor(0.5 / 3 + 0.4 / 2))
    torch.testing.assert_close(truncated_l1(logits[:3], anomalous[:3]), torch.tensor(0.5 / 3))


def test_focal_loss_is_cross_entropy_weighed_by_what_is_wrong() -> None:
    logits, anomalous = torch.tensor([-2.0, 0.3, 1.5]), torch.tensor([False, True, False])
    right = torch.where(anomalous, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(focal(logits, anomalous), (-(1 - right).pow(4) * right.log()).mean())


def test_noise_lies_in_blots_and_spares_half_of_the_images() -> None:
    torch.manual_seed(0)
    masks = blots(400, 16)
    assert masks.shape == (400, 16, 16)
    empty = ~masks.flatten(1).any(1)
    assert 0.4 < empty.float().mean() < 0.65  # a blot may be missed as well
    shares = masks[~empty].float().mean((1, 2))
    assert shares.min() < 0.1
    assert shares.max() > 0.4
    inside = masks[:, 1:, :] & masks[:, :-1, :]
    assert inside.sum() > 0.6 * masks.sum()  # cells of a blot have neighbours in it
    assert blots(2, 3).shape == (2, 3, 3)


def test_padding_has_no_part_in_what_is_pooled() -> None:
    values, shown = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4)
    shown[:, 1:3] = 1
    loud = values.clone()
    loud[:, :, 0] = 100
    for of_values, of_loud in zip(pools(values, shown), pools(loud, shown), strict=True):
        assert torch.equal(of_values, of_loud)
    torch.testing.assert_close(pools(values, shown)[1], values[:, :, 1:3].mean((2, 3)))


def samples_of(folder: Path, fold: int, known: int, **split) -> list[Sample]:
    listed = read_folder(folder).samples
    config = SplitConfig(protocol="kfold", folds=3, fold=fold, **split)
    return good_alone(split_samples(listed, config), listed, config, known)


def paths(samples: list[Sample], split: str, good: bool | None = None) -> set[str]:
    return {s.path for s in samples if s.split == split and good in (None, s.label == "good")}


@pytest.mark.parametrize("pool", ["test", "all"])
def test_known_defects_train_and_nothing_else_changes(widget: Path, pool: str) -> None:
    tested: set[str] = set()
    for fold in range(3):
        alone, mixed, few = (samples_of(widget, fold, known, pool=pool) for known in (0, 1000, 2))
        for other in (mixed, few):
            for split in ("val", "test"):
                assert paths(other, split) == paths(alone, split)
            assert paths(other, "train", good=True) == paths(alone, "train", good=True)
        defects = {s.path for s in mixed if s.label != "good"}
        assert paths(mixed, "train", good=False) == defects - paths(mixed, "test")
        drawn = paths(few, "train", good=False)
        assert drawn < paths(mixed, "train", good=False)
        assert [sum(kind in path for path in drawn) for kind in ("crack", "hole")] == [2, 2]
        assert paths(samples_of(widget, fold, 1, pool=pool), "train", good=False) < drawn
        assert not paths(mixed, "train") & paths(mixed, "test")
        tested |= paths(mixed, "test", good=False)
    assert tested == {f"test/{kind}/{i:03}.png" for kind in ("crack", "hole") for i in range(6)}


def test_a_defect_whose_group_is_judged_is_not_learnt_from() -> None:
    samples = [Sample(f"train/good/{i:02}.png", "good") for i in range(12)]
    samples += [Sample(f"test/{kind}/{i:02}.png", kind) for kind in ("good", "hole") for i in range(12, 24)]
    samples += [Sample(f"test/hole/{i:02}.png", "hole") for i in range(12)]
    split = SplitConfig(protocol="kfold", folds=3, group_by=r"(\d\d)")
    for fold in range(3):
        split.fold = fold
        mixed = good_alone(split_samples(samples, split), samples, split, 1000)
        groups = {part: {s.group for s in mixed if s.split == part} for part in ("train", "val", "test")}
        assert not groups["train"] & (groups["val"] | groups["test"])
        assert paths(mixed, "train", good=False)


def test_defects_that_are_not_set_apart_are_known_to_one_class() -> None:
    samples = [Sample(f"{i}.png", "hole" if i % 3 else "good", split="train" if i < 20 else "test") for i in range(30)]
    split = SplitConfig(protocol="one_class")
    for known in (0, 3):
        mixed = good_alone(split_samples(samples, split), samples, split, known)
        assert len(paths(mixed, "train", good=False)) == known
        assert all(int(path[:-4]) < 20 for path in paths(mixed, "train"))


@pytest.fixture
def known(widget: Path, tiny_net: str, tmp_path: Path) -> Callable[..., tuple]:
    """A model that knows the training images of a fold, and their batch: ``known("data.image_size=24")``."""

    def go(*words: str) -> tuple[SuperSimpleNet, dict[str, torch.Tensor], list[Sample]]:
        words = (
            *MIXED, *KFOLD, "data=folder", f"data.root={widget}", "data.masks=optional", "model.weights=null",
            f"model.backbone={tiny_net}", f"data.image_size={SIZE}", *words,
        )  # fmt: skip
        data = build_data(compose(*words))
        data.setup()
        dataset = data.dataset("train")
        torch.manual_seed(0)
        layers = ["features.relu1", "features.relu2"]
        model = build_anomaly_model(
            "supersimplenet", backbone=tiny_net, weights=None, image_size=SIZE, layers=layers, known=1000
        )
        model.know(dataset)
        assert isinstance(model, SuperSimpleNet)
        return model.train(), dataset[list(range(len(dataset)))], dataset.samples

    return go


def test_masks_say_which_cells_are_defective(known, widget: Path) -> None:
    model, batch, samples = known()
    assert model.known is not None
    assert model.known.defect.tolist() == [s.label != "good" for s in samples]
    assert not model.known.bare.any()
    for s, marked in zip(samples, model.known.marked, strict=True):
        mask = np.zeros((SIZE, SIZE)) if s.mask is None else np.asarray(Image.open(widget / s.mask)) > 0
        cover = F.avg_pool2d(torch.from_numpy(mask).float()[None], SIZE // marked.shape[-1])[0]
        assert torch.equal(marked, cover > 0.5)
        assert marked.any() == (s.label != "good")
    before = model.loss_of(batch)
    assert torch.isfinite(before)


def test_a_mask_smaller_than_a_cell_marks_one(known, widget: Path) -> None:
    for path in (widget / "ground_truth").rglob("*.png"):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[9, 9] = 255
        Image.fromarray(mask).save(path)
    model, _, samples = known()
    assert model.known.marked.flatten(1).sum(1).tolist() == [int(s.label != "good") for s in samples]


def test_a_defect_without_a_mask_is_known_by_its_label_alone(known, widget: Path) -> None:
    masked, batch, _ = known()
    assert masked.known is not None
    shutil.rmtree(widget / "ground_truth")
    bare, _, _ = known()
    assert bare.known is not None
    assert bare.known.bare.tolist() == bare.known.defect.tolist() == masked.known.defect.tolist()

    def loss(**changes: torch.Tensor) -> float:
        assert bare.known is not None
        former, bare.known = bare.known, bare.known._replace(**changes)
        torch.manual_seed(1)
        value = float(bare.loss_of(batch).detach())
        bare.known = former
        return value

    # With its cells taken for good ones the loss is another one, and so it is where the label is not believed.
    assert loss() != loss(bare=torch.zeros_like(bare.known.bare))
    assert loss() != loss(defect=torch.zeros_like(bare.known.defect))
    # Of a batch of such defects alone no cell is known.
    some = bare.known.bare.nonzero()[:2, 0]
    assert torch.isfinite(bare.loss_of({name: values[some] for name, values in batch.items()}))


def test_validation_images_are_no_known_ones(known) -> None:
    model, batch, _ = known()
    values = []
    for state in (model.known, None):
        model.known = state
        torch.manual_seed(1)
        values.append(float(model.eval().loss_of(batch).detach()))
    assert values[0] == values[1]


@pytest.mark.slow
def test_a_run_with_known_defects_is_judged_by_what_it_did_not_learn(lab, widget: Path, tmp_path: Path) -> None:
    assert lab(*MIXED, *KFOLD, "hydra.run.dir=mixed") == 0
    assert lab(*ALONE, *KFOLD, "hydra.run.dir=alone") == 0
    mixed, alone = (RunResult.load(tmp_path / name) for name in ("mixed", "alone"))
    assert mixed.counts["train"] == {"good": 10, "defect": 8}
    assert alone.counts["train"] == {"good": 10, "defect": 0}
    assert mixed.counts["val"] == alone.counts["val"] == {"good": 2, "defect": 0}
    assert mixed.features == ["test", "train", "val"]
    for key in ("image_auroc", "pixel_auroc", "pixel_aupro", "f1"):
        assert mixed.metrics["test"][key] is not None
    assert mixed.threshold["rule"] == "quantile"
    assert not [w for w in mixed.warnings if w.startswith("class")]  # good images validate, whatever is known
    rows = {name: read_csv(tmp_path / name / PREDICTIONS) for name in ("mixed", "alone")}
    assert [r["path"] for r in rows["mixed"]] == [r["path"] for r in rows["alone"]]
    learnt = {r["path"] for r in read_csv(tmp_path / "mixed/samples.csv") if r["split"] == "train"}
    assert not learnt & {r["path"] for r in rows["mixed"]}
    first, second = (load_model(tmp_path / name / "best.ckpt").module for name in ("mixed", "alone"))
    torch.testing.assert_close(first.centre, second.centre)  # of good images alone; batches may part elsewhere
    torch.testing.assert_close(first.spread, second.spread)
    assert "10 good images and 8 defects to learn from" in (tmp_path / "mixed/run.log").read_text()


@pytest.mark.slow
def test_a_run_is_the_same_again_whatever_is_cached(lab, widget: Path, tmp_path: Path) -> None:
    words = {"a": [], "again": [], "bare": ["cache.dir=null"], "workers": ["cache.dir=null", "data.num_workers=1"]}
    for name, further in words.items():
        assert lab(*MIXED, *KFOLD, f"hydra.run.dir={name}", *further) == 0
    first = RunResult.load(tmp_path / "a")
    for name in words:
        assert RunResult.load(tmp_path / name).metrics == first.metrics
        assert (tmp_path / name / PREDICTIONS).read_text() == (tmp_path / "a" / PREDICTIONS).read_text()


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_if_it_had_not(lab, widget: Path, tmp_path: Path, monkeypatch) -> None:
    assert lab(*MIXED, *KFOLD, "hydra.run.dir=whole") == 0
    step = SuperSimpleNet.training_step

    def stopped(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SuperSimpleNet, "training_step", stopped)
        assert lab(*MIXED, *KFOLD, "hydra.run.dir=run") == 130
    assert lab(*MIXED, *KFOLD, "hydra.run.dir=run", "resume=true") == 0
    whole, again = (RunResult.load(tmp_path / name) for name in ("whole", "run"))
    assert (again.epochs, again.metrics) == (whole.epochs, whole.metrics)


@pytest.mark.slow
def test_a_checkpoint_judges_new_images_as_the_run_did(lab, widget: Path, tmp_path: Path) -> None:
    assert lab(*MIXED, *KFOLD, "hydra.run.dir=run") == 0
    assert load_model(tmp_path / "run/best.ckpt").module.known is None
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={widget / 'test'}", "hydra.run.dir=new") == 0
    ours = {r["path"]: r for r in read_csv(tmp_path / "run" / PREDICTIONS) if r["split"] == "test"}
    new = {r["path"].split("widget/")[-1]: r for r in read_csv(tmp_path / "new" / PREDICTIONS)}
    for path, row in ours.items():
        (other,) = [r for name, r in new.items() if path.endswith(name) or name.endswith(path)]
        assert float(other["score"]) == pytest.approx(float(row["score"]), rel=1e-4, abs=1e-5)
        assert other["prediction"] == row["prediction"]
    assert lab("task=evaluate", "ckpt=run/best.ckpt", "hydra.run.dir=judged") == 0  # on all of test/
    warnings = json.loads((tmp_path / "judged/metrics.json").read_text())["warnings"]
    assert any("8 of these images trained this checkpoint" in warning for warning in warnings)


def test_letterboxed_images_and_defects_without_masks_are_learnt(lab, widget: Path, tmp_path: Path) -> None:
    for path in widget.rglob("*.png"):
        Image.open(path).resize((SIZE, SIZE // 2)).save(path)
    for path in (widget / "ground_truth/hole").iterdir():
        path.unlink()
    assert lab(*MIXED, *KFOLD, "data.fit=letterbox", "hydra.run.dir=run") == 0
    result = RunResult.load(tmp_path / "run")
    assert result.counts["train"] == {"good": 10, "defect": 8}
    assert result.metrics["test"]["pixel_auroc"] is not None
    assert any("without a mask count in no pixel metric" in warning for warning in result.warnings)


def test_a_tile_is_a_defect_where_its_mask_marks_something(lab, widget: Path, tmp_path: Path, capsys) -> None:
    tiles = (*MIXED, *KFOLD, f"data.tile={SIZE - 8}")
    assert lab(*tiles, "hydra.run.dir=run") == 0
    assert RunResult.load(tmp_path / "run").counts["train"] == {"good": 10, "defect": 8}
    assert "tiles of 16 pixels" in (tmp_path / "run/run.log").read_text()
    for path in (widget / "ground_truth/hole").iterdir():
        path.unlink()
    capsys.readouterr()
    assert lab(*tiles, "hydra.run.dir=refused") == 2
    assert "has no mask: which of its tiles show the defect is not known" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "split.protocol=one_class",
            "model.options.known=1000, but split.protocol=one_class leaves no defect to learn",
        ),
        (
            "split.protocol=file split.file=x.csv",
            "model.options.known=1000 and split.protocol=file: known defects are learnt with",
        ),
        (
            "+augment.transforms.HorizontalFlip.p=0.5",
            "augment.transforms moves images but not the known defects' masks",
        ),
        ("model.options.known=-1", "model.options.known=-1 is out of range: give 0 or more"),
        ("model.options.known=0", "model.method=supersimplenet and split.protocol=holdout"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(lab, widget, tmp_path, capsys, arguments: str, said: str) -> None:
    assert lab(*MIXED, *arguments.split(), "hydra.run.dir=refused") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_a_product_without_defects_has_none_to_know(lab, tmp_path: Path, capsys) -> None:
    folder = write_product(tmp_path / "fresh", {"good": 6}, train_good=8)
    assert lab(*MIXED, f"data.root={folder}", "hydra.run.dir=refused") == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert lab(*ALONE, f"data.root={folder}", "hydra.run.dir=alone") == 0
