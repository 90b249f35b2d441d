"""What frozen parts of a network make of images, computed once and kept in the lab's cache."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset, Rows
from mvtec_lab.data.samples import Sample, by_image
from mvtec_lab.engine.run import Run
from mvtec_lab.models.maps import Joined, of_views

TIMED = 8  # images, behind one that is not timed


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


def use_views(run: Run, network: nn.Module | None, views: int, name: str) -> list[str]:
    """Let the data module load what a frozen network makes of each image's first views; return the splits that have it.

    These are all whose images stay the same. One entry of the cache holds all images that take part, so that it serves
    every fold and seed, and every method with the same network; a ``Joined`` one has an entry for each of its parts.

    Args:
        network: images [N, 3, S, S] to [N, ...], float32; None: nothing is frozen.
        views: how many there are of each image (``models.views.view``).
        name: the network's, for a person who reads the cache's folder.
    """
    data = run.data
    if network is None or data.cache is None:
        return []
    images = data.images(data.tiles([sample for sample in data.samples if sample.split]))
    device = run.trainer.strategy.root_device

    def blocks(part: nn.Module) -> Iterator[np.ndarray]:
        part.to(device)
        for place in range(len(images)):
            image = images[[place]]["image"].to(device)
            yield of_views(part, image, range(views)).cpu().numpy()

    parts = list(network.parts) if isinstance(network, Joined) else [network]
    of_tiles = "" if data.frame.tile is None else f"tiles of {data.frame.tile} "
    title, rows = f"{data.folder.name} {of_tiles}{name} at {data.frame}", len(images) * views
    further = {"views": views}
    network.eval()  # for good: it never trains
    kept_parts = [kept(title, part, data, images, rows, further, run.trainer, partial(blocks, part)) for part in parts]
    arrays = [array for array in kept_parts if array is not None]
    if len(arrays) < len(parts):
        return []
    place_of = {(sample.path, sample.window): place for place, sample in enumerate(images.samples)}
    for split in ("train", "val", "test"):
        if samples := data.tiles(data.of_split(split)):
            if split == "train" and data.random:
                continue
            places = [place_of[sample.path, sample.window] for sample in samples]
            chosen = [place * views + number for place in places for number in range(views)]
            features = [Rows(array, chosen) for array in arrays]
            data.load_features(split, features[0] if len(features) == 1 else JoinedRows(features), views)
    return sorted(data.features)


def seconds_per_image(data: MVTecDataModule, judge: Callable[[dict[str, Any]], object]) -> float:
    """Return the seconds from an image's pixels to what is judged of it: kept features would hide the frozen part's.

    One image is judged before the clock starts: a GPU's kernels are chosen and loaded for the first one.

    Args:
        judge: takes a batch of one test image, or of all its tiles, and ends when its result is on the CPU.
    """
    # Of an image in tiles, the tiles are what is judged in the time that is taken.
    batches = by_image(data.tiles(data.of_split("test")[: TIMED if data.frame.tile is None else 1]))

    def look(tiles: Sequence[Sample]) -> None:
        judge(data.images(tiles)[list(range(len(tiles)))])

    look(batches[0])
    started = time.perf_counter()
    for tiles in batches:
        look(tiles)
    return (time.perf_counter() - started) / len(batches)


class JoinedRows(Rows):
    """Rows of several arrays, each joined to one row."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts

    def __getitem__(self, places: list[int]) -> torch.Tensor:
        return torch.cat([part[places].flatten(1) for part in self.parts], dim=1)

    def near(self, device: torch.device) -> JoinedRows:
        return JoinedRows([part.near(device) for part in self.parts])


def _digest(network: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in network.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
