"""The heads of a classifier: one class per ``model.head``, with one entry in ``classification.HEADS``."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.errors import LabError
from mvtec_lab.models.backbones import last_linear, use_cosine
from mvtec_lab.models.modes import PartlyFrozen
from mvtec_lab.problems.classification.retrieval import TextEncoder, nearest, require_neighbours, vote


@dataclass(frozen=True)
class Setup:
    """Hold what heads are built from.

    Args:
        network: the backbone with its last layer, which a head may replace.
        classes: the class names in the order of their index.
        images: M, how many training images there are.
        scale: the largest logit of a cosine head.
        neighbours: k, how many images a head that retrieves looks up.
    """

    network: PartlyFrozen
    classes: Sequence[str]
    images: int = 0
    scale: float = 30.0
    neighbours: int = 5


class LinearHead(nn.Module):
    """Take the logits of the network's own last layer.

    Other heads are subclasses and say whether they have to know the training images (``learns``), whether the network's
    last layer has a part in their logits (``uses_network``; only then it trains, and an activation map exists), and how
    the names of their own parameters that train begin (``changing``).
    """

    learns = False
    uses_network = True
    changing: tuple[str, ...] = ()

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def embed(self, features: Tensor) -> Tensor:
        """Return the embeddings [N, D] that ``remember`` takes, from what the network's prefix makes of images."""
        return features

    def remember(self, embeddings: Tensor, labels: Tensor) -> None:
        """Keep the training images: embeddings [M, D] from before training, and classes [M]."""

    def forward(self, outputs: Tensor, features: Tensor, index: Tensor | None = None) -> Tensor:
        """Return logits [N, K].

        Args:
            outputs: of the network's last layer, [N, K].
            features: what the network's prefix makes of the images.
            index: each image's place among the training images, which it must not look up; -1: none; None: no image
                has one.
        """
        return outputs


class CosineHead(LinearHead):
    """Take ``scale`` times the cosines between features and class weights: the network's last layer is replaced."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        use_cosine(setup.network, setup.scale)


class NeighbourVote(LinearHead):
    """Count the classes of the nearest training images; nothing trains. A checkpoint carries the images' embeddings.

    Raises:
        LabError: there are fewer images than k + 1, or the backbone's features are maps.
    """

    learns = True
    uses_network = False
    memory: Tensor
    labels: Tensor

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        network, images = setup.network, setup.images
        features = last_linear(network).in_features
        require_neighbours(images - 1, setup.neighbours)  # in training an image's own place is left out
        self.neighbours, self.num_classes = setup.neighbours, len(setup.classes)
        self.register_buffer("memory", torch.zeros(images, features))
        self.register_buffer("labels", torch.full((images,), -1))  # no label: a search before ``remember`` fails
        # The stages as they are before training, up to the last layer.
        self.encoder = deepcopy(nn.Sequential(*list(network)[len(network.prefix) : -1])).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> NeighbourVote:
        super().train(mode)
        self.encoder.eval()
        return self

    def embed(self, features: Tensor) -> Tensor:
        return self.encoder(features)

    @torch.no_grad()
    def remember(self, embeddings: Tensor, labels: Tensor) -> None:
        """Keep the training images: embeddings [M, D] from before training, and classes [M].

        Raises:
            LabError: the head was made for another number of images or features.
        """
        given, made_for = (*embeddings.shape, *labels.shape), (*self.memory.shape, *self.labels.shape)
        if given != made_for:
            raise LabError(
                f"this head remembers {made_for[0]} images of {made_for[1]} features, not embeddings "
                f"{list(embeddings.shape)} with labels {list(labels.shape)}: train it again on these images"
            )
        self.memory.copy_(F.normalize(embeddings.float(), dim=1))
        self.labels.copy_(labels)

    def look_up(self, features: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the classes and the cosines of the nearest training images, both [N, k], nearest first."""
        similarities, places = nearest(self.embed(features), self.memory, self.neighbours, index)
        return self.labels[places], similarities

    def forward(self, outputs: Tensor, features: Tensor, index: Tensor | None = None) -> Tensor:
        labels, _ = self.look_up(features, index)
        return vote(labels, self.num_classes)


class RetrievalHead(NeighbourVote):
    """Read the class names of the nearest training images with a text encoder, which alone trains."""

    changing = ("text.",)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.text = TextEncoder(setup.classes, setup.neighbours)

    def forward(self, outputs: Tensor, features: Tensor, index: Tensor | None = None) -> Tensor:
        return self.text(*self.look_up(features, index))


class FusedHead(RetrievalHead):
    """Add the logits of the network's last layer to those of the text encoder."""

    uses_network = True

    def forward(self, outputs: Tensor, features: Tensor, index: Tensor | None = None) -> Tensor:
        return outputs + super().forward(outputs, features, index)
