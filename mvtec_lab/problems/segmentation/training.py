"""Train a segmentation model: on images, or on what its frozen part made of their views once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn

from mvtec_lab.data.catalogue import GOOD
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import Rows
from mvtec_lab.engine.features import kept
from mvtec_lab.engine.pictures import log_picture, outlined, sheet
from mvtec_lab.engine.run import Run
from mvtec_lab.models.modes import evaluating
from mvtec_lab.problems.segmentation.base import Joined, SegmentationModel, of_each, view
from mvtec_lab.problems.segmentation.types import RegionTypes

log = logging.getLogger(__name__)

SAMPLED = 16  # images of the first batch on its sheet


def fit(run: Run) -> None:
    """Train ``run.model``; the weights of the epoch with the lowest validation loss remain."""
    result, module = run.result, run.model.module
    trains = any(p.requires_grad for p in module.parameters())
    trainer = run.build_trainer("val/loss" if trains else None)
    counted = {"total": module.parameters(), "trained": (p for p in module.parameters() if p.requires_grad)}
    result.parameters = {name: sum(p.numel() for p in parameters) for name, parameters in counted.items()}
    result.luck = trains
    log.info(
        "%s: %s%s, %s of %s parameters train, %d images in %s, %d CPU thread(s)",
        run.config.attempt,
        run.model.method,
        "" if result.backbone == "none" else f" on {result.backbone} ({result.weights})",
        f"{result.parameters['trained']:,}",
        f"{result.parameters['total']:,}",
        len(run.data.of_split("train")),
        trainer.strategy.root_device,
        torch.get_num_threads(),
    )
    result.features = use_features(run, module)
    if result.features:
        log.info("the frozen part was computed once: %s, %d views", ", ".join(result.features), module.views)
    if trainer.is_global_zero and run.step is None and trains:
        _log_first_batch(run)
    result.startup_seconds = time.perf_counter() - run.began
    run.watch_memory()
    if trains:
        run.fit()
    else:
        module.to(trainer.strategy.root_device)
    started = time.perf_counter()
    if isinstance(module.namer, RegionTypes):
        _fit_types(run.data, module, module.namer)
    result.fit_seconds = result.seconds + time.perf_counter() - started


def _fit_types(data: MVTecDataModule, module: SegmentationModel, namer: RegionTypes) -> None:
    """Show what names the types of defects all training images, as they are, and their true masks."""
    images, features = data.images(data.of_split("train")), data.features.get("train")
    evidence: list[np.ndarray] = []
    kinds: list[str] = []
    for place, sample in enumerate(images.samples):
        if sample.label == GOOD:
            continue
        batch = images[[place]] if features is None else features[[(place, n) for n in range(module.views)]]
        mask, kinds = images.small_masks([place]).float().to(module.device), [*kinds, sample.label]
        with torch.no_grad(), evaluating(module):
            each = [
                module.evidence(module.maps(module.features_of(module.view_of(batch, 0, n))), view(mask, n))
                for n in range(module.views)
            ]
        evidence.append(torch.cat(each).float().mean(0).cpu().numpy())
    if evidence:
        namer.fit(np.stack(evidence), kinds)


def use_features(run: Run, module: SegmentationModel) -> list[str]:
    """Let the data module load features of every split whose images stay the same; return these splits.

    One entry of the cache holds all images that take part, so that it serves every fold and seed, and every method with
    the same frozen part.
    """
    data = run.data
    if module.frozen is None or data.cache is None:
        return []
    images = data.images(_everything(data))
    views, device = module.views, run.trainer.strategy.root_device

    def blocks(part: nn.Module) -> Iterator[np.ndarray]:
        part.to(device)
        for place in range(len(images)):
            image = images[[place]]["image"].to(device)
            each = torch.cat([view(image, number) for number in range(views)])
            with run.trainer.precision_plugin.forward_context():
                yield of_each(part, each).float().cpu().numpy()

    parts = module.frozen.parts if isinstance(module.frozen, Joined) else [module.frozen]
    network = module.hparams["backbone"] if module.method.backbone else module.weights_name
    name = f"{data.folder.name} {network} at {data.image_size}"
    rows, further = len(images) * views, {"views": views}
    with evaluating(module):
        kept_parts = [
            kept(name, part, data, images, rows, further, run.trainer, partial(blocks, part)) for part in parts
        ]
    arrays = [array for array in kept_parts if array is not None]
    if len(arrays) < len(parts):
        return []
    place_of = {sample.path: place for place, sample in enumerate(images.samples)}
    for split in ("train", "val", "test"):
        if samples := data.of_split(split):
            if split == "train" and data.random:
                continue
            chosen = [place_of[sample.path] * views + number for sample in samples for number in range(views)]
            features = [Rows(array, chosen) for array in arrays]
            data.load_features(split, features[0] if len(features) == 1 else JoinedRows(features), views)
    return sorted(data.features)


class JoinedRows(Rows):
    """Rows of several arrays, each joined to one row."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts

    def __getitem__(self, places: list[int]) -> torch.Tensor:
        return torch.cat([part[places].flatten(1) for part in self.parts], dim=1)

    def near(self, device: torch.device) -> JoinedRows:
        return JoinedRows([part.near(device) for part in self.parts])


def _everything(data: MVTecDataModule) -> list:
    return [sample for sample in data.samples if sample.split]


def _log_first_batch(run: Run) -> None:
    """Show the first training batch and its masks as the network sees them in TensorBoard."""
    dataset, logger, module = run.data.dataset("train"), run.trainer.logger, run.model.module
    keys = list(run.data.train_sampler())[: min(SAMPLED, run.data.batch_size)]
    tiles = []
    for place, seed in keys:
        picture, mask = dataset.view((place, seed))
        assert mask is not None
        both = (
            view(torch.from_numpy(part), seed % module.views)
            for part in (picture.transpose(2, 0, 1), np.atleast_3d(mask).max(axis=2))
        )
        image, marked = (part.numpy() for part in both)
        tiles.append(outlined(np.ascontiguousarray(image.transpose(1, 2, 0)), marked > 0))
    captions = [dataset.samples[place].label for place, _ in keys]
    assert isinstance(logger, TensorBoardLogger)
    log_picture(logger.experiment, "input/first_batch", sheet(tiles, captions, [None] * len(keys)), 0)
