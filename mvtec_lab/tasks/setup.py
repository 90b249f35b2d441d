"""From a configuration to the objects that a task works with. Writes nothing but the data set it may have to fetch."""

from __future__ import annotations

import ctypes
import gc
import logging
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.seed import isolate_rng
from torch._subclasses.fake_tensor import FakeTensorMode  # where PyTorch documents it

from mvtec_lab.config import BALANCING, Config, validate
from mvtec_lab.data.catalogue import GOOD
from mvtec_lab.data.contents import Contents, require_same
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.sampling import class_weights
from mvtec_lab.data.source import locate
from mvtec_lab.effects import FROM_SCRATCH
from mvtec_lab.errors import LabError, disk_full
from mvtec_lab.models.anomaly import build_detector
from mvtec_lab.models.anomaly.base import AnomalyDetector
from mvtec_lab.models.classifier import DefectClassifier
from mvtec_lab.models.losses import knobs
from mvtec_lab.models.weights import WeightsUnavailable, load_weights
from mvtec_lab.results import CONFIG

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its hints would bury what the lab has to say

SAMPLE_MARK = "sample data: drawn procedurally, not images of a real product"
RANDOM_MARK = "random weights"
VAL_IS_TEST_MARK = "validation = test: the checkpoint was chosen on the test images, its accuracy is too high"
ONE = (1, "1", [0])  # what trainer.devices says to have a single one


def data_module(config: Config) -> MVTecDataModule:
    """The data module of a configuration, its folder found or made, not yet scanned."""
    d, s = config.data, config.split
    assert d.root is not None
    folder = locate(d.name, d.root, d.category, d.archive, d.sha256)
    return MVTecDataModule(
        folder,
        image_size=d.image_size,
        white=d.white,
        batch_size=d.batch_size,
        num_workers=d.num_workers,
        sampler=d.sampler,
        sampler_beta=d.sampler_beta,
        augment=config.augment.transforms,
        views=config.augment.views,
        paste=config.augment.paste,
        mix=config.augment.mix,
        mix_alpha=config.augment.mix_alpha,
        imbalance=d.imbalance,
        masks=d.masks,
        protocol=s.protocol,
        pool=s.pool,
        per_class=s.per_class,
        val=s.val,
        test=s.test,
        folds=s.folds,
        fold=s.fold,
        split_file=s.file,
        group_by=s.group_by,
        val_is_test=s.val_is_test,
        split_seed=s.seed,
        seed=training_seed(config),
        cache_dir=config.cache.dir,
        cache_gb=config.cache.max_gb,
    )


def training_seed(config: Config) -> int:
    """What initial weights, batches and augmentation are drawn from.

    Each fold draws its own: an attempt that is lucky in one draw would else be lucky in all of its folds, and the
    folds would call that a difference.
    """
    s = config.split
    if s.protocol != "kfold":
        return config.seed
    return int(np.random.SeedSequence([config.seed, s.seed, s.fold]).generate_state(1)[0])


def build_data(config: Config) -> MVTecDataModule:
    """The data module of a configuration, scanned and split, not decoded, with the marks of what was asked for."""
    data = data_module(config)
    data.scan()
    if config.data.name == "sample":
        data.warnings.insert(0, SAMPLE_MARK)
    if config.augment.views is not None:
        data.warnings.append(
            f"augment.views={config.augment.views}: training sees so many augmented views of each image, not new ones"
        )
    return data


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


def absolute_paths(config: Config) -> dict[str, str]:
    """Return the paths among the settings as absolute ones, by their keys: another directory reads others in the same
    words."""
    weights = config.model.weights
    given = {
        "data.root": config.data.root,
        "split.file": config.split.file,
        "model.weights": weights if weights and Path(weights).expanduser().is_file() else None,
    }
    return {key: str(Path(path).expanduser().absolute()) for key, path in given.items() if path is not None}


