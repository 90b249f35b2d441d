"""Declare every key of the lab once: its type, default, meaning and range, and when it has an effect.

The YAML files under ``conf/`` fill these classes; plain Python may as well: ``run_attempt(Config(), "outputs/mine")``.
What depends on the problem or the method is declared in its folder, and checked by ``problems.check``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mvtec_lab.knobs import Needs, but, knob, only

BALANCE_RULES = ("none", "inverse", "sqrt", "effective")
BALANCING = ("logit_adjustment", "balanced_softmax", "group_softmax")  # those that favour rare classes
HEADS = ("linear", "cosine", "fused", "retrieval", "knn")
RETRIEVING = ("fused", "retrieval", "knn")  # heads that look up training images
MIXES = ("none", "mixup", "cutmix")
FITS = ("squeeze", "letterbox")  # ways of an image into the square
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
SCHEDULERS = ("none", "cosine", "step", "onecycle", "plateau")
MAX_SEED = 2**32 - 1  # NumPy takes no larger one
# Precisions that leave weights and images in 32 bits: so is what the cache and a method keep.
PRECISIONS = ("auto", "32", "32-true", "16-mixed", "bf16-mixed")
# What a task writes, the default first; task=export writes one format, task=annotate any of its.
FORMATS = {
    "export": ("onnx", "openvino", "int8"),
    "annotate": ("coco", "coco_polygons", "yolo", "yolo_seg", "masks"),
}
PUBLIC = ("visa", "loco", "mvtec_ad2", "btad", "real_iad")  # data sets whose layouts data/layouts reads
# The sample's own weights, pretrained by mvtec_lab/pretrain.py on invented products, and the backbone that they are of.
SAMPLE_BACKBONE, SAMPLE_WEIGHTS = "shufflenet_v2_x1_0", "SAMPLE_V1"
LOGGERS = ("tensorboard", "mlflow", "wandb")  # which are also the names of their packages
MONITORS = ("val/loss", "val/accuracy", "val/balanced_accuracy", "val/macro_f1")

_LEARNING = but("model.head", "knn", why="a vote of neighbours trains nothing")


@dataclass
class DataConfig:
    """Choose the images, and how they reach the network."""

    name: str = knob(
        "sample",
        "where the images come from. sample: drawn procedurally; mvtec: MVTec AD; folder: images of your own, whose "
        "layout is recognised; coco, yolo: images with annotations in these formats; the others: public data sets in "
        "the layouts that they are published in",
        choices=("sample", "mvtec", "folder", "coco", "yolo", *PUBLIC),
    )
    root: str | None = knob("outputs/data", "the folder that holds the category folders", changes="run")
    category: str | None = knob(
        "cable", "the folder below root; null, where data is neither sample nor mvtec: root itself is the product"
    )
    good: list[str] = knob(
        list,
        "what the class of good images is called where it is not good, several names if need be, in any case of "
        "letters: [OK,gut]",
        changes="run",
        needs=(only("data.name", "folder"),),
    )
    labels: str | None = knob(
        None,
        "a CSV or JSON file with the columns path and label, and perhaps mask, split and group, in place of class "
        "folders; as given, or below the product's folder",
        changes="run",
        needs=(only("data.name", "folder"),),
    )
    defects: str = knob(
        "types",
        "how many classes defects are. types: one for each type; merged: all are the class `defect`, for defects of "
        "which there are too few of a type",
        choices=("types", "merged"),
    )
    archive: str | None = knob(
        None,
        "URL or local file of an archive that fills the product's folder if it is missing or empty",
        changes="run",
        needs=(but("data.name", "sample", why="it is drawn"),),
    )
    sha256: str | None = knob(
        None,
        "the archive's digest; null: unverified, with a warning",
        needs=(but("data.archive", None, why="it is an archive's digest"),),
    )
    masks: str = knob(
        "required",
        "whether every defect image must have a mask. optional: one without is a warning, not an error",
        choices=("required", "optional"),
        changes="nothing",
    )
    image_size: int = knob(
        128,
        "pixels a side of the square that images are brought into, never cropped: a defect may lie at the rim",
        least=8,
    )
    fit: str = knob(
        "squeeze",
        "how an image that is not square gets into it. squeeze: each side by itself, so that all of the square shows "
        "it; letterbox: in its proportions, beside padding that no score counts",
        choices=FITS,
    )
    tile: int | None = knob(
        None,
        "side of the tiles that a large image is cut into, in its own pixels; each is brought to image_size and seen "
        "alone, and the image is judged by all of them; null: images are not cut",
        least=16,
    )
    white: int | None = knob(
        None,
        "the value of 16-bit files that becomes 255; null: the largest of the bit depth that the training images use",
        least=1,
        most=65_535,
    )
    batch_size: int = knob(32, "images per step; 32 is the most frequent one in the four reports", least=1)
    num_workers: int | None = knob(
        None,
        "worker processes that decode and augment; null: none, because starting them costs more than they save at "
        "these sizes, but up to eight if a GPU waits for augmented images",
        least=0,
        changes="nothing",
    )
    sampler: str = knob(
        "none",
        "draws training images by class. none: each image once per epoch; inverse, sqrt, effective: rare classes more "
        "often, by their counts, the counts' square roots, or their effective numbers",
        choices=BALANCE_RULES,
    )
    sampler_beta: float = knob(
        0.99,
        "beta of the effective numbers; for a few dozen images 0.9 hardly weights and 0.999 equals inverse",
        least=0,
        below=1,
        needs=(only("data.sampler", "effective"),),
    )
    imbalance: float | None = knob(
        None,
        "thins the training images out to an exponential tail: this many images of the most frequent class for one "
        "image of the rarest; val and test stay as they are; null: trains on all",
        least=1,
    )
    per_class: int | None = knob(
        None,
        "trains on at most this many images of each class, for a curve over their number: the images of a smaller "
        "number are among those of a larger one, and val and test stay as they are; null: trains on all",
        least=1,
        needs=(Needs("data.imbalance", (None,), True, "it thins training out already"),),
    )


@dataclass
class SplitConfig:
    """Divide the samples into train, val and test."""

    protocol: str = knob(
        "holdout",
        "how samples are divided. holdout: once, by shares of the pool; kfold: each image is in test exactly once; "
        "file: as a CSV says; own: the parts of a data set that is divided already, and one that it lacks is drawn "
        "from its train images; auto: own where folders or a list divide the images into train and test, else holdout; "
        "one_class: trains on train/good except the share `val` of it, and tests on the whole test folder, without one "
        "on all defects and the share `test` of the good images; test_folder: only that test, on which a fitted "
        "anomaly model is judged; test_only: every image is tested, by task=evaluate on new images",
        choices=("holdout", "kfold", "file", "own", "auto", "one_class", "test_folder", "test_only"),
    )
    pool: str = knob(
        "test", "which images take part. all: train/good takes part beside the test folder", choices=("test", "all")
    )
    per_class: int | None = knob(None, "first draws this many images of each class; null: takes all", least=2)
    val: float = knob(
        0.2,
        "share of the pool that validates",
        above=0,
        below=1,
        needs=(
            but("split.protocol", "file", why="the file says which images validate"),
            but("split.val_is_test", True, why="the test images validate"),
        ),
    )
    test: float = knob(
        0.2,
        "share of the pool that tests; with one_class of the good images, where the data set has none for testing; 0: "
        "none, for the classifier to keep, of an attempt that a cross-validation has chosen",
        least=0,
        below=1,
        zero=True,
        needs=(only("split.protocol", "holdout", "own", "auto", "one_class"),),
    )
    folds: int = knob(
        5,
        "number of folds; one is the test set, `val` comes from the others; one-class methods learn from train/good in "
        "every fold, and take the share `val` of it",
        least=2,
        needs=(only("split.protocol", "kfold"),),
    )
    fold: int = knob(
        0, "the fold that is the test set, from 0", changes="run", needs=(only("split.protocol", "kfold"),)
    )
    file: str | None = knob(None, "with protocol=file: a CSV with columns path,split; a run's samples.csv is one")
    group_by: str | None = knob(
        None, "regular expression over the path: images with an equal first group stay together"
    )
    val_is_test: bool = knob(
        False, "chooses the checkpoint on the test images, as two of the reports do; every table says so"
    )
    seed: int = knob(
        0,
        "draws the split; tied to the run's seed unless it is given: pin it to compare seeds on the same images",
        least=0,
        most=MAX_SEED,
        changes="run",
    )


@dataclass
class CrossValidationConfig:
    """Repeat a stratified cross-validation: a sweep runs each attempt once per fold, all on the same folds."""

    folds: int | None = knob(
        None, "number of folds; null: each attempt runs once, on the split as it is", changes="nothing"
    )
    repeats: int = knob(
        1,
        "repetitions, with folds drawn from split.seed, split.seed + 1 and so on",
        changes="nothing",
        needs=(but("cv.folds", None, why="it repeats a cross-validation"),),
    )


@dataclass
class AugmentConfig:
    """Transform the training images at random."""

    transforms: dict[str, Any] = knob(
        dict, "albumentations names with their arguments, applied in this order: +augment.transforms.GaussNoise.p=0.5"
    )
    views: int | None = knob(
        None,
        "number of augmented views of each image, drawn once: their activations can be cached, but training sees no "
        "others; null: new ones in every epoch",
        least=1,
    )
    paste: float = knob(
        0.0,
        "probability that a defect image is replaced: its defect, cut out by its mask, is pasted onto a good training "
        "image",
        least=0,
        most=1,
    )
    mix: str = knob(
        "none", "mixes each training image with another one of its batch, and their labels as well", choices=MIXES
    )
    mix_alpha: float = knob(
        1.0,
        "the share is drawn from Beta(alpha, alpha); 1, both papers' value on small data: uniformly",
        above=0,
        needs=(but("augment.mix", "none", why="nothing is mixed"),),
    )


@dataclass
class LossConfig:
    """Choose what training minimises, and what rare classes weigh in it."""

    name: str = knob(
        "cross_entropy",
        "the training loss of classifiers, by its name here or under which you registered one",
    )
    class_weights: str = knob(
        "inverse",
        'what a class weighs in the loss, by its count. inverse: scikit-learn\'s "balanced"; none: every image alike',
        choices=BALANCE_RULES,
    )
    beta: float = knob(
        0.99,
        "beta of the effective numbers; see data.sampler_beta",
        least=0,
        below=1,
        needs=(only("loss.class_weights", "effective"),),
    )
    defer: float = knob(
        0.0,
        "share of the epochs that train without class weights first (deferred re-weighting), or with plain "
        "cross-entropy before group_softmax; the checkpoint is chosen from the others",
        least=0,
        below=1,
    )
    gamma: float = knob(
        2.0,
        "how much less an image counts that is classified well already; the paper's best",
        least=0,
        needs=(only("loss.name", "focal"),),
    )
    margin: float = knob(
        0.5, "the rarest class's margin, as a cosine; the paper's", above=0, needs=(only("loss.name", "ldam"),)
    )
    tau: float = knob(
        1.0,
        "strength of the adjustment by the classes' frequencies; 1 is Bayes-optimal for balanced error",
        least=0,
        needs=(only("loss.name", "logit_adjustment"),),
    )
    posthoc: float = knob(0.0, "tau of the adjustment of a trained network's logits, whatever its loss", least=0)
    bins: Any = knob(
        2,
        "number of bins with equally many defect types by their counts, or a list of counts that divide them; three to "
        "eight defect types leave two to four per bin",
        needs=(only("loss.name", "group_softmax"),),
    )
    others: float = knob(
        8.0,
        "images from outside a bin for each of its own in a batch; the paper's",
        least=0,
        needs=(only("loss.name", "group_softmax"),),
    )


@dataclass
class ModelConfig:
    """Choose the method, and the network that it works with."""

    method: str = knob(
        "classifier",
        "how: classifier, a method that learns good images alone (patchcore, padim ...), one for masks or boxes",
    )
    options: dict[str, Any] = knob(dict, "the method's own settings; its folder declares them")
    backbone: str = knob("resnet18", "by its TorchVision name: task=backbones lists them")
    weights: str | None = knob(
        "DEFAULT",
        "DEFAULT, a TorchVision entry (IMAGENET1K_V2), SAMPLE_V1 (the sample's own), a file, or null for random ones",
    )
    unfreeze: Any = knob(0, 'how many of the last stages train beside the head, "all", or a list of stage names')
    sam_weights: str | None = knob(
        None,
        "a file of MobileSAM, of SAM's ViT-B, L or H or of SAM 2; null: MobileSAM's, 40 MB from its official address",
    )
    warmup_epochs: int = knob(
        0,
        "epochs that train the head alone before those stages join",
        least=0,
        needs=(but("model.unfreeze", 0, [], why="no stages wait for the head"),),
    )
    head: str = knob(
        "linear",
        "the last layer. linear; cosine: of features and class weights; fused: linear + retrieval, which reads the "
        "class names of the nearest training images; retrieval alone; knn: their plain vote, which needs no training",
        choices=HEADS,
    )
    scale: float = knob(30.0, "the logits' largest value; LDAM's", above=0, needs=(only("model.head", "cosine"),))
    neighbours: int = knob(
        5,
        "training images that are looked up; the rarest class of a few dozen images has about twice as many",
        least=1,
        needs=(only("model.head", *RETRIEVING),),
    )
    generate: bool = knob(
        False, "generates features of rare classes with a conditional generator until all are as frequent"
    )
    text_embeddings: str | None = knob(None, ".npz of the class names' text embeddings; null: random stand-ins, marked")


@dataclass
class ThresholdConfig:
    """Choose the score above which an anomaly model calls an image a defect, and when a classifier is sure."""

    rule: str = knob(
        "quantile",
        "quantile: of good images' scores, each by a model that has not seen it: of all train/good where a method is "
        "fitted once, of its validation images where it is trained by gradient; synthetic: the best F1 on these and on "
        "copies with patches pasted as CutPaste does; best_f1: chosen on the test images, defects included, and every "
        "table says so",
        choices=("quantile", "synthetic", "best_f1"),
    )
    quantile: float = knob(
        0.95,
        "share of these good images below the threshold; one new good image in twenty is a false reject then",
        above=0,
        most=1,
    )
    alpha: float | None = knob(
        None,
        "share of a class's images whose set of possible classes may miss it; a classifier is sure of an image where "
        "the set is its prediction alone. null: 0.1, the usual one, and of a class with fewer than nine held-out "
        "images 1 / (n + 1), the least that n images allow; with less a class is in every set",
        above=0,
        below=1,
        needs=(but("split.val_is_test", True, why="no images are held out of the test images"),),
    )


@dataclass
class CostConfig:
    """State what mistakes cost, by which task=threshold chooses; the unit is yours, their ratio counts."""

    escape: float | None = knob(None, "of a defect that is passed", above=0, changes="nothing")
    false_reject: float | None = knob(None, "of a good product that is refused", above=0, changes="nothing")
    defects: float | None = knob(
        None,
        "share of defects among the products of the line; null: that among the held-out images, where defects are "
        "collected and much more frequent than on a line",
        above=0,
        below=1,
        changes="nothing",
        needs=(but("cost.escape", None, why="it weighs what an escape costs"),),
    )


@dataclass
class OptimizerConfig:
    """Choose how the weights follow the gradient."""

    name: str = knob("adam", "PyTorch's Adam, AdamW, SGD or RMSprop", choices=OPTIMIZERS, needs=(_LEARNING,))
    lr: float = knob(
        1e-3, "learning rate; the cable, transistor and zipper reports' value", above=0, needs=(_LEARNING,)
    )
    first_stage: float = knob(
        1.0,
        "learning rate of the backbone's first stage, as a share of lr; from there to the head it grows by equal "
        "factors (discriminative learning rates); 1: lr for all",
        above=0,
        most=1,
        needs=(_LEARNING, but("model.unfreeze", 0, [], why="the head alone trains")),
    )
    weight_decay: float = knob(0.0, "pull of all weights towards zero", least=0, needs=(_LEARNING,))
    momentum: float = knob(
        0.9,
        "share of the last step that goes into the next",
        least=0,
        below=1,
        needs=(_LEARNING, only("optimizer.name", "sgd", "rmsprop")),
    )


@dataclass
class SchedulerConfig:
    """Choose how the learning rate changes over the epochs."""

    name: str = knob(
        "none",
        "none: it stays; cosine: to zero over max_epochs; step: cut at regular epochs; onecycle: up and down, a step "
        "per batch; plateau: cut where val/loss stays",
        choices=SCHEDULERS,
        needs=(_LEARNING,),
    )
    step_size: int = knob(
        10,
        "epochs between two cuts; three cuts in the default 30 epochs",
        least=1,
        needs=(only("scheduler.name", "step"),),
    )
    gamma: float = knob(0.1, "factor of a cut", above=0, below=1, needs=(only("scheduler.name", "step", "plateau"),))
    patience: int = knob(
        3,
        "epochs without improvement before a cut; fewer than earlystop's, so that a cut can help first",
        least=0,
        needs=(only("scheduler.name", "plateau"),),
    )


@dataclass
class TrainerConfig:
    """Set up Lightning's Trainer."""

    max_epochs: int = knob(30, "epochs of training; the head's loss is flat by 30 on a hundred images", least=1)
    patience: int | None = knob(
        None,
        "stops after this many epochs without a lower val/loss, or of what chooses a detector's epoch; null: never",
        least=1,
    )
    monitor: str = knob(
        "val/balanced_accuracy",
        "chooses best.ckpt, the earliest of equals; not val/loss, which overconfidence raises while predictions "
        "improve",
        choices=MONITORS,
    )
    accelerator: str = knob("auto", "auto, cpu, gpu, or another of Lightning's names", changes="run")
    devices: Any = knob(1, 'how many devices, or a list of their numbers; "auto" takes every GPU')
    strategy: str = knob("auto", "how several devices work together, by Lightning's name")
    precision: str = knob(
        "auto",
        "of the numbers in training. auto: bf16-mixed or 16-mixed on a GPU that has it, else 32",
        choices=PRECISIONS,
    )
    logger: Any = knob(
        "tensorboard",
        "where the curves go besides history.csv: tensorboard, mlflow, wandb, or several, [tensorboard,mlflow]; the "
        "extras mlflow and wandb bring the other two",
        changes="nothing",
    )
    compile: bool = knob(False, "torch.compile: up to half a minute before the first step, no gain on a CPU")


