"""Which parts of a network train: eval mode for the length of a block, and networks of which some parts rest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and back into its former mode, however the block ends.

    Do not use it in generators: one that is not read to its end leaves its block at an unknown time.
    """
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


class PartlyFrozen(nn.Sequential):
    """Run parts in order, of which some train; the others stay in eval mode, batch normalisation and dropout included.

    Args:
        parts: modules by name.
        trained: the names of the parts that train, once ``train_only`` is called.

    The leading parts that never train are the ``prefix``: what they make of an image never changes.
    """

    def __init__(self, parts: Mapping[str, nn.Module], trained: Collection[str] = ()) -> None:
        super().__init__(OrderedDict(parts))
        self.trained = frozenset(trained)
        self._active: frozenset[str] = frozenset()
        self._batch: int | None = None

    @property
    def prefix(self) -> list[str]:
        """Return the names of the leading parts that never train, in order."""
        return list(takewhile(lambda name: name not in self.trained, (name for name, _ in self.named_children())))

    def train_only(self, names: Collection[str]) -> None:
        """Let these parts train from now on, and the others rest."""
        if self._active != frozenset(names):
            self._active = frozenset(names)
            for name, part in self.named_children():
                part.requires_grad_(name in self._active)
            self.train(self.training)

    def train(self, mode: bool = True) -> PartlyFrozen:
        super().train(mode)
        for name, part in self.named_children():
            part.train(mode and name in self._active)
        return self

    def extract(self, images: Tensor, batch: int | None = None) -> Tensor:
        """Return what the prefix makes of images, [N, ...].

        Args:
            batch: the prefix takes this many images at once, the last batch is filled up, so that an image's features
                do not depend on N; None: as ``extract_in`` says, else all images at once.
        """
        batch, prefix = batch or self._batch, slice(len(self.prefix))
        if batch is None:
            return self.run(images, prefix)
        parts = ((part, torch.arange(batch, device=part.device) % len(part)) for part in images.split(batch))
        return torch.cat([self.run(part[filled], prefix)[: len(part)] for part, filled in parts])

    def extract_in(self, batch: int) -> None:
        """Let the prefix take this many images at once from now on, in training as well."""
        self._batch = batch

    def complete(self, features: Tensor) -> Tensor:
        """Return what the parts after the prefix make of its features."""
        return self.run(features, slice(len(self.prefix), None))

    def compile_parts(self) -> None:
        """Let ``torch.compile`` translate the network when it first runs; dropout then draws other numbers."""
        self.run = torch.compile(self.run)  # type: ignore[method-assign]

    def run(self, values: Tensor, part: slice) -> Tensor:
        """Return what some of the parts, by their places, make of values."""
        for child in list(self)[part]:
            values = child(values)
        return values
