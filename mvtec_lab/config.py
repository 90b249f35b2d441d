"""Declare every key of the lab once: its type, its default with the reason, its range, and when it has an effect.

The YAML files under ``conf/`` fill these classes; plain Python may as well: ``run_attempt(Config(), "outputs/mine")``.
What depends on the problem or the method is declared in its folder, and checked by ``problems.check``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from mvtec_lab.errors import LabError, unknown
from mvtec_lab.knobs import but, check_values, knob, only

BALANCE_RULES = ("none", "inverse", "sqrt", "effective")
BALANCING = ("logit_adjustment", "balanced_softmax", "group_softmax")  # those that favour rare classes
HEADS = ("linear", "cosine", "fused", "retrieval", "knn")
RETRIEVING = ("fused", "retrieval", "knn")  # heads that look up training images
MIXES = ("none", "mixup", "cutmix")
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
SCHEDULERS = ("none", "cosine", "step", "onecycle", "plateau")
MAX_SEED = 2**32 - 1  # NumPy takes no larger one
# Precisions that leave weights and images in 32 bits: so is what the cache and a method keep.
PRECISIONS = ("auto", "32", "32-true", "16-mixed", "bf16-mixed")
# What a task writes, the default first; task=export writes one format, task=annotate any of its.
FORMATS = {
    "export": ("onnx", "openvino"),
    "annotate": ("coco", "coco_polygons", "yolo", "yolo_seg", "masks"),
}
MONITORS = ("val/loss", "val/accuracy", "val/balanced_accuracy", "val/macro_f1")

_LEARNING = but("model.head", "knn", why="a vote of neighbours trains nothing")


@dataclass
class DataConfig:
    """Choose the images, and how they reach the network."""

    # sample: drawn procedurally; mvtec: MVTec AD; folder: a product of your own in its layout; coco, yolo: images with
    # annotations in these formats
    name: str = knob("sample", choices=("sample", "mvtec", "folder", "coco", "yolo"))
    root: str | None = knob("outputs/data", changes="run")  # the folder that holds the category folders
    category: str | None = "cable"  # the folder below root; null with folder, coco, yolo: root itself is the product
    # URL or local file of an archive that fills root if the category is missing
    archive: str | None = knob(None, changes="run", needs=(but("data.name", "sample", why="it is drawn"),))
    # the archive's digest; null: unverified, with a warning
    sha256: str | None = knob(None, needs=(but("data.archive", None, why="it is an archive's digest"),))
    # optional: an image without a mask is a warning, not an error
    masks: str = knob("required", choices=("required", "optional"))
    # pixels; images are squeezed into this square, never cropped: a defect may lie at the rim
    image_size: int = knob(128, least=8)
    # the value of 16-bit files that becomes 255; null: the largest of the bit depth that the training images use
    white: int | None = knob(None, least=1, most=65_535)
    batch_size: int = knob(32, least=1)  # the most frequent one in the four reports
    # worker processes that decode and augment; null: none, because starting them costs more than they save at these
    # sizes, but up to eight if a GPU waits for augmented images
    num_workers: int | None = knob(None, least=0, changes="nothing")
    sampler: str = knob("none", choices=BALANCE_RULES)  # draws training images by class
    # for a few dozen images 0.9 hardly weights and 0.999 equals inverse
    sampler_beta: float = knob(0.99, least=0, below=1, needs=(only("data.sampler", "effective"),))
    # thins the training images out to an exponential tail: this many images of the most frequent class for one image
    # of the rarest; val and test stay as they are; null: trains on all
    imbalance: float | None = knob(None, least=1)


@dataclass
class SplitConfig:
    """Divide the samples into train, val and test."""

    # own: the parts of an annotated data set (data=coco, data=yolo); one that it lacks is drawn from its train images;
    # one_class: trains on train/good except the share `val` of it, and tests on the whole test folder; test_folder:
    # only that test, on which a fitted anomaly model is judged
    protocol: str = knob("holdout", choices=("holdout", "kfold", "file", "own", "one_class", "test_folder"))
    pool: str = knob("test", choices=("test", "all"))  # all: train/good takes part beside the test folder
    per_class: int | None = knob(None, least=2)  # first draws this many images of each class; null: takes all
    val: float = knob(  # share of the pool
        0.2,
        above=0,
        below=1,
        needs=(
            but("split.protocol", "file", why="the file says which images validate"),
            but("split.val_is_test", True, why="the test images validate"),
        ),
    )
    test: float = knob(0.2, above=0, below=1, needs=(only("split.protocol", "holdout", "own"),))  # share of the pool
    # each image is in test exactly once; one fold is the test set, `val` comes from the others; one-class methods learn
    # from train/good in every fold, and take the share `val` of it
    folds: int = knob(5, least=2, needs=(only("split.protocol", "kfold"),))
    fold: int = knob(0, changes="run", needs=(only("split.protocol", "kfold"),))  # the fold that is the test set
    file: str | None = None  # protocol=file: CSV with columns path,split; a run's samples.csv is one
    group_by: str | None = None  # regular expression over the path: images with equal first group stay together
    val_is_test: bool = (
        False  # chooses the checkpoint on the test images, as two of the reports do; every table says so
    )
    seed: int = knob(0, least=0, most=MAX_SEED, changes="run")  # conf/config.yaml ties it to the run's seed


@dataclass
class CrossValidationConfig:
    """Repeat a stratified cross-validation: a sweep runs each attempt once per fold, all on the same folds."""

    folds: int | None = knob(None, changes="nothing")  # null: each attempt runs once, on the split as it is
    # repetitions, with folds drawn from split.seed, split.seed + 1, ...
    repeats: int = knob(1, changes="nothing", needs=(but("cv.folds", None, why="it repeats a cross-validation"),))


@dataclass
class AugmentConfig:
    """Transform the training images at random."""

    # albumentations names with their arguments, applied in this order
    transforms: dict[str, Any] = field(default_factory=dict)
    # number of augmented views of each image, drawn once: their activations can be cached, but training sees no others
    views: int | None = knob(None, least=1)
    # probability that a defect image is replaced: its defect, cut out by its mask, is pasted onto a good training image
    paste: float = knob(0.0, least=0, most=1)
    # mixes each training image with another one of its batch, and their labels as well
    mix: str = knob("none", choices=MIXES)
    # the share is drawn from Beta(alpha, alpha); 1, both papers' value on small data: uniformly
    mix_alpha: float = knob(1.0, above=0, needs=(but("augment.mix", "none", why="nothing is mixed"),))


@dataclass
class LossConfig:
    """Choose what training minimises, and what rare classes weigh in it."""

    name: str = "cross_entropy"  # a name of LOSSES in problems/classification
    class_weights: str = knob("inverse", choices=BALANCE_RULES)  # inverse: scikit-learn's "balanced"
    beta: float = knob(
        0.99, least=0, below=1, needs=(only("loss.class_weights", "effective"),)
    )  # see data.sampler_beta
    # share of the epochs that train without class weights first (deferred re-weighting), or with plain cross-entropy
    # before group_softmax; the checkpoint is chosen from the others
    defer: float = knob(0.0, least=0, below=1)
    gamma: float = knob(2.0, least=0, needs=(only("loss.name", "focal"),))  # the paper's best
    # the rarest class's, as cosine; the paper's
    margin: float = knob(0.5, above=0, needs=(only("loss.name", "ldam"),))
    # 1 is Bayes-optimal for balanced error
    tau: float = knob(1.0, least=0, needs=(only("loss.name", "logit_adjustment"),))
    posthoc: float = knob(0.0, least=0)  # tau of the adjustment of a trained network's logits, whatever its loss
    # number of bins with equally many defect types by their counts, or a list of counts that divide them; three to
    # eight defect types leave two to four per bin
    bins: Any = knob(2, needs=(only("loss.name", "group_softmax"),))  # noqa: RUF009 # it returns a field
    # images from outside a bin for each of its own in a batch; the paper's
    others: float = knob(8.0, least=0, needs=(only("loss.name", "group_softmax"),))


@dataclass
class ModelConfig:
    """Choose the method, and the network that it works with."""

    # how: classifier, or a method that learns good images alone (patchcore, padim ...)
    method: str = "classifier"
    options: dict[str, Any] = field(default_factory=dict)  # the method's own settings; its folder declares them
    backbone: str = "resnet18"  # by its TorchVision name: task=backbones lists them
    weights: str | None = "DEFAULT"  # DEFAULT, a TorchVision entry (IMAGENET1K_V2), a file, or null for random ones
    unfreeze: Any = 0  # how many of the last stages train beside the head, "all", or a list of stage names
    # a file of MobileSAM, of SAM's ViT-B, L or H or of SAM 2; null: MobileSAM's, 40 MB from its official address
    sam_weights: str | None = None
    # epochs that train the head alone before those stages join
    warmup_epochs: int = knob(0, least=0, needs=(but("model.unfreeze", 0, [], why="no stages wait for the head"),))
    # the last layer: linear; cosine of features and class weights; fused: linear + retrieval, which reads the class
    # names of the nearest training images; retrieval alone; knn: their plain vote, which needs no training
    head: str = knob("linear", choices=HEADS)
    scale: float = knob(30.0, above=0, needs=(only("model.head", "cosine"),))  # the logits' largest value; LDAM's
    # the rarest class of a few dozen images has about twice as many
    neighbours: int = knob(5, least=1, needs=(only("model.head", *RETRIEVING),))
    generate: bool = False  # generates features of rare classes with a conditional generator until all are as frequent
    text_embeddings: str | None = None  # .npz of the class names' text embeddings; null: random stand-ins, marked


@dataclass
class ThresholdConfig:
    """Choose the score above which an anomaly model calls an image a defect."""

    # quantile of the good validation images' scores; synthetic: the best F1 on them and on copies with patches pasted
    # as CutPaste does; best_f1: chosen on the test images, defects included, and every table says so
    rule: str = knob("quantile", choices=("quantile", "synthetic", "best_f1"))
    quantile: float = knob(0.95, above=0, most=1)  # one good image in twenty is a false alarm then


@dataclass
class OptimizerConfig:
    """Choose how the weights follow the gradient."""

    name: str = knob("adam", choices=OPTIMIZERS, needs=(_LEARNING,))
    lr: float = knob(1e-3, above=0, needs=(_LEARNING,))  # the cable, transistor and zipper reports' value
    weight_decay: float = knob(0.0, least=0, needs=(_LEARNING,))
    momentum: float = knob(0.9, least=0, below=1, needs=(_LEARNING, only("optimizer.name", "sgd", "rmsprop")))


@dataclass
class SchedulerConfig:
    """Choose how the learning rate changes over the epochs."""

    # cosine: to zero over max_epochs; onecycle: a step per batch; plateau: watches val/loss
    name: str = knob("none", choices=SCHEDULERS, needs=(_LEARNING,))
    # epochs between two cuts; three cuts in the default 30 epochs
    step_size: int = knob(10, least=1, needs=(only("scheduler.name", "step"),))
    gamma: float = knob(0.1, above=0, below=1, needs=(only("scheduler.name", "step", "plateau"),))  # factor of a cut
    # epochs without improvement before a cut; fewer than earlystop's, so that a cut can help first
    patience: int = knob(3, least=0, needs=(only("scheduler.name", "plateau"),))


@dataclass
class TrainerConfig:
    """Set up Lightning's Trainer."""

    max_epochs: int = knob(30, least=1)  # the head's loss is flat by then on a hundred images
    # stops after this many epochs without a lower val/loss, or of what chooses a detector's epoch; null: never
    patience: int | None = knob(None, least=1)
    # chooses best.ckpt, the earliest of equals; not val/loss, which overconfidence raises while predictions improve
    monitor: str = knob("val/balanced_accuracy", choices=MONITORS)
    accelerator: str = knob("auto", changes="run")
    devices: Any = 1  # "auto" takes every GPU
    strategy: str = "auto"
    precision: str = knob("auto", choices=PRECISIONS)  # auto: bf16-mixed or 16-mixed on a GPU that has it, else 32
    compile: bool = False  # torch.compile: up to half a minute before the first step, no gain on a CPU


