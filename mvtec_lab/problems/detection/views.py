"""Boxes in the views of an image, and how those of all views become one list."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from mvtec_lab.models.views import unviewed

OVERLAP = 0.5  # intersection over union above which two boxes of a type are one defect's, as mAP50 counts it

Found = dict[str, Tensor]  # of one image: boxes [K, 4], labels [K] from 1, scores [K], and perhaps masks [K, 1, S, S]


def viewed_boxes(boxes: Tensor, number: int, size: int) -> Tensor:
    """Return an image's boxes [K, 4] in its view of this number (``view``); ``size``: pixels a side of the image."""
    x0, y0, x1, y1 = boxes.unbind(1)
    x0, x1 = (size - x1, size - x0) if number & 1 else (x0, x1)
    y0, y1 = (size - y1, size - y0) if number & 2 else (y0, y1)
    return torch.stack([y0, x0, y1, x1] if number & 4 else [x0, y0, x1, y1], dim=1)


def unviewed_boxes(boxes: Tensor, number: int, size: int) -> Tensor:
    """Return the boxes of an image that ``viewed_boxes`` moved into this view."""
    turned = boxes[:, [1, 0, 3, 2]] if number & 4 else boxes
    return viewed_boxes(turned, number & 3, size)


def merged(views: Sequence[Found], size: int) -> Found:
    """Return the boxes of an image, the highest score first, from those found in its first views, one list each.

    The best box leads those of its type that overlap it most: it becomes their mean, weighted by their scores, and gets
    the sum of their scores, divided by the number of views. So what a single view shows counts little (weighted boxes
    fusion, Solovyev, Wang and Gabruseva, Image and Vision Computing 2021).

    Args:
        views: what was found in each, in the view's own pixels.
        size: of the image, pixels a side.
    """
    if len(views) == 1:
        return views[0]
    boxes = torch.cat([unviewed_boxes(found["boxes"], number, size) for number, found in enumerate(views)])
    labels, scores = (torch.cat([found[name] for found in views]) for name in ("labels", "scores"))
    leaders = batched_nms(boxes, scores, labels, OVERLAP)
    overlaps = box_iou(boxes, boxes[leaders]) * (labels[:, None] == labels[leaders])
    least = torch.full_like(scores, OVERLAP)[:, None]  # so that there is a largest one where no box was found
    weights = scores[:, None] * (overlaps == torch.cat([overlaps, least], dim=1).amax(1, keepdim=True))  # [K, L]
    sums = weights.sum(0)
    order = torch.argsort(sums, descending=True)  # a stable one has no ONNX operator
    together = {
        "boxes": weights.T @ boxes / sums[:, None],
        "labels": labels[leaders],
        "scores": (sums / len(views)).clamp(max=1),
    }
    if "masks" in views[0]:
        masks = torch.cat([unviewed(found["masks"], number) for number, found in enumerate(views)])
        together["masks"] = (weights.T @ masks.flatten(1) / sums[:, None]).unflatten(1, masks.shape[1:])
    return {name: values[order] for name, values in together.items()}