@dataclass
class VerdictConfig:
    """Choose what a comparison of attempts rests on."""

    metric: str | None = knob(
        None,
        "the metric that decides: accuracy, balanced_accuracy, log_loss, image_auroc, iou, map50 ...; null: the "
        "problem's first, for classifiers accuracy",
        changes="run",
    )
    reference: str | None = knob(
        None,
        "an attempt: each other one is compared with it alone, so that fewer tests are made; null: every pair",
        changes="run",
    )


@dataclass
class ReportedConfig:
    """State a published report's figure for this attempt, to stand beside what is measured here."""

    accuracy: float | None = knob(None, "the published accuracy; null: none is known", least=0, most=1)
    split: str = knob(
        "val",
        "the images that it was measured on",
        choices=("val", "test"),
        needs=(but("reported.accuracy", None, why="nothing is reported"),),
    )


@dataclass
class ReviewConfig:
    """Show predictions in a browser, where people correct them."""

    host: str = knob(
        "127.0.0.1",
        "the address that the page is served at: this machine alone; others (0.0.0.0: all of this machine's) ask for a "
        "token, which is printed",
        changes="nothing",
    )
    port: int = knob(8001, "its port; 0: any free one", least=0, most=65_535, changes="nothing")
    order: str = knob(
        "doubt",
        "what is shown first. doubt: labels that the model contradicts, then the most doubtful images, as task=predict "
        "orders its page; name: the order of predictions.csv",
        choices=("doubt", "name"),
        changes="nothing",
    )


