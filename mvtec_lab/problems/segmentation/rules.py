"""Say which settings do not go together in a segmentation. Light to import."""

from __future__ import annotations

from collections.abc import Mapping

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.problems.base import Method, Rules, check_supervised

_OTHERS = {
    "threshold.rule threshold.quantile": "it is for one-class methods: here validation chooses the thresholds",
    "threshold.alpha": "it is for classifiers",
    "loss.name loss.class_weights loss.defer loss.posthoc": "it learns masks, by cross-entropy and Dice",
    "model.head model.neighbours model.generate model.warmup_epochs": "it predicts pixels, not classes",
    "augment.mix": "it mixes the classes of whole images",
    "trainer.monitor": "the epoch with the lowest val/loss is kept",
    "trainer.compile": "its decoder is too small to gain from it",
}


def without_effect(method: Method) -> Mapping[str, str]:
    """Return the keys that have no effect with the method, each with the reason."""
    return {key: why for keys, why in _OTHERS.items() for key in keys.split()}


def check(config: Config) -> None:
    """Raise LabError for the first settings that do not go together."""
    check_supervised(config)
    if config.data.masks != "required":
        raise LabError(
            f"data.masks={config.data.masks} and model.method={config.model.method}: it learns from masks, and an "
            "image without one would be a good image to it: give data.masks=required"
        )
    if config.augment.paste and config.data.tile is not None:
        raise LabError(
            f"augment.paste={config.augment.paste:g} pastes defects onto whole images, and data.tile="
            f"{config.data.tile} shows tiles: leave one of them out"
        )


RULES = Rules(check, without_effect, deciding=lambda config: "iou", untiled="")
