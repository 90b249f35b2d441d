"""What frozen parts of a network make of images, computed once and kept in the lab's cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset


def kept(
    name: str,
    network: nn.Module,
    data: MVTecDataModule,
    dataset: MVTecDataset,
    rows: int,
    further: Any,
    trainer: pl.Trainer,
    blocks: Callable[[], Iterable[np.ndarray]],
) -> torch.Tensor | None:
    """Return float32 features [rows, ...] of a dataset, mapped from disk; None where they cannot be kept.

    Args:
        name: what they are, for a person who reads the cache's folder.
        network: makes them; its architecture and weights are a part of the key, as is the trainer's arithmetic.
        further: whatever else they depend on, as JSON takes it: views, the size of a batch.
        blocks: computes them, in consecutive pieces; called where the cache has none.
    """
    if data.cache is None:
        return None
    key = {
        "images": data.content(dataset.samples),
        "network": str(network),
        "weights": _digest(network),
        "normalisation": [data.mean, data.std],
        "arithmetic": [torch.__version__, trainer.strategy.root_device.type, str(trainer.precision)],
        "further": further,
    }
    array = data.cache.get(name, key, rows, np.dtype(np.float32).str, blocks)
    return None if array is None else torch.from_numpy(array)


def _digest(network: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
