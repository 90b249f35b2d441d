"""The base of CutPaste and rotation prediction: a pretrained classifier learns to tell changed images apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mvtec_lab.models.backbones import build, trainable_stages
from mvtec_lab.models.modes import PartlyFrozen
from mvtec_lab.models.weights import load_weights
from mvtec_lab.problems.anomaly.base import AnomalyModel

# Stages that train beside the head. Two hundred good images would corrupt earlier ones, and it takes a third of the
# time. Random weights have nothing to lose: all stages train.
TRAINED = 1


class FineTuned(nn.Module):
    """Put a fresh head on a backbone: images [N, 3, S, S] to logits [N, ways]; frozen stages stay in eval mode.

    ``weights`` holds what the weights say about themselves.

    Args:
        backbone, weights: as in ``load_weights``.
        ways: number of classes to tell apart.
    """

    def __init__(self, backbone: str, weights: str | None, ways: int) -> None:
        super().__init__()
        loaded = load_weights(backbone, weights)
        self.weights = replace(loaded, state_dict=None)
        # Channels last: changed images come in any layout, and the other one takes twice the time on a CPU.
        network = build(backbone, ways, weights=loaded.state_dict).to(memory_format=torch.channels_last)
        trained = {*trainable_stages(network, "all" if loaded.state_dict is None else TRAINED), "head"}
        self.network = PartlyFrozen(dict(network.named_children()), trained)
        self.network.train_only(trained)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def embed(self, images: Tensor) -> Tensor:
        """Return the float32 features [N, D] of images, which the head reads."""
        features = self.network[:-1](images).float()
        return features.mean((2, 3)) if features.ndim == 4 else features  # SqueezeNet's head pools


class PretextModel(AnomalyModel):
    """Train a pretrained ``classifier`` to tell apart what was done to good images. A subclass sets ``ways``."""

    ways: ClassVar[int]  # number of classes

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.classifier = FineTuned(self.hparams["backbone"], self.hparams["weights"], self.ways)
        self.use_weights(self.classifier.weights)
