"""Which training images are drawn, and how often: class weights, and a sampler that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed
from torch.utils.data import Sampler

from mvtec_lab.errors import unknown


@dataclass(frozen=True)
class Sampling:
    """Say which training images are drawn, and how often.

    Args:
        rule: draws them by class: ``none``, or a rule of ``class_weights``.
        beta: of the rule ``effective``.
        imbalance: thins the training images out to an exponential tail, as in DataConfig; None: never.
        good_alone: leaves a fold's defects out, and trains on train/good, as ``good_alone`` of splits.py says.
        known: defects of each type that train beside them nevertheless, at most.
        per_class: trains on at most this many images of each class; None: on all.
    """

    rule: str = "none"
    beta: float = 0.99
    imbalance: float | None = None
    good_alone: bool = False
    known: int = 0
    per_class: int | None = None


def class_weights(counts: Sequence[int], rule: str, beta: float = 0.99) -> np.ndarray:
    """Return weights of C classes from their training counts, scaled to sum to C; a class without images weighs 0.

    Args:
        counts: images of each class, [C].
        rule: ``none``: all 1; ``inverse``: 1 / n, scikit-learn's "balanced" up to its scale; ``sqrt``: 1 / sqrt(n);
            ``effective``: (1 - beta) / (1 - beta ** n), Cui et al., CVPR 2019 (richardaecn/class-balanced-loss).
        beta: of ``effective``, in [0, 1).
    """
    n = np.asarray(counts, dtype=np.float64)
    present = n > 0
    n = np.where(present, n, 1)
    rules = {
        "none": lambda: np.ones_like(n),
        "inverse": lambda: 1 / n,
        "sqrt": lambda: 1 / np.sqrt(n),
        "effective": lambda: (1 - beta) / (1 - beta**n),
    }
    if rule not in rules:
        raise unknown("balance rule", rule, rules)
    weights = rules[rule]() * present
    return weights * len(n) / weights.sum()


class EpochSampler(Sampler[tuple[int, int]]):
    """Yield ``(index, seed)``: which image, and the seed of its augmentation.

    The draw depends on ``seed`` and the epoch alone, not on the worker that loads the image. Each process takes its own
    share of it, so Lightning must not wrap this sampler: ``Trainer(use_distributed_sampler=False)``. Lightning calls
    ``set_epoch``.

    Args:
        size: images in the data set.
        weights: chance of each image, [size], drawn with replacement; None: a permutation.
        seed: of this run.
        views: the number of augmentation seeds of an image, of which each draw takes one; None: a new one each time.
    """

    def __init__(
        self, size: int, weights: Sequence[float] | None = None, seed: int = 0, views: int | None = None
    ) -> None:
        self.size, self.seed, self.epoch = size, seed, 0
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        self.view_seeds = None if views is None else self._view_seeds(views)

    def _view_seeds(self, views: int) -> torch.Tensor:
        """Return the seeds, [size, views]; a seed modulo ``views`` is the number of its view."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(2**31 // views - 1, (self.size, views), generator=generator) * views + torch.arange(views)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self._processes()[1])  # rounded up: every process makes as many steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        )
        if self.weights is None:
            order = torch.randperm(self.size, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.size, replacement=True, generator=generator)
        seeds = torch.randint(2**31, (self.size,), generator=generator)
        if self.view_seeds is not None:
            seeds = self.view_seeds[order, seeds % self.view_seeds.shape[1]]
        rank, world = self._processes()
        places = [place % self.size for place in range(rank, len(self) * world, world)]
        return iter([(int(order[p]), int(seeds[p])) for p in places])

    @staticmethod
    def _processes() -> tuple[int, int]:
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Yield the draws of an ``EpochSampler`` in lists of ``batch_size``, the last one shorter or left out."""

    def __init__(self, sampler: EpochSampler, batch_size: int, drop_last: bool) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size if self.drop_last else -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        draws = list(self.sampler)
        return (draws[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self)))
