"""Eval mode for the length of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and back into the mode that it was in, however the block ends.

    Not for generators: one that is not read to its end leaves its block at a time that nobody chose.
    """
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