def set_up(config: Config, data: MVTecDataModule, checked: Mapping[str, Contents] | None = None) -> None:
    """Decode the images and audit them: what is found joins the warnings.

    Args:
        checked: the files that a sweep's check found, by product folder.

    Raises:
        LabError: a broken image, other files than the check found, or with ``audit=strict`` a finding.
    """
    data.setup()
    if (then := (checked or {}).get(str(data.folder.absolute()))) is not None:
        remedy = "restore them, or start another sweep"
        require_same(data.folder, data.contents(), then, "when this sweep was checked", remedy)
    findings = data.findings() + config_findings(config)
    if findings and config.audit == "strict":
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise LabError(f"audit=strict: {findings[0]}{more}: mend it, or audit=warn goes on")
    data.warnings += findings


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
        _rehearse_batch(config, data, classifier.train().model)


def _rehearse_batch(config: Config, data: MVTecDataModule, step: Callable[[torch.Tensor], object]) -> None:
    """Refuse a batch of a single image that training would fail on: where batch normalisation meets a 1 x 1 map.

    Args:
        step: what training does with images [N, 3, S, S].
    """
    if data.smallest_batch > 1:
        return
    size = config.data.image_size
    try:
        with suppress(RuntimeError):  # it asked for a value: training will tell
            step(torch.empty(1, 3, size, size))
    except ValueError as error:
        raise LabError(
            f"data.batch_size={config.data.batch_size} gives batches of a single training image, which cannot train "
            f"here ({error}): give data.batch_size=2 or more and two images, or a larger data.image_size"
        ) from error


def one_class_method(config: Config) -> tuple[AnomalyDetector, list[str]]:
    """The method of a configuration, and a warning where its weights are not those asked for."""
    try:
        detector = build_detector(config.model.method, _knobs(config))
        notes = [detector.weights_note] if detector.weights_note else []
    except WeightsUnavailable as error:
        if config.data.name != "sample":
            raise
        detector = build_detector(config.model.method, {**_knobs(config), "weights": None})
        notes = [f"{RANDOM_MARK}: {error}"]
    if config.model.weights is None and config.model.method not in FROM_SCRATCH:
        notes = [f"{RANDOM_MARK}, as asked for"]
    return detector, notes


def _knobs(config: Config) -> dict[str, Any]:
    settings = {**asdict(config.optimizer), **asdict(config.model), "image_size": config.data.image_size}
    return {**settings, "optimizer": config.optimizer.name}


def rehearse(config: Config, data: MVTecDataModule) -> None:
    """Refuse ahead what a one-class run would be refused for later, so far as data and method tell without training.

    The method is prepared on images without values (PyTorch's fake tensors), until it asks for one: by then it has
    looked at its settings, at how many images there are, and at the memory that it needs.

    Raises:
        LabError: what the method would raise, or no defect for a threshold that is chosen with them.
    """
    if config.threshold.rule == "best_f1" and all(s.label == GOOD for s in data.of_split("test")):
        raise LabError("threshold.rule=best_f1 needs defects, and test/ has none: threshold.rule=quantile does without")
    size, images = config.data.image_size, len(data.of_split("train"))
    device = torch.device("cuda" if _on_gpu(config) else "cpu")
    with isolate_rng(), FakeTensorMode(), device, torch.no_grad(), suppress(RuntimeError):
        detector = build_detector(config.model.method, {**_knobs(config), "weights": None})
        detector.eval().prepare(lambda: [torch.empty(images, 3, size, size)])
    if data.smallest_batch == 1:
        with isolate_rng(), FakeTensorMode(), device, torch.no_grad(), suppress(RuntimeError):
            detector = build_detector(config.model.method, {**_knobs(config), "weights": None})
            if detector.trains:
                _rehearse_batch(config, data, detector.train().loss)


def precision(config: Config) -> str:
    """The Trainer's precision: what the configuration says, or the fastest that the device has.

    Raises:
        LabError: the device does not have the precision asked for.
    """
    wanted, gpu = config.trainer.precision, _on_gpu(config)
    bf16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return "bf16-mixed" if bf16 else "16-mixed" if gpu else "32"
    if (wanted.startswith("16") and not gpu) or (wanted.startswith("bf16") and gpu and not bf16):
        raise LabError(f"trainer.precision={wanted} is not to be had on this device: give auto or 32")
    return wanted


def _on_gpu(config: Config) -> bool:
    return torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda")


