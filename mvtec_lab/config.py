"""Every knob of the lab: its type, its default and what it does, once.

The YAML files under ``conf/`` fill these classes; plain Python may as well: ``run_attempt(Config(), "outputs/mine")``.
``validate`` answers what types alone cannot: unknown names, values out of range, settings that exclude each other.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.util import find_spec
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from mvtec_lab.effects import RETRIEVING, idle
from mvtec_lab.errors import LabError, unknown

DATA = ("sample", "mvtec", "folder")
PROTOCOLS = ("holdout", "kfold", "file", "one_class", "test_folder")
POOLS = ("test", "all")
MASKS = ("required", "optional")
BALANCE_RULES = ("none", "inverse", "sqrt", "effective")
# Each is a function of that name in the classification losses, with the knobs of LossConfig that its signature names.
LOSSES = ("cross_entropy", "focal", "ldam", "logit_adjustment", "balanced_softmax", "group_softmax")
BALANCING = ("logit_adjustment", "balanced_softmax", "group_softmax")  # those that favour rare classes
HEADS = ("linear", "cosine", "fused", "retrieval", "knn")
MIXES = ("none", "mixup", "cutmix")
# One-class methods: each is a folder of that name, whose Detector takes the knobs of ModelConfig by name;
# effects.py says which.
DETECTORS = (
    "patchcore",
    "padim",
    "spade",
    "nearest",
    "kmeans",
    "gaussian",
    "deep_svdd",
    "ocsvm",
    "autoencoder",
    "vae",
    "memae",
    "fanogan",
    "draem",
    "cutpaste",
    "rotation",
    "stfpm",
)
THRESHOLDS = ("quantile", "synthetic", "best_f1")
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
SCORE_METRICS = ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_aupro")  # of one-class methods
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
SCHEDULERS = ("none", "cosine", "step", "onecycle", "plateau")
MAX_SEED = 2**32 - 1  # NumPy takes no larger one
AUDITS = ("warn", "strict")
# Those that leave weights and images in 32 bits: what is cached, and what a method keeps, is.
PRECISIONS = ("auto", "32", "32-true", "16-mixed", "bf16-mixed")
MONITORS = ("val/loss", "val/accuracy", "val/balanced_accuracy", "val/macro_f1")


@dataclass
class DataConfig:
    """Which images, and how they reach the network."""

    name: str = "sample"  # sample: drawn procedurally; mvtec: MVTec AD; folder: a product of your own in its layout
    root: str | None = "outputs/data"  # the folder that holds the category folders
    category: str | None = "cable"  # the folder below root; null with data=folder: root itself is the product
    archive: str | None = None  # URL or local file of an archive to fill root from, where the category is missing
    sha256: str | None = None  # the archive's digest; unverified (and said so) where null
    masks: str = "required"  # optional: an image without a mask is a warning, not an error
    image_size: int = 128  # pixels; images are squeezed into this square, never cropped: a defect may lie at the rim
    # the value of 16-bit files that becomes 255; null: the largest of the bit depth that the training images use
    white: int | None = None
    batch_size: int = 32  # of all four reports' figures the most frequent
    # worker processes that decode and augment; null: none, starting them costs more than they save at these sizes, but
    # up to eight where a GPU waits for augmented images
    num_workers: int | None = None
    sampler: str = "none"  # draw training images by class: none, inverse, sqrt or effective
    sampler_beta: float = 0.99  # of `effective`; on a few dozen images .9 hardly weights and .999 equals inverse
    # thin the training images out to an exponential tail: so many of the most frequent class for one of the rarest;
    # val and test stay as they are; null: train on all
    imbalance: float | None = None


@dataclass
class SplitConfig:
    """How the samples become train, val and test."""

    # holdout, kfold, file, or one_class: train on train/good but for `val` of it, test on the whole test folder;
    # test_folder: that test alone, on which a fitted one-class model is judged
    protocol: str = "holdout"
    pool: str = "test"  # which images take part: test (the test folder), all (train/good as well)
    per_class: int | None = None  # draw that many images of each class first; null: take all
    val: float = 0.2  # share of the pool
    test: float = 0.2  # share of the pool (holdout)
    folds: int = 5  # kfold: each image is in test exactly once; one fold is left for test, `val` comes from the rest
    fold: int = 0  # kfold: which fold is test
    file: str | None = None  # protocol=file: CSV with columns path,split; a run's samples.csv is one
    group_by: str | None = None  # regular expression over the path: images with equal first group stay together
    val_is_test: bool = False  # choose the checkpoint on the test images, as two of the reports do; marked everywhere
    seed: int = 0  # conf/config.yaml ties it to the run's seed


@dataclass
class CrossValidationConfig:
    """Turns a sweep into repeated stratified cross-validation: each attempt runs once a fold, all on the same folds."""

    folds: int | None = None  # null: each attempt runs once, on the split as it is
    repeats: int = 1  # so many times anew, with folds drawn from split.seed, split.seed + 1, ...


@dataclass
class AugmentConfig:
    """Random transforms of the training images: albumentations names with their arguments, applied in this order."""

    transforms: dict[str, Any] = field(default_factory=dict)
    # so many augmented views of each image, drawn once: their activations can be cached, but training sees no others
    views: int | None = None
    # chance that a defect image is made anew: its defect, cut out by its mask, pasted onto a good training image
    paste: float = 0.0
    mix: str = "none"  # mixup or cutmix: each training image is mixed with another one of its batch, labels as well
    mix_alpha: float = 1.0  # the share is drawn from Beta(alpha, alpha); 1, both papers' value on small data: uniformly


@dataclass
class LossConfig:
    """What training minimises, and what rare classes weigh in it."""

    name: str = "cross_entropy"  # or focal, ldam, logit_adjustment, balanced_softmax, group_softmax
    class_weights: str = "inverse"  # none, inverse (scikit-learn's "balanced"), sqrt or effective
    beta: float = 0.99  # of `effective`; see data.sampler_beta
    # share of the epochs that train without class weights first (deferred re-weighting), or with plain cross-entropy
    # before group_softmax; the checkpoint is chosen from the others
    defer: float = 0.0
    gamma: float = 2.0  # focal: the paper's best
    margin: float = 0.5  # ldam: of the rarest class, as cosine; the paper's
    tau: float = 1.0  # logit_adjustment: 1 is Bayes-optimal for balanced error
    posthoc: float = 0.0  # tau of the adjustment of a trained network's logits, whatever its loss
    # group_softmax: so many bins with equally many defect types by their counts, or a list of counts to part them at
    bins: Any = 2  # three to eight defect types leave two to four a bin
    others: float = 8.0  # group_softmax: images from outside a bin for each of its own in a batch; the paper's


@dataclass
class ModelConfig:
    """The network: a TorchVision classification model with a fresh head."""

    backbone: str = "resnet18"  # by its TorchVision name: task=backbones lists them
    weights: str | None = "DEFAULT"  # DEFAULT, a TorchVision entry (IMAGENET1K_V2), a file, or null for random ones
    unfreeze: Any = 0  # how many of the last stages train beside the head, "all", or a list of stage names
    warmup_epochs: int = 0  # train the head alone for so many epochs before those stages join
    # the last layer: linear; cosine of features and class weights; fused: linear + retrieval, which reads the class
    # names of the nearest training images; retrieval alone; knn: their plain vote, which needs no training
    head: str = "linear"
    scale: float = 30.0  # cosine: the logits' largest value; LDAM's
    # fused, retrieval, knn: how many; the rarest class of a few dozen images has about twice that. Also nearest, spade
    neighbours: int = 5
    # classifier, or a one-class method, which learns good images alone: patchcore, padim, spade ... The knobs below are
    # such methods' own; null: the method's default, where its file says why
    method: str = "classifier"
    layers: list[str] | None = None  # of the backbone, by TorchVision's node names: features.6, layer2
    coreset: float | None = None  # patchcore: share of the patches that it remembers
    dimensions: int | None = None  # padim: channels drawn at random; gaussian, deep_svdd, ocsvm: principal components
    clusters: int | None = None  # kmeans
    latent: int | None = None  # autoencoder, vae, memae, fanogan: size of the code
    slots: int | None = None  # memae: of its memory
    reconstruction: str = "l2"  # autoencoder: l2 or ssim
    generate: bool = False  # make up features of rare classes with a conditional generator until all are as frequent


@dataclass
class ThresholdConfig:
    """From which score on a one-class method calls an image a defect."""

    # quantile of the good validation images' scores; synthetic: of best F1 on them and on copies with patches pasted
    # as CutPaste does; best_f1: chosen on the test images, defects included, and marked
    rule: str = "quantile"
    quantile: float = 0.95  # one good image in twenty is a false alarm then


@dataclass
class OptimizerConfig:
    name: str = "adam"  # adam, adamw, sgd, rmsprop
    lr: float = 1e-3  # the cable, transistor and zipper reports' value
    weight_decay: float = 0.0
    momentum: float = 0.9  # sgd and rmsprop


@dataclass
class SchedulerConfig:
    # none, cosine (to zero over max_epochs), step, onecycle (a step per batch), plateau (on val/loss)
    name: str = "none"
    step_size: int = 10  # step: epochs between two cuts; three cuts in the default 30 epochs
    gamma: float = 0.1  # step and plateau: the factor of a cut
    # plateau: epochs without improvement before a cut; below earlystop's, so that a cut can help first
    patience: int = 3


@dataclass
class TrainerConfig:
    """What Lightning's Trainer is given."""

    max_epochs: int = 30  # the head's loss is flat by then on a hundred images
    patience: int | None = None  # stop after so many epochs without a lower val/loss; null: never
    # chooses best.ckpt, the earliest of equals; not val/loss, which overconfidence raises while predictions improve
    monitor: str = "val/balanced_accuracy"
    accelerator: str = "auto"
    devices: Any = 1  # "auto" takes every GPU there is
    strategy: str = "auto"
    precision: str = "auto"  # auto: bf16-mixed or 16-mixed on a GPU that has it, 32 elsewhere
    compile: bool = False  # torch.compile: up to half a minute before the first step, no gain on a CPU


