"""Which parts of an image support a class: gradient times activation, cell by cell (HiResCAM, Draelos and Carin 2020).

Grad-CAM (Selvaraju et al., ICCV 2017) averages the gradient over the map first, which gives an equal result only where
a pooling follows. Pooling follows the last map, whose cells see a third of the image and more: on MVTec's bottle its
peak lay in the defect's mask in 3 to 11 of 63 images, that of the map before it in 27 to 34 (three MobileNetV2s, by
chance 5).

A library needs the layer and its layout for each family of backbones; here the network is one Sequential, and its maps
are found by running it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mvtec_lab.models.modes import evaluating

CELL = 20  # pixels, the most that a cell may measure: between the usual 16 of the last map but one, and 32 of the last


def activation_maps(classifier: Any, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return how much each part of an image supports a class, in eval mode and full precision.

    Args:
        classifier: a DefectClassifier.
        images: [N, 3, S, S], normalised.
        classes: one class per image, [N].

    Returns:
        On the CPU, the heat [N, S, S], float32 in [0, 1] by each image's own maximum (0 where nothing supports the
        class), and the row and column of its peak, [N, 2] pixels. None where no stage gives a map (ViT, whose tokens
        reach the head through the class token alone) or the head does not use the network's last layer. Of a fused head
        the linear part is explained.
    """
    if not classifier.head.uses_network:
        return None
    size, values, last = images.shape[-1], images.to(classifier.device), None
    with evaluating(classifier), torch.enable_grad():
        for child in classifier.model:
            values = child(values)
            if _side(values) > 1 and (last is None or size <= CELL * _side(values)):
                values = last = values.detach().requires_grad_()  # earlier parts need no gradient
        if last is not None:
            of_class = classifier.criterion.scores(values).gather(1, classes.to(values.device)[:, None])
            (slopes,) = torch.autograd.grad(of_class.sum(), last)  # of the map alone: parameters keep their gradients
    if last is None:
        return None
    side, channels = _side(last), 1 if last.shape[2] == last.shape[3] else 3
    support = (slopes.float() * last.detach().float()).sum(channels)
    cell = support.flatten(1).argmax(1)  # interpolation has its maximum at the middle of a cell
    peaks = ((torch.stack([cell // side, cell % side], 1) + 0.5) * size / side).long()
    heat = F.interpolate(support.relu()[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    highest = heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
    return (heat / highest).cpu(), peaks.cpu()


def _side(values: Tensor) -> int:
    """Return the side of a map [N, C, H, H], or [N, H, H, C] as between Swin's stages; 0 for anything else."""
    return values.shape[2] if values.ndim == 4 and values.shape[2] in (values.shape[1], values.shape[3]) else 0
