"""The metrics of segmentation, beside those of its images' scores and of its maps."""

from __future__ import annotations

from functools import partial

from mvtec_lab.evaluation import segmentation
from mvtec_lab.evaluation.specs.metric import Inference, Metric, Words, interval_of_runs

_segmentation = partial(Metric, problem="segmentation")
_masks = partial(Inference, ("type", "overlap", "union"))
_types = partial(Inference, ("type", "found_type"), interval_of_runs)
_NAMED = (
    "Type named: the share of the defects that were found and whose type was named right; balanced: the mean of the "
    "shares of each type."
)
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
    _segmentation("pooled_iou", title="pooled IoU", inference=_masks(interval=interval_of_runs)),
    _segmentation("pooled_dice", title="pooled Dice", inference=_masks(interval=interval_of_runs)),
)
