"""The long tail's data: a training set thinned out, defects pasted onto good images, mixed batches."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import SIZE
from PIL import Image, ImageOps

from mvtec_lab.cache import ArrayCache
from mvtec_lab.config import AugmentConfig, SplitConfig
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.paste import INSIDE, feathered, object_mask
from mvtec_lab.data.samples import Sample
from mvtec_lab.data.sampling import Sampling
from mvtec_lab.data.splits import split_samples, thin_out
from mvtec_lab.errors import LabError
from mvtec_lab.results import RunResult, write_csv


def split(counts: dict[str, int], name: str = "{i}", **settings: Any) -> list[Sample]:
    pool = [Sample(f"test/{label}/{name.format(i=i)}.png", label) for label, n in counts.items() for i in range(n)]
    return split_samples(pool, SplitConfig(**settings))


def trained(samples: list[Sample]) -> Counter:
    return Counter(s.label for s in samples if s.split == "train")


COUNTS = {"a": 60, "b": 40, "c": 90, "good": 700}
BY_FREQUENCY = ["good", "c", "a", "b"]


@pytest.mark.parametrize("ratio", [1, 2, 10, 100])
def test_the_tail_is_exponential_and_its_ratio_exact(ratio: int) -> None:
    before = split(COUNTS)
    after = thin_out(before, ratio, 0)
    there, kept = trained(before), trained(after)
    assert kept["good"] == ratio * kept["b"]
    assert dict(kept) == {c: round(kept["b"] * ratio ** (1 - i / 3)) for i, c in enumerate(BY_FREQUENCY)}
    larger = [round((kept["b"] + 1) * ratio ** (1 - i / 3)) for i in range(4)]
    assert any(n > there[c] for n, c in zip(larger, BY_FREQUENCY, strict=True))  # no larger tail is to be had
    for b, a in zip(before, after, strict=True):
        assert a == b or (b.split, a.split) == ("train", "")  # validation and test images stay


def test_the_same_images_stay_whatever_else_changes() -> None:
    def kept(ratio: float, counts: dict[str, int] = COUNTS, seed: int = 0) -> set[str]:
        return {s.path for s in thin_out(split(counts), ratio, seed) if s.split == "train"}

    assert kept(10) == kept(10)
    assert kept(10) != kept(10, seed=1)
    good = {path for path in kept(100) if "/good/" in path}
    assert good == {path for path in kept(100, {**COUNTS, "a": 61}) if "/good/" in path}
    assert {p for p in kept(100) if "/b/" in p} < {p for p in kept(10) if "/b/" in p}


def test_every_fold_has_the_same_head_and_tail(tmp_path: Path) -> None:
    counts = {"a": 31, "b": 31, "good": 30}  # a tie goes by class; the head is the pool's, not a fold's
    for fold in range(5):
        kept = trained(thin_out(split(counts, protocol="kfold", folds=5, fold=fold), 4, 0))
        assert kept["a"] == 2 * kept["b"] == 4 * kept["good"] > 0
    file = tmp_path / "split.csv"
    rows = [{"path": s.path, "split": s.split} for s in thin_out(split(COUNTS), 10, 0)]
    write_csv(file, rows, ["path", "split"])
    again = split(COUNTS, protocol="file", file=str(file))  # a run's samples.csv repeats its thinned split
    assert [{"path": s.path, "split": s.split} for s in again] == rows
    assert trained(thin_out(again, 20, 0))["good"] == 20 * trained(thin_out(again, 20, 0))["b"]


def test_groups_are_thinned_out_as_a_whole() -> None:
    before = split({"good": 120, "a": 60}, "part{i}", group_by=r"(\w+/part\d+)\d")  # ten a group, but for the first
    after = thin_out(before, 3, 0)
    there, kept = (Counter((s.label, s.group) for s in part if s.split == "train") for part in (before, after))
    parted = Counter(label for (label, group), n in kept.items() if n < there[label, group])
    assert len(kept) < len(there)
    assert max(parted.values(), default=0) <= 1


def test_a_ratio_that_cannot_be_had_is_refused() -> None:
    said = r"data.imbalance=500 leaves class 'b' less than one training image: give data.imbalance=(\d+) at most"
    with pytest.raises(LabError, match=said) as caught:
        thin_out(split(COUNTS), 500, 0)
    most = int(str(caught.value).split("=")[2].split()[0])
    assert trained(thin_out(split(COUNTS), most, 0))["b"] == 1
    with pytest.raises(LabError, match=f"give data.imbalance={most} at most"):
        thin_out(split(COUNTS), most + 1, 0)


def test_the_data_module_thins_training_alone(product: Path, tmp_path: Path) -> None:
    plain, thin, thinner = (
        MVTecDataModule(product, image_size=SIZE, cache=ArrayCache(tmp_path / "c"), sampling=Sampling(imbalance=r))
        for r in (None, 2, 4)
    )
    for data in (plain, thin, thinner):
        data.setup()
    assert thin.counts()["train"] == {"good": 6, "crack": 4, "hole": 3}
    assert "data.imbalance=2: training thinned out to good 6, crack 4, hole 3" in thin.warnings
    assert all(thinner.of_split(part) == plain.of_split(part) for part in ("val", "test"))
    assert thin.cache is not None
    assert len(thin.cache.entries()) == 1  # the same images for every ratio


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """Long grey discs on white, eight of them good, six with a red stain on the left: 96 pixels."""
    rng = np.random.default_rng(1)
    for label, count in {"good": 8, "stain": 6}.items():
        for i in range(count):
            picture, mask = np.full((96, 96, 3), 255, np.uint8), np.zeros((96, 96), np.uint8)
            cv2.ellipse(picture, (44 + 4 * (i % 3), 48), (40, 22), 0, 0, 360, (90, 90, 90), -1)
            if label == "stain":
                cv2.circle(mask, (20 + 4 * (i % 3), 48 + int(rng.integers(-5, 5))), 6, 255, -1)
                picture[mask > 0] = (220, 20, 20)
                write(tmp_path / f"disc/ground_truth/stain/{i}_mask.png", mask)
            write(tmp_path / f"disc/test/{label}/{i}.png", picture)
    return tmp_path / "disc"


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def pasting(
    folder: Path, paste: float = 1.0, size: int = 48, transforms: dict[str, Any] | None = None, **settings: Any
) -> MVTecDataModule:
    augment = AugmentConfig(paste=paste, transforms=transforms or {})
    data = MVTecDataModule(folder, image_size=size, batch_size=4, augment=augment, **settings)
    data.setup()
    return data


def test_a_stain_is_pasted_onto_the_disc_of_a_good_image(discs: Path) -> None:
    dataset = pasting(discs).dataset("train")
    good = [dataset.picture(i) for i, s in enumerate(dataset.samples) if s.label == "good"]

    def red(picture: np.ndarray) -> np.ndarray:
        return picture[..., 0].astype(int) - picture[..., 1] > 100

    def arm(stain: np.ndarray, picture: np.ndarray) -> np.ndarray:
        """From the disc's centre to the stain's."""
        return np.argwhere(stain).mean(axis=0) - np.argwhere(object_mask(picture)).mean(axis=0)

    arms = []
    for place in (i for i, s in enumerate(dataset.samples) if s.label == "stain"):
        before = dataset.picture(place)
        for seed in range(20):
            new = dataset.view((place, seed))[0]
            stain = red(new)
            far = cv2.dilate(stain.astype(np.uint8), np.ones((7, 7))) == 0
            under = [g for g in good if (new[far] == g[far]).all()]  # nothing else of its picture comes along
            assert (stain & object_mask(under[0])).sum() >= INSIDE * stain.sum()
            assert stain.sum() == pytest.approx(red(before).sum(), rel=0.3)
            arms.append(arm(stain, under[0]))
            assert np.linalg.norm(arms[-1]) == pytest.approx(np.linalg.norm(arm(red(before), before)), abs=1.5)
            assert dataset[[(place, seed)]]["label"].tolist() == [dataset.classes.index("stain")]
    assert max(abs(y) for y, _ in arms) > 5  # the stains lie within three pixels of the long axis
    assert 0.3 < np.mean([x > 0 for _, x in arms]) < 0.7  # turned, or mirrored, to the other end


def test_only_defects_and_only_some_are_made_anew(discs: Path) -> None:
    dataset = pasting(discs, 0.5).dataset("train")
    same = {label: [] for label in dataset.classes}
    for place, sample in enumerate(dataset.samples):
        same[sample.label] += [(dataset.view((place, seed))[0] == dataset.picture(place)).all() for seed in range(50)]
    assert all(same["good"])
    assert np.mean(same["stain"]) == pytest.approx(0.5, abs=0.1)
    data = pasting(discs)
    assert data.dataset("val").paste is data.dataset("test").paste is None


@pytest.mark.parametrize("cached", [True, False])
def test_pasting_is_its_seed_whatever_the_workers(cached: bool, discs: Path, tmp_path: Path) -> None:
    def images(workers: int) -> torch.Tensor:
        cache = ArrayCache(tmp_path / "c") if cached and workers else None
        flip = {"HorizontalFlip": {"p": 0.5}}
        data = pasting(discs, 0.7, transforms=flip, seed=3, num_workers=workers, cache=cache)
        torch.manual_seed(workers)
        np.random.seed(workers)
        return torch.cat([batch["image"] for batch in data.train_dataloader()])

    torch.testing.assert_close(images(0), images(2), rtol=0, atol=0)


def test_a_scratch_thinner_than_a_pixel_survives(discs: Path) -> None:
    for path in (discs / "ground_truth/stain").iterdir():
        mask = np.zeros((96, 96), np.uint8)
        mask[41, 30:60] = 1
        write(path, mask)
    data = pasting(discs, size=16)
    assert data._paste is not None
    assert {crop.shape for _, _, crop in data._paste.regions.values()} == {(1, 5)}
    assert all(crop.all() for _, _, crop in data._paste.regions.values())


def test_where_an_object_is(discs: Path) -> None:
    picture = np.full((60, 60, 3), (20, 20, 60), np.uint8)
    disc = cv2.circle(np.zeros((60, 60), np.uint8), (35, 30), 20, 1, -1) > 0
    picture[disc] = (200, 120, 40)
    picture[25:35, 30:40] = (20, 20, 60)  # a hole belongs to its object
    assert (object_mask(picture) ^ disc).mean() < 0.04  # a pixel all around
    assert object_mask(np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)).all()
    assert object_mask(np.full((60, 60, 3), 7, np.uint8)).all()


def test_a_feather_lies_around_the_region() -> None:
    region = np.zeros((20, 20), bool)
    region[8:12, 10] = True
    alpha = feathered(region, 2)
    assert (alpha[region] == 1).all()
    assert 0 < alpha[9, 12] < alpha[9, 11] < 1
    assert alpha[9, 13] == 0


def _no_masks(folder: Path) -> None:
    for name in ("000", "001", "002", "003", "004", "005"):
        (folder / f"ground_truth/hole/{name}_mask.png").unlink()


def _empty_masks(folder: Path) -> None:
    for path in (folder / "ground_truth/crack").iterdir():
        Image.new("L", (SIZE, SIZE)).save(path)


def _inverted_masks(folder: Path) -> None:
    for path in (folder / "ground_truth/crack").iterdir():
        ImageOps.invert(Image.open(path).convert("L")).save(path)


def _no_good(folder: Path) -> None:
    (folder / "test/good").rename(folder / "test/fine")
    for i in range(10):
        write(folder / f"ground_truth/fine/{i:03}_mask.png", np.full((SIZE, SIZE), 255, np.uint8))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_masks, r"augment.paste cuts defects out by their masks, but test/hole/\d+.png has none .and 3 more."),
        (_empty_masks, r"augment.paste cuts defects out by their masks, but .*_mask.png marks nothing"),
        (_inverted_masks, r"augment.paste cuts defects out by their masks, but .*_mask.png marks \d+% of its image"),
        (_no_good, "of the class 'good', but there is none: give split.pool=all"),
    ],
)
def test_what_cannot_be_pasted_is_refused_before_training(spoil, said: str, product: Path, lab, tmp_path: Path) -> None:
    spoil(product)
    with pytest.raises(LabError, match=said):
        pasting(product)
    assert lab("augment.paste=0.5", "data.masks=optional", "hydra.run.dir=run") == 2
    assert not (tmp_path / "run/result.json").exists()
    pasting(product, 0.0)


class Recorder(pl.LightningModule):
    """Keeps its batches and learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: dict[str, list[dict[str, torch.Tensor]]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.batches["train"].append(batch)

    def validation_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.batches["val"].append(batch)

    def test_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.batches["test"].append(batch)

    def predict_step(self, batch: dict[str, torch.Tensor]) -> None:
        self.batches["predict"].append(batch)

    def configure_optimizers(self) -> None:
        return None


def recorded(product: Path, mix: str, workers: int = 0, cache: Path | None = None) -> Recorder:
    kept = None if cache is None else ArrayCache(cache)
    mixed = AugmentConfig(mix=mix)
    data = MVTecDataModule(product, image_size=SIZE, batch_size=4, augment=mixed, num_workers=workers, cache=kept)
    data.predict_dataloader = data.test_dataloader  # type: ignore[method-assign]
    recorder = Recorder()
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=2, enable_model_summary=False, **settings)
    pl.seed_everything(0, verbose=False)
    trainer.fit(recorder, datamodule=data)
    trainer.test(recorder, datamodule=data, verbose=False)
    trainer.predict(recorder, datamodule=data)
    return recorder


