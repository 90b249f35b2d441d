"""Say which settings do not go together in a classification. Light to import."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from mvtec_lab.config import BALANCING, RETRIEVING, Config
from mvtec_lab.errors import LabError, unknown
from mvtec_lab.problems.base import Method, Rules, check_supervised
from mvtec_lab.problems.classification import LOSSES, OWN_LOSSES

_ANOMALY = "threshold.rule threshold.quantile"
_FITTED = (
    "loss.name loss.class_weights loss.defer loss.posthoc data.sampler augment.paste augment.mix scheduler.name "
    "trainer.compile trainer.monitor model.unfreeze model.warmup_epochs model.head model.neighbours model.generate"
)


def without_effect(method: Method) -> Mapping[str, str]:
    """Return the keys that have no effect in a classification, each with the reason."""
    reasons = dict.fromkeys(_ANOMALY.split(), "it is for one-class methods")
    if not method.trains:
        reasons |= dict.fromkeys(_FITTED.split(), "it is fitted once, and every class weighs alike")
    return reasons


def effective(config: Config) -> set[str]:
    """Return the keys of LossConfig that a registered loss takes; config.py says it of the lab's own."""
    name = config.loss.name
    if name in OWN_LOSSES or name not in LOSSES:
        return set()
    return {f"loss.{option}" for option in inspect.signature(LOSSES[name]).parameters}


def check(config: Config) -> None:
    """Raise LabError for the first settings that do not go together."""
    m, augment = config.model, config.augment
    check_supervised(config)
    if augment.paste and m.head in RETRIEVING:
        raise LabError(
            f"augment.paste shows model.head={m.head} a training image again, as another one's background: leave it out"
        )
    if augment.mix != "none" and (augment.views is not None or m.head in RETRIEVING or m.generate):
        raise LabError(
            f"augment.mix={augment.mix} makes new images of two: leave out augment.views, model.generate and a "
            f"model.head that retrieves ({', '.join(RETRIEVING)})"
        )
    if m.generate and (m.unfreeze not in (0, []) or m.head in RETRIEVING):
        raise LabError(
            "model.generate=true makes up features of a frozen backbone for a head of its own: "
            "give model.unfreeze=0 and model.head=linear or cosine"
        )
    _check_loss(config)


def findings(config: Config) -> list[str]:
    """Return what the settings take from the worth of the figures, a line each."""
    sampler, weights, loss = config.data.sampler, config.loss.class_weights, config.loss
    balancing = {
        f"data.sampler={sampler}": sampler != "none",
        f"loss.class_weights={weights}": weights != "none",
        f"loss.name={loss.name}": loss.name in BALANCING,
        f"loss.posthoc={loss.posthoc:g}": loss.posthoc > 0,
        "model.generate=true": config.model.generate,
    }
    if len(both := [key for key, on in balancing.items() if on]) > 1:
        return [f"{both[0]} and {both[1]} are both on: rare classes are weighted twice"]
    return []


def _check_loss(config: Config) -> None:
    loss, epochs = config.loss, config.trainer.max_epochs
    plain = int(loss.defer * epochs)  # epochs before class weights or groups count
    grouped = loss.name == "group_softmax"
    if loss.name not in LOSSES:
        raise unknown("loss.name", loss.name, LOSSES.names())
    if loss.name == "ldam" and config.model.head != "cosine":
        raise LabError("loss.name=ldam has margins between cosines: give model.head=cosine")
    if grouped and (loss.class_weights != "none" or config.model.head not in ("linear", "cosine")):
        raise LabError(
            "loss.name=group_softmax balances by its bins, in the last layer: give loss.class_weights=none and "
            "model.head=linear or cosine"
        )
    if loss.defer and loss.class_weights == "none" and not grouped:
        raise LabError(f"loss.defer={loss.defer} has nothing to defer: give loss.class_weights, or leave it out")
    if grouped and not loss.defer:
        raise LabError(
            "loss.name=group_softmax starts from a plain classifier: give loss.defer=0.5 for half of the epochs"
        )
    if loss.defer and not plain:
        raise LabError(f"loss.defer={loss.defer} of trainer.max_epochs={epochs} is no epoch: give more")
    if grouped and 0 < plain <= config.model.warmup_epochs:
        raise LabError(
            f"model.warmup_epochs={config.model.warmup_epochs} leaves none of the {plain} epochs before the groups to "
            "the stages that are to join: give fewer"
        )
    if loss.defer and config.trainer.patience is not None:
        raise LabError("trainer.patience might stop before what loss.defer puts off: leave one of them out")


RULES = Rules(
    check,
    without_effect,
    effective,
    untiled="it learns the class of a whole image, and most tiles of a defective image show no defect: give an anomaly "
    "model, attempt=patchcore say, or leave data.tile out",
    tested="",
)
