"""Masks and boxes: they move with their image, and nobody reads them who has not asked for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import SIZE
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from mvtec_lab.cache import ArrayCache
from mvtec_lab.config import AugmentConfig
from mvtec_lab.data import samples as samples_module
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.images import read_mask
from mvtec_lab.data.targets import boxes_of, resize_mask
from mvtec_lab.data.transforms import Augmentation
from mvtec_lab.errors import LabError

BOTH = ("mask", "boxes")


def dataset(product: Path, transforms: dict[str, Any] | None = None, **settings: Any) -> MVTecDataset:
    augmentation = Augmentation(transforms, SIZE) if transforms else None
    return MVTecDataset(product, image_size=SIZE, augmentation=augmentation, **{"targets": BOTH, **settings})


def place_of(data: MVTecDataset, label: str) -> int:
    return next(i for i, s in enumerate(data.samples) if s.label == label)


def coloured(image: Tensor) -> Tensor:
    """Return where a normalised image is coloured, [S, S]: the defects of the tiny product are."""
    return image.amax(0) - image.amin(0) > 2


def test_an_item_has_its_mask_and_its_boxes(product: Path) -> None:
    data = dataset(product, mean=[0.5] * 3, std=[0.2] * 3)
    for label, kind in (("crack", 1), ("hole", 2)):
        place = place_of(data, label)
        item = data[place]
        assert item["mask"].dtype == torch.uint8
        assert item["mask"].bool().numpy().tolist() == read_mask(product / data.samples[place].mask).tolist()
        assert torch.equal(coloured(item["image"]), item["mask"].bool())
        expected = masks_to_boxes(item["mask"][None]) + torch.tensor([0, 0, 1, 1])  # its maximum is inclusive
        torch.testing.assert_close(item["boxes"], expected)
        assert item["labels"].tolist() == [kind]
        assert item["labels"].dtype == torch.int64
    good = data[place_of(data, "good")]
    assert not good["mask"].any()
    assert good["boxes"].shape == (0, 4)
    assert good["labels"].shape == (0,)


@pytest.mark.parametrize(("name", "label"), [("HorizontalFlip", "hole"), ("Transpose", "crack")])
def test_masks_and_boxes_move_with_the_image(name: str, label: str, product: Path) -> None:
    plain, moved = dataset(product), dataset(product, {name: {"p": 1.0}})
    place = place_of(plain, label)
    before, after = plain[place], moved[place]
    turn = (lambda t: t.flip(-1)) if name == "HorizontalFlip" else (lambda t: t.transpose(-1, -2))
    assert torch.equal(after["image"], turn(before["image"]))
    assert torch.equal(after["mask"], turn(before["mask"]))
    x0, y0, x1, y1 = before["boxes"][0].tolist()
    expected = [SIZE - x1, y0, SIZE - x0, y1] if name == "HorizontalFlip" else [y0, x0, y1, x1]
    assert after["boxes"].tolist() == [expected]
    assert after["boxes"].tolist() != before["boxes"].tolist()


def test_a_crop_drops_the_boxes_outside(product: Path) -> None:
    place = place_of(dataset(product), "hole")
    x0, y0, x1, y1 = map(int, dataset(product)[place]["boxes"][0].tolist())

    def cropped(left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
        crop = {"x_min": left, "y_min": top, "x_max": right, "y_max": bottom, "p": 1.0}
        return dataset(product, {"Crop": crop, "Resize": {"height": SIZE, "width": SIZE, "p": 1.0}})[place]

    away = cropped(0, y1, SIZE, SIZE)
    assert away["boxes"].shape == (0, 4)
    assert not away["mask"].any()
    assert len(away["labels"]) == 0
    assert cropped(x0, y0, x1, y1)["boxes"].tolist() == [[0, 0, SIZE, SIZE]]


def test_random_draws_of_the_image_do_not_depend_on_targets(product: Path) -> None:
    transforms = {"Rotate": {"limit": 90, "p": 0.7}, "ColorJitter": {"p": 0.5}, "VerticalFlip": {"p": 0.5}}
    plain, both = dataset(product, transforms, targets=()), dataset(product, transforms)
    for seed in range(5):
        assert torch.equal(plain[(0, seed)]["image"], both[(0, seed)]["image"])
        assert plain[(0, seed)].keys() == {"image", "label", "index"}


def test_a_batch_has_masks_in_one_tensor_and_boxes_in_a_list(product: Path) -> None:
    data = dataset(product)
    places = [place_of(data, label) for label in ("good", "crack", "hole")]
    batch = data[places]
    assert batch["mask"].shape == (3, SIZE, SIZE)
    assert [boxes.shape for boxes in batch["boxes"]] == [(0, 4), (1, 4), (1, 4)]
    assert [labels.tolist() for labels in batch["labels"]] == [[], [1], [2]]


def test_every_component_has_its_box() -> None:
    mask = np.zeros((12, 9), bool)
    mask[1:4, 2:6] = True
    mask[4, 6] = True  # touches the first by its corner: 8-connected
    mask[11, 8] = True
    assert sorted(boxes_of(mask).tolist()) == [[2, 1, 7, 5], [8, 11, 9, 12]]
    assert boxes_of(mask).dtype == torch.float32
    assert boxes_of(np.zeros((5, 5), np.uint8)).shape == (0, 4)
    assert boxes_of(np.ones((5, 7), np.uint8)).tolist() == [[0, 0, 7, 5]]


def test_a_smaller_mask_keeps_its_share_and_its_scratches() -> None:
    mask = cv2.circle(np.zeros((900, 900), np.uint8), (400, 500), 130, 1, -1) > 0
    for size in (64, 224, 256, 1000):
        small = resize_mask(mask, size)
        assert small.shape == (size, size)
        assert set(np.unique(small)) == {0, 1}
        assert small.mean() == pytest.approx(mask.mean(), rel=0.03)
    scratch = np.zeros((900, 900), bool)
    scratch[300, 100:500] = True
    assert resize_mask(scratch, 64).any()
    assert not resize_mask(np.zeros((900, 900), bool), 64).any()


def test_pasting_gives_a_good_image_the_mask_of_its_new_defect(product: Path) -> None:
    def items(paste: float) -> tuple[MVTecDataset, list[dict[str, Any]]]:
        data = MVTecDataModule(product, image_size=SIZE, augment=AugmentConfig(paste=paste), targets=BOTH)
        data.setup()
        train = data.dataset("train")
        return train, [train[(place, 3)] for place in range(len(train))]

    train, pasted = items(1.0)
    _, plain = items(0.0)
    moved = 0
    for sample, new, old in zip(train.samples, pasted, plain, strict=True):
        assert bool(new["mask"].any()) == (sample.label != "good")
        if sample.label != "good":
            moved += not torch.equal(new["mask"], old["mask"])
            defect = coloured(new["image"])
            both = (defect & new["mask"].bool()).sum() / (defect | new["mask"].bool()).sum()
            assert both > 0.4  # of three pixels' width, edges are much of it
            assert len(new["boxes"]) == len(new["labels"]) >= 1
    assert moved > 0


def test_training_without_targets_reads_no_mask(product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(samples_module, "read_mask", lambda path: read.append(path) or read_mask(path))
    flip = AugmentConfig(transforms={"HorizontalFlip": {}})

    def epoch(**settings: Any) -> int:
        read.clear()
        data = MVTecDataModule(product, image_size=SIZE, batch_size=4, **settings)
        data.setup()
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            assert all(len(batch["label"]) for batch in loader)
        return len(read)

    for cache in (None, ArrayCache(tmp_path / "c")):
        assert epoch(cache=cache) == epoch(cache=cache, augment=flip) == 0
        defects = 12
        assert epoch(cache=cache, targets=("mask",)) == defects


def test_a_figure_asks_the_data_set_for_the_mask(product: Path) -> None:
    data = dataset(product, targets=())
    hole, good = place_of(data, "hole"), place_of(data, "good")
    mask = data.mask(hole)
    assert mask is not None
    assert mask.dtype == bool
    assert mask.sum() == 25
    assert data.mask(good) is None
    Image.new("L", (SIZE, SIZE)).save(product / data.samples[hole].mask)
    assert data.mask(hole) is None
    (product / data.samples[hole].mask).write_bytes(b"")
    assert data.mask(hole) is None


def test_bad_input_is_one_line(product: Path) -> None:
    with pytest.raises(LabError, match="unknown target 'maks': did you mean mask"):
        dataset(product, targets=("maks",))
    with pytest.raises(LabError, match=r"augment\.mix=mixup mixes class labels, not boxes: give augment\.mix=none"):
        MVTecDataModule(product, augment=AugmentConfig(mix="mixup"), targets=("boxes",))
    (product / "ground_truth/hole/000_mask.png").unlink()
    with pytest.raises(LabError, match=r"test/hole/000\.png has no mask to learn from: add it"):
        dataset(product)
    dataset(product, targets=())
