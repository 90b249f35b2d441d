"""The base of the methods that work with Segment Anything: its frozen maps, and a light decoder that looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.data.targets import boxes_of, components
from mvtec_lab.models.maps import Flat
from mvtec_lab.models.sam import Architecture, Sam, load_sam
from mvtec_lab.problems.segmentation.base import SegmentationModel
from mvtec_lab.problems.segmentation.methods.fpn.model import Pyramid

GENTLY = 0.1  # SAM's own decoder is pretrained: it learns at this share of the rate of what begins at random


class SamModel(SegmentationModel):
    """Work with a SAM whose image encoder is frozen; a subclass defines ``decode``.

    ``sam`` is the network; ``add_head`` gives the model a light decoder of the encoder's maps, ``head``, which finds
    defects without any prompt.

    Args:
        sam_weights: as in ``ModelConfig``.
        architecture: of a trained model, whose weights come from its checkpoint; None: ``sam_weights`` are loaded.
    """

    no_onnx = "SAM's decoder takes the prompts of one image at a time, another number in every image"

    def __init__(
        self, *, sam_weights: str | None = None, architecture: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        size = self.hparams["image_size"]
        if architecture is None:
            self.sam, name = load_sam(sam_weights, size)
            self.weights_name = self.hparams["weights"] = f"file:{name}"
            self.hparams["architecture"] = asdict(self.sam.architecture)
        else:
            self.sam = Sam(Architecture(**architecture), size)
        self.sam.prompt_encoder.requires_grad_(False)  # boxes and points mean what they have always meant
        self._flat = [Flat(self.sam.maps, size)]  # in a list: its parameters belong to ``sam``

    def add_head(self) -> None:
        """Give the model its light decoder, from random weights."""
        self.head = Pyramid(self.sam.channels, self.options["channels"])

    def trained(self, lr: float) -> list[dict[str, Any]]:
        inside = {id(p) for p in self.sam.parameters()}
        known, new = (
            [p for p in self.parameters() if p.requires_grad and (id(p) in inside) == of] for of in (True, False)
        )
        groups: list[dict[str, Any]] = [{"params": new}, {"params": known, "lr": lr * GENTLY}]
        return [group for group in groups if group["params"]]

    @property
    def frozen(self) -> nn.Module | None:
        return self._flat[0]

    def maps(self, features: Tensor) -> list[Tensor]:
        """Return the encoder's maps [N, C, H, W] of features, which may go on after them; the last is the embedding."""
        return self._flat[0].maps(features[:, : self._flat[0].width])

    def coarse(self, maps: list[Tensor]) -> Tensor:
        """Return the head's logits [N, S / 4, S / 4]."""
        side = self.hparams["image_size"] // 4
        logits = self.head(maps)
        return (logits if logits.shape[-1] == side else F.interpolate(logits, (side, side), mode="bilinear"))[:, 0]


def parts_of(mask: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Return a box, a point inside and the mask of each 8-connected component of a mask [H, W].

    A box's centre may lie outside a curved defect; the point is where the component is widest, the maximum of its
    distance transform.

    Returns:
        Float32 boxes [K, 4], x0, y0, x1, y1, the first and the last pixels of the component, as SAM takes them; points
        [K, 2], x, y; masks, uint8 [K, H, W].
    """
    parts = components(mask)
    points = np.zeros((len(parts), 2), np.float32)
    for place, part in enumerate(parts):
        depth = cv2.distanceTransform(np.pad(part, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]  # beyond the rim is no defect
        points[place] = np.unravel_index(depth.argmax(), depth.shape)[::-1]
    return boxes_of(mask) - torch.tensor([0.0, 0, 1, 1]), torch.from_numpy(points), torch.from_numpy(parts)
