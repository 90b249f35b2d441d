"""SAM as it is published, with the prompts of ``sam_box``: what training SAM adds is the difference."""

from __future__ import annotations

from mvtec_lab.config import Config
from mvtec_lab.problems.base import VIEWS, Method
from mvtec_lab.problems.segmentation.methods import sam_box

_TRAINING = (
    "optimizer.name optimizer.lr optimizer.weight_decay optimizer.momentum scheduler.name scheduler.step_size "
    "scheduler.gamma scheduler.patience trainer.max_epochs trainer.patience trainer.precision augment.transforms "
    "augment.views augment.paste data.sampler data.imbalance data.per_class"
)


def idle(config: Config) -> dict[str, str]:
    """Return the keys that have no effect beside the options, each with the reason."""
    nothing_trains = config.model.options.get("prompts") is not None
    training = dict.fromkeys(_TRAINING.split() if nothing_trains else (), "with prompts= nothing trains")
    return {**training, **sam_box.idle(config)}


METHOD = Method(
    "sam_zero",
    "segmentation",
    home="mvtec_lab.problems.segmentation.methods.sam_zero.model:SamZero",
    backbone=False,
    licence="Meta's SAM and MobileSAM, Apache-2.0",
    options={**sam_box.OPTIONS, "views": VIEWS},
    keys=("model.sam_weights",),
    idle=idle,
)
