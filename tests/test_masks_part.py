"""The part ``masks`` of descriptors: what it learns from masks, and that no image is described by its own."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from mvtec_lab.problems.classification.methods.descriptors import masks
from mvtec_lab.problems.classification.methods.descriptors.crossfit import Crossfitted
from mvtec_lab.problems.classification.methods.descriptors.heads import Fitted, deal, fit_head, fit_heads
from mvtec_lab.problems.classification.methods.descriptors.maps import Seen
from mvtec_lab.problems.classification.methods.descriptors.masks import SHRINKAGE, Masks
from mvtec_lab.problems.classification.methods.descriptors.memory import Memory
from mvtec_lab.problems.classification.methods.descriptors.parts import Block, Setting
from mvtec_lab.results import PREDICTIONS

SIDE, WIDTHS, CLASSES = 6, (3, 5), ["good", "crack", "hole"]


class Sample:
    def __init__(self, label: str) -> None:
        self.label = label


class Images:
    """Thirty images of which a third is good: a defect's cells have other values, each type's in another channel."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.labels = np.arange(30) % 3
        self.samples = [Sample(CLASSES[label]) for label in self.labels]
        self.maps = torch.from_numpy(rng.normal(size=(30, sum(WIDTHS), SIDE, SIDE))).float()
        self.masks: list[torch.Tensor | None] = []
        for place, label in enumerate(self.labels):
            mask = torch.zeros(SIDE, SIDE)
            if label:
                row, column = rng.integers(0, SIDE - 1, 2)
                mask[row : row + 2, column : column + 2] = 1
                self.maps[place, 1 + label] += 3 * mask
                self.maps[place, 4] += 3 * mask
            self.masks.append(mask.flatten())
        self.memory = Memory(WIDTHS, SIDE, 8)
        good = torch.from_numpy(rng.normal(size=(8, SIDE**2, sum(WIDTHS)))).float()
        self.memory.learn(((patches, torch.ones(SIDE**2)) for patches in good), range(8))

        self.memories: dict[frozenset[int], Memory] = {}  # there are good images beside those that are learnt from

    def __getitem__(self, place: int) -> Seen:
        return Seen(list(self.maps[place][None].split(WIDTHS, dim=1)), self.memory)

    def seen(self, place: int, left: frozenset[int]) -> Seen:
        return self[place]

    def marked(self, place: int) -> torch.Tensor | None:
        return self.masks[place]


def fitted(images: Images, places=range(30)) -> Masks:
    part, sums = Masks(Setting(CLASSES, WIDTHS, SIDE)), None
    for place in places:
        of_image = part.sums(images[place], images.marked(place), images.samples[place].label)
        sums = of_image if sums is None else tuple(map(torch.add, sums, of_image))
    part.learn(sums)
    return part


def test_patches_are_typed_as_scikit_learns_discriminant_types_them():
    images = Images()
    patches, kinds = [], []
    for place, label in enumerate(images.labels):
        seen = images[place]
        patches.append(Masks(Setting(CLASSES, WIDTHS, SIDE))._reduced(seen.away))
        kinds.append(images.masks[place] * label)
    rows, kinds = torch.cat(patches).double().numpy(), torch.cat(kinds).numpy()
    known = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE, priors=[1 / 3] * 3).fit(rows, kinds)
    odds = known.decision_function(rows)
    part = fitted(images)
    seen = images[4]
    own = seen.away @ part.directions + part.offsets
    expected = odds[4 * SIDE**2 : 5 * SIDE**2]
    np.testing.assert_allclose(own - own[:, :1], expected - expected[:, :1], atol=1e-3)
    of_types = expected[:, 1:] - expected[:, :1]
    of_types = np.concatenate([of_types, np.logaddexp(*of_types.T)[:, None]], 1)
    np.testing.assert_allclose(part.rows(seen), np.sort(of_types, 0)[-5:].mean(0), atol=1e-3)


def test_odds_tell_the_type_of_defects_in_images_that_are_new_to_it():
    images = Images()
    part = fitted(images, range(15))
    odds = torch.stack([part.rows(images[place]) for place in range(15, 30)]).numpy()
    labels = images.labels[15:]
    assert odds.shape[1] == sum(block.width for block in part.blocks) == 3
    assert odds[labels == 0, -1].max() < odds[labels > 0, -1].min()  # of any type
    assert (odds[labels > 0, :2].argmax(1) + 1 == labels[labels > 0]).all()


