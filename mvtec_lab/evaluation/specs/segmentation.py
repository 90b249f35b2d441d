"""The metrics of segmentation, beside those of its images' scores and of its maps."""

from __future__ import annotations

from functools import partial

from mvtec_lab.evaluation import segmentation
from mvtec_lab.evaluation.specs.metric import Inference, Metric, Words, interval_of_runs

_segmentation = partial(Metric, problem="segmentation")
_masks = partial(Inference, ("type", "overlap", "union"))
_PER_IMAGE = "IoU and Dice are means over the defect images; pooled ones count all pixels, those of good images too."

METRICS = (
    _segmentation(
        "iou",
        title="IoU",
        heading="IoU",
        words=Words(by_type="iou", about=_PER_IMAGE),
        decides=True,
        of_images=segmentation.ious,
        inference=_masks(),
    ),
    _segmentation(
        "dice",
        title="Dice",
        heading="Dice",
        words=Words(by_type="dice"),
        decides=True,
        of_images=segmentation.dices,
        inference=_masks(),
    ),
    _segmentation("pooled_iou", title="pooled IoU", inference=_masks(interval=interval_of_runs)),
    _segmentation("pooled_dice", title="pooled Dice", inference=_masks(interval=interval_of_runs)),
)
