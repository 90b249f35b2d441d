"""Say which settings do not go together in an anomaly run. Light to import."""

from __future__ import annotations

from collections.abc import Mapping

from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.problems.base import Method, Rules, check_folds

_CLASSES = (
    "data.sampler data.imbalance augment.paste augment.mix scheduler.name trainer.compile trainer.monitor "
    "threshold.alpha loss.name loss.class_weights loss.defer loss.posthoc "
    "model.unfreeze model.warmup_epochs model.head model.neighbours model.generate"
)


def without_effect(method: Method) -> Mapping[str, str]:
    """Return the keys that have no effect with the method, each with the reason."""
    return dict.fromkeys(_CLASSES.split(), "it learns good images alone, and has no classes")


def known(config: Config) -> int:
    """Return how many defects of each type, at most, are learnt beside good images, by a method with this option."""
    return config.model.options.get("known") or 0


def check(config: Config) -> None:
    """Raise LabError for the first settings that do not go together."""
    method, protocol = config.model.method, config.split.protocol
    check_folds(config)
    if known(config):
        if protocol not in ("one_class", "kfold", "test_only", "holdout"):
            raise LabError(
                f"model.options.known={known(config)} and split.protocol={protocol}: known defects are learnt with "
                "split.protocol=holdout or kfold, and with one_class where some lie outside the test images"
            )
    elif protocol not in ("one_class", "kfold", "test_only"):
        raise LabError(
            f"model.method={method} and split.protocol={protocol}: it learns from good images alone: give "
            "split.protocol=one_class, or kfold to be tested on the folds of other methods"
        )
    if config.split.val_is_test:
        raise LabError(
            f"split.val_is_test=true and model.method={method}: its thresholds come from good images that it has not "
            "seen, never from test images: leave it out"
        )


def deciding(config: Config) -> str:
    """Return the key of the validation metric by which a search ranks its runs; only made defects give one."""
    if config.threshold.rule != "synthetic":
        raise LabError(
            f"threshold.rule={config.threshold.rule} gives model.method={config.model.method} no validation score to "
            "search by: give threshold.rule=synthetic"
        )
    return "image_auroc"


TESTED = "it learns from no image of test/, so that the run without it is the model to keep: leave it out"
RULES = Rules(check, without_effect, deciding=deciding, untiled="", tested=TESTED)
