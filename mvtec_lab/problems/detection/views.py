"""How the boxes of all views of an image become one list."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from mvtec_lab.models.views import unviewed, unviewed_boxes

OVERLAP = 0.5  # intersection over union above which two boxes of a type are one defect's, as mAP50 counts it

Found = dict[str, Tensor]  # of one image: boxes [K, 4], labels [K] from 1, scores [K], and perhaps masks [K, 1, S, S]


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


def kept_inside(found: Found, inside: Tensor) -> Found:
    """Return what was found with its boxes and masks cut to where an image lies in its square; none beside it.

    Args:
        inside: which pixels show the image, [S, S] bool: a rectangle.
    """
    lines = [inside.any(axis).int() for axis in (0, 1)]  # of columns, of rows
    first = torch.stack([line.argmax() for line in lines])
    last = torch.stack([first[k] + line.sum() for k, line in enumerate(lines)])
    boxes = found["boxes"].maximum(first.repeat(2)).minimum(last.repeat(2))
    cut = {**found, "boxes": boxes}
    if "masks" in found:
        cut["masks"] = found["masks"] * inside
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return {name: values[kept] for name, values in cut.items()}