@dataclass
class VerdictConfig:
    """Choose what a comparison of attempts rests on. If these are null: accuracy, and every pair of attempts."""

    # a metric that decides in ``evaluation.specs``; null: the first of the problem
    metric: str | None = knob(None, changes="run")
    # an attempt: each other one is compared with it alone, so that fewer tests are made
    reference: str | None = knob(None, changes="run")


@dataclass
class ReportedConfig:
    """State a published report's figure for this attempt, to stand beside what is measured here."""

    accuracy: float | None = knob(None, least=0, most=1)
    # the images that it was measured on
    split: str = knob(
        "val", choices=("val", "test"), needs=(but("reported.accuracy", None, why="nothing is reported"),)
    )


@dataclass
class CacheConfig:
    """Keep what is computed once: decoded images, and what frozen stages make of them."""

    # null: decodes in every epoch, runs the whole network in every step
    dir: str | None = knob("outputs/cache", changes="nothing")
    # 10^9 bytes: 60,000 images at 224 pixels; the least recently used make room
    max_gb: float = knob(10.0, above=0, changes="nothing", needs=(but("cache.dir", None, why="nothing is kept"),))


@dataclass
class Config:
    """Describe one run (task=train) or one call of another task."""

    task: str = "train"
    attempt: str = "base"  # the name of the attempt that these values came from
    seed: int = knob(0, least=0, most=MAX_SEED, changes="run")
    # skips a completed run, resumes an interrupted one, restarts a failed one
    resume: bool = knob(False, changes="nothing")
    # what data/audit.py finds before training is a warning, or (strict) an error
    audit: str = knob("warn", choices=("warn", "strict"), changes="nothing")
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
    # task=export: onnx or openvino; task=annotate: coco, coco_polygons, yolo, yolo_seg, masks, or several, [coco,yolo]
    # null: the first of these
    format: Any = knob(None, changes="nothing")  # noqa: RUF009 # it returns a field
    # task=annotate: leaves out objects of fewer pixels of the original mask; 0, none: on MVTec's bottle the smallest
    # has 196 pixels of 810,000 and is real, so what is too small is for the user to say
    min_area: int = knob(0, least=0, changes="nothing")
    source: str | None = None  # task=predict: an image or a folder
    dirs: list[str] = field(default_factory=list)  # task=compare: the directories of sweeps and runs


