"""Scanning, splitting, sampling, transforming: what reaches the network, and in which order."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from conftest import COUNTS, SIZE, write_product
from PIL import Image

from mvtec_lab.cache import ArrayCache
from mvtec_lab.config import AugmentConfig, SplitConfig
from mvtec_lab.data import dataset as dataset_module
from mvtec_lab.data import splits
from mvtec_lab.data.catalogue import CATEGORIES
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.layouts.mvtec import scan
from mvtec_lab.data.listing import name_left_out
from mvtec_lab.data.names import class_names
from mvtec_lab.data.samples import Sample
from mvtec_lab.data.sampling import EpochSampler, Sampling, class_weights
from mvtec_lab.data.source import locate
from mvtec_lab.data.transforms import Augmentation, normalise, resize
from mvtec_lab.errors import LabError
from mvtec_lab.results import write_csv


def test_catalogue_has_the_official_totals() -> None:
    totals = {name: (c.train, sum(c.test.values())) for name, c in CATEGORIES.items()}
    assert totals == {
        "bottle": (209, 83), "cable": (224, 150), "capsule": (219, 132), "carpet": (280, 117), "grid": (264, 78),
        "hazelnut": (391, 110), "leather": (245, 124), "metal_nut": (220, 115), "pill": (267, 167), "screw": (320, 160),
        "tile": (230, 117), "toothbrush": (60, 42), "transistor": (213, 100), "wood": (247, 79), "zipper": (240, 151),
    }  # fmt: skip


def test_scan_finds_images_masks_and_oddities(product: Path) -> None:
    (product / "test/crack/notes.txt").write_text("not an image")
    (product / "test/crack/.DS_Store").write_text("litter")
    (product / "test/.ipynb_checkpoints").mkdir()
    Image.new("L", (5, 5)).save(product / "test/loose.png")
    (product / "ground_truth/hole/003_mask.png").write_bytes(b"")
    (product / "ground_truth/hole/001_mask.png").unlink()
    Image.new("L", (5, 5)).save(product / "ground_truth/hole/002_mask.png")
    found = scan(product)
    assert Counter(s.label for s in found.samples) == {"good": 14, "crack": 6, "hole": 6}
    assert name_left_out(found.left_out, product) == [
        "left out: 1 hidden file(s) or folder(s) (test/.ipynb_checkpoints)",
        "left out: 1 image(s) in no class folder (test/loose.png)",
        "left out: 1 file(s) that are not images (test/crack/notes.txt)",
    ]
    assert "003_mask.png" in found.mask_problems.pop()
    assert found.mask_problems == [
        "test/hole/001.png has no mask in ground_truth/hole/",
        f"ground_truth/hole/002_mask.png is 5 x 5 but test/hole/002.png is {SIZE} x {SIZE}",
    ]
    masks = {s.path: s.mask for s in found.samples}
    assert masks["test/crack/000.png"] == "ground_truth/crack/000_mask.png"
    assert masks["test/hole/001.png"] is None
    assert masks["test/good/000.png"] is None


def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    for name in ("10.png", "9.png", "a.png"):
        path = tmp_path / "test/good" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    assert [Path(s.path).name for s in scan(tmp_path).samples] == ["9.png", "10.png", "a.png"]


def samples(counts: dict[str, int], part: str = "test") -> list[Sample]:
    return [Sample(f"{part}/{name}/{i:03}.png", name) for name, n in counts.items() for i in range(n)]


def split_samples(images: list[Sample], **settings) -> list[Sample]:
    return splits.split_samples(images, SplitConfig(**settings))


def by_split(split: list[Sample]) -> dict[str, Counter]:
    return {part: Counter(s.label for s in split if s.split == part) for part in ("train", "val", "test", "")}


def test_holdout_takes_its_share_of_every_class() -> None:
    found = by_split(split_samples(samples({"good": 58, "a": 10, "b": 3}), seed=1))
    assert found["test"] == {"good": 12, "a": 2, "b": 1}
    assert found["val"] == {"good": 12, "a": 2, "b": 1}
    assert found["train"] == {"good": 34, "a": 6, "b": 1}


def test_a_class_does_not_move_when_another_grows() -> None:
    def tested(counts: dict[str, int]) -> set[str]:
        return {s.path for s in split_samples(samples(counts)) if s.split == "test" and s.label == "a"}

    assert tested({"good": 20, "a": 10}) == tested({"good": 40, "a": 10, "b": 5})


def test_seeds_differ_and_repeat() -> None:
    pool = samples({"good": 30, "a": 30})
    assert split_samples(pool, seed=1) == split_samples(pool, seed=1)
    assert split_samples(pool, seed=1) != split_samples(pool, seed=2)


def test_kfold_tests_every_image_once() -> None:
    pool = samples({"good": 11, "a": 7})
    folds = [split_samples(pool, protocol="kfold", folds=3, fold=k) for k in range(3)]
    tested = [s.path for fold in folds for s in fold if s.split == "test"]
    assert sorted(tested) == sorted(s.path for s in pool)
    for fold in folds:
        assert all(by_split(fold)[part][label] >= 1 for part in ("train", "val", "test") for label in ("good", "a"))


def test_pool_and_per_class() -> None:
    pool = samples({"good": 9}, "train") + samples({"good": 9, "a": 8})
    assert by_split(split_samples(pool))[""] == {"good": 9}
    assert by_split(split_samples(pool, pool="all"))[""] == {}
    drawn = by_split(split_samples(pool, pool="all", per_class=5))
    assert drawn["train"] + drawn["val"] + drawn["test"] == {"good": 5, "a": 5}


@pytest.mark.parametrize("protocol", ["holdout", "kfold"])
def test_groups_stay_together(protocol: str) -> None:
    pool = [Sample(f"test/{c}/part{i // 3}_{i}.png", c) for c in ("good", "a") for i in range(30)]
    split = split_samples(pool, protocol=protocol, group_by=r"(\w+/part\d+)_")
    homes: dict[str, set[str]] = {}
    for s in split:
        homes.setdefault(s.group, set()).add(s.split)
    assert len(homes) == 20
    assert all(len(parts) == 1 for parts in homes.values())


def test_val_is_test_leaves_no_val() -> None:
    found = by_split(split_samples(samples({"good": 10, "a": 10}), val_is_test=True))
    assert found["val"] == {}
    assert found["train"] == {"good": 8, "a": 8}


def test_a_split_file_is_followed(tmp_path: Path) -> None:
    pool = samples({"good": 4, "a": 4})
    file = tmp_path / "split.csv"
    rows = [{"path": s.path, "split": ("train", "train", "val", "test")[i % 4]} for i, s in enumerate(pool)]
    write_csv(file, rows, ["path", "split"])
    split = split_samples(pool, protocol="file", file=str(file))
    assert {s.path: s.split for s in split} == {row["path"]: row["split"] for row in rows}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,split\ntest/a/999.png,train\n", "line 2: unknown image 'test/a/999.png': did you mean"),
        ("path,split\ntest/a/000.png,trian\n", "line 2: unknown split 'trian': did you mean train?"),
        ("path,split\ntest/a/000.png,train\ntest/a/000.png,test\n", "an image has one split"),
        ("path,split\ntest/a/000.png,train\ntest/a/001.png,test\n", "names no val image"),
        ("file,part\nx,y\n", "needs a header and rows with the columns path,split"),
        ("path,split\ntest/a/000.png,train\ntest/a/001.png,val\ntest/good/001.png,test\n", "'good' has no training"),
    ],
)
def test_a_wrong_split_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "split.csv"
    file.write_text(text)
    with pytest.raises(LabError, match=said.replace("(", r"\(")):
        split_samples(samples({"good": 4, "a": 4}), protocol="file", file=str(file))


@pytest.mark.parametrize(
    ("counts", "options", "said"),
    [
        ({"good": 9, "a": 2}, {}, "class 'a' has 2 image"),
        ({"good": 9, "a": 4}, {"protocol": "kfold", "folds": 5}, "class 'a' has 4 image"),
        ({"good": 9, "a": 4}, {"per_class": 5}, "class 'a' has only 4 images"),
        ({"good": 9}, {}, "single class"),
        ({"good": 9, "a": 9}, {"protocol": "nope"}, "unknown split.protocol 'nope'"),
        ({"good": 9, "a": 9}, {"val": 2.0}, "split.val=2.0 is out of range"),
        ({"good": 9, "a": 9}, {"protocol": "kfold", "fold": 9}, "split.fold=9 does not exist"),
        ({"good": 9, "a": 9}, {"group_by": "(serial)"}, "matches no image"),
    ],
)
def test_too_few_images_are_refused(counts: dict[str, int], options: dict, said: str) -> None:
    with pytest.raises(LabError, match=said):
        split_samples(samples(counts), **options)


def test_class_weights_follow_their_formulas() -> None:
    counts = [58, 10, 14]
    from sklearn.utils.class_weight import compute_class_weight

    balanced = compute_class_weight("balanced", classes=np.arange(3), y=np.repeat(np.arange(3), counts))
    np.testing.assert_allclose(class_weights(counts, "inverse"), balanced * 3 / balanced.sum())
    root = class_weights(counts, "sqrt")
    assert root[1] / root[0] == pytest.approx((58 / 10) ** 0.5)
    for beta, ratio in ((0.9, 1.53), (0.99, 4.62), (0.9999, 5.79)):  # the ratios of FACTS: 58 good, 10 of a defect
        weights = class_weights(counts, "effective", beta)
        assert weights[1] / weights[0] == pytest.approx(ratio, abs=0.01)
    for rule in ("none", "inverse", "sqrt", "effective"):
        assert class_weights(counts, rule).sum() == pytest.approx(3)
    assert class_weights([5, 0], "inverse").tolist() == [2, 0]
    with pytest.raises(LabError, match="did you mean inverse"):
        class_weights(counts, "invers")


def test_sampler_depends_on_seed_and_epoch_alone() -> None:
    sampler = EpochSampler(10, seed=3)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert sorted(place for place, _ in sampler) == list(range(10))


def test_weighted_sampler_draws_classes_evenly() -> None:
    weights = [1 / 90] * 90 + [1 / 10] * 10
    drawn = [place >= 90 for epoch in range(50) for place, _ in _epoch(EpochSampler(100, weights), epoch)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.03)


def _epoch(sampler: EpochSampler, epoch: int) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("weights", [None, [1.0] * 5 + [9.0] * 4])
def test_processes_share_one_draw(weights: list[float] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(EpochSampler(9, weights, seed=1))
    shares = []
    for rank in range(2):
        monkeypatch.setattr(EpochSampler, "_processes", staticmethod(lambda rank=rank: (rank, 2)))
        shares.append(list(EpochSampler(9, weights, seed=1)))
    assert len(shares[0]) == len(shares[1]) == 5  # every process makes as many steps
    assert [pair for pairs in zip(*shares, strict=True) for pair in pairs][:9] == whole


def test_resize_keeps_a_small_defect_visible() -> None:
    image = np.zeros((90, 60, 3), np.uint8)
    image[40:43, 20:23] = 255
    small = resize(image, 30)
    assert small.shape == (30, 30, 3)
    assert small.max() > 80  # a nearest neighbour could have missed it
    assert resize(small, 30) is small


@pytest.mark.parametrize("size", [192, 224, 250])
def test_resize_averages_each_axis_that_shrinks(size: int) -> None:
    """A scratch on a line-scan image, long and narrower than the network's images, keeps its share of the area."""
    image = np.zeros((2048, 200, 3), np.uint8)
    image[500:503] = 255  # 3 of 2,048 rows; without averaging they vanish between two sampled ones
    for long, picture in ((0, resize(image, size)), (1, resize(image.transpose(1, 0, 2).copy(), size))):
        profile = picture[..., 0].mean(axis=1 - long)
        assert profile.sum() / 255 == pytest.approx(3 * size / 2048, rel=0.1)


