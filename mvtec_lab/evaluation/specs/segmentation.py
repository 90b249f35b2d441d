"""The metrics of masks: of a segmentation, of an anomaly map above its threshold, and of boxes that have masks."""

from __future__ import annotations

from functools import partial

from mvtec_lab.evaluation import segmentation
from mvtec_lab.evaluation.specs.metric import Inference, Metric, Words, interval_of_runs

_segmentation = partial(Metric, problem="segmentation")
_of_masks = partial(_segmentation, also=("anomaly", "detection"), partly=("detection",))
_masks = partial(Inference, ("type", "overlap", "union"))
_types = partial(Inference, ("type", "found_type"), interval_of_runs)
_NAMED = "Type named: the share of the defects that were found and whose type was named right."
_EXACT = (
    "IoU with exact prompts: SAM's with those of the true masks, which no inspection has: where better prompts lead."
)
_PER_IMAGE = "IoU and Dice are means over the defect images."

METRICS = (
    _of_masks(
        "iou",
        title="IoU",
        heading="IoU",
        words=Words(by_type="iou", about=_PER_IMAGE, wide=True),
        decides=True,
        of_images=segmentation.ious,
        inference=_masks(),
    ),
    _of_masks(
        "dice",
        title="Dice",
        heading="Dice",
        words=Words(by_type="dice", wide=True),
        decides=True,
        of_images=segmentation.dices,
        inference=_masks(),
    ),
    _segmentation(
        "type_accuracy",
        title="type named",
        heading="type\nnamed",
        words=Words(by_type="type_accuracy", about=_NAMED, wide=True),
        of_images=segmentation.named_right,
        inference=_types(),
    ),
    _segmentation(
        "balanced_type_accuracy",
        title="type named, balanced",
        inference=_types(of_rows=segmentation.balanced_named),
    ),
    _segmentation("oracle_iou", title="IoU with exact prompts", heading="exact\nprompts", words=Words(about=_EXACT)),
    _of_masks("pooled_iou", title="pooled IoU", inference=_masks(interval=interval_of_runs)),
    _of_masks("pooled_dice", title="pooled Dice", inference=_masks(interval=interval_of_runs)),
)