def test_sure_odds_are_told_apart():
    """Odds of a clear defect are e to the hundred and more; what is surer still is told so."""
    images = Images()
    for place, label in enumerate(images.labels):
        if label:
            images.maps[place, 4] += 300 * images.masks[place].view(SIDE, SIDE)
    part = fitted(images)
    odds = torch.stack([part.rows(images[place]) for place in np.flatnonzero(images.labels).tolist()])
    assert odds.min() > 0
    assert odds[:, -1].max() > 100
    assert odds[:, -1].unique().numel() == len(odds)


def test_wide_patches_are_projected_and_typed_all_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(masks, "WIDEST", 6)
    images = Images()
    part, labels = fitted(images), images.labels
    odds = torch.stack([part.rows(images[place]) for place in range(30)]).numpy()
    assert np.median(odds[labels == 0, -1]) < odds[labels > 0, -1].min()
    assert part.directions.shape == (sum(WIDTHS), 3)


def test_no_image_is_described_by_its_own_mask():
    """Two images of fold 0 change their masks: rows of that fold stay, those of others that have seen it change."""
    images, folds = Images(), np.arange(30) % 5
    setting = Setting(CLASSES, WIDTHS, SIDE)
    before = Crossfitted(Masks(setting), images, range(30), folds)
    for place in (10, 20):  # fold 0, and defects
        images.masks[place] = images.masks[place].flip(0)
    after = Crossfitted(Masks(setting), images, range(30), folds)
    everything, none = np.arange(30), np.arange(0)
    rows, again = before(everything, none)[0], after(everything, none)[0]
    assert (rows[folds == 0] == again[folds == 0]).all()
    assert (rows[folds == 1] != again[folds == 1]).any()
    # a head that leaves fold 0 out sees nothing of its masks, in whatever rows
    parts = np.flatnonzero(folds != 0), np.flatnonzero(folds == 0)
    for rows, again in zip(before(*parts), after(*parts), strict=True):
        assert (rows == again).all()
    # one that leaves out fold 1 gets rows of fold 2 that differ, as fold 0 is seen, and those of fold 0 as they were
    parts = np.flatnonzero(folds != 1), np.flatnonzero(folds == 1)
    rows, again = before(*parts)[0], after(*parts)[0]
    of_fold = folds[folds != 1]
    assert (rows[of_fold == 0] == again[of_fold == 0]).all()
    assert (rows[of_fold == 2] != again[of_fold == 2]).any()


def test_copies_learn_what_a_part_of_the_same_images_learns():
    images, folds = Images(), np.arange(30) % 5
    part = Masks(Setting(CLASSES, WIDTHS, SIDE))
    rows, _ = Crossfitted(part, images, range(30), folds)(np.arange(30), np.arange(0))
    alone = fitted(images, np.flatnonzero(folds != 2).tolist())
    for place in np.flatnonzero(folds == 2):
        np.testing.assert_allclose(rows[place], alone.rows(images[int(place)]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(part.directions, fitted(images).directions, rtol=1e-3, atol=1e-4)


def test_the_only_image_of_a_class_is_described_by_a_copy_that_has_not_seen_it():
    images, folds = Images(), np.arange(30) % 5
    folds[4] = -1
    setting = Setting(CLASSES, WIDTHS, SIDE)
    before = Crossfitted(Masks(setting), images, range(30), folds)
    images.masks[4] = images.masks[4].flip(0)
    after = Crossfitted(Masks(setting), images, range(30), folds)
    for left in (np.arange(0), np.flatnonzero(folds == 1)):
        fitting = np.setdiff1d(np.arange(30), left)
        rows, again = before(fitting, left)[0], after(fitting, left)[0]
        assert (rows[4 - (left < 4).sum()] == again[4 - (left < 4).sum()]).all()
        assert (rows != again).any()


@pytest.mark.parametrize("masked", [[], [1, 4, 7]])
def test_images_without_a_mask_teach_nothing(masked: list[int]):
    """Without any, the distance to good patches is told; a type without one is as far as any."""
    images, folds = Images(), np.arange(30) % 5
    for place, label in enumerate(images.labels):
        if label and place not in masked:
            images.masks[place] = None
    part = Masks(Setting(CLASSES, WIDTHS, SIDE))
    crossfitted = Crossfitted(part, images, range(30), folds)
    assert crossfitted.silent == 20 - len(masked)
    assert part.typed == bool(masked)
    assert ("ignores" if masked else "how far") in part.remark(crossfitted.silent, 30)
    rows = torch.stack([part.rows(images[place]) for place in range(30)])
    assert rows.isfinite().all()
    if masked:  # masks of cracks alone
        assert (rows[:, 1] < rows[:, 0]).all()
        assert rows[:, 1].unique().numel() > 20  # nor is it one number for all images
    assert np.isfinite(crossfitted(np.arange(30), np.arange(0))[0]).all()
    assert not part.remark(0, 30) or not masked


SETTINGS = (
    "model.method=descriptors",
    "model.options.parts=[global,masks]",
    "model.options.layers=[features.relu2]",
    "model.options.views=1",
)


def run_of(folder: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the predictions of a run's test images by path, and its result."""
    with (folder / PREDICTIONS).open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file) if row["split"] == "test"}
    return rows, json.loads((folder / "result.json").read_text())


@pytest.mark.slow
def test_test_images_masks_are_not_looked_at_and_predict_needs_none(lab, product: Path, tmp_path: Path):
    assert lab(*SETTINGS, "hydra.run.dir=run") == 0
    rows, result = run_of(tmp_path / "run")
    assert result["warnings"] == [line for line in result["warnings"] if "masks" not in line]
    tested = [path for path, row in rows.items() if row["label"] != "good"]
    for path in tested:
        mask = product / path.replace("test", "ground_truth").replace(".png", "_mask.png")
        Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 255)).save(mask)
    assert lab(*SETTINGS, "hydra.run.dir=again") == 0
    assert run_of(tmp_path / "again")[0] == rows
    shutil.rmtree(product / "ground_truth")
    assert lab("task=predict", "ckpt=run/best.ckpt", f"source={product / 'test'}", "hydra.run.dir=new") == 0
    with (tmp_path / "new" / PREDICTIONS).open() as file:
        found = {"test/" + row["path"].split("test/")[-1]: row for row in csv.DictReader(file)}
    for path, row in rows.items():
        assert abs(float(found[path]["prob_crack"]) - float(row["prob_crack"])) < 1e-5