def test_resize_of_both_axes_at_once_is_one_of_opencv_s() -> None:
    """Figures of images that shrink or grow in both axes do not move with the rule for each axis."""
    image = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    for size, how in ((50, cv2.INTER_AREA), (60, cv2.INTER_AREA), (100, cv2.INTER_CUBIC)):
        np.testing.assert_array_equal(resize(image, size), cv2.resize(image, (size, size), interpolation=how))


def test_normalise() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 7, 5, 3), dtype=np.uint8)
    tensor = normalise(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert tensor.shape == (2, 3, 7, 5)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert tensor[1, 2, 3, 4] == pytest.approx((images[1, 3, 4, 2] / 255 - 0.406) / 0.225, rel=1e-5)
    torch.testing.assert_close(normalise(images[1], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), tensor[1])


def test_augmentation_is_its_seed() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    augment = Augmentation({"Rotate": {"limit": 30, "p": 1.0}, "ColorJitter": {"p": 1.0}})
    first = augment(image, 5)[0]
    augment(image, 6)
    np.testing.assert_array_equal(augment(image, 5)[0], first)
    assert (augment(image, 6)[0] != first).any()


@pytest.mark.parametrize(
    ("transforms", "said"),
    [
        ({"Rotat": {}}, "did you mean Rotate"),
        ({"Rotate": {"limt": 3}}, "augment.transforms.Rotate does not take .*limt"),
        ({"Rotate": {"p": "often"}}, "augment.transforms.Rotate does not take"),
        # what is no picture any more, or one of another size
        ({"Normalize": {"p": 0.1}}, r"augment.transforms.Normalize makes an array \[24, 24, 3\] float32 of an array"),
        ({"ToFloat": {}, "HorizontalFlip": {}}, r"augment.transforms.ToFloat makes an array \[24, 24, 3\] float32"),
        ({"ToTensorV2": {}}, r"augment.transforms.ToTensorV2 makes a tensor \[3, 24, 24\] torch.uint8 of an array"),
        ({"ToTensorV2": {}, "Rotate": {}}, "augment.transforms.ToTensorV2 cannot be applied .Rotate of a tensor"),
        ({"ToGray": {"num_output_channels": 1}}, r"augment.transforms.ToGray makes an array \[24, 24\] uint8"),
        ({"RandomCrop": {"height": 9, "width": 9}}, r"augment.transforms.RandomCrop makes an array \[9, 9, 3\]"),
        ({"RandomCrop": {"height": 99, "width": 99}}, "augment.transforms.RandomCrop cannot be applied .*99"),
        ({"RandomScale": {}}, "augment.transforms.RandomScale makes"),
        ({"MaskDropout": {}}, "augment.transforms.MaskDropout cannot be applied .*mask"),
    ],
)
def test_a_wrong_transform_is_refused(transforms: dict, said: str) -> None:
    with pytest.raises(LabError, match=said):
        Augmentation(transforms, SIZE)


def test_the_names_of_transforms_are_known_without_albumentations() -> None:
    transforms = {n for n, t in vars(A).items() if isinstance(t, type) and issubclass(t, A.BasicTransform)}
    assert len(transforms) > 100
    assert transforms <= class_names()


def test_a_later_transform_may_restore_the_image() -> None:
    image = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    Augmentation({"RandomScale": {}, "Resize": {"height": SIZE, "width": SIZE}}, SIZE)(image, 0)
    resize = {"height": SIZE, "width": SIZE, "p": 0.5}
    rarely = Augmentation({"CenterCrop": {"height": 9, "width": 9}, "Resize": resize}, SIZE)
    with pytest.raises(LabError, match=r"augment.transforms .CenterCrop, Resize. made an array \[9, 9, 3\] uint8"):
        [rarely(image, seed) for seed in range(20)]


def test_dataset_alone(product: Path) -> None:
    dataset = MVTecDataset(product, image_size=16, augmentation=Augmentation({"HorizontalFlip": {"p": 0.5}}))
    assert dataset.classes == ["good", "crack", "hole"]
    item = dataset[0]
    assert item["image"].shape == (3, 16, 16)
    assert dataset.classes[item["label"]] == dataset.samples[0].label
    torch.testing.assert_close(dataset[(3, 7)]["image"], dataset[(3, 7)]["image"])


def test_datamodule_by_root_and_category(product: Path) -> None:
    data = MVTecDataModule(product.parent, "widget", image_size=SIZE, batch_size=8, sampling=Sampling("inverse"))
    data.setup()
    assert data.classes == ["good", "crack", "hole"]
    assert {name: sum(c[name] for c in data.counts().values()) for name in data.classes} == COUNTS
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, 3, SIZE, SIZE)
    assert any("single image in test" in finding for finding in data.findings())


