"""Train a classifier: on images, or on what its frozen stages made of them once."""

from __future__ import annotations

import logging
import time

import torch

from mvtec_lab.engine.pictures import sheet
from mvtec_lab.engine.run import Run
from mvtec_lab.engine.setup import training_seed
from mvtec_lab.problems.classification.features import learn_images, use_features

log = logging.getLogger(__name__)

SAMPLED = 16  # images of the first batch on its sheet


def fit(run: Run) -> None:
    """Train ``run.model``; its best weights by ``trainer.monitor`` remain."""
    config, result, classifier = run.config, run.result, run.model.module
    trainer = run.build_trainer(config.trainer.monitor)
    counted = {"total": classifier.parameters(), "trained": classifier.trained_parameters}
    result.parameters = {name: sum(p.numel() for p in parameters) for name, parameters in counted.items()}
    # A head that trains nothing, the neighbours' vote, is the same whatever the seed.
    result.luck = bool(result.parameters["trained"]) or result.weights == "random" or config.model.generate
    log.info(
        "%s: %s (%s), %s of %s parameters train, %s images, %s in %s, %d CPU thread(s)",
        config.attempt,
        config.model.backbone,
        result.weights,
        f"{result.parameters['trained']:,}",
        f"{result.parameters['total']:,}",
        sum(result.counts["train"].values()),
        result.precision,
        result.device,
        torch.get_num_threads(),
    )
    result.features = use_features(run.data, classifier, trainer)
    if result.features:
        log.info("frozen up to %s, computed once: %s", classifier.model.prefix[-1], ", ".join(result.features))
    if classifier.learns and (note := learn_images(run.data, classifier, trainer, training_seed(config))):
        log.info("%s", note)
    if config.trainer.compile:
        classifier.model.compile_parts()
    if trainer.is_global_zero and run.step is None:
        log_first_batch(run)
    result.startup_seconds = time.perf_counter() - run.began
    run.fit()


def log_first_batch(run: Run) -> None:
    """Show the first training batch as the network sees it, augmented and resized, in TensorBoard."""
    dataset = run.data.dataset("train")
    keys = list(run.data.train_sampler())[: min(SAMPLED, run.data.batch_size)]
    captions = [dataset.samples[place].label for place, _ in keys]
    run.show_picture("first_batch", sheet([dataset.view(key)[0] for key in keys], captions, [None] * len(keys)))