def validate(config: Config) -> None:
    """Check every value that can be checked without knowing the problem, the data or the network.

    Raises:
        LabError: the first wrong value, with its key and what the key takes.
    """
    check_values(config)
    d, m, epochs = config.data, config.model, config.trainer.max_epochs
    if config.augment.views is not None and not (config.augment.transforms or config.augment.paste):
        raise LabError("augment.views needs something to draw views with: add augment=standard, or leave it out")
    if m.warmup_epochs >= epochs:
        raise LabError(
            f"model.warmup_epochs={m.warmup_epochs} leaves none of trainer.max_epochs={epochs} to the stages that are "
            "to join: give fewer"
        )
    if config.task in FORMATS:
        formats_of(config)
    if config.resume and config.task != "train":
        raise LabError(f"resume=true resumes a training: leave it out of task={config.task}")
    _check_bins(config.loss.bins)
    validate_split(config.split)
    if d.root is None:
        remedy = "give data.root=FOLDER" + (" or set MVTEC_ROOT" if d.name == "mvtec" else "")
        raise LabError(f"data={d.name} does not know where its images lie: {remedy}")
    if d.category is None and d.name in ("sample", "mvtec"):
        raise LabError(f"data={d.name} needs data.category=NAME")


def formats_of(config: Config) -> list[str]:
    """Return the formats that a configuration's task is to write.

    Raises:
        LabError: one that it does not write, none, or several of a task that writes one.
    """
    known, given = FORMATS[config.task], config.format
    formats = [known[0]] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    for name in formats:
        if name not in known:
            raise unknown("format", name, known)
    if not formats or (len(formats) > 1 and config.task == "export"):
        raise LabError(f"format={given} is not what task={config.task} writes: give one of {', '.join(known)}")
    return list(dict.fromkeys(formats))


