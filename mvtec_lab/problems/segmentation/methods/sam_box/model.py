"""SAM's mask decoder, fine-tuned on the boxes or points of true masks, prompted by what finds defects by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.errors import LabError
from mvtec_lab.models.maps import Joined
from mvtec_lab.problems.segmentation.base import mask_loss
from mvtec_lab.problems.segmentation.methods.sam.base import SamModel, parts_of
from mvtec_lab.problems.segmentation.methods.sam_box import METHOD
from mvtec_lab.problems.segmentation.methods.sam_box.prompts import (
    CELL,
    COLUMNS,
    MOST,
    Finder,
    of_logits,
    require_unseen,
    weighed,
)

NOTHING = -10.0  # logit of an image without any prompt: a probability of 5e-5


class SamBox(SamModel):
    """Segment what boxes or points mark.

    In training they are those of the true masks, one per component, with their corners moved at random. Elsewhere they
    come from the head, a light decoder that learns beside SAM's, or from another run (``prompts=``); never from a
    mask. A pixel's probability is SAM's times the certainty of the prompt: so an image is as suspicious as what found
    the prompts says. What no prompt marks is the head's own, or nothing.

    Args:
        finder: the plan of ``prompts=`` of a trained model, as its checkpoint holds it.
    """

    method = METHOD
    tuned: ClassVar[bool] = True  # SAM's decoder learns

    def __init__(self, *, finder: Mapping[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        path, size = self.options["prompts"], self.hparams["image_size"]
        self.finder: Finder | None = None
        if finder is not None:
            self.finder = Finder.planned(finder, size)
        elif path is not None:
            self.finder = Finder.of(path, size)
            self.hparams["finder"] = self.finder.plan()
        if self.finder is None:
            self.add_head()
        if not self.tuned:
            self.sam.requires_grad_(False)

    @property
    def frozen(self) -> nn.Module | None:
        return self._flat[0] if self.finder is None else Joined(self._flat[0], self.finder)

    def require(self, data: MVTecDataModule) -> None:
        path = self.options["prompts"]
        if path is None or self.finder is None:
            return
        require_unseen(path, data)
        if self.finder.model.fit != data.frame.fit:
            raise LabError(
                f"model.options.prompts={path} has images with data.fit={self.finder.model.fit}, this run with "
                f"{data.frame.fit}: give data.fit={self.finder.model.fit}"
            )
        if (white := self.finder.model.white) != data.white:
            raise LabError(
                f"model.options.prompts={path} reads 16-bit images with data.white={white}, this run with "
                f"{data.white}: give data.white={white}"
            )
        if (tile := self.finder.model.tile) != data.frame.tile:
            theirs, ours = ("whole images" if n is None else f"tiles of {n} pixels" for n in (tile, data.frame.tile))
            remedy = "leave data.tile out" if tile is None else f"give data.tile={tile}"
            raise LabError(f"model.options.prompts={path} sees {theirs}, this run {ours}: {remedy}")

    def decode(self, features: Tensor) -> Tensor:
        maps, masks = self.maps(features), []
        if self.finder is None:
            otherwise = self.coarse(maps)
            tables = torch.stack([of_logits(logits) for logits in otherwise])
        else:
            otherwise = self.nothing(maps).expand(len(features), -1, -1)
            tables = features[:, -MOST * COLUMNS :].unflatten(1, (MOST, COLUMNS))
        for *own, prompts, rest in zip(*maps, tables, otherwise, strict=True):
            known = prompts[prompts[:, -1] > 0].to(rest.device)
            if len(known):
                logits = self.prompted(own, known[:, :4], known[:, 4:6])
                rest = weighed(logits, known[:, -1]).amax(0)
            masks.append(rest)
        return torch.stack(masks)

    def prompted(self, maps: Sequence[Tensor], boxes: Tensor, points: Tensor) -> Tensor:
        """Return logits [K, S / 4, S / 4] of what K prompts mark, from the maps of one image, [C, h, w] each."""
        if self.options["prompt"] == "point":
            return self.sam.decode(maps, points=points.to(maps[-1].device))
        return self.sam.decode(maps, boxes=boxes.to(maps[-1].device))

    def nothing(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits [S / 4, S / 4] of an image without a prompt."""
        return maps[-1].new_full(2 * (self.hparams["image_size"] // CELL,), NOTHING)

    def oracle(self, batch: Mapping[str, Tensor]) -> Tensor:
        masks = []
        for *own, mask in zip(*self.maps(self.features_of(batch)), batch["mask"], strict=True):
            boxes, points, _ = parts_of(mask.cpu().numpy())
            masks.append(self.prompted(own, boxes, points).amax(0) if len(boxes) else self.nothing(own))
        return torch.stack(masks)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        maps = self.maps(self.features_of(batch))
        loss = torch.zeros((), device=maps[-1].device)
        if self.tuned:
            loss = loss + self._loss_of_prompts(maps, batch["mask"])
        return loss if self.finder is not None else loss + mask_loss(self.coarse(maps), batch["mask"])

    def _loss_of_prompts(self, maps: Sequence[Tensor], masks: Tensor) -> Tensor:
        """Return the mean loss over the images with a defect of what SAM makes of their components' prompts."""
        losses = []
        for *own, mask in zip(*maps, masks, strict=True):
            boxes, points, parts = parts_of(mask.cpu().numpy())
            if len(boxes):
                logits = self.prompted(own, self._moved(boxes) if self.training else boxes, points)
                losses.append(mask_loss(logits, parts.to(logits.device)))
        if losses:
            return torch.stack(losses).mean()
        # A gradient of zero for each parameter: of several devices another one may have met a defect.
        return torch.stack([0 * p.sum() for p in self.sam.parameters() if p.requires_grad]).sum()

    def _moved(self, boxes: Tensor) -> Tensor:
        """Return boxes whose sides were moved by up to ``jitter`` of their length, within the image."""
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        moved = boxes + self.options["jitter"] * sides * (2 * torch.rand_like(boxes) - 1)
        return moved.clamp(0, self.hparams["image_size"] - 1)
