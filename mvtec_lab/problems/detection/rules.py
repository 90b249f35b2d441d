"""Say which settings do not go together in a detection. Light to import."""

from __future__ import annotations

from collections.abc import Mapping

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.problems.base import Method, Rules, check_supervised

_CLASSES = (
    "augment.mix trainer.compile threshold.alpha loss.name loss.class_weights loss.defer loss.posthoc "
    "model.head model.neighbours model.generate model.warmup_epochs"
)
UNTILED = "boxes across tiles are not joined yet: give an anomaly model, attempt=patchcore say, or leave data.tile out"
RANKING = "map"  # finer than map50, in which a handful of validation images leaves many attempts equal


def without_effect(method: Method) -> Mapping[str, str]:
    """Return the keys that have no effect in a detection, each with the reason."""
    reasons = dict.fromkeys(_CLASSES.split(), "it finds boxes, with losses of its own")
    reasons |= dict.fromkeys(("threshold.rule", "threshold.quantile"), "best F1 on validation gives its threshold")
    return reasons | {"trainer.monitor": "the method says which epoch is kept"}


def check(config: Config) -> None:
    """Raise LabError for the first settings that do not go together."""
    check_supervised(config)
    channels = config.model.options.get("channels")
    if isinstance(channels, int) and channels % 32:
        raise LabError(f"model.options.channels={channels} is no multiple of 32: give 64, 96 or 128")


RULES = Rules(check, without_effect, deciding=lambda config: RANKING, untiled=UNTILED)
