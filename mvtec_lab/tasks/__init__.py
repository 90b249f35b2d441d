"""The lab's tasks: what each does, what it reads, and where its function is.

Each is a plain function (Config, run directory) -> result, the same for every problem.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from mvtec_lab.errors import LabError


class Task(NamedTuple):
    """Declare a command of the lab: a function (config, run directory) -> anything, imported when it is called."""

    function: str
    about: str  # what it does, in one line
    reads: tuple[str, ...] = ()  # how the keys begin that it reads
    ignores: tuple[str, ...] = ()  # keys that it does not read although they begin so
    torch: bool = True  # it imports PyTorch, which takes seconds

    def takes(self, key: str) -> bool:
        """Tell whether it reads a key."""
        return key.startswith((*_READ_BY_ALL, *self.reads)) and key not in self.ignores


_DATA = ("data.", "split.", "seed", "cache.", "audit")
TASKS = {
    "train": Task(
        "mvtec_lab.tasks.train:run_attempt",
        "trains an attempt and judges it on images that it has not seen; with -m, several side by side",
        ("",),
        ignores=(  # what other tasks alone read
            *("ckpt", "format", "min_area", "source", "watch", "fps", "dirs", "dir", "difference"),
            *("reference", "predictions"),
            *("false_rejects", "escapes", "reviews", "cost.escape", "cost.false_reject", "cost.defects"),
            *("review.host", "review.port", "review.order"),
            *("serve.host", "serve.port", "serve.queue", "serve.max_mb", "serve.timeout"),
        ),
    ),
    "describe": Task(
        "mvtec_lab.tasks.describe:write_description",
        "says what is in a data set: classes, splits, sizes, what the audit finds",
        (*_DATA, "augment.", "loss.", "model."),
        ignores=("data.tile",),
    ),
    "backbones": Task("mvtec_lab.tasks.backbones:list_backbones", "lists backbones, their stages and their weights"),
    "evaluate": Task(
        "mvtec_lab.tasks.evaluate:evaluate",
        "judges a checkpoint on its run's test images, or on others",
        (*_DATA, "ckpt"),
        ignores=("data.image_size", "data.fit", "data.tile", "data.white"),  # the checkpoint holds them
    ),
    "threshold": Task(
        "mvtec_lab.tasks.threshold:set_threshold",
        "moves a checkpoint's threshold to a rate of false rejects or escapes, or the lowest cost, by held-out images",
        ("ckpt", "false_rejects", "escapes", "reviews", "cost."),
    ),
    "predict": Task(
        "mvtec_lab.tasks.predict:predict",
        "applies a checkpoint to new images",
        ("data.batch_size", "ckpt", "source", "watch", "fps"),
    ),
    "monitor": Task(
        "mvtec_lab.tasks.monitor:monitor",
        "says whether new images are still like those of a run: brightness, sharpness, colour, features, scores",
        ("data.batch_size", "reference", "predictions"),
    ),
    "export": Task(
        "mvtec_lab.tasks.export:export", "writes a checkpoint as a file for use without the lab", ("ckpt", "format")
    ),
    "serve": Task(
        "mvtec_lab.tasks.serve:serve",
        "answers images over HTTP with what a checkpoint says of them",
        ("data.batch_size", "ckpt", "serve."),
    ),
    "annotate": Task(
        "mvtec_lab.tasks.annotate:annotate",
        "writes masks as annotations of other programs",
        ("data.", "split.", "seed", "format", "min_area"),
        ignores=(
            *("data.image_size", "data.fit", "data.tile", "data.white"),
            *("data.batch_size", "data.num_workers", "data.sampler"),
        ),
    ),
    "cache": Task("mvtec_lab.tasks.cache:list_cache", "lists what is kept between runs", ("cache.",), torch=False),
    "clear_cache": Task(
        "mvtec_lab.tasks.cache:clear_cache", "deletes what is kept between runs", ("cache.",), torch=False
    ),
    "doctor": Task(
        "mvtec_lab.tasks.doctor:examine",
        "says what this machine has and lacks: Python, PyTorch, device, threads, weights, disk, each with its remedy",
        ("data.name", "data.root", "data.category", "data.archive", "model.backbone", "model.weights", "cache."),
        torch=False,  # it tries whether it can be imported
    ),
    "compare": Task(
        "mvtec_lab.tasks.compare:compare_runs",
        "compares runs of several sweeps in one verdict",
        ("verdict.", "dirs"),
        torch=False,
    ),
    "review": Task(
        "mvtec_lab.tasks.review:review",
        "shows predictions in a browser, where people correct them, and writes a new version of the data set",
        ("review.", "dir"),
        ignores=("dirs",),
        torch=False,
    ),
    "plan": Task(
        "mvtec_lab.tasks.plan:plan_runs",
        "says how many images, folds and repeats show a difference between attempts, from their runs or from a pilot",
        ("verdict.", "dirs", "difference"),
        torch=False,
    ),
}
_READ_BY_ALL = ("task", "attempt", "cv.", "resume")  # a cross-validation is any sweep's


def function_of(task: str) -> Callable[..., Any]:
    """Import and return a task's function.

    Raises:
        LabError: a library that it needs is missing or broken.
    """
    module, name = TASKS[task].function.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, OSError, RuntimeError) as error:  # as a library of the system that is missing
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise LabError(f"task={task} cannot be imported ({reason}): task=doctor says what is lacking") from error
