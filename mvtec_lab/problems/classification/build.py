"""From a configuration to a classifier."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import torch
from pytorch_lightning.utilities.seed import isolate_rng

from mvtec_lab.config import BALANCING, Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.sampling import class_weights
from mvtec_lab.engine.setup import RANDOM_MARK, VAL_IS_TEST_MARK, rehearse_batch
from mvtec_lab.models.weights import WeightsUnavailable
from mvtec_lab.problems.classification.classifier import DefectClassifier
from mvtec_lab.problems.classification.losses import knobs


def _classifier(config: Config, data: MVTecDataModule) -> partial[DefectClassifier]:
    """The classifier of a configuration, up to its weights."""
    m, o, c, loss = config.model, config.optimizer, config.scheduler, config.loss
    counts = list(data.counts()["train"].values())
    balance = None
    if loss.class_weights != "none":
        balance = class_weights(counts, loss.class_weights, loss.beta).tolist()
    return partial(
        DefectClassifier,
        m.backbone,
        data.num_classes,
        classes=data.classes,
        unfreeze=m.unfreeze,
        warmup_epochs=m.warmup_epochs,
        class_counts=counts,
        class_weights=balance,
        loss=loss.name,
        loss_options=knobs(loss.name, asdict(loss)),
        posthoc=loss.posthoc,
        defer=loss.defer,
        head=m.head,
        scale=m.scale,
        neighbours=m.neighbours,
        memory=sum(counts),
        generate=m.generate,
        optimizer=o.name,
        lr=o.lr,
        weight_decay=o.weight_decay,
        momentum=o.momentum,
        scheduler=c.name,
        step_size=c.step_size,
        gamma=c.gamma,
        scheduler_patience=c.patience,
        image_size=config.data.image_size,
        white=data.white,
    )


def build_classifier(config: Config, data: MVTecDataModule) -> tuple[DefectClassifier, list[str]]:
    """The classifier, and a warning where its weights are not those asked for: only the sample takes random ones."""
    make = _classifier(config, data)
    if data.smallest_batch == 1:
        rehearse_classifier(config, data)
    try:
        classifier = make(weights=config.model.weights)
        notes = [classifier.weights_note] if classifier.weights_note else []
    except WeightsUnavailable as error:
        if config.data.name != "sample":
            raise
        classifier, notes = make(weights=None), [f"{RANDOM_MARK}: {error}"]
    if classifier.weights_name == "random" and not notes:
        notes = [f"{RANDOM_MARK}, as asked for"]
    data.mean, data.std = classifier.mean, classifier.std
    return classifier, notes


def rehearse_classifier(config: Config, data: MVTecDataModule) -> None:
    """Refuse ahead an architecture that cannot be built, or cannot train on the smallest batch; it gets no values.

    Raises:
        LabError: what building the classifier would raise, or a batch of one image before a batch normalisation.
    """
    with torch.device("meta"), isolate_rng():
        classifier = _classifier(config, data)(weights=None)
        rehearse_batch(config, data, classifier.train().model)


def config_findings(config: Config) -> list[str]:
    """What a configuration itself takes from the worth of its figures, a line each."""
    findings = [VAL_IS_TEST_MARK] if config.split.val_is_test else []
    sampler, weights, loss = config.data.sampler, config.loss.class_weights, config.loss
    balancing = {
        f"data.sampler={sampler}": sampler != "none",
        f"loss.class_weights={weights}": weights != "none",
        f"loss.name={loss.name}": loss.name in BALANCING,
        f"loss.posthoc={loss.posthoc:g}": loss.posthoc > 0,
        "model.generate=true": config.model.generate,
    }
    if len(both := [key for key, on in balancing.items() if on]) > 1:
        findings.append(f"{both[0]} and {both[1]} are both on: rare classes are weighted twice")
    return findings