def test_batches_do_not_depend_on_workers(product: Path) -> None:
    turned = AugmentConfig(transforms={"Rotate": {"limit": 90}})

    def batches(workers: int) -> list[torch.Tensor]:
        data = MVTecDataModule(product, image_size=SIZE, batch_size=4, num_workers=workers, augment=turned, seed=5)
        data.setup()
        torch.manual_seed(workers)
        return [b["image"] for b in data.train_dataloader()]

    for alone, shared in zip(batches(0), batches(2), strict=True):
        torch.testing.assert_close(alone, shared, rtol=0, atol=0)


def test_a_last_batch_of_one_is_left_out(tmp_path: Path) -> None:
    folder = write_product(tmp_path / "odd", {"good": 9, "crack": 6}, train_good=0)
    data = MVTecDataModule(folder, image_size=SIZE, batch_size=4)
    data.setup()
    assert len(data.of_split("train")) == 9
    assert [len(b["label"]) for b in data.train_dataloader()] == [4, 4]
    assert sum(len(b["label"]) for b in data.test_dataloader()) == 3
    assert data.smallest_batch == 2


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: shutil.rmtree(p / "test"), "the split has a single class, good, and a classifier"),
        (lambda p: [f.unlink() for f in (p / "test/hole").iterdir()], "hole holds no image"),
        (lambda p: (p / "ground_truth/hole/000_mask.png").unlink(), "test/hole/000.png has no mask"),
        (lambda p: Image.new("L", (5, 5)).save(p / "ground_truth/hole/000_mask.png"), "is 5 x 5 but"),
        (lambda p: shutil.rmtree(p / "ground_truth"), "has no ground_truth/ folder"),
        (lambda p: (p / "test/good/000.png").write_bytes(b""), "test/good/000.png"),
    ],
)
def test_a_spoilt_folder_is_refused(product: Path, spoil, said: str) -> None:
    spoil(product)
    with pytest.raises(LabError, match=said):
        MVTecDataModule(product, masks="required").setup()