def build_trainer(config: Config, **kwargs: Any) -> pl.Trainer:
    """Lightning's Trainer on the devices of a configuration.

    Raises:
        LabError: a device, strategy or precision that this machine does not have.
    """
    t = config.trainer
    # Stages that wait for the warm-up's end have no gradient, which plain DDP takes for a mistake; so has a linear
    # layer beside retrieval alone, and those that rest once the groups of group_softmax train.
    resting = config.model.warmup_epochs > 0 or config.model.head == "retrieval" or config.loss.name == "group_softmax"
    rests = t.strategy in ("auto", "ddp") and t.devices not in ONE and resting
    try:
        return pl.Trainer(
            accelerator=t.accelerator,
            devices=t.devices,
            strategy="ddp_find_unused_parameters_true" if rests else t.strategy,
            precision=precision(config),  # type: ignore[arg-type]
            # On a GPU some kernels are not deterministic unless asked to be; on a CPU all that are used here are.
            deterministic="warn" if torch.cuda.is_available() else None,
            use_distributed_sampler=False,  # EpochSampler shares the images out itself
            num_sanity_val_steps=0,
            enable_model_summary=False,
            **kwargs,
        )
    except (MisconfigurationException, ImportError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise LabError(
            f"trainer.accelerator={t.accelerator} trainer.devices={t.devices} trainer.strategy={t.strategy} "
            f"cannot be had here: {reason}"
        ) from error


def keep_memory() -> None:
    """Let the C library keep what the network frees: the next step takes it again.

    glibc gives blocks of this size back at once, and the system has to clear each page of them anew: a fifth of a
    ResNet18's forward pass at 224 pixels on two cores. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: no block of a network's is larger
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the most it takes


def give_back_memory() -> None:
    """Give the system what the C library keeps although nothing is in it: ``keep_memory``'s end."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def check_devices(config: Config) -> int:
    """The number of devices; LabError for devices, a strategy or a precision that cannot be had here."""
    found = build_trainer(config, logger=False, enable_checkpointing=False, enable_progress_bar=False).num_devices
    if found > 1 and config.model.head == "knn":
        raise LabError(f"model.head=knn trains nothing that {found} devices could share: give trainer.devices=1")
    return found


_checked: set[str] = set()  # networks, a third of a second each: the folds of a sweep mostly share theirs


def check(config: Config, here: bool = True) -> MVTecDataModule:
    """Everything about a job of a sweep that can be known before it trains; raises LabError for the first mistake.

    Returns the job's data. Where another machine is to train it (not ``here``), its devices are left to that machine.
    """
    validate(config)
    several = check_devices(config) > 1 if here else config.trainer.devices not in ONE
    if several:  # each further device runs the whole command, the sweep included
        raise LabError(f"trainer.devices={config.trainer.devices} in a sweep: give each attempt a command of its own")
    data, m = build_data(config), config.model
    images = len(data.of_split("train")), data.smallest_batch
    network = repr((m, config.loss, config.threshold, config.data.image_size, data.classes, images))
    if network not in _checked:
        if m.method == "classifier":
            rehearse_classifier(config, data)
        else:
            rehearse(config, data)
        try:
            if m.method not in FROM_SCRATCH:
                load_weights(m.backbone, m.weights)
        except WeightsUnavailable:
            if config.data.name != "sample":
                raise
        _checked.add(network)
    set_up(config, data)  # last: it takes longest
    return data


def claim(run_dir: str | Path, marker: str) -> Path:
    """Make a directory a task's own, by the file that it will leave there: two runs never share one.

    Raises:
        LabError: it belongs to another run already, or cannot be written.
    """
    run_dir = Path(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if (run_dir / CONFIG).exists():
            raise FileExistsError
        (run_dir / marker).touch(exist_ok=False)  # of two processes one succeeds
    except FileExistsError as error:
        remedy = "go on with it (resume=true)" if marker == CONFIG else "remove it"
        raise LabError(f"{run_dir} holds another run: give another directory (hydra.run.dir=) or {remedy}") from error
    except OSError as error:
        reason = f"{run_dir} cannot be written ({error.strerror}): give hydra.run.dir=FOLDER"
        raise disk_full(error, run_dir) or LabError(reason) from error
    return run_dir
