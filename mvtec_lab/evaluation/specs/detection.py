"""The metrics of detection, beside those of its images' scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from mvtec_lab.evaluation import detection, differences
from mvtec_lab.evaluation.differences import Difference
from mvtec_lab.evaluation.specs.metric import (
    Inference,
    Metric,
    NotComparableError,
    Runs,
    Words,
    interval_of_runs,
    rarest,
)


def _compare_boxes(key: str, title: str, first: Runs, second: Runs) -> tuple[Difference, str]:
    """Compare two attempts on one test set: both take the same draws of its images."""
    parts = [[detection.of_rows(tested.rows) for tested in runs] for runs in (first, second)]
    values = [np.mean([detection.box_metrics(matches)[key] or 0.0 for matches in part]) for part in parts]
    drawn = [np.mean([detection.drawn(matches, key) for matches in part], axis=0) for part in parts]
    if np.isnan([*drawn[0], *drawn[1]]).any() or len(first[0].images) < 2:
        raise NotComparableError(f"a test of {title} needs two images, and true boxes among them")
    return differences.resampled_difference(float(values[0] - values[1]), drawn[0] - drawn[1], len(first[0].images))


def _boxes(key: str, paired: Callable[[Runs, Runs], tuple[Difference, str]] | None = None) -> Inference:
    return Inference(
        ("label", "found", "truth"),
        interval_of_runs,
        of_rows=lambda rows: detection.box_metrics(detection.of_rows(rows))[key],
        resolution=rarest,
        pooled=False,
        paired=paired,
    )


_detection = partial(Metric, problem="detection")
_FALSE_BOXES = Words(
    by_type="box_recall",
    wide=True,
    about="Boxes found: the share of the true boxes that are found at IoU 0.5 with their type, where one good image in "
    "ten has a false box.",
)

METRICS = (
    _detection(
        "map50",
        title="mAP50",
        heading="mAP50",
        words=Words(by_type="map50"),
        decides=True,
        inference=_boxes("map50", paired=partial(_compare_boxes, "map50", "mAP50")),
    ),
    _detection(
        "map",
        title="mAP50-95",
        heading="mAP\n50-95",
        words=Words(by_type="map", wide=True),
        decides=True,
        inference=_boxes("map", paired=partial(_compare_boxes, "map", "mAP50-95")),
    ),
    _detection(
        "box_recall", title="boxes found", heading="boxes\nfound", words=_FALSE_BOXES, inference=_boxes("box_recall")
    ),
)
