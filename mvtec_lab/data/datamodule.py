"""The data set of one product and the LightningDataModule around it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler
from torchvision.transforms import v2

from mvtec_lab.cache import ArrayCache
from mvtec_lab.config import MIXES, SplitConfig
from mvtec_lab.data.audit import audit
from mvtec_lab.data.catalogue import GOOD
from mvtec_lab.data.contents import contents_of
from mvtec_lab.data.images import RULES, WHITE, check_images, digests, each_image, too_bright, white_level
from mvtec_lab.data.listing import name_left_out
from mvtec_lab.data.paste import Paste, check_sources
from mvtec_lab.data.samples import Sample, Scan, classes_of, scan
from mvtec_lab.data.sampling import EpochBatches, EpochSampler, class_weights
from mvtec_lab.data.source import product_folder
from mvtec_lab.data.splits import SPLITS, split_samples, thin_out
from mvtec_lab.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation, normalise, read_picture
from mvtec_lab.errors import LabError, unknown


class Rows:
    """Some rows of an array [M, ...], taken out when they are asked for.

    Args:
        array: on any device; a mapped file stays on disk.
        rows: which of its rows, by place.
    """

    def __init__(self, array: Tensor, rows: Sequence[int]) -> None:
        self.array, self.rows = array, torch.tensor(rows)

    def __getitem__(self, places: list[int]) -> Tensor:
        return self.array.index_select(0, self.rows[places].to(self.array.device))

    def near(self, device: torch.device) -> Rows:
        """These rows on the device, where they leave half of its free memory to the network; else where they are."""
        if device.type == "cpu" or len(self.rows) * self.array[0].nbytes > free_memory(device) // 2:
            return self
        return Rows(self.array.index_select(0, self.rows).to(device), range(len(self.rows)))


def free_memory(device: torch.device) -> int:
    """Bytes; 0 where a device does not tell."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


class MVTecDataset(Dataset[dict[str, Any]]):
    """Images of one product folder with their class.

    An item is ``{"image": float32 [3, S, S], normalised; "label": class index, -1 if unknown; "index": place in
    samples}``. A key is a place in ``samples``, or ``(place, seed)`` with the seed of what is random, which a plain
    place draws from torch. A list of keys gives a batch: image [N, 3, S, S], channels last in memory, label and index
    [N].

    Args:
        folder: the product folder, ``.../bottle``.
        samples: which of its images; None: all of them.
        classes: the class names in the order of their index; None: those of ``samples``, good first.
        image_size: S, pixels.
        white: the value of 16-bit files that becomes 255.
        augmentation: random transforms, or None.
        paste: makes defect images anew, before they are augmented; None: never.
        mean, std: of RGB in [0, 1].
        pictures: the images at hand, uint8 rows [S, S, 3], one a sample; None: each is read when asked for.
    """

    def __init__(
        self,
        folder: str | Path,
        samples: Sequence[Sample] | None = None,
        *,
        classes: Sequence[str] | None = None,
        image_size: int = 224,
        white: int = WHITE,
        augmentation: Augmentation | None = None,
        paste: Paste | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        pictures: Rows | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.samples = list(scan(self.folder).samples if samples is None else samples)
        self.classes = list(classes_of(self.samples) if classes is None else classes)
        self.image_size, self.augmentation, self.mean, self.std = image_size, augmentation, mean, std
        self.white, self.pictures, self.paste = white, pictures, paste
        index = {name: i for i, name in enumerate(self.classes)}
        self.labels = torch.tensor([index.get(sample.label, -1) for sample in self.samples])

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def drawn_anew(self) -> bool:
        """Whether an image is another one each time that it is asked for."""
        return self.augmentation is not None or self.paste is not None

    def picture(self, place: int) -> np.ndarray:
        """The image itself, resized: [S, S, 3] uint8."""
        if self.pictures is not None:
            return self.pictures[[place]][0].cpu().numpy()
        return read_picture(self.folder / self.samples[place].path, self.image_size, self.white)

    def __getitem__(self, key: int | tuple[int, int] | list[int] | list[tuple[int, int]]) -> dict[str, Any]:
        if not isinstance(key, list):
            item = self[[key]]  # type: ignore[index]
            return {name: values[0] for name, values in item.items()}
        places = [k[0] if isinstance(k, tuple) else k for k in key]
        if self.pictures is not None and not self.drawn_anew:
            images = self.pictures[places]
        elif not self.drawn_anew:
            paths = [self.folder / self.samples[place].path for place in places]
            read = partial(read_picture, size=self.image_size, white=self.white)
            images = torch.from_numpy(np.stack(list(each_image(paths, read))))
        else:
            images = torch.from_numpy(np.stack([self.seen(k) for k in key]))
        index = torch.tensor(places)
        return {"image": normalise(images, self.mean, self.std), "label": self.labels[index], "index": index}

    def seen(self, key: int | tuple[int, int]) -> np.ndarray:
        """What training makes of the image, pasted and augmented but not normalised: [S, S, 3] uint8."""
        if not self.drawn_anew:
            return self.picture(key[0] if isinstance(key, tuple) else key)
        place, seed = key if isinstance(key, tuple) else (key, int(torch.randint(2**31, ())))
        image = self.picture(place) if self.paste is None else self.paste(self.picture, place, seed)
        return image if self.augmentation is None else self.augmentation(image, seed)


class FeatureDataset(Dataset[dict[str, Any]]):
    """What a network's frozen stages make of a data set's images: ``{"features": [N, ...], "label", "index"}``.

    Args:
        dataset: the images, for their labels.
        features: one row an image, or ``views`` consecutive rows an image; four-dimensional ones channels last.
        views: of which an item takes the one that its key's seed says.
    """

    def __init__(self, dataset: MVTecDataset, features: Rows, views: int = 1) -> None:
        self.dataset, self.features, self.views = dataset, features, views

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, keys: list[int] | list[tuple[int, int]]) -> dict[str, Any]:
        pairs = [k if isinstance(k, tuple) else (k, 0) for k in keys]
        features = self.features[[place * self.views + seed % self.views for place, seed in pairs]]
        index = torch.tensor([place for place, _ in pairs])
        return {
            "features": features.permute(0, 3, 1, 2) if features.ndim == 4 else features,
            "label": self.dataset.labels[index],
            "index": index,
        }