@dataclass
class ServeConfig:
    """Answer images over HTTP."""

    host: str = knob(
        "127.0.0.1",
        "the address that answers: to this machine alone; 0.0.0.0: at all that it has, to whoever reaches them",
        changes="nothing",
    )
    port: int = knob(8000, "its port; 0: any free one", least=0, most=65_535, changes="nothing")
    queue: int = knob(
        64,
        "images that may wait or be judged at once; more are answered with 503 and Retry-After: at 30 images a second, "
        "the last one waits 2 seconds",
        least=1,
        changes="nothing",
    )
    max_mb: float = knob(
        50.0, "10^6 bytes of a request at most: an image of 16 megapixels as BMP", above=0, changes="nothing"
    )
    timeout: float = knob(30.0, "seconds that a request may take to arrive", above=0, changes="nothing")


@dataclass
class CacheConfig:
    """Keep what is computed once: decoded images, and what frozen stages make of them."""

    dir: str | None = knob(
        "outputs/cache",
        "the folder of the cache; null: decodes in every epoch, runs the whole network in every step",
        changes="nothing",
    )
    max_gb: float = knob(
        10.0,
        "10^9 bytes: 60,000 images at 224 pixels; the least recently used make room",
        above=0,
        changes="nothing",
        needs=(but("cache.dir", None, why="nothing is kept"),),
    )


