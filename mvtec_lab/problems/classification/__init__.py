"""Classification: which class an image shows, good or one of the defect types. Light to import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mvtec_lab.problems.base import Method
from mvtec_lab.registry import Registry

Loss = TypeVar("Loss", bound=Callable[..., Any])

METHOD = Method(
    "classifier",
    "classification",
    home="mvtec_lab.problems.classification.classifier:DefectClassifier",
    keys=("optimizer.first_stage",),
)

OWN_LOSSES = ("cross_entropy", "focal", "ldam", "logit_adjustment", "balanced_softmax", "group_softmax")
# Training losses by name: functions of (logits, target, weight) and, by name, of counts and fields of LossConfig.
LOSSES: Registry[Callable[..., Any]] = Registry(
    "loss",
    {name: f"{__name__}.losses:{name}" for name in OWN_LOSSES},
    require=["__call__"],
)

# What gives the class logits, ``model.head``: subclasses of heads.LinearHead.
HEADS: Registry[type[Any]] = Registry(
    "head",
    {
        "linear": f"{__name__}.heads:LinearHead",
        "cosine": f"{__name__}.heads:CosineHead",
        "fused": f"{__name__}.heads:FusedHead",
        "retrieval": f"{__name__}.heads:RetrievalHead",
        "knn": f"{__name__}.heads:NeighbourVote",
    },
    require=["remember", "forward"],
)


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """Return a decorator that makes a function a training loss, ``loss.name=NAME``.

    The function takes logits [N, C], a target (classes [N], or shares [N, C] of mixed images) and ``weight`` (class
    weights [C] or None), and returns the mean loss. It may also take, by name, ``counts`` (training images per class,
    [C]) and fields of LossConfig.

    Raises:
        LabError: the name belongs to another loss.
    """
    return LOSSES.decorator(name)