class MVTecDataModule(pl.LightningDataModule):
    """One product folder in MVTec's layout, split, sampled and transformed.

    Args:
        root: the folder that holds the category folders, or the product folder itself (``category=None``).
        category: the product, ``bottle``.
        image_size, white, batch_size: as in DataConfig.
        num_workers: processes that decode and augment; None: none, but up to eight where a GPU waits for them.
        sampler, sampler_beta: draw training images by class, as in DataConfig.
        augment: albumentations names with their arguments, for training images.
        views: augmented views an image, drawn once; None: a new one each epoch.
        paste: chance that a defect training image is made anew, as in AugmentConfig.
        mix, mix_alpha: of training batches, as in AugmentConfig; a mixed batch has a ``target``, [N, C] float, beside
            its labels.
        imbalance: thins the training images out to an exponential tail, as in DataConfig; None: never.
        masks: ``required``: a defect image without a fitting mask is an error; ``optional``: a warning.
        protocol, pool, per_class, val, test, folds, fold, split_file, group_by, val_is_test, split_seed: as in
            SplitConfig.
        seed: of order, sampling and augmentation.
        cache_dir, cache_gb: where decoded and resized images are kept, and its bound; None: decode in every epoch.

    After ``setup``: ``folder``, ``classes``, ``samples`` (all, each with its split), ``warnings``. ``mean`` and ``std``
    may be set at any time before a loader is asked for. A split in ``features`` is loaded from there, not from images.
    """

    def __init__(
        self,
        root: str | Path,
        category: str | None = None,
        *,
        image_size: int = 224,
        white: int | None = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        sampler: str = "none",
        sampler_beta: float = 0.99,
        augment: Mapping[str, Mapping[str, Any]] | None = None,
        views: int | None = None,
        paste: float = 0.0,
        mix: str = "none",
        mix_alpha: float = 1.0,
        imbalance: float | None = None,
        masks: str = "optional",
        protocol: str = "holdout",
        pool: str = "test",
        per_class: int | None = None,
        val: float = 0.2,
        test: float = 0.2,
        folds: int = 5,
        fold: int = 0,
        split_file: str | Path | None = None,
        group_by: str | None = None,
        val_is_test: bool = False,
        split_seed: int = 0,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        cache_gb: float = 10.0,
    ) -> None:
        super().__init__()
        self.root, self.category = root, category
        self.image_size, self.batch_size, self.num_workers = image_size, batch_size, num_workers
        self.sampler, self.sampler_beta, self.seed = sampler, sampler_beta, seed
        self.masks, self.val_is_test = masks, val_is_test
        self.augmentation, self.views = Augmentation(augment, image_size) if augment else None, views
        if mix not in MIXES:
            raise unknown("augment.mix", mix, MIXES)
        if not (0 <= paste <= 1 and mix_alpha > 0):
            raise LabError(f"paste={paste} must lie in [0, 1], mix_alpha={mix_alpha} above 0")
        self.paste, self.mix, self.mix_alpha, self.imbalance = paste, mix, mix_alpha, imbalance
        self.cache = None if cache_dir is None else ArrayCache(cache_dir, cache_gb)
        self.features: dict[str, FeatureDataset] = {}
        self.mean: Sequence[float] = IMAGENET_MEAN
        self.std: Sequence[float] = IMAGENET_STD
        self.warnings: list[str] = []
        self.samples: list[Sample] = []
        self._white = white
        self._pool: list[Sample] = []  # those that took part before training was thinned out
        self._paste: Paste | None = None
        self._row: dict[str, int] = {}  # path -> place among the images that take part
        self._pictures: Tensor | None = None  # those images, if cached: [N, S, S, 3] uint8
        file = None if split_file is None else str(split_file)
        self.split = SplitConfig(
            protocol, pool, per_class, val, test, folds, fold, file, group_by, val_is_test, split_seed
        )

    def scan(self) -> None:
        """The part of ``setup`` that is over at once: list, check and split the folder's files, without decoding any.

        Raises:
            LabError: whatever is wrong with the folder, a mask or the split.
        """
        if self.samples:
            return
        self.folder = product_folder(self.root, self.category)
        found = scan(self.folder)
        self.warnings = self._check_masks(found)
        try:
            samples = self._divided(found.samples)
        except LabError as error:  # of several products, which one
            raise LabError(f"{self.folder}: {error}") from error
        self.warnings += describe_oddities(found, samples)
        if self.imbalance is not None:
            kept = Counter(s.label for s in samples if s.split == "train").most_common()
            counts = ", ".join(f"{label} {count}" for label, count in kept)
            self.warnings.append(f"data.imbalance={self.imbalance:g}: training thinned out to {counts}")
        self.samples = samples

    def _divided(self, found: list[Sample]) -> list[Sample]:
        """Split the samples and thin training out, as the settings say."""
        samples = split_samples(found, self.split)
        self._pool = [s for s in samples if s.split]
        self.classes = classes_of(self._pool)
        if self.imbalance is not None:
            samples = thin_out(samples, self.imbalance, self.split.seed)
        if self.paste:
            check_sources([s for s in samples if s.split == "train"])
        return samples

    def setup(self, stage: str | None = None) -> None:
        """Scan and split the folder, once; every image that takes part is decoded, now or for an earlier cache.

        Those thinned out are decoded as well: so one cache serves every fold and every ``imbalance``.

        Raises:
            LabError: whatever is wrong with the folder, a mask, an image or the split.
        """
        self.scan()
        if not self._row:
            if self.paste:
                self._paste = Paste(self.paste, self.folder, self.of_split("train"), self.image_size)
            self.warnings += too_bright([self.folder / s.path for s in self._pool], self.white)
            self._decode(self._pool)

    @property
    def white(self) -> int:
        """Return the value of 16-bit files that becomes 255: declared, or by the bit depth of the training images."""
        if self._white is None:
            self._white = white_level([self.folder / s.path for s in self.of_split("train")])
        return self._white

    def _decode(self, used: Sequence[Sample]) -> None:
        paths = [self.folder / s.path for s in used]
        if self.cache is not None:
            pictures = self.cache.get(
                f"{self.folder.name} images at {self.image_size}",
                self.content(used),
                len(used),
                "|u1",
                lambda: (
                    p[None] for p in each_image(paths, partial(read_picture, size=self.image_size, white=self.white))
                ),
            )
            self._pictures = None if pictures is None else torch.from_numpy(pictures)
        if self._pictures is None:
            check_images(paths)
        self._row = {s.path: row for row, s in enumerate(used)}

    def content(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """What the pixels of these samples depend on: a part of a cache's key."""
        rules = {**RULES, "white": self.white}
        return {"images": digests([self.folder / s.path for s in samples]), "size": self.image_size, "rules": rules}

    def contents(self) -> dict[str, str]:
        """Return the digest of every image and mask that takes part, by path; an empty text for the others."""
        return contents_of(self.folder, self.samples, self._pool)

    def findings(self) -> list[str]:
        """What ``audit`` finds in the images that take part, after ``setup``; not among ``warnings``."""
        return audit(self.images([s for s in self.samples if s.split]))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def of_split(self, split: str) -> list[Sample]:
        """The samples of train, val or test."""
        return [s for s in self.samples if s.split == ("test" if split == "val" and self.val_is_test else split)]

    def counts(self) -> dict[str, dict[str, int]]:
        """Images of each split by class."""
        found = {split: Counter(s.label for s in self.of_split(split)) for split in SPLITS}
        return {split: {name: counter[name] for name in self.classes} for split, counter in found.items()}

    def dataset(self, split: str) -> MVTecDataset:
        """The images of train, val or test, training ones pasted and augmented."""
        if split == "train":
            return self.images(self.of_split(split), self.augmentation, self._paste)
        return self.images(self.of_split(split))

    def images(
        self, samples: Sequence[Sample], augmentation: Augmentation | None = None, paste: Paste | None = None
    ) -> MVTecDataset:
        """The images of some of the samples that take part."""
        return MVTecDataset(
            self.folder,
            samples,
            classes=self.classes,
            image_size=self.image_size,
            white=self.white,
            augmentation=augmentation,
            paste=paste,
            mean=self.mean,
            std=self.std,
            pictures=None if self._pictures is None else Rows(self._pictures, [self._row[s.path] for s in samples]),
        )

    @property
    def drawn_anew(self) -> bool:
        """Whether training sees an image as another one each time: what was made of it once will not do."""
        return self.dataset("train").drawn_anew or self.mix != "none"

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Mix a training batch, on its device; drawn from torch's global generator, which a resumed run restores."""
        if self.mix == "none" or self.trainer is None or not self.trainer.training:
            return batch
        kind = v2.MixUp if self.mix == "mixup" else v2.CutMix
        image, target = kind(alpha=self.mix_alpha, num_classes=self.num_classes)(batch["image"], batch["label"])
        return {**batch, "image": image, "target": target}

    def train_sampler(self) -> EpochSampler:
        """The draws of every epoch: which training image, and the seed of its augmentation."""
        weights = None
        if self.sampler != "none":
            counts = self.counts()["train"]
            by_class = dict(
                zip(counts, class_weights(list(counts.values()), self.sampler, self.sampler_beta), strict=True)
            )
            weights = [float(by_class[s.label]) for s in self.of_split("train")]
        return EpochSampler(len(self.of_split("train")), weights, self.seed, self.views)

    @property
    def smallest_batch(self) -> int:
        """Return 1 where training sees a batch of a single image, 2 where it sees none so small."""
        return 1 if 1 in (self.batch_size, len(self.of_split("train"))) else 2

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        sampler = self.train_sampler()
        if self.trainer is not None:  # Lightning asks for the first batches of a resumed run before it calls set_epoch
            sampler.set_epoch(self.trainer.current_epoch)
        # Batch normalisation cannot train on a single image: a last batch of one is left out, another one each epoch.
        leftover = len(sampler) % self.batch_size
        return self._loader("train", EpochBatches(sampler, self.batch_size, leftover == 1 and len(sampler) > 1))

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader("test")

    @property
    def device(self) -> torch.device:
        """Where the batches will be used, once a trainer has taken this module."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _loader(self, split: str, batches: EpochBatches | None = None) -> DataLoader[dict[str, Any]]:
        dataset = self.features[split] if split in self.features else self.dataset(split)
        if isinstance(dataset, FeatureDataset):
            at_hand, dataset.features = True, dataset.features.near(self.device)
        elif dataset.pictures is not None and not dataset.drawn_anew:  # which works on the CPU
            at_hand, dataset.pictures = True, dataset.pictures.near(self.device)
        else:
            at_hand = False
        if at_hand:
            workers = 0  # taking rows out of memory is less than sending them from one process to another
        elif self.num_workers is not None:
            workers = self.num_workers
        else:  # eight processes augment some thousand images a second, more than a GPU trains on
            workers = 0 if self.device.type == "cpu" else min(8, os.cpu_count() or 1)
        return DataLoader(
            dataset,
            batch_size=None,  # the sampler draws whole batches
            sampler=batches or BatchSampler(SequentialSampler(dataset), self.batch_size, drop_last=False),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda" and not at_hand,
            # A generator of its own: a loader's start must not draw from the one that dropout draws from.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _check_masks(self, found: Scan) -> list[str]:
        problems = list(found.mask_problems)
        defects = [s for s in found.samples if s.label != GOOD]
        if self.masks == "required" and defects and not problems and not any(s.mask for s in defects):
            problems = [f"{self.folder} has no ground_truth/ folder with masks"]
        if problems and self.masks == "required":
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise LabError(f"{self.folder}: {problems[0]}{more}: mend it, or data.masks=optional goes on without masks")
        return [f"mask: {problem}" for problem in problems]


def describe_oddities(found: Scan, samples: Sequence[Sample]) -> list[str]:
    """What a reader of the figures should know of these samples, a line each."""
    messages = name_left_out(found.left_out, found.folder)
    if not any(s.label == GOOD for s in samples if s.split):
        messages.append(f"no class is called {GOOD!r}: every image counts as a defect")
    return messages
