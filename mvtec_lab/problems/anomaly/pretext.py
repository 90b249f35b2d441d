"""What CutPaste and rotation prediction learn with: a pretrained classifier tells apart what was done to images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mvtec_lab.models.backbones import build, stages, trainable_stages
from mvtec_lab.models.weights import load_weights

# Stages that train beside the head: two hundred good images spoil earlier ones, and it takes a third of the time. Of
# random weights, which nothing can spoil, all train.
TRAINED = 1


class FineTuned(nn.Module):
    """A backbone with a fresh head, images [N, 3, S, S] to logits [N, ways]; frozen stages stay in eval mode.

    ``mean``, ``std``, ``weights_name`` and ``weights_note`` as in FeatureMaps.

    Args:
        backbone, weights: as in DefectClassifier.
        ways: classes to tell apart.
    """

    def __init__(self, backbone: str, weights: str | None, ways: int) -> None:
        super().__init__()
        loaded = load_weights(backbone, weights)
        self.mean, self.std = list(loaded.mean), list(loaded.std)
        self.weights_name, self.weights_note = loaded.name, loaded.note
        # Channels last: changed images come in any layout, and the other one takes twice the time on a CPU.
        self.network = build(backbone, ways, weights=loaded.state_dict).to(memory_format=torch.channels_last)
        trained = trainable_stages(self.network, "all" if loaded.state_dict is None else TRAINED)
        self.frozen = [name for name in stages(self.network) if name not in trained]
        for name in self.frozen:
            self.network.get_submodule(name).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> FineTuned:
        super().train(mode)
        for name in self.frozen:
            self.network.get_submodule(name).eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def embed(self, images: Tensor) -> Tensor:
        """What the head sees of images: float32 [N, D]."""
        seen = self.network[:-1](images).float()
        return seen.mean((2, 3)) if seen.ndim == 4 else seen  # SqueezeNet's head pools