@dataclass
class VerdictConfig:
    """What a comparison of attempts rests on. Where these are null, accuracy, and every pair of attempts."""

    # accuracy, balanced_accuracy or macro_f1; of one-class methods image_auroc (theirs where this is null),
    # pixel_auroc, pixel_ap or pixel_aupro
    metric: str | None = None
    reference: str | None = None  # an attempt: each other one is compared with it alone, so that fewer tests are made


@dataclass
class ReportedConfig:
    """What a published report states for this attempt, to stand beside what is measured here."""

    accuracy: float | None = None  # in [0, 1]
    split: str = "val"  # the images that it was measured on: val or test


@dataclass
class CacheConfig:
    """What is made once and kept: decoded images, and what frozen stages make of them. No result depends on it."""

    dir: str | None = "outputs/cache"  # null: decode in every epoch, run the whole network in every step
    max_gb: float = 10.0  # 10^9 bytes: 60,000 images at 224 pixels; what was used least recently makes room


@dataclass
class Config:
    """One run (task=train) or one errand (the other tasks)."""

    task: str = "train"
    attempt: str = "base"  # the name of the attempt that these values came from
    seed: int = 0
    # skip the directory's run where it is completed, go on with it where it was stopped, start it anew where it failed
    resume: bool = False
    audit: str = "warn"  # what data/audit.py finds before training is a warning, or (strict) an error
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    cv: CrossValidationConfig = field(default_factory=CrossValidationConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    reported: ReportedConfig = field(default_factory=ReportedConfig)
    ckpt: str | None = None  # task=evaluate, task=predict and task=export: the checkpoint
    source: str | None = None  # task=predict: an image or a folder
    dirs: list[str] = field(default_factory=list)  # task=compare: the directories of sweeps and runs


def settings(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return the value of every key, by its dotted name."""
    found: dict[str, Any] = {}
    for f in fields(section):
        value = getattr(section, f.name)
        found |= settings(value, f"{prefix}{f.name}.") if is_dataclass(value) else {prefix + f.name: value}
    return found


def _parts(value: Any) -> list[Any]:
    """Return what a value holds, through lists and mappings."""
    if isinstance(value, dict | list):
        return [part for inner in (value.values() if isinstance(value, dict) else value) for part in _parts(inner)]
    return [value]


def validate(config: Config, typed: Collection[str] = frozenset()) -> None:
    """Check every value that can be checked without looking at data or network.

    Args:
        typed: the keys that somebody typed, which are to have an effect even where they say the default.

    Raises:
        LabError: the first value found wrong, with its key and what it may be.
    """
    d, m, o, c, t = config.data, config.model, config.optimizer, config.scheduler, config.trainer

    for key, value in settings(config).items():
        if value == "":
            raise LabError(f"{key} is empty: give a value, or leave it out")
        if any(isinstance(number, float) and not isfinite(number) for number in _parts(value)):
            raise LabError(f"{key}={value} is out of range: give finite numbers")
    _choice("audit", config.audit, AUDITS)
    _choice("data", d.name, DATA)
    _choice("data.masks", d.masks, MASKS)
    _choice("data.sampler", d.sampler, BALANCE_RULES)
    _validate_loss(config)
    _choice("model.head", m.head, HEADS)
    _choice("model.method", m.method, ("classifier", *DETECTORS))
    _choice("model.reconstruction", m.reconstruction, ("l2", "ssim"))
    _choice("threshold.rule", config.threshold.rule, THRESHOLDS)
    for key, share in (("threshold.quantile", config.threshold.quantile), ("model.coreset", m.coreset)):
        if share is not None and not 0 < share <= 1:
            raise LabError(f"{key}={share} is out of range: give a share above 0, up to 1")
    if m.method != "classifier" and config.cv.folds is not None:
        raise LabError(
            f"cv.folds={config.cv.folds} folds the test images, and model.method={m.method} learns from none of them: "
            "leave it out; seed=0,1,2 repeats an attempt"
        )
    if (m.method == "classifier") == (config.split.protocol == "one_class"):
        remedy = "give split.protocol=one_class" if m.method != "classifier" else "give model.method=patchcore, say"
        raise LabError(
            f"model.method={m.method} and split.protocol={config.split.protocol}: only a one-class method learns from "
            f"good images alone: {remedy}"
        )
    _choice("augment.mix", config.augment.mix, MIXES)
    if config.verdict.metric is not None:
        _choice("verdict.metric", config.verdict.metric, (*METRICS, *SCORE_METRICS))
    _choice("optimizer", o.name, OPTIMIZERS)
    _choice("scheduler", c.name, SCHEDULERS)
    _choice("trainer.monitor", t.monitor, MONITORS)
    _choice("trainer.precision", t.precision, PRECISIONS)
    backbones = torchvision_models()
    if backbones and m.backbone not in backbones:
        raise unknown("backbone", m.backbone, backbones)

    _between("seed", config.seed, 0, MAX_SEED)
    _between("data.image_size", d.image_size, 8)
    _between("data.white", d.white, 1, 65_535)
    _between("data.batch_size", d.batch_size, 1)
    _between("data.num_workers", d.num_workers, 0)
    _between("model.warmup_epochs", m.warmup_epochs, 0)
    _between("optimizer.weight_decay", o.weight_decay, 0)
    _between("scheduler.step_size", c.step_size, 1)
    _between("scheduler.patience", c.patience, 0)
    _between("trainer.max_epochs", t.max_epochs, 1)
    _between("trainer.patience", t.patience, 1)
    _between("augment.views", config.augment.views, 1)
    _between("augment.paste", config.augment.paste, 0, 1)
    _between("data.imbalance", d.imbalance, 1)
    for knob, least in (("neighbours", 1), ("dimensions", 1), ("clusters", 1), ("latent", 1), ("slots", 2)):
        _between(f"model.{knob}", getattr(m, knob), least)
    for key, value in (("augment.mix_alpha", config.augment.mix_alpha), ("model.scale", m.scale)):
        if not value > 0:
            raise LabError(f"{key}={value} is out of range: give a number above 0")
    if config.augment.paste and m.head in RETRIEVING:
        raise LabError(
            f"augment.paste shows model.head={m.head} a training image again, as another one's background: leave it out"
        )
    if config.augment.mix != "none" and (config.augment.views is not None or m.head in RETRIEVING or m.generate):
        raise LabError(
            f"augment.mix={config.augment.mix} makes new images of two: leave out augment.views, model.generate and a "
            f"model.head that retrieves ({', '.join(RETRIEVING)})"
        )
    if m.generate and (m.unfreeze not in (0, []) or m.head in RETRIEVING):
        raise LabError(
            "model.generate=true makes up features of a frozen backbone for a head of its own: "
            "give model.unfreeze=0 and model.head=linear or cosine"
        )
    if config.augment.views is not None and not (config.augment.transforms or config.augment.paste):
        raise LabError("augment.views needs something to draw views with: add augment=standard, or leave it out")
    if not config.cache.max_gb > 0:
        raise LabError(f"cache.max_gb={config.cache.max_gb} is out of range: give a number above 0, or cache.dir=null")
    for key, beta in (("data.sampler_beta", d.sampler_beta), ("loss.beta", config.loss.beta)):
        if not 0 <= beta < 1:
            raise LabError(f"{key}={beta} is out of range: give a number in [0, 1)")
    if not o.lr > 0:
        raise LabError(f"optimizer.lr={o.lr} is out of range: give a number above 0")
    if not 0 < c.gamma < 1:
        raise LabError(f"scheduler.gamma={c.gamma} is out of range: give a number between 0 and 1")
    if not 0 <= o.momentum < 1:
        raise LabError(f"optimizer.momentum={o.momentum} is out of range: give a number in [0, 1)")
    if m.warmup_epochs >= t.max_epochs:
        raise LabError(
            f"model.warmup_epochs={m.warmup_epochs} leaves none of trainer.max_epochs={t.max_epochs} to the stages "
            "that are to join: give fewer"
        )
    if config.resume and config.task != "train":
        raise LabError(f"resume=true goes on with a training: leave it out of task={config.task}")
    validate_split(config.split)
    for reason in idle(settings(config), settings(Config()), typed).values():
        raise LabError(reason)
    _validate_fanogan(config)
    _choice("reported.split", config.reported.split, ("val", "test"))
    if config.reported.accuracy is not None and not 0 <= config.reported.accuracy <= 1:
        raise LabError(f"reported.accuracy={config.reported.accuracy} is out of range: give a fraction, 0.7 for 70%")
    if config.cv.folds is not None and config.split.protocol != "kfold":
        raise LabError(f"cv.folds={config.cv.folds} makes a sweep: give -m as well (python -m mvtec_lab -m ...)")
    if d.root is None:
        remedy = "give data.root=FOLDER" + (" or set MVTEC_ROOT" if d.name == "mvtec" else "")
        raise LabError(f"data={d.name} does not know where its images lie: {remedy}")
    if d.category is None and d.name != "folder":
        raise LabError(f"data={d.name} needs data.category=NAME")


def _validate_loss(config: Config) -> None:
    loss = config.loss
    _choice("loss.name", loss.name, LOSSES)
    _choice("loss.class_weights", loss.class_weights, BALANCE_RULES)
    for key in ("gamma", "tau", "posthoc", "others"):
        _between(f"loss.{key}", getattr(loss, key), 0)
    if not loss.margin > 0:
        raise LabError(f"loss.margin={loss.margin} is out of range: give a number above 0")
    if not 0 <= loss.defer < 1:
        raise LabError(f"loss.defer={loss.defer} is out of range: give a share of the epochs in [0, 1)")
    bins = loss.bins if isinstance(loss.bins, Sequence) and not isinstance(loss.bins, str) else [loss.bins]
    whole = all(type(edge) is int and edge > 0 for edge in bins)
    if not whole or not bins or any(a >= b for a, b in pairwise(bins)):
        raise LabError(f"loss.bins={loss.bins} parts no counts: give a number of bins, or rising counts as [10,100]")
    if loss.name == "ldam" and config.model.head != "cosine":
        raise LabError("loss.name=ldam has margins between cosines: give model.head=cosine")
    if loss.name == "group_softmax" and (loss.class_weights != "none" or config.model.head not in ("linear", "cosine")):
        raise LabError(
            "loss.name=group_softmax balances by its bins, in the last layer: give loss.class_weights=none and "
            "model.head=linear or cosine"
        )
    if loss.defer and loss.class_weights == "none" and loss.name != "group_softmax":
        raise LabError(f"loss.defer={loss.defer} has nothing to defer: give loss.class_weights, or leave it out")
    plain = int(loss.defer * config.trainer.max_epochs)
    if loss.name == "group_softmax" and not loss.defer:
        raise LabError(
            "loss.name=group_softmax starts from a plain classifier: give loss.defer=0.5 for half of the epochs"
        )
    if loss.defer and not plain:
        raise LabError(
            f"loss.defer={loss.defer} of trainer.max_epochs={config.trainer.max_epochs} is no epoch: give more"
        )
    if loss.name == "group_softmax" and 0 < plain <= config.model.warmup_epochs:
        raise LabError(
            f"model.warmup_epochs={config.model.warmup_epochs} leaves none of the {plain} epochs before the groups to "
            "the stages that are to join: give fewer"
        )
    if loss.defer and config.trainer.patience is not None:
        raise LabError("trainer.patience might stop before what loss.defer puts off: leave one of them out")


def _validate_fanogan(config: Config) -> None:
    if config.model.method == "fanogan" and config.trainer.patience is not None:
        raise LabError("trainer.patience might stop fanogan before its encoder, which trains last: leave it out")
    if config.model.method == "fanogan" and config.trainer.max_epochs < 2:
        raise LabError("trainer.max_epochs=1 leaves none to fanogan's encoder, which trains last: give 2 or more")


def validate_split(s: SplitConfig) -> None:
    """The part of ``validate`` that a data module needs without the rest."""
    _choice("split.protocol", s.protocol, PROTOCOLS)
    _choice("split.pool", s.pool, POOLS)
    _between("split.seed", s.seed, 0, MAX_SEED)
    _between("split.folds", s.folds, 2)
    _between("split.per_class", s.per_class, 2 if s.val_is_test else 3)
    for key, share in (("split.val", s.val), ("split.test", s.test)):
        if not 0 < share < 1:
            raise LabError(f"{key}={share} is out of range: give a fraction between 0 and 1")
    if s.group_by is not None:
        try:
            groups = re.compile(s.group_by).groups
        except re.error as error:
            raise LabError(f"split.group_by={s.group_by!r} is no regular expression: {error}") from error
        if groups < 1:
            raise LabError(f"split.group_by={s.group_by!r} has no group: put the part that identifies it in (brackets)")
    if s.protocol in ("one_class", "test_folder"):
        if s.val_is_test or s.per_class is not None or s.file is not None or s.pool != "test":
            raise LabError(
                "split.protocol=one_class trains on train/good and tests on all of test/: leave out split.val_is_test, "
                "split.per_class, split.file and split.pool"
            )
        return
    tested = 1 / s.folds if s.protocol == "kfold" else s.test
    held_out = tested + (0 if s.val_is_test else s.val)
    if s.protocol != "file" and held_out >= 1:
        raise LabError(
            f"split.val={s.val} and a test share of {tested:.3g} add up to {held_out:.3g}: nothing is left to train on"
        )
    if s.protocol == "kfold" and not 0 <= s.fold < s.folds:
        raise LabError(f"split.fold={s.fold} does not exist: split.folds={s.folds} has folds 0 to {s.folds - 1}")
    if (s.protocol == "file") != (s.file is not None):
        raise LabError("split.protocol=file and split.file=FILE.csv (columns path,split) go together: give both")
    if s.protocol == "file" and (s.per_class is not None or s.pool != "test"):
        raise LabError("split.protocol=file names its images itself: leave out split.per_class and split.pool")


def torchvision_models() -> set[str]:
    """TorchVision's classification models, from its source: importing it to answer a typo takes five seconds.

    Empty where it is imported, so that somebody may have registered more, or where its source cannot be read.
    """
    spec = None if "torchvision" in sys.modules else find_spec("torchvision")
    if spec is None or spec.origin is None:
        return set()
    sources = [path.read_text(encoding="utf-8") for path in (Path(spec.origin).parent / "models").glob("*.py")]
    return {name for text in sources for name in re.findall(r"^@register_model\(\).*?^def (\w+)", text, re.M | re.S)}


def _choice(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise unknown(key, value, known)


def _between(key: str, value: float | None, least: int, most: int | None = None) -> None:
    if value is None or (value >= least and (most is None or value <= most)):
        return
    raise LabError(f"{key}={value} is out of range: give {least} " + (f"to {most}" if most else "or more"))