@pytest.mark.filterwarnings("ignore")  # of few workers and no optimizer
@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_training_batches_are_mixed(mix: str, product: Path) -> None:
    plain, mixed = recorded(product, "none").batches, recorded(product, mix).batches
    shares = []
    for before, after in zip(plain["train"], mixed["train"], strict=True):
        torch.testing.assert_close(after["label"], before["label"])
        one_hot = torch.nn.functional.one_hot(before["label"], 3).float()
        other, rolled = one_hot.roll(1, 0), before["image"].roll(1, 0)
        if mix == "mixup":
            share = float(((after["image"] - rolled) / (before["image"] - rolled)).nanmedian())
            torch.testing.assert_close(
                after["image"], share * before["image"] + (1 - share) * rolled, rtol=0, atol=1e-4
            )
        else:
            own = (after["image"] == before["image"]).all(dim=1)
            share = float(own[(before["image"] != rolled).flatten(1).any(1)].float().mean())
        torch.testing.assert_close(after["target"], share * one_hot + (1 - share) * other, rtol=0, atol=0.02)
        assert after["target"].dtype == torch.float32
        shares.append(share)
    assert len(set(shares)) > 2
    for part in ("val", "test", "predict"):
        assert len(mixed[part]) == len(plain[part]) > 0
        for before, after in zip(plain[part], mixed[part], strict=True):
            assert after.keys() == before.keys()
            torch.testing.assert_close(after["image"], before["image"], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_mixing_does_not_depend_on_workers_and_cache(product: Path, tmp_path: Path) -> None:
    one, other = (recorded(product, "cutmix", n, c).batches for n, c in ((0, None), (2, None)))
    cached = recorded(product, "cutmix", 0, tmp_path / "c").batches
    for batches in (other, cached):
        for a, b in zip(one["train"], batches["train"], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_an_unknown_mix_is_refused(product: Path) -> None:
    with pytest.raises(LabError, match="did you mean mixup"):
        MVTecDataModule(product, augment=AugmentConfig(mix="mixupp"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "splits"),
    [
        ([], ["test", "train", "val"]),
        (["augment.paste=0.5"], ["test", "val"]),
        pytest.param(["augment.mix=cutmix"], ["test", "val"], marks=pytest.mark.slow),
        pytest.param(["augment.paste=0.5", "augment.views=2"], ["test", "train", "val"], marks=pytest.mark.slow),
    ],
)
def test_frozen_features_stand_in_for_what_stays_alone(
    settings: list[str], splits: list[str], lab, tmp_path: Path
) -> None:
    assert lab(*settings, "data.imbalance=2", "hydra.run.dir=cached") == 0
    assert lab(*settings, "data.imbalance=2", "cache.dir=null", "hydra.run.dir=plain") == 0
    cached, plain = (RunResult.load(tmp_path / name) for name in ("cached", "plain"))
    assert cached.features == splits
    assert plain.features == []
    assert cached.metrics == plain.metrics
    assert cached.counts["train"] == {"good": 6, "crack": 4, "hole": 3}


@pytest.mark.slow
def test_views_are_kept_by_what_they_were_pasted_from(lab, product: Path, tmp_path: Path) -> None:
    def kept(*settings: str) -> int:
        assert lab("augment.views=2", *settings, "hydra.run.dir=run") == 0
        shutil.rmtree(tmp_path / "run")
        return len(list((tmp_path / "cache").glob("*.npy")))

    first = kept("augment.paste=0.5")
    assert kept("augment.paste=0.5") == first
    assert kept("augment.paste=0.6") == first + 1
    for path in (product / "ground_truth/crack").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(mask[::-1]).save(path)
    assert kept("augment.paste=0.5") == first + 2
