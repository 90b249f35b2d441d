"""SAM's mask decoder, fine-tuned on the boxes or points of true masks, prompted by what finds defects by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.problems.segmentation.base import mask_loss
from mvtec_lab.problems.segmentation.methods.sam.base import SamModel, parts_of
from mvtec_lab.problems.segmentation.methods.sam_box import METHOD
from mvtec_lab.problems.segmentation.methods.sam_box.prompts import Finder, require_unseen

NOTHING = -10.0  # logit of an image without any prompt: a probability of 5e-5


class SamBox(SamModel):
    """Segment what boxes or points mark.

    In training they are those of the true masks, one per component, with their corners moved at random. Elsewhere they
    come from the head, a light decoder that learns beside SAM's, or from another run (``prompts=``); never from a
    mask. What no prompt marks is the head's own, or nothing.

    Args:
        finder: the plan of ``prompts=`` of a trained model, as its checkpoint holds it.
    """

    method = METHOD

    def __init__(self, *, finder: Mapping[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        path, self.cells = self.options["prompts"], self.hparams["image_size"] // 4
        self.finder: Finder | None = None
        if finder is not None:
            self.finder = Finder.planned(finder, self.cells)
        elif path is not None:
            self.finder = Finder.of(path, self.cells)
            self.hparams["finder"] = self.finder.plan()
        if self.finder is None and self.method.trains:
            self.add_head()

    @property
    def frozen(self) -> nn.Module | None:
        return self._flat[0] if self.finder is None else _WithFinder(self._flat[0], self.finder)

    def require(self, data: MVTecDataModule) -> None:
        if path := self.options["prompts"]:
            require_unseen(path, data)

    def decode(self, features: Tensor) -> Tensor:
        marked = None if self.finder is None else features[:, -(self.cells**2) :].unflatten(1, (self.cells, self.cells))
        maps = self.maps(features if marked is None else features[:, : -(self.cells**2)])
        otherwise = self.coarse(maps) if marked is None else torch.full_like(marked, NOTHING)
        marked = (otherwise > 0) if marked is None else marked > 0
        masks = []
        for embedding, where, rest in zip(maps[-1], marked.cpu().numpy(), otherwise, strict=True):
            boxes, points, _ = parts_of(where)
            logits = self.prompted(embedding, boxes * 4 + 2, points * 4 + 2)  # a cell's centre, in pixels
            masks.append(logits.amax(0) if len(logits) else rest)
        return torch.stack(masks)

    def prompted(self, embedding: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
        """Return logits [K, S / 4, S / 4] of what is told, of an embedding [C, S / 16, S / 16]."""
        if not len(boxes):
            return embedding.new_zeros(0, self.cells, self.cells)
        if self.options["prompt"] == "point":
            return self.sam.decode(embedding, points=points.to(embedding.device))
        return self.sam.decode(embedding, boxes=boxes.to(embedding.device))

    def told(self, batch: Mapping[str, Tensor]) -> Tensor:
        maps = self._maps_of(batch)
        masks = []
        for embedding, mask in zip(maps[-1], batch["mask"].cpu().numpy(), strict=True):
            boxes, points, _ = parts_of(mask)
            logits = self.prompted(embedding, boxes, points)
            masks.append(logits.amax(0) if len(logits) else embedding.new_full((self.cells, self.cells), NOTHING))
        return torch.stack(masks)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        maps, losses = self._maps_of(batch), []
        for embedding, mask in zip(maps[-1], batch["mask"].cpu().numpy(), strict=True):
            boxes, points, parts = parts_of(mask)
            if len(boxes):
                logits = self.prompted(embedding, self._moved(boxes) if self.training else boxes, points)
                losses.append(mask_loss(logits, parts.to(embedding.device)))
        loss = torch.stack(losses).mean() if losses else 0 * self.sam.mask_decoder.iou_token.weight.sum()
        return loss + mask_loss(self.coarse(maps), batch["mask"]) if self.finder is None else loss

    def _maps_of(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        features = batch["features"] if "features" in batch else self.extract(batch["image"])
        return self.maps(features if self.finder is None else features[:, : -(self.cells**2)])

    def _moved(self, boxes: Tensor) -> Tensor:
        """Return boxes whose sides were moved by up to ``jitter`` of their length, within the image."""
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        moved = boxes + self.options.get("jitter", 0) * sides * (2 * torch.rand_like(boxes) - 1)
        return moved.clamp(0, self.hparams["image_size"] - 1)


class _WithFinder(nn.Module):
    """Give rows of features with what another model marks at their end."""

    def __init__(self, flat: nn.Module, finder: nn.Module) -> None:
        super().__init__()
        self.flat, self.finder = flat, finder

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.flat(images), self.finder(images).flatten(1)], dim=1)
