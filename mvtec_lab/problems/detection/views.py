"""Boxes in the views of an image, and how those of all views become one list."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from mvtec_lab.problems.segmentation.base import unviewed

OVERLAP = 0.5  # intersection over union above which two boxes of a type are one defect's, as map50 counts it

Found = dict[str, Tensor]  # of one image: boxes [K, 4], labels [K] from 1, scores [K], and perhaps masks [K, 1, S, S]


def viewed_boxes(boxes: Tensor, number: int, size: int) -> Tensor:
    """Return an image's boxes [K, 4] in its view of this number (``view``); ``size``: pixels a side of the image."""
    x0, y0, x1, y1 = boxes.unbind(1)
    x0, x1 = (size - x1, size - x0) if number & 1 else (x0, x1)
    y0, y1 = (size - y1, size - y0) if number & 2 else (y0, y1)
    return torch.stack([y0, x0, y1, x1] if number & 4 else [x0, y0, x1, y1], dim=1)


def unviewed_boxes(boxes: Tensor, number: int, size: int) -> Tensor:
    """Return the boxes that ``viewed_boxes`` moved into this view."""
    turned = boxes[:, [1, 0, 3, 2]] if number & 4 else boxes
    return viewed_boxes(turned, number & 3, size)


def merged(views: Sequence[Found], size: int) -> Found:
    """Return the boxes of an image from those found in its first views, as many as there are.

    The best box leads those of its type that overlap it: it becomes their mean, weighted by their scores, and gets the
    sum of their scores, divided by the number of views. So what a single view found counts little (weighted boxes
    fusion, Solovyev, Wang and Gabruseva, Image and Vision Computing 2021).

    Args:
        views: what was found in each, in the view's own pixels; a view has no two boxes of a type that overlap more.
        size: of the image, pixels a side.
    """
    if len(views) == 1:
        return views[0]
    boxes = torch.cat([unviewed_boxes(found["boxes"], number, size) for number, found in enumerate(views)])
    labels, scores = (torch.cat([found[name] for found in views]) for name in ("labels", "scores"))
    leaders = batched_nms(boxes, scores, labels, OVERLAP)
    overlaps = box_iou(boxes, boxes[leaders]) * (labels[:, None] == labels[leaders])
    first = (overlaps == overlaps.amax(1, keepdim=True)) if len(leaders) else overlaps > OVERLAP
    weights = scores[:, None] * ((overlaps > OVERLAP) & first)  # [K, L]
    sums = weights.sum(0)
    together = {
        "boxes": weights.T @ boxes / sums[:, None],
        "labels": labels[leaders],
        "scores": (sums / len(views)).clamp(max=1),
    }
    if "masks" in views[0]:
        masks = torch.cat([unviewed(found["masks"], number) for number, found in enumerate(views)])
        means = weights.T @ masks.flatten(1) / sums[:, None]
        together["masks"] = means.unflatten(1, masks.shape[1:])
    return together