def test_a_product_without_masks_says_so_in_the_table(lab, product: Path, tmp_path: Path):
    shutil.rmtree(product / "ground_truth")
    assert lab(*SETTINGS, "hydra.run.dir=run") == 0
    assert any("no mask to learn from" in line for line in run_of(tmp_path / "run")[1]["warnings"])


def test_masks_of_some_images_are_enough(lab, product: Path, tmp_path: Path):
    """Cracks have one mask, and one hole's is that of another size, which the lab does not take for its mask."""
    for mask in sorted((product / "ground_truth/crack").iterdir())[1:]:
        mask.unlink()
    mask = product / "ground_truth/hole/000_mask.png"
    Image.fromarray(np.full((48, 60), 255, np.uint8)).save(mask)
    assert lab(*SETTINGS, "model.options.alone=[masks]", "hydra.run.dir=run") == 0
    rows, result = run_of(tmp_path / "run")
    assert any("have no mask of their defect" in line for line in result["warnings"])
    assert all(np.isfinite(float(row["prob_hole"])) for row in rows.values())


def test_two_heads_classify_by_the_mean_of_their_logits():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 3
    rows = rng.normal(size=(30, 7)) + 2 * np.eye(7)[labels]
    folds = deal(labels, range(30))

    def given(fitting: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rows[fitting], rows[others]

    def alone(columns: slice) -> Fitted:
        some = rows[:, columns]
        return fit_head("logistic", lambda a, b: (some[a], some[b]), [Block(some.shape[1])], labels, folds)

    both = fit_heads("logistic", given, [[Block(2)], [Block(3)], [Block(2)]], [1], labels, folds)
    rest = [0, 1, 5, 6]
    own = alone(slice(2, 5))
    others = fit_head("logistic", lambda a, b: (rows[a][:, rest], rows[b][:, rest]), [Block(2)] * 2, labels, folds)
    mean = (own.layer(rows[:, 2:5]) + others.layer(rows[:, rest])) / 2
    np.testing.assert_allclose(both.layer(rows), mean, atol=1e-9)
    assert both.strength == (others.strength, own.strength)
    expected = np.sqrt(own.probabilities * others.probabilities)
    np.testing.assert_allclose(both.probabilities, expected / expected.sum(1, keepdims=True), atol=1e-6)
    everything = fit_heads("logistic", given, [[Block(2)], [Block(3)], [Block(2)]], [], labels, folds)
    np.testing.assert_allclose(
        everything.layer.weight, fit_head("logistic", given, [Block(2), Block(3), Block(2)], labels, folds).layer.weight
    )


def test_a_head_of_its_own_is_one_of_the_parts(lab, capsys):
    assert lab(*SETTINGS, "model.options.alone=[where]") == 2
    assert "unknown part in model.options.alone 'where': known are global, masks" in capsys.readouterr().err


def test_the_backbone_does_not_train_under_a_part_that_learns(lab, capsys):
    assert lab(*SETTINGS, "model.options.tune=1") == 2
    assert "masks learns from the images: leave one of them out" in capsys.readouterr().err