def test_masks_are_optional_where_asked(product: Path) -> None:
    (product / "ground_truth/hole/000_mask.png").unlink()
    data = MVTecDataModule(product, masks="optional")
    data.setup()
    assert "mask: test/hole/000.png has no mask in ground_truth/hole/" in data.warnings


@pytest.mark.parametrize(
    ("name", "category", "said"),
    [
        ("mvtec", "bottel", "unknown MVTec AD category 'bottel': did you mean bottle?"),
        ("mvtec", "bottle", "has no 'bottle' .found: widget.: give data.root=FOLDER or MVTEC_ROOT"),
        ("folder", "wodget", "unknown category 'wodget': did you mean widget?"),
        ("sample", "bottle", "data=sample draws the category cable, not 'bottle'"),
    ],
)
def test_a_category_that_is_not_there(product: Path, name: str, category: str, said: str) -> None:
    with pytest.raises(LabError, match=said.replace("?", r"\?")):
        locate(name, str(product.parent), category)


def test_an_archive_fills_the_root(product: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "bottle"), "gztar", product.parent, "widget")
    shutil.move(product, tmp_path / "away")
    folder = locate("folder", str(product.parent), "widget", archive)
    assert len(scan(folder).samples) == 26


@pytest.mark.parametrize(("free", "there"), [(10**9, "meta"), (22 * SIZE * SIZE, "cpu"), (0, "cpu")])
def test_cached_images_lie_on_the_device_where_they_fit(
    free: int, there: str, product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands in for a GPU: it has shapes, no values."""
    data = MVTecDataModule(product, image_size=SIZE, batch_size=4, cache=ArrayCache(tmp_path / "c"))
    data.setup()
    data.trainer = SimpleNamespace(current_epoch=0, strategy=SimpleNamespace(root_device=torch.device("meta")))
    monkeypatch.setattr(dataset_module, "free_memory", lambda device: free)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].device.type == there
    assert batch["image"].shape == (4, 3, SIZE, SIZE)
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["label"].device.type == "cpu"  # Lightning moves it


def test_processes_help_only_where_there_is_work(
    product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "free_memory", lambda device: 0)

    def workers(device: str, **kwargs: object) -> tuple[int, int]:
        data = MVTecDataModule(product, image_size=SIZE, **kwargs)  # type: ignore[arg-type]
        data.setup()
        data.trainer = SimpleNamespace(current_epoch=0, strategy=SimpleNamespace(root_device=torch.device(device)))
        return data.train_dataloader().num_workers, data.val_dataloader().num_workers

    flip = AugmentConfig(transforms={"HorizontalFlip": {"p": 0.5}})
    cached, augmented = {"cache": ArrayCache(tmp_path / "c")}, {"augment": flip}
    assert workers("cpu") == (0, 0)
    assert workers("cpu", **cached, num_workers=3) == (0, 0)  # all in memory: nothing to do for them
    assert workers("cpu", **cached, **augmented, num_workers=3) == (3, 0)
    train, val = workers("meta", **cached, **augmented)
    assert train > 0 == val  # a GPU is not to wait for albumentations


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"image_size": 0}, "data.image_size=0 is out of range: give 8 or more"),
        ({"image_size": -5}, "data.image_size=-5 is out of range"),
        ({"batch_size": 0}, "data.batch_size=0 is out of range: give 1 or more"),
        ({"num_workers": -1}, "data.num_workers=-1 is out of range: give 0 or more"),
        ({"masks": "maybe"}, "unknown data.masks 'maybe'"),
        ({"white": 0}, "data.white=0 is out of range"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"std": (0, 0, 0)}, r"std=\(0, 0, 0\): give three finite numbers, above 0"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\): give three finite numbers$"),
        ({"split": {"protocol": "kfold"}}, "split is {'protocol': 'kfold'}: give a SplitConfig"),
    ],
)
def test_arguments_of_the_module_are_checked_as_their_keys_are(options: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=says):
        MVTecDataModule(tmp_path, **options)
