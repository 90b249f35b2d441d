"""What the frozen stages make of the images, computed once and loaded in the images' place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset, Rows
from mvtec_lab.engine.features import kept
from mvtec_lab.models.modes import evaluating

DefectClassifier = Any  # it imports what trains it

# Images; fixed, as another size takes other kernels, which round in another way: by 4e-6 in batches of 8, of which 30
# epochs made other labels. Whether features are kept or not, they are made in batches of this size.
BATCH = 32


def use_features(data: MVTecDataModule, classifier: DefectClassifier, trainer: pl.Trainer) -> list[str]:
    """Let a data module load features: of validation and test images, and of training images that stay the same.

    Returns:
        The splits that it loads so; none where no stage is frozen or the module has no cache.
    """
    if not classifier.model.prefix:
        return []
    seeds = data.train_sampler().view_seeds if data.augment.mix == "none" else None
    if not data.random or seeds is not None:  # training's could be kept
        classifier.model.extract_in(BATCH)
    if data.cache is None:
        return []
    cached = _Cached(data, classifier, trainer)
    samples = {split: data.of_split(split) for split in ("train", "val", "test") if split != "train" or not data.random}
    paths = {s.path for part in samples.values() for s in part}
    images = data.images([s for s in data.samples if s.path in paths])
    features = cached(images, range(len(images)), None)
    if features is not None:
        row = {s.path: i for i, s in enumerate(images.samples)}
        for split, part in samples.items():
            data.load_features(split, Rows(features, [row[s.path] for s in part]))
    if seeds is not None:
        _keep_views(data, cached, seeds)
    return sorted(data.features)


def _keep_views(data: MVTecDataModule, cached: _Cached, seeds: torch.Tensor) -> None:
    """Let a data module load the features of the augmented views of its training images; seeds [N, views]."""
    train = data.dataset("train")
    if train.random:
        keys = [(place, int(seed)) for place, seeds_of in enumerate(seeds) for seed in seeds_of]
        random = [maker.key for maker in (train.augmentation, train.paste) if maker]
        features = cached(train, keys, [*random, seeds.tolist()])
        if features is not None:
            data.load_features("train", Rows(features, range(len(keys))), seeds.shape[1])


class _Cached:
    """Cache what the frozen stages of a classifier make of images."""

    def __init__(self, data: MVTecDataModule, classifier: DefectClassifier, trainer: pl.Trainer) -> None:
        self.data, self.classifier, self.trainer = data, classifier, trainer
        prefix = classifier.model.prefix
        self.name = f"{data.folder.name} {classifier.hparams['backbone']} up to {prefix[-1]} at {data.frame}"
        self.network = classifier.model[: len(prefix)]

    def __call__(self, dataset: MVTecDataset, keys: Sequence[Any], views: Any) -> torch.Tensor | None:
        """Return the features of some keys of a dataset; None where they cannot be kept.

        Args:
            views: what augmented views depend on.
        """

        def blocks() -> Iterator[np.ndarray]:
            for features in _extracted(self.classifier, self.trainer, dataset, keys):
                yield (features.permute(0, 2, 3, 1) if features.ndim == 4 else features).numpy()

        further = {"views": views, "batch": BATCH}
        with evaluating(self.classifier):  # here, as the cache may read only a part of the blocks
            return kept(self.name, self.network, self.data, dataset, len(keys), further, self.trainer, blocks)


def learn_images(data: MVTecDataModule, classifier: DefectClassifier, trainer: pl.Trainer, seed: int) -> str | None:
    """Show a classifier the training images that its head has to know, as they are, not augmented.

    Returns:
        What it has to say about them, in one line.
    """
    parts: Iterable[torch.Tensor]
    if "train" in data.features and not data.random:
        known = data.features["train"]
        keys = range(len(known))
        parts = (known[list(keys[start : start + BATCH])]["features"] for start in keys[::BATCH])
    else:
        images = data.images(data.of_split("train"))
        parts = _extracted(classifier, trainer, images, range(len(images)))
    device = trainer.strategy.root_device
    with evaluating(classifier), torch.no_grad():
        embeddings = torch.cat([classifier.to(device).head.embed(part.to(device)).float().cpu() for part in parts])
    return classifier.learn(embeddings, data.dataset("train").labels, seed)


def _extracted(
    classifier: DefectClassifier, trainer: pl.Trainer, dataset: MVTecDataset, keys: Sequence[Any]
) -> Iterator[torch.Tensor]:
    """Yield the features of some images, ``BATCH`` at a time: float32 on the CPU. The classifier is in eval mode."""
    device = trainer.strategy.root_device
    classifier.to(device)
    for start in range(0, len(keys), BATCH):
        images = dataset[list(keys[start : start + BATCH])]["image"].to(device)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            features = classifier.model.extract(images, BATCH).float().cpu()
        yield features
