"""Choose the classes that an image may show, from images that are held out, and say of which images a model is sure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, TypeAlias

import numpy as np

from mvtec_lab.engine.run import Run
from mvtec_lab.evaluation.confidence import reservation, set_thresholds, sets_of, smallest_alpha, sure
from mvtec_lab.evaluation.statistics import wilson_interval
from mvtec_lab.results import CERTAINTY, SURE, UNSURE

Sets: TypeAlias = Mapping[str, Sequence[float]] | None  # ``Model.sets``

ALPHA = 0.1  # where ``threshold.alpha`` is null and a class has images enough
SET, JOINT = "set", "|"
NONE = "(none)"  # the set of an image that is like no class; in brackets, as a class may be called none


def choose_sets(run: Run, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Choose ``run.model.sets`` from held-out predictions, and write best.ckpt with them.

    Args:
        run: whose model was trained or fitted.
        labels: [N].
        probabilities: [N, C].
    """
    classes, wanted = run.model.classes, run.config.threshold.alpha
    held_out = np.bincount(labels, minlength=len(classes)).tolist()
    least = [smallest_alpha(images) for images in held_out]
    alpha = [max(ALPHA, share) for share in least] if wanted is None else [wanted] * len(classes)
    run.model.sets = {
        "least": set_thresholds(labels, probabilities, alpha).tolist(),
        "alpha": alpha,
        "held_out": held_out,
    }
    run.keep()
    if wanted is not None and (short := [i for i, share in enumerate(least) if wanted < share]):
        named = ", ".join(f"{classes[i]} {held_out[i]}" for i in short)
        run.warn(
            f"threshold.alpha={wanted:g} is too small for few held-out images ({named}): these classes are in every "
            f"set: give {max(least[i] for i in short):.3g} or more, or more images"
        )


def set_columns(sets: Sets, classes: Sequence[str], probabilities: np.ndarray) -> list[dict[str, str]]:
    """Return the columns of images [N, C] for predictions.csv: the names in their set, and sure or unsure."""
    if sets is None:
        return [{}] * len(probabilities)
    members, certain = sets_of(probabilities, sets["least"]), sure(probabilities, sets["least"])
    names = (JOINT.join(compress(classes, of_image)) or NONE for of_image in members)
    return [{SET: of_image, CERTAINTY: SURE if c else UNSURE} for of_image, c in zip(names, certain, strict=True)]


def doubt(name: str, of_image: str, alpha: float) -> str:
    """Say why an image is unsure, to follow the class that it was given.

    Args:
        name: the class that it was given.
        of_image: the classes in its set, as ``set_columns`` writes them.
        alpha: of the class ``name``: at least 1 - alpha of its held-out images had a higher probability of it than an
            image whose set is empty.
    """
    if of_image == NONE:
        return f", less typical of {name} than {100 * (1 - alpha):.2g}% of known {name} images"
    others = [other for other in of_image.split(JOINT) if other != name]
    return f", {' or '.join(others)} not ruled out" if others else ", unsure"


def set_metrics(sets: Sets, classes: Sequence[str], labels: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Return ``set_coverage``, the share of each class's images with that class in their set, and an interval.

    The 95% interval (Wilson) is that of the accuracy of those images that the model is sure of, if there are any.
    """
    if sets is None:
        return {}
    members, certain = sets_of(probabilities, sets["least"]), sure(probabilities, sets["least"])
    covered, right = members[np.arange(len(labels)), labels], probabilities.argmax(axis=1) == labels
    shares = [float(covered[labels == i].mean()) if (labels == i).any() else None for i in range(len(classes))]
    interval = list(wilson_interval(int(right[certain].sum()), int(certain.sum()))) if certain.any() else None
    return {"set_coverage": dict(zip(classes, shares, strict=True)), "intervals": {"sure_accuracy": interval}}


def counted_unsure(
    sets: Sets, classes: Sequence[str], rows: Sequence[Mapping[str, Any]], judged_by: Callable[[int], str]
) -> list[str]:
    """Say how many images of predictions.csv are unsure, what is aimed at for the others, and on what that rests.

    Args:
        judged_by: the classifier's own.
    """
    if sets is None:
        return ["this model has no sets of possible classes: of no image it is known whether it is sure"]
    held_out = round(sum(sets["held_out"]))
    unsure = sum(row[CERTAINTY] == UNSURE for row in rows)
    return [
        f"{unsure} of {len(rows)} images are unsure",
        f"the aim: {_aims(classes, sets['alpha'])} are given a wrong class without being called unsure",
        f"the aim {reservation(held_out, judged_by(held_out))}",
    ]


def _aims(classes: Sequence[str], alpha: Sequence[float]) -> str:
    """Return at most which share of each class's images, the shares that classes have in common said once."""
    names: dict[str, list[str]] = {}
    for name, share in zip(classes, alpha, strict=True):
        names.setdefault(f"{100 * share:.2g}%", []).append(name)
    if len(names) == 1:
        return f"at most {next(iter(names))} of each class's images"
    return "at most " + " and ".join(f"{share} of {', '.join(of)} images" for share, of in names.items())
