"""The data set of one product and the LightningDataModule around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from mvtec_lab.config import SplitConfig
from mvtec_lab.data.catalogue import GOOD
from mvtec_lab.data.images import check_images, read_image
from mvtec_lab.data.samples import Sample, Scan, classes_of, scan
from mvtec_lab.data.sampling import EpochSampler, class_weights
from mvtec_lab.data.source import product_folder
from mvtec_lab.data.splits import SPLITS, split_samples
from mvtec_lab.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation, normalise, resize
from mvtec_lab.errors import LabError


class MVTecDataset(Dataset[dict[str, Any]]):
    """Images of one product folder with their class.

    An item is ``{"image": float32 [3, S, S], normalised; "label": class index, -1 if unknown; "index": place in
    samples}``. A key is a place in ``samples``, or ``(place, seed)`` with the seed of the augmentation, which a plain
    place draws from torch.

    Args:
        folder: the product folder, ``.../bottle``.
        samples: which of its images; None: all of them.
        classes: the class names in the order of their index; None: those of ``samples``, good first.
        image_size: S, pixels.
        augmentation: random transforms, or None.
        mean, std: of RGB in [0, 1].
    """

    def __init__(
        self,
        folder: str | Path,
        samples: Sequence[Sample] | None = None,
        *,
        classes: Sequence[str] | None = None,
        image_size: int = 224,
        augmentation: Augmentation | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.folder = Path(folder)
        self.samples = list(scan(self.folder).samples if samples is None else samples)
        self.classes = list(classes_of(self.samples) if classes is None else classes)
        self.image_size, self.augmentation, self.mean, self.std = image_size, augmentation, mean, std
        self._index = {name: i for i, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.samples)

    def label(self, place: int) -> int:
        return self._index.get(self.samples[place].label, -1)

    def picture(self, place: int) -> Any:
        """The image itself, resized: [S, S, 3] uint8."""
        return resize(read_image(self.folder / self.samples[place].path), self.image_size)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        place, seed = key if isinstance(key, tuple) else (key, None)
        image = self.picture(place)
        if self.augmentation is not None:
            image = self.augmentation(image, int(torch.randint(2**31, ())) if seed is None else seed)
        return {"image": normalise(image, self.mean, self.std), "label": self.label(place), "index": place}


class MVTecDataModule(pl.LightningDataModule):
    """One product folder in MVTec's layout, split, sampled and transformed.

    Args:
        root: the folder that holds the category folders, or the product folder itself (``category=None``).
        category: the product, ``bottle``.
        image_size, batch_size, num_workers: as in DataConfig.
        sampler, sampler_beta: draw training images by class, as in DataConfig.
        augment: albumentations names with their arguments, for training images.
        masks: ``required``: a defect image without a fitting mask is an error; ``optional``: a warning.
        protocol, pool, per_class, val, test, folds, fold, split_file, group_by, val_is_test, split_seed: as in
            SplitConfig.
        seed: of order, sampling and augmentation.

    After ``setup``: ``folder``, ``classes``, ``samples`` (all, each with its split), ``warnings``. ``mean`` and ``std``
    may be set at any time before a loader is asked for.
    """

    def __init__(
        self,
        root: str | Path,
        category: str | None = None,
        *,
        image_size: int = 224,
        batch_size: int = 32,
        num_workers: int = 0,
        sampler: str = "none",
        sampler_beta: float = 0.99,
        augment: Mapping[str, Mapping[str, Any]] | None = None,
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
    ) -> None:
        super().__init__()
        self.root, self.category = root, category
        self.image_size, self.batch_size, self.num_workers = image_size, batch_size, num_workers
        self.sampler, self.sampler_beta, self.seed = sampler, sampler_beta, seed
        self.masks, self.val_is_test = masks, val_is_test
        self.augmentation = Augmentation(augment) if augment else None
        self.mean: Sequence[float] = IMAGENET_MEAN
        self.std: Sequence[float] = IMAGENET_STD
        self.warnings: list[str] = []
        self.samples: list[Sample] = []
        file = None if split_file is None else str(split_file)
        self.split = SplitConfig(
            protocol, pool, per_class, val, test, folds, fold, file, group_by, val_is_test, split_seed
        )

    def setup(self, stage: str | None = None) -> None:
        """Scan and split the folder, once; every image that takes part is decoded to see that it can be.

        Raises:
            LabError: whatever is wrong with the folder, a mask, an image or the split.
        """
        if self.samples:
            return
        self.folder = product_folder(self.root, self.category)
        found = scan(self.folder)
        samples = split_samples(found.samples, self.split)
        self.classes = classes_of([s for s in samples if s.split])
        self.warnings = self._check_masks(found) + describe_oddities(found, samples)
        check_images([self.folder / s.path for s in samples if s.split])
        self.samples = samples

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
        return MVTecDataset(
            self.folder,
            self.of_split(split),
            classes=self.classes,
            image_size=self.image_size,
            augmentation=self.augmentation if split == "train" else None,
            mean=self.mean,
            std=self.std,
        )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        dataset = self.dataset("train")
        weights = None
        if self.sampler != "none":
            counts = self.counts()["train"]
            by_class = class_weights(list(counts.values()), self.sampler, self.sampler_beta)
            weights = [float(by_class[dataset.label(i)]) for i in range(len(dataset))]
        sampler = EpochSampler(len(dataset), weights, self.seed)
        # Batch normalisation cannot train on a single image: a last batch of one is left out, another one each epoch.
        leftover = len(sampler) % self.batch_size
        return self._loader(dataset, sampler=sampler, drop_last=leftover == 1 and len(sampler) > 1)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader(self.dataset("val"))

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader(self.dataset("test"))

    def _loader(self, dataset: MVTecDataset, **kwargs: Any) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: a loader's start must not draw from the one that dropout draws from.
            generator=torch.Generator().manual_seed(self.seed),
            **kwargs,
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
    """What a reader of the figures should know of these samples and their split, a line each."""
    messages = []
    if found.ignored:
        shown = ", ".join(found.ignored[:3]) + (" ..." if len(found.ignored) > 3 else "")
        messages.append(f"{len(found.ignored)} file(s) or folder(s) that are no images were passed over: {shown}")
    if not any(s.label == GOOD for s in samples if s.split):
        messages.append(f"no class is called {GOOD!r}: every image counts as a defect")
    for split in ("val", "test"):
        counts = Counter(s.label for s in samples if s.split == split)
        for name, count in sorted(counts.items()):
            if count == 1:
                messages.append(f"class {name!r} has a single image in {split}: its recall is 0 or 1")
        absent = set(classes_of([s for s in samples if s.split])) - set(counts) if counts else set()
        messages += [f"class {name!r} has no image in {split}" for name in sorted(absent)]
    return messages