@dataclass
class Config:
    """Describe one run (task=train) or one call of another task."""

    task: str = knob("train", "what the command does")
    attempt: str = knob("base", "a file of conf/attempt or of your own --config-dir, whose values hold")
    seed: int = knob(
        0,
        "governs splits, batches, augmentation and initial weights, whatever num_workers is",
        least=0,
        most=MAX_SEED,
        changes="run",
    )
    resume: bool = knob(
        False,
        "skips a completed run, resumes an interrupted one, restarts a failed one; with task=predict watch=true it "
        "goes on in its directory, and judges what has come or changed meanwhile",
        changes="nothing",
    )
    race: bool = knob(
        False,
        "runs a sweep fold by fold, and no further folds of attempts that are shown to be worse than another one",
        changes="nothing",
        needs=(but("cv.folds", None, why="it drops attempts of a cross-validation"),),
    )
    audit: str = knob(
        "warn",
        "what the audit of the data finds before training is a warning, or (strict) an error",
        choices=("warn", "strict"),
        changes="nothing",
    )
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    review: ReviewConfig = field(default_factory=ReviewConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    cv: CrossValidationConfig = field(default_factory=CrossValidationConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)
    reported: ReportedConfig = field(default_factory=ReportedConfig)
    ckpt: str | None = knob(
        None, "the checkpoint: a file, a run's directory (its best.ckpt), or a sweep's (its best run by validation)"
    )
    format: Any = knob(
        None,
        "what is written. task=export: onnx; openvino adds its files, int8 the model in 8-bit integers and what that "
        "costs and gains on the run's test images; task=annotate: coco, coco_polygons, yolo, yolo_seg, masks, or "
        "several, [coco,yolo]; null: the first of these",
        changes="nothing",
    )
    min_area: int = knob(
        0,
        "leaves out objects of fewer pixels of the original mask; 0, none: on MVTec's bottle the smallest has 196 "
        "pixels of 810,000 and is real, so what is too small is for the user to say",
        least=0,
        changes="nothing",
    )
    source: str | None = knob(
        None,
        "new images: a file, a folder, a glob, a .zip, a list of paths (.txt, or .csv with a column path), a video, or "
        "the number of a camera, 0",
    )
    watch: bool = knob(
        False,
        "judges new images of a folder as they come, after those that lie there, until Ctrl-C",
        changes="nothing",
        needs=(but("source", None, why="there is no folder to watch"),),
    )
    fps: float | None = knob(
        None,
        "frames a second that are taken of a video or a camera; null: every one",
        above=0,
        changes="nothing",
        needs=(but("source", None, why="there is no video"),),
    )
    false_rejects: float | None = knob(
        None,
        "share of new good products that task=threshold lets be refused, on average; it takes the lowest threshold "
        "that keeps it, so that the fewest defects escape",
        above=0,
        below=1,
        changes="nothing",
    )
    escapes: float | None = knob(
        None,
        "share of new defects that task=threshold lets pass, on average; with false_rejects the two thresholds differ, "
        "and a person reviews what lies between them",
        above=0,
        below=1,
        changes="nothing",
    )
    reviews: float | None = knob(
        None,
        "share of new good products that a person reviews beside those that false_rejects refuses: a second threshold "
        "that needs no held-out defects",
        above=0,
        below=1,
        changes="nothing",
        needs=(but("false_rejects", None, why="it is beside what is refused"),),
    )
    cost: CostConfig = field(default_factory=CostConfig)
    reference: str | None = knob(
        None,
        "the run, or directory of task=threshold, with whose images task=monitor compares new ones",
        changes="nothing",
    )
    predictions: str | None = knob(
        None,
        "the new images that task=monitor compares: the directory of task=predict, or images as source names them",
        changes="nothing",
    )
    dirs: list[str] = knob(list, "the directories of sweeps and runs")
    dir: str | None = knob(
        None, "the directory of a run, or of predictions, whose images are reviewed", changes="nothing"
    )
    difference: float | None = knob(
        None,
        "the difference between two attempts that a plan is to show, in points, or in the unit of a metric that is no "
        "share; null: 10 points, as the attempts of the four reports lie 7.5 to 17 points apart",
        above=0,
        changes="nothing",
    )


def untested(s: SplitConfig) -> bool:
    """Tell whether a split asks for no test images."""
    return s.test == 0 and s.protocol in ("holdout", "own", "auto", "one_class")
