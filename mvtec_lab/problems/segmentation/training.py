"""Train a segmentation model: on images, or on what its frozen part made of their views once."""

from __future__ import annotations

import logging
import time

import numpy as np
import torch

from mvtec_lab.engine.features import use_views
from mvtec_lab.engine.pictures import outlined, sheet
from mvtec_lab.engine.run import Run
from mvtec_lab.models.modes import evaluating
from mvtec_lab.models.views import view
from mvtec_lab.problems.segmentation.base import SegmentationModel
from mvtec_lab.problems.segmentation.types import RegionTypes
from mvtec_lab.results import GOOD

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
        "%s: %s%s, %s of %s parameters train, %d images%s in %s, %d CPU thread(s)",
        run.config.attempt,
        run.model.method,
        "" if result.backbone == "none" else f" on {result.backbone} ({result.weights})",
        f"{result.parameters['trained']:,}",
        f"{result.parameters['total']:,}",
        len(run.data.of_split("train")),
        run.data.tiled,
        trainer.strategy.root_device,
        torch.get_num_threads(),
    )
    network = result.backbone if module.method.backbone else module.weights_name
    result.features = use_views(run, module.frozen, module.views, network)
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
    if isinstance(module.type_model, RegionTypes):
        _fit_types(run, module, module.type_model)
    result.fit_seconds = result.seconds + time.perf_counter() - started


def _fit_types(run: Run, module: SegmentationModel, type_model: RegionTypes) -> None:
    """Show what names the types of defects all training images, as they are, and their true masks."""
    data = run.data
    images, features = data.images(data.tiles(data.of_split("train"))), data.features.get("train")
    evidence: list[np.ndarray] = []
    kinds: list[str] = []
    for place, sample in enumerate(images.samples):
        if sample.label == GOOD or sample.mixed:
            continue
        batch = images[[place]] if features is None else features[[(place, n) for n in range(module.views)]]
        mask, kinds = images.small_masks([place]).float().to(module.device), [*kinds, sample.label]
        with torch.no_grad(), evaluating(module):
            of_views = [
                module.evidence(module.maps(module.features_of(module.view_of(batch, 0, n))), view(mask, n))
                for n in range(module.views)
            ]
        evidence.append(torch.cat(of_views).float().mean(0).cpu().numpy())
    if evidence and (warning := type_model.fit(np.stack(evidence), kinds)):
        run.warn(warning)


def _log_first_batch(run: Run) -> None:
    """Show the first training batch and its masks as the network sees them in TensorBoard."""
    dataset, module = run.data.dataset("train"), run.model.module
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
    run.show_picture("first_batch", sheet(tiles, captions, [None] * len(keys)))
