"""Fit an anomaly model to good images, in one pass or by gradient, and once more for each fold of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.samples import Sample
from mvtec_lab.engine.features import use_views
from mvtec_lab.engine.run import Run
from mvtec_lab.problems.anomaly.scores import Reading, score
from mvtec_lab.results import GOOD

log = logging.getLogger(__name__)


def fit(run: Run) -> None:
    """Fit ``run.model`` to the training images; no checkpoint is kept before its threshold is chosen."""
    data, result, module = run.data, run.result, run.model.module
    trainer = run.build_trainer()
    device = trainer.strategy.root_device
    total = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad) if module.method.trains else 0
    result.parameters = {"total": total, "trained": trained}
    result.luck = module.method.draws or result.weights == "random"
    images = data.of_split("train")
    good = [sample for sample in images if sample.label == GOOD]
    train = data.images(data.tiles(good))
    log.info(
        "%s: %s%s%d good images%s%s to learn from, %d for the threshold (%s), %d images to test; %s, %d CPU thread(s)",
        run.config.attempt,
        "" if run.model.method == run.config.attempt else f"{run.model.method}, ",
        "" if result.backbone == "none" else f"{result.backbone} ({result.weights}), ",
        len(good),
        f" and {len(images) - len(good)} defects" if len(good) < len(images) else "",
        data.tiled,
        len(data.of_split("val")) + (0 if module.method.trains else len(images)),
        run.config.threshold.rule,
        len(data.of_split("test")),
        device,
        torch.get_num_threads(),
    )

    def batches() -> Reading:
        return Reading(train, data.batch_size, device)

    result.features = use_views(run, module.frozen, 1, result.backbone)
    result.startup_seconds = time.perf_counter() - run.began
    run.watch_memory()
    started = time.perf_counter()
    module.to(device).eval()
    with torch.no_grad():
        module.prepare(batches)
    if module.method.trains:
        module.know(data.images(data.tiles(images)))
        run.fit(train_dataloaders=data.train_dataloader(), val_dataloaders=data.val_dataloader())
        module.eval()
        with torch.no_grad():
            module.finish(batches)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what is still under way belongs to the fit
    result.seconds = result.fit_seconds = time.perf_counter() - started
    for remark in module.remarks:
        run.warn(remark)


def out_of_fold(
    run: Run, seen: Mapping[str, MVTecDataset], folds: Sequence[Sequence[Sample]]
) -> dict[str, tuple[np.ndarray, list[np.ndarray] | None]]:
    """Score good images as ``score`` does, each by a model that has not seen it.

    The run's model scores the first fold, which it was not fitted to. For every other fold a copy of it is fitted to
    the rest. One copy is held at a time, and none takes a random number from the run.

    Args:
        seen: the good images, fold after fold, and others in the same places; or the tiles of both. The first are
            learnt from.
        folds: the good images of each fold.
    """
    batch_size, module = run.data.batch_size, run.model.module
    ends = np.cumsum([0, *(len(run.data.tiles(fold)) for fold in folds)]).tolist()
    learnt = next(iter(seen.values()))
    parts: dict[str, list[tuple[np.ndarray, list[np.ndarray] | None]]] = {name: [] for name in seen}
    for start, end in pairwise(ends):
        if start:
            others = [*range(start), *range(end, ends[-1])]
            module = deepcopy(run.model.module).eval()  # the copy of a traced network is in training mode
            with isolate_rng(), torch.no_grad():
                module.prepare(lambda others=others: Reading(learnt, batch_size, run.model.module.device, others))
        for name, dataset in seen.items():
            parts[name].append(score(module, dataset, batch_size, run.model.module.device, range(start, end)))
    return {
        name: (
            np.concatenate([scores for scores, _ in of_folds]),
            None if of_folds[0][1] is None else [score_map for _, maps in of_folds for score_map in maps or ()],
        )
        for name, of_folds in parts.items()
    }
