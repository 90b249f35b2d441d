"""The base of the methods that decode the feature maps of a backbone, frozen or unfrozen by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mvtec_lab.models.maps import FeatureMaps, Flat
from mvtec_lab.problems.segmentation.base import SegmentationModel, ious_of, mask_loss
from mvtec_lab.problems.segmentation.types import TYPES, PixelTypes

RARE = -2.0  # the logits' bias: they begin where few pixels are defective, or the first steps learn just that


def begin_rare(*outputs: nn.Module) -> None:
    """Let a decoder's first logit begin at ``RARE``.

    Args:
        outputs: its last convolutions, whose results are added.
    """
    for layer in outputs:
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        nn.init.constant_(layer.bias[:1], RARE / len(outputs))


class DecoderModel(SegmentationModel):
    """Decode maps of a backbone, ``backbone``; which layers, ``model.options.layers`` says.

    A subclass sets ``cells``, pixels a side of the cells of the maps that are read by default, and defines
    ``build_decoder``. A frozen backbone is ``frozen``, so that its maps are kept. With ``unfreeze`` some of its stages
    train, and the whole backbone runs in every step.
    """

    cells: ClassVar[Sequence[int]] = (4, 8, 16, 32)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        h = self.hparams
        features = FeatureMaps(h["backbone"], h["weights"], self.options["layers"], self.cells, h["unfreeze"])
        self.use_weights(features.weights)
        self.features = Flat(features, h["image_size"])
        if self.kinds and self.options["types"] != "none":
            self.type_model = TYPES[self.options["types"]](self.kinds, features.channels)
        outputs = 1 + (0 if self.type_model is None else self.type_model.outputs)
        self.decoder = self.build_decoder(features.channels, outputs).to(memory_format=torch.channels_last)

    @property
    def frozen(self) -> nn.Module | None:
        return None if self.hparams["unfreeze"] not in (0, []) else self.features

    def build_decoder(self, channels: Sequence[int], outputs: int) -> nn.Module:
        """Return a network of the maps, finest first, with these channels, to logits [N, outputs, h, w].

        The first output is a defect's, the others are its types'. Its last convolutions begin as ``begin_rare`` lets
        them.
        """
        raise NotImplementedError

    def maps(self, features: Tensor) -> list[Tensor]:
        return self.features.maps(features if self.frozen is not None else self.features(features))

    def decode(self, features: Tensor) -> Tensor:
        return self.decoder(self.maps(features))[:, 0]

    def logits_and_evidence(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        maps = self.maps(self.features_of(batch))
        logits = self.decoder(maps)
        return logits[:, 0], self.evidence(maps, logits[:, 0].sigmoid(), logits[:, 1:])

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        if not isinstance(self.type_model, PixelTypes):
            return super().loss(batch)
        logits = self.decoder(self.maps(self.features_of(batch)))
        types = self.type_model.loss(logits[:, 1:], batch, len(self.hparams["classes"]) - len(self.kinds))
        return mask_loss(logits[:, 0], batch["mask"]) + types

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._ious: list[Tensor] = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self._ious.append(ious_of(self.logits(batch), batch["mask"]))  # decoding a few images again is cheap

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        ious = torch.cat(self._ious)
        total = torch.stack([ious.sum(), ious.new_tensor(len(ious))])
        if self.trainer.world_size > 1:  # each device has seen its share
            shares = self.all_gather(total)
            assert isinstance(shares, Tensor)
            total = shares.sum(0)
        if total[1] > 0:
            self.log("val/iou", total[0] / total[1], sync_dist=True)


class OfFinest(nn.Module):
    """Give the logits that a head finds in the finest of the maps.

    Args:
        head: layers from [N, C, h, w] to [N, outputs, h, w], the last one a convolution.
    """

    def __init__(self, head: nn.Sequential) -> None:
        super().__init__()
        self.head = head
        begin_rare(head[-1])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.head(maps[0])
