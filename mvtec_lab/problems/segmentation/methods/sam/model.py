"""A coarse mask from SAM's own maps, which SAM's decoder takes as a prompt and corrects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mvtec_lab.problems.segmentation.base import mask_loss
from mvtec_lab.problems.segmentation.methods.sam import METHOD
from mvtec_lab.problems.segmentation.methods.sam.base import SamModel

SPREAD = 0.02  # of the learnt prompts at the beginning: small beside SAM's own, so that they disturb nothing yet


class SamMask(SamModel):
    """Find defects without any prompt from outside.

    The head's logits are the mask prompt of SAM's decoder, beside a few learnt prompts. The decoder's logits are added
    to the head's, and both are trained to be right: so the decoder corrects what the head leaves.
    """

    method = METHOD

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_head()
        self.tokens = nn.Parameter(SPREAD * torch.randn(self.options["tokens"], self.sam.architecture.dim))
        self.sam.prompt_encoder.mask_downscaling.requires_grad_(True)

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head's logits and the corrected ones, [N, S / 4, S / 4] each."""
        maps = self.maps(features)
        coarse = self.coarse(maps)
        corrections = [
            self.sam.decode(own, masks=logits[None, None], tokens=self.tokens)
            for *own, logits in zip(*maps, coarse, strict=True)
        ]
        return coarse, coarse + torch.cat(corrections)

    def decode(self, features: Tensor) -> Tensor:
        return self.both(features)[1]

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        coarse, corrected = self.both(self.features_of(batch))
        return mask_loss(coarse, batch["mask"]) + mask_loss(corrected, batch["mask"])