# Protocols that say themselves which images take part.
_NAMED = {"own": "takes the data set's own parts", "file": "names its images itself"}


def validate_split(s: SplitConfig) -> None:
    """Check a split alone, as ``validate`` does: a data module needs no more."""
    check_values(s, "split.")
    if s.group_by is not None:
        _check_pattern(s.group_by)
    if s.protocol in ("one_class", "test_folder"):
        if s.val_is_test or s.per_class is not None or s.file is not None or s.pool != "test":
            raise LabError(
                "split.protocol=one_class trains on train/good and tests on all of test/: leave out split.val_is_test, "
                "split.per_class, split.file and split.pool"
            )
        return
    if s.protocol in _NAMED and (s.per_class is not None or s.pool != "test"):
        raise LabError(f"split.protocol={s.protocol} {_NAMED[s.protocol]}: leave out split.per_class and split.pool")
    if s.per_class == 2 and not s.val_is_test:
        raise LabError("split.per_class=2 is out of range: give 3 or more, one image for each of train, val and test")
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


def _check_pattern(group_by: str) -> None:
    try:
        groups = re.compile(group_by).groups
    except re.error as error:
        raise LabError(f"split.group_by={group_by!r} is no regular expression: {error}") from error
    if groups < 1:
        raise LabError(f"split.group_by={group_by!r} has no group: put the part that identifies it in (brackets)")


def _check_bins(value: Any) -> None:
    bins = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    whole = all(type(edge) is int and edge > 0 for edge in bins)
    if not whole or not bins or any(a >= b for a, b in pairwise(bins)):
        raise LabError(f"loss.bins={value} divides no counts: give a number of bins, or rising counts as [10,100]")
