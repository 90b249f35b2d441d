"""The LightningDataModule of one product folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from torchvision.transforms import v2

from mvtec_lab.cache import ArrayCache
from mvtec_lab.config import AugmentConfig, DataConfig, SplitConfig
from mvtec_lab.data.audit import audit
from mvtec_lab.data.contents import contents_of
from mvtec_lab.data.dataset import FeatureDataset, MVTecDataset, Rows
from mvtec_lab.data.frame import Frame
from mvtec_lab.data.images import (
    check_images,
    digests,
    each_image,
    image_size,
    rules_of,
    too_bright,
    white_level,
)
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.data.paste import Paste, check_sources
from mvtec_lab.data.samples import Sample, Scan, by_image, classes_of, kinds_of, seen_in
from mvtec_lab.data.sampling import EpochBatches, EpochSampler, Sampling, class_weights
from mvtec_lab.data.source import product_folder
from mvtec_lab.data.splits import (
    SPLITS,
    drawn_test,
    few_of_each,
    good_alone,
    parted,
    pool_of,
    settled,
    split_samples,
    thin_out,
    to_keep,
)
from mvtec_lab.data.tiles import OVERLAP, Window, windows
from mvtec_lab.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation, read_picture, read_windows
from mvtec_lab.errors import LabError
from mvtec_lab.knobs import check_values
from mvtec_lab.results import GOOD


class MVTecDataModule(pl.LightningDataModule):
    """Split, sample and transform one product folder in MVTec's layout.

    Args:
        root: the folder that holds the category folders, or the product folder itself (``category=None``), or what
            lies in a folder of another layout: ``read_yolo(FOLDER)``, ``read_coco(FOLDER)``.
        category: the product, ``bottle``.
        image_size: pixels a side of the square pictures, or a ``Frame``.
        white, batch_size: as in DataConfig.
        num_workers: processes that decode and augment; None: none, but up to eight where a GPU waits for them.
        masks: ``required``: a defect image without a fitting mask is an error; ``optional``: a warning.
        split: which images train, choose and judge; None: the defaults of SplitConfig.
        sampling: which training images are drawn, and how often.
        augment: random changes of training images; None: none. A mixed batch has a ``target``, [N, C] float, beside its
            labels.
        cache: keeps decoded and resized images; None: they are decoded in every epoch.
        mean, std: of RGB in [0, 1].
        targets: what items have beside image and label, as in MVTecDataset.
        seed: of order, sampling and augmentation.

    After ``scan`` or ``setup``: ``folder``, ``listed`` (what lies in it), ``classes``, ``kinds`` (the types of boxes,
    from label 1 up), ``samples`` (all, each with its split) and ``warnings``; ``split.protocol`` is no longer auto.

    Raises:
        LabError: an unknown mix or transform, or a value that the key of the same name would not take.
    """

    def __init__(
        self,
        root: str | Path | Scan,
        category: str | None = None,
        *,
        image_size: int | Frame = 224,
        white: int | None = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        masks: str = "optional",
        split: SplitConfig | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 # frozen
        augment: AugmentConfig | None = None,
        cache: ArrayCache | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        targets: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.frame, augment = Frame.of(image_size), augment or AugmentConfig()
        for key, section, kind in (("split", split, SplitConfig), ("augment", augment, AugmentConfig)):
            if section is not None and not isinstance(section, kind):
                raise LabError(f"{key} is {section!r}: give a {kind.__name__}")
        as_config = DataConfig(
            image_size=self.frame.size,
            tile=self.frame.tile,
            white=white,
            batch_size=batch_size,
            num_workers=num_workers,
            masks=masks,
        )
        check_values(as_config, "data.")
        check_values(augment, "augment.")
        if seed < 0:
            raise LabError(f"seed={seed} is out of range: give 0 or more")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not np.isfinite(values).all() or (name == "std" and min(values) <= 0):
                raise LabError(f"{name}={tuple(values)}: give three finite numbers{', above 0' * (name == 'std')}")
        self.root, self.category, self.masks = root, category, masks
        self.batch_size, self.num_workers = batch_size, num_workers
        self.split, self.sampling, self.seed = split or SplitConfig(), sampling, seed
        self.augment = augment
        self.cache, self.mean, self.std, self.targets = cache, mean, std, tuple(targets)
        if augment.mix != "none" and targets:
            raise LabError(f"augment.mix={augment.mix} mixes class labels, not {targets[0]}: give augment.mix=none")
        self.augmentation = Augmentation(augment.transforms, self.frame.size) if augment.transforms else None
        self.warnings: list[str] = []
        self.samples: list[Sample] = []
        self._features: dict[str, FeatureDataset] = {}
        self._white = white
        self._pool: list[Sample] = []  # those that take part, or did before some were left out of training
        self._paste: Paste | None = None
        self._cut: dict[str, list[dict[str, Any]]] = {}  # path -> its tiles, by what they differ in from the sample
        # Place among the images that take part, or among their tiles.
        self._row: dict[tuple[str, Window | None], int] = {}
        self._pictures: Tensor | None = None  # those images, if cached: [N, S, S, 3] uint8
        self._tiles: Tensor | None = None  # their tiles, likewise

    def scan(self) -> None:
        """List, check and split the folder's files without decoding any: the fast part of ``setup``.

        Raises:
            LabError: whatever is wrong with the folder, a mask or the split.
        """
        if self.samples:
            return
        self.listed = listed = self.list_files()
        self.folder = listed.folder
        self.warnings += listed.check_masks(self.masks == "required", learnt=bool(self.targets))
        try:
            samples = drawn = split_samples(listed.samples, self.split)
            if self.sampling.good_alone:
                samples = good_alone(drawn, listed.samples, self.split, self.sampling.known)
            self._pool = [s for s, before in zip(samples, drawn, strict=True) if s.split or before.split]
            self.classes, self.kinds = classes_of(self._pool), kinds_of(self._pool)
            imbalance = self.sampling.imbalance
            if imbalance is not None:
                samples = thin_out(samples, imbalance, self.split.seed)
            per_class = self.sampling.per_class
            if per_class is not None:
                samples = few_of_each(samples, per_class, self.split.seed)
            train = [s for s in samples if s.split == "train"]
            if self.augment.paste:
                check_sources(train)
        except LabError as error:  # of several products, which one
            raise LabError(f"{self.folder}: {error}") from error
        self.split = settled(listed.samples, self.split)
        self.warnings += parted(listed.samples, self.split)
        self.warnings += listed.oddities(samples)
        self.warnings += drawn_test(listed.samples, samples, self.split) + to_keep(self.split)
        if imbalance is not None:
            kept = ", ".join(f"{label} {count}" for label, count in Counter(s.label for s in train).most_common())
            self.warnings.append(f"data.imbalance={imbalance:g}: training thinned out to {kept}")
        if per_class is not None and (
            fewer := [k for k, n in Counter(s.label for s in train).items() if n < per_class]
        ):
            who = f"class {min(fewer)!r} has" if len(fewer) == 1 else f"{len(fewer)} classes have"
            self.warnings.append(f"data.per_class={per_class}: {who} fewer training images, all of which train")
        self.samples = samples

    def list_files(self) -> Scan:
        """Return what lies in the folder, neither checked nor split.

        Raises:
            LabError: as ``read_folder``.
        """
        return self.root if isinstance(self.root, Scan) else read_folder(product_folder(self.root, self.category))

    def setup(self, stage: str | None = None) -> None:
        """Scan the folder once; every image that takes part is decoded, now or for an earlier cache.

        Those left out are decoded as well: so one cache serves every fold and every ``imbalance``.

        Raises:
            LabError: whatever is wrong with the folder, a mask, an image or the split.
        """
        self.scan()
        if self._row:
            return
        if self.augment.paste:
            self._paste = Paste(self.augment.paste, self.folder, self.of_split("train"), self.frame)
        paths = [self.folder / s.path for s in self._pool]
        self.warnings += too_bright(paths, self.white)
        if self.cache is not None:
            read = partial(read_picture, frame=self.frame, white=self.white)

            def blocks() -> Iterator[np.ndarray]:
                return (picture[None] for picture in each_image(paths, read))

            name = f"{self.folder.name} images at {self.frame}"
            pictures = self.cache.get(name, self.content(self._pool), len(paths), "|u1", blocks)
            self._pictures = None if pictures is None else torch.from_numpy(pictures)
        if self._pictures is None:
            check_images(paths)
        self._row = {(s.path, None): row for row, s in enumerate(self._pool)}
        if self.frame.tile is not None:
            tiles = self.tiles(self._pool)
            if len(tiles) == len(self._pool):
                self.warnings.append(f"data.tile={self.frame.tile} cuts no image: none has a longer side")
            self._tiles = None if self.cache is None else self._cached_tiles(self.cache, paths, tiles)
            self._row |= {(s.path, s.window): row for row, s in enumerate(tiles)}
        if self.frame.pads:
            seen = self.images(self.tiles(self._pool))
            if all(seen.place(k)[2:] == (self.frame.size, self.frame.size) for k in range(len(seen))):
                self.warnings.append("data.fit=letterbox changes nothing: all that the network sees is square")

    def _cached_tiles(self, cache: ArrayCache, paths: Sequence[Path], tiles: Sequence[Sample]) -> Tensor | None:
        """Return the pictures of all tiles; None where they cannot be kept."""

        of_file = {self.folder / of_one[0].path: [s.window for s in of_one] for of_one in by_image(tiles)}

        def cut(path: Path) -> np.ndarray:
            return read_windows(path, of_file[path], self.frame, self.white)

        def blocks() -> Iterator[np.ndarray]:
            return each_image(paths, cut, waiting=8)  # 63 tiles of 224 pixels take 9.5 MB

        name = f"{self.folder.name} tiles of {self.frame.tile} at {self.frame}"
        pictures = cache.get(name, self.content(tiles), len(tiles), "|u1", blocks)
        return None if pictures is None else torch.from_numpy(pictures)

    @property
    def tiled(self) -> str:
        """Return what training sees of its images in words, for a line about them; an empty text without ``tile``."""
        if self.frame.tile is None:
            return ""
        return f" ({len(self.tiles(self.of_split('train')))} tiles of {self.frame.tile} pixels)"

    def tiles(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return the tiles of images, those of an image one after another; without ``tile``, the images themselves.

        Where masks are learnt, a tile's class is that of what they mark in it: good where they mark nothing.

        Raises:
            LabError: a file that cannot be read.
        """
        if self.frame.tile is None:
            return list(samples)
        for s in samples:
            if s.path not in self._cut:
                width, height, _ = image_size(self.folder / s.path)
                places = windows(height, width, self.frame.tile)
                learnt = seen_in(s, self.folder, places) if self.targets else [{}] * len(places)
                self._cut[s.path] = [{**seen, "window": w} for seen, w in zip(learnt, places, strict=True)]
        return [replace(s, **of_tile) for s in samples for of_tile in self._cut[s.path]]

    @property
    def white(self) -> int:
        """Return the value of 16-bit files that becomes 255: declared, or by the bit depth of the training images."""
        if self._white is None:
            self._white = white_level([self.folder / s.path for s in self.of_split("train")])
        return self._white

    def warn(self, *lines: str) -> None:
        """Add warnings."""
        self.warnings += lines

    def content(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return what the pixels of these samples depend on: a part of a cache's key."""
        paths = [self.folder / path for path in dict.fromkeys(s.path for s in samples)]
        rules = {**rules_of(paths), "white": self.white, **self.frame.rules}
        if any(s.window for s in samples):
            rules["tile"] = [self.frame.tile, OVERLAP]
        return {"images": digests(paths), "size": self.frame.size, "rules": rules}

    def contents(self) -> dict[str, str]:
        """Return the digest of every image and mask that takes part, by path; an empty text for the others."""
        return contents_of(self.folder, self.samples, self._pool)

    def findings(self, chosen: str = "what a training chooses") -> list[str]:
        """Return what ``audit`` says of the images that take part, after ``setup``; not among ``warnings``.

        Args:
            chosen: as in ``audit``.
        """
        return audit(self.images([s for s in self.samples if s.split]), chosen, self.sampling.good_alone)

    @property
    def val_is_test(self) -> bool:
        """Return whether the test images validate as well."""
        return self.split.val_is_test

    @property
    def drawn_from_all(self) -> bool:
        """Return whether all images may be drawn, not those for testing alone."""
        return len(pool_of(self.listed.samples, self.split.pool)) == len(self.listed.samples)

    def of_split(self, split: str) -> list[Sample]:
        """Return the samples of train, val or test."""
        return [s for s in self.samples if s.split == ("test" if split == "val" and self.val_is_test else split)]

    def spare_good(self) -> list[Sample]:
        """Return the good images that take no part: train/good, where the test folder is drawn from.

        None of them shares a group with an image that takes part, or was left out by ``imbalance``.
        """
        paths, groups = {s.path for s in self._pool}, {s.group for s in self._pool}
        return [s for s in self.samples if s.label == GOOD and s.path not in paths and s.group not in groups]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images of each split by class."""
        counters = {split: Counter(s.label for s in self.of_split(split)) for split in SPLITS}
        return {split: {name: counter[name] for name in self.classes} for split, counter in counters.items()}

    def dataset(self, split: str) -> MVTecDataset:
        """Return what the network sees of train, val or test: the images, or with ``tile`` their tiles.

        Training ones are pasted and augmented.
        """
        changes = {"augmentation": self.augmentation, "paste": self._paste} if split == "train" else {}
        return self.images(self.tiles(self.of_split(split)), **changes)

    def images(self, samples: Sequence[Sample], **changes: Any) -> MVTecDataset:
        """Return the images of some of the samples, or tiles of those that take part.

        Args:
            changes: ``augmentation`` and ``paste`` of MVTecDataset.
        """
        array = self._tiles if any(s.window for s in samples) else self._pictures
        if any((s.path, s.window) not in self._row for s in samples):  # some take no part: they are read when asked for
            array = None
        return MVTecDataset(
            self.folder,
            samples,
            classes=self.classes,
            kinds=self.kinds,
            image_size=self.frame,
            white=self.white,
            mean=self.mean,
            std=self.std,
            pictures=None if array is None else Rows(array, [self._row[s.path, s.window] for s in samples]),
            targets=self.targets,
            **changes,
        )

    @property
    def random(self) -> bool:
        """Return whether a training image differs each time, so that features of it cannot be kept."""
        return self.dataset("train").random or self.augment.mix != "none"

    @property
    def features(self) -> dict[str, FeatureDataset]:
        """Return the data sets that ``load_features`` made, by split."""
        return dict(self._features)

    def load_features(self, split: str, features: Rows, views: int = 1) -> None:
        """Load a split's features in place of its images from now on.

        Args:
            features, views: as in FeatureDataset.
        """
        self._features[split] = FeatureDataset(self.dataset(split), features, views)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Mix a training batch, on its device; drawn from torch's global generator, which a resumed run restores."""
        if self.augment.mix == "none" or self.trainer is None or not self.trainer.training:
            return batch
        kind = v2.MixUp if self.augment.mix == "mixup" else v2.CutMix
        mixed = kind(alpha=self.augment.mix_alpha, num_classes=len(self.classes))(batch["image"], batch["label"])
        return {**batch, "image": mixed[0], "target": mixed[1]}

    def train_sampler(self) -> EpochSampler:
        """Return the draws of every epoch: which training image or tile, and the seed of its augmentation.

        A class weighs by its number of images, or with ``tile`` of tiles.
        """
        samples, weights = self.tiles(self.of_split("train")), None
        if self.sampling.rule != "none":
            counts = Counter(s.label for s in samples)
            values = class_weights([counts[name] for name in self.classes], self.sampling.rule, self.sampling.beta)
            by_class = dict(zip(self.classes, values.tolist(), strict=True))
            weights = [by_class[s.label] for s in samples]
        return EpochSampler(len(samples), weights, self.seed, self.augment.views)

    @property
    def smallest_batch(self) -> int:
        """Return 1 where training sees a batch of a single image or tile, 2 where all are larger."""
        return 1 if 1 in (self.batch_size, len(self.tiles(self.of_split("train")))) else 2

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return batches as ``val_dataloader`` does, of training images, drawn and augmented by seed and epoch."""
        sampler = self.train_sampler()
        if self.trainer is not None:  # Lightning asks for the first batches of a resumed run before it calls set_epoch
            sampler.set_epoch(self.trainer.current_epoch)
        # Batch normalisation cannot train on a single image: a last batch of one is left out, another one each epoch.
        leftover = len(sampler) % self.batch_size
        return self._loader("train", EpochBatches(sampler, self.batch_size, leftover == 1 and len(sampler) > 1))

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return batches of validation images in their order: ``{"image": [N, 3, S, S], "label": [N], ...}``."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return batches of test images in their order, as ``val_dataloader`` does."""
        return self._loader("test")

    def _loader(self, split: str, batches: EpochBatches | None = None) -> DataLoader[dict[str, Any]]:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        dataset = self._features[split] if split in self._features else self.dataset(split)
        if dataset.in_memory:
            dataset = dataset.near(device)
            workers = 0  # reading rows from memory is less work than sending them from one process to another
        elif self.num_workers is not None:
            workers = self.num_workers
        else:  # eight processes augment some thousand images a second, more than a GPU trains on
            workers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
        return DataLoader(
            dataset,
            batch_size=None,  # the sampler draws whole batches
            sampler=batches or BatchSampler(SequentialSampler(dataset), self.batch_size, drop_last=False),
            num_workers=workers,
            # The platform's own way: joblib sets another for its processes, by which a loader's cannot be started.
            multiprocessing_context=get_all_start_methods()[0] if workers else None,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda" and not dataset.in_memory,
            # A generator of its own: a loader's start must not draw from the one that dropout draws from.
            generator=torch.Generator().manual_seed(self.seed),
        )
