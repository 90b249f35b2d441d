"""Say under which condition a key has an effect: one that was given and has none is refused, never passed over.

Given is what was typed on the command line (or handed to ``compose``), even where it says the default, and what an
attempt's file or plain Python sets to something else than the default. ``none``, ``auto``, null, false and 0
ask for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

RETRIEVING = ("fused", "retrieval", "knn")  # heads that look up training images
FIT_ONCE = ("patchcore", "padim", "spade", "nearest", "kmeans", "gaussian", "ocsvm")  # trained by no gradient
FROM_SCRATCH = ("autoencoder", "vae", "memae", "fanogan", "draem")  # without model.backbone
# The knobs of ModelConfig that are some one-class methods' own.
KNOBS = {
    "layers": (*FIT_ONCE, "deep_svdd", "stfpm"),
    "neighbours": ("nearest", "spade"),
    "coreset": ("patchcore",),
    "dimensions": ("padim", "gaussian", "deep_svdd", "ocsvm"),
    "clusters": ("kmeans",),
    "latent": ("autoencoder", "vae", "memae", "fanogan"),
    "slots": ("memae",),
    "reconstruction": ("autoencoder",),
}
# The keys that a task reads, by how they begin; train reads all but other tasks' own. A cross-validation (cv) is any
# sweep's.
READ_BY_ALL = ("task", "attempt", "cv.", "resume")
READ = {
    "describe": ("data.", "split.", "seed", "augment.", "loss.", "model.", "cache.", "audit"),
    "evaluate": ("data.", "split.", "seed", "cache.", "audit", "ckpt"),
    "predict": ("data.batch_size", "ckpt", "source"),
    "export": ("ckpt",),
    "compare": ("verdict.", "dirs"),
    "cache": ("cache.",),
    "clear_cache": ("cache.",),
    "backbones": (),
}
OF_OTHER_TASKS = ("ckpt", "source", "dirs")


class Needs(NamedTuple):
    """A condition on another key's value; ``met`` looks at all of a configuration's, ``why`` says it."""

    key: str
    met: Callable[[Mapping[str, Any]], bool]
    why: str


def only(key: str, *values: Any, why: str = "") -> Needs:
    return Needs(key, lambda all_: all_[key] in values, why or f"it is for {key}={', '.join(map(str, values))}")


def but(key: str, *values: Any, why: str) -> Needs:
    return Needs(key, lambda all_: all_[key] not in values, why)


CLASSIFIER = only("model.method", "classifier", why="it learns good images alone, and has no classes")
TRAINED = but("model.method", *FIT_ONCE, why="it is fitted once, to the images as they are")
LEARNT = but("model.head", "knn", why="a vote of neighbours trains nothing")
# Keys, separated by blanks, and what each of them needs. The first condition that is not met is the one that is said.
EFFECTS: tuple[tuple[str, Needs], ...] = (
    (
        "data.sampler data.imbalance augment.paste augment.mix scheduler.name trainer.compile trainer.monitor",
        CLASSIFIER,
    ),
    ("loss.name loss.class_weights loss.defer loss.posthoc", CLASSIFIER),
    ("model.unfreeze model.warmup_epochs model.head model.generate", CLASSIFIER),
    ("threshold.rule threshold.quantile", but("model.method", "classifier", why="it is for one-class methods")),
    ("optimizer.name optimizer.lr optimizer.weight_decay optimizer.momentum", TRAINED),
    ("trainer.max_epochs trainer.patience trainer.precision augment.transforms augment.views", TRAINED),
    ("optimizer.name optimizer.lr optimizer.weight_decay optimizer.momentum scheduler.name", LEARNT),
    ("model.backbone model.weights", but("model.method", *FROM_SCRATCH, why="its networks are its own")),
    *(
        (f"model.{knob}", only("model.method", *methods, *also, why=f"it is a knob of {', '.join(methods)}"))
        for knob, methods in KNOBS.items()
        for also in [("classifier",) if knob == "neighbours" else ()]
    ),
    (
        "model.neighbours",
        Needs(
            "model.head",
            lambda all_: all_["model.method"] != "classifier" or all_["model.head"] in RETRIEVING,
            f"it is for model.head={', '.join(RETRIEVING)}",
        ),
    ),
    ("optimizer.momentum", only("optimizer.name", "sgd", "rmsprop")),
    ("scheduler.step_size", only("scheduler.name", "step")),
    ("scheduler.gamma", only("scheduler.name", "step", "plateau")),
    ("scheduler.patience", only("scheduler.name", "plateau")),
    ("model.warmup_epochs", but("model.unfreeze", 0, [], why="no stages wait for the head")),
    ("model.scale", only("model.head", "cosine")),
    ("loss.gamma", only("loss.name", "focal")),
    ("loss.margin", only("loss.name", "ldam")),
    ("loss.tau", only("loss.name", "logit_adjustment")),
    ("loss.bins loss.others", only("loss.name", "group_softmax")),
    ("loss.beta", only("loss.class_weights", "effective")),
    ("data.sampler_beta", only("data.sampler", "effective")),
    ("augment.mix_alpha", but("augment.mix", "none", why="nothing is mixed")),
    ("data.archive", but("data.name", "sample", why="it is drawn")),
    ("data.sha256", but("data.archive", None, why="it is an archive's digest")),
    ("split.folds split.fold", only("split.protocol", "kfold")),
    ("split.test", only("split.protocol", "holdout")),
    ("split.val", but("split.protocol", "file", why="the file says which images validate")),
    ("split.val", but("split.val_is_test", True, why="the test images validate")),
    ("cv.repeats", but("cv.folds", None, why="it repeats a cross-validation")),
    ("reported.split", but("reported.accuracy", None, why="nothing is reported")),
    ("cache.max_gb", but("cache.dir", None, why="nothing is kept")),
)
GROUPS = {"data": "data.name", "optimizer": "optimizer.name", "scheduler": "scheduler.name"}


def typed_keys(words: Collection[str]) -> dict[str, str]:
    """Return the lab's keys among ``key=value`` words, with their values; a group stands for its `name` key."""
    typed: dict[str, str] = {}
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        key = "augment.transforms" if key.startswith("augment.transforms") or key == "augment" else GROUPS.get(key, key)
        typed[key] = value
    return typed


def idle(
    values: Mapping[str, Any], defaults: Mapping[str, Any], typed: Collection[str] = frozenset()
) -> dict[str, str]:
    """Return every key that was given and has no effect, and what to say of it.

    Args:
        values: of a configuration, by dotted key, as ``config.settings`` gives them.
        defaults: the same of an untouched configuration.
        typed: keys that somebody typed.
    """
    task = values["task"]
    found: dict[str, str] = {}
    for key, value in values.items():
        if not value or value in ("none", "auto") or not (key in typed or value != defaults[key]):
            continue
        said = key if isinstance(value, dict) else f"{key}={value}"
        if key in typed and not _reads(task, key):
            found[key] = f"{said} does nothing for task={task}: leave it out"
        elif task in ("train", "describe"):
            for keys, needs in EFFECTS:
                if key in keys.split() and not needs.met(values):
                    other = "null" if values[needs.key] is None else values[needs.key]
                    found.setdefault(key, f"{said} does nothing for {needs.key}={other}: {needs.why}: leave it out")
    return found


def _reads(task: str, key: str) -> bool:
    if task == "evaluate" and key in ("data.image_size", "data.white"):  # the checkpoint's hold
        return False
    if task not in READ:  # train, or a task that this table does not know
        return key not in OF_OTHER_TASKS
    return key.startswith((*READ_BY_ALL, *READ[task]))
