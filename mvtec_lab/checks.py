"""Check what can be checked of a configuration without knowing the problem, the data or the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from mvtec_lab.config import FORMATS, LOGGERS, Config, SplitConfig, untested
from mvtec_lab.errors import LabError, unknown
from mvtec_lab.knobs import check_values


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
    if config.task == "threshold":
        check_operating_point(config)
    if config.resume and config.task != "train" and not (config.task == "predict" and config.watch):
        raise LabError(
            f"resume=true resumes a training, or task=predict watch=true: leave it out of task={config.task}"
        )
    if config.split.protocol == "test_only" and config.task != "evaluate":
        raise LabError(
            f"split.protocol=test_only is for task=evaluate: it leaves task={config.task} nothing to learn from"
        )
    _check_bins(config.loss.bins)
    _check_devices(config.trainer.devices)
    loggers_of(config.trainer.logger)
    validate_split(config.split)
    if d.root is None:
        remedy = "give data.root=FOLDER" + (" or set MVTEC_ROOT" if d.name == "mvtec" else "")
        raise LabError(f"data={d.name} does not know where its images lie: {remedy}")
    if d.category is None and d.name in ("sample", "mvtec"):
        raise LabError(f"data={d.name} needs data.category=NAME")


def loggers_of(value: Any) -> list[str]:
    """Return the names in a value of ``trainer.logger``.

    Raises:
        LabError: one that there is not, or none.
    """
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
    for name in names:
        if name not in LOGGERS:
            raise unknown("trainer.logger", name, LOGGERS)
    if not names:
        raise LabError(f"trainer.logger={value} names no logger: give {', '.join(LOGGERS)}, or several in a list")
    return list(dict.fromkeys(names))


def check_operating_point(config: Config) -> None:
    """Refuse to choose a threshold by none or several of what it can be chosen by.

    Raises:
        LabError: it says what to give.
    """
    cost, ways = config.cost, "false_rejects=0.01, escapes=0.02 or cost.escape=100 cost.false_reject=1"
    if (cost.escape is None) != (cost.false_reject is None):
        raise LabError("cost.escape and cost.false_reject go together: give both, in one unit")
    rates = [config.false_rejects, config.escapes, config.reviews]
    if cost.escape is None and rates == [None] * 3:
        raise LabError(f"task=threshold needs what to choose by: give {ways}")
    if cost.escape is not None and rates != [None] * 3:
        raise LabError(f"task=threshold chooses by costs or by rates, not by both: give {ways}")
    if config.reviews is not None and (config.false_rejects is None or config.escapes is not None):
        raise LabError(
            f"reviews={config.reviews:g} goes with false_rejects alone: give false_rejects=0.01 reviews=0.05, or "
            "false_rejects=0.01 escapes=0.02, between which is reviewed"
        )
    if config.reviews is not None and config.reviews + (config.false_rejects or 0) >= 1:
        raise LabError(f"false_rejects and reviews={config.reviews:g} leave no good product that passes: give less")


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
_NAMED = {
    "own": "takes the data set's own parts",
    "file": "names its images itself",
    "test_only": "tests every image",
}


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
    if untested(s) and s.val_is_test:
        raise LabError("split.test=0 leaves no image that validates: leave out split.val_is_test")
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


def _check_devices(value: Any) -> None:
    numbers = value if isinstance(value, list | tuple) else str(value).split(",")
    if value != "auto" and not all(re.fullmatch(r"-?\d+", str(number).strip()) for number in numbers):
        raise LabError(f"trainer.devices={value} is no number of devices: give a number, a list as [0,1], or auto")


def _check_bins(value: Any) -> None:
    bins = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    whole = all(type(edge) is int and edge > 0 for edge in bins)
    if not whole or not bins or any(a >= b for a, b in pairwise(bins)):
        raise LabError(f"loss.bins={value} divides no counts: give a number of bins, or rising counts as [10,100]")
