"""What the frozen stages make of the images, computed once and loaded in the images' place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset, Rows
from mvtec_lab.models.modes import evaluating
from mvtec_lab.problems.classification.classifier import DefectClassifier

# Images; fixed, as another size takes other kernels, which round in another way: by 4e-6 in batches of 8, of which 30
# epochs made other labels. Whether features are kept or not, they are made in batches of this size.
BATCH = 32


def use_features(data: MVTecDataModule, classifier: DefectClassifier, trainer: pl.Trainer) -> list[str]:
    """Let a data module load features: of validation and test images, and of training images that stay the same.

    Returns:
        The splits that it loads so; none where no stage is frozen or the module has no cache.
    """
    cache, prefix = data.cache, classifier.model.prefix
    if not prefix:
        return []
    seeds = data.train_sampler().view_seeds
    if not data.random or (seeds is not None and data.augment.mix == "none"):  # training's could be kept
        classifier.model.extract_in(BATCH)
    if cache is None:
        return []
    device = trainer.strategy.root_device
    made_by = {
        "network": str(classifier.model[: len(prefix)]),
        "weights": _digest(classifier.model[: len(prefix)]),
        "normalisation": [data.mean, data.std],
        "arithmetic": [torch.__version__, device.type, str(trainer.precision), BATCH],
    }

    def cached(dataset: MVTecDataset, keys: Sequence[Any], views: Any) -> torch.Tensor | None:
        def blocks() -> Iterator[np.ndarray]:
            for features in _extracted(classifier, trainer, dataset, keys):
                yield (features.permute(0, 2, 3, 1) if features.ndim == 4 else features).numpy()

        name = f"{data.folder.name} {classifier.hparams['backbone']} up to {prefix[-1]} at {data.image_size}"
        key = {"images": data.content(dataset.samples), "views": views, **made_by}
        with evaluating(classifier):  # here, as the cache may read only a part of the blocks
            array = cache.get(name, key, len(keys), np.dtype(np.float32).str, blocks)
        return None if array is None else torch.from_numpy(array)

    still = ("val", "test") if data.random else ("train", "val", "test")
    paths = {s.path for split in still for s in data.of_split(split)}
    images = data.images([s for s in data.samples if s.path in paths])
    features = cached(images, range(len(images)), None)
    if features is not None:
        row = {s.path: i for i, s in enumerate(images.samples)}
        for split in still:
            data.load_features(split, Rows(features, [row[s.path] for s in data.of_split(split)]))
    train = data.dataset("train")
    if train.random and seeds is not None and data.augment.mix == "none":
        keys = [(place, int(seed)) for place, row_ in enumerate(seeds) for seed in row_]
        random = [maker.key for maker in (train.augmentation, train.paste) if maker]
        features = cached(train, keys, [*random, seeds.tolist()])
        if features is not None:
            data.load_features("train", Rows(features, range(len(keys))), seeds.shape[1])
    return sorted(data.features)


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


def _digest(network: torch.nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
