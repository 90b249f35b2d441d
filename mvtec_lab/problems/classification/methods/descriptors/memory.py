"""The patches of good images that an image's patches are compared with, and which views good images allow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

TINY = 1e-12
AUDITED = 32  # good images on which views are judged: of fewer the 95% quantile would be the highest one
PASSING = 0.95


class Memory(nn.Module):
    """Remember patches of good images, drawn by place: each cell has patches of as many images.

    ``bank`` [cells, k, C] holds them standardised, in half precision: a checkpoint computes what the run computed.
    ``owner`` [cells, k] is the group of the image that each is of, -2 where a letterboxed image has no patch.

    Args:
        widths: C of each layer.
        side: cells a side.
    """

    bank: Tensor
    owner: Tensor
    mean: Tensor
    scale: Tensor
    spread: Tensor

    def __init__(self, widths: Sequence[int], side: int) -> None:
        super().__init__()
        self.widths, self.side = list(widths), side
        channels = sum(widths)
        self.register_buffer("bank", torch.zeros(0, 0, channels, dtype=torch.half))
        self.register_buffer("owner", torch.zeros(0, 0, dtype=torch.int16))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("spread", torch.ones(2))  # deviation of good images' distances, free and in place

    @staticmethod
    def drawn(images: int, cells: int, patches: int) -> np.ndarray:
        """Return which image each patch of each cell is taken from, [cells, k]; the same in every run."""
        k = min(images, max(1, patches // cells))  # again, from what was drawn: the same k
        rng = np.random.default_rng(0)
        return np.stack([rng.permutation(images)[:k] for _ in range(cells)])

    def gather(self, patches: Iterable[tuple[Tensor, Tensor]], groups: Sequence[int], count: int) -> np.ndarray:
        """Take in good images, and return what ``hold`` takes, as rows [3 + cells x k, C].

        Args:
            patches: of each image, [cells, C], and which of them show it, [cells] 0 or 1.
            groups: of each image, from 0 up.
            count: patches to draw.
        """
        cells, channels = self.side**2, len(self.mean)
        chosen = self.drawn(len(groups), cells, count)
        bank = np.full((*chosen.shape, channels), np.nan, np.float32)
        total, squares, number = np.zeros(channels), np.zeros(channels), 0
        audited: list[tuple[Tensor, Tensor]] = []
        for place, (of_image, shown) in enumerate(patches):
            values, visible = of_image.cpu().numpy(), shown.cpu().numpy() > 0
            taken = (chosen == place) & visible[:, None]
            bank[taken] = values[taken.any(1)]
            seen = values[visible].astype(np.float64)
            total, squares, number = total + seen.sum(0), squares + np.square(seen).sum(0), number + len(seen)
            audited += [(of_image, shown)] * (place < AUDITED)
        mean = total / max(number, 1)
        deviation = np.sqrt(np.maximum(squares / max(number, 1) - mean**2, 0))
        rows = np.stack([mean, deviation, np.ones(channels), *bank.reshape(-1, channels)]).astype(np.float32)
        self.hold(torch.from_numpy(rows), groups)
        far = [self._distances(*pair, own) for pair, own in zip(audited, groups, strict=False)]
        rows[2, :2] = torch.cat(far, 1).std(1).cpu().numpy() if far else 1
        return rows

    def _distances(self, patches: Tensor, shown: Tensor, own: int) -> Tensor:
        """Return the distances of an image's patches to the others' good ones: free and in place, [2, n]."""
        each = self.standardised(patches)[None]
        own = own if (self.owner != own).any() else -1
        return torch.stack([self.nearest(each, own)[0][0], self.nearest_in_place(each, own)[0][0]])[:, shown > 0]

    def hold(self, rows: Tensor, groups: Sequence[int]) -> None:
        """Take over what ``gather`` returned of good images in these groups."""
        device = self.mean.device
        chosen = self.drawn(len(groups), self.side**2, len(rows) - 3)
        layers = torch.cat([torch.full((width,), (len(self.widths) * width) ** -0.5) for width in self.widths])
        self.mean, deviation, self.spread = rows[0].to(device), rows[1].to(device), rows[2, :2].to(device)
        # a channel that never differs says nothing
        self.scale = torch.where(deviation > TINY, layers.to(device) / deviation.clamp_min(TINY), 0.0)
        bank = self.standardised(rows[3:].to(device)).view(*chosen.shape, -1)
        hidden = bank.isnan().any(2)
        self.bank = bank.masked_fill(hidden[..., None], 0).half()
        owner = torch.from_numpy(np.asarray(groups)[chosen].astype(np.int16)).to(device)
        self.owner = owner.masked_fill(hidden, -2)

    def standardised(self, patches: Tensor) -> Tensor:
        """Return patches [..., C] with good ones' mean 0 and mean square 1, to which each layer contributes alike."""
        return (patches - self.mean) * self.scale

    def nearest(self, patches: Tensor, own: int = -1) -> tuple[Tensor, Tensor]:
        """Return the distance of patches [N, cells, C] to the nearest good one, [N, cells], and that one."""
        bank = self.bank.flatten(0, 1).float()
        squares = torch.addmm(self._norms(own).flatten(), patches.flatten(0, 1), bank.T, alpha=-2)
        good = bank[squares.argmin(1)].view_as(patches)
        return (patches - good).square().sum(-1).sqrt(), good

    def nearest_in_place(self, patches: Tensor, own: int = -1) -> tuple[Tensor, Tensor]:
        """Return the same of those good patches that lie in the same cell or one of the eight around it."""
        side, bank, norms = self.side, self.bank.float(), self._norms(own)
        per_cell = bank.shape[1]
        grid, norms = bank.view(side, side, per_cell, -1), norms.view(side, side, per_cell)
        places = torch.arange(side * side * per_cell, device=bank.device).view(side, side, per_cell)
        queries = patches.view(len(patches), side, side, -1)
        best = patches.new_full((len(patches), side, side), torch.inf)
        index = places[:, :, 0].expand(len(patches), -1, -1).clone()
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                here = slice(max(0, -down), side - max(0, down)), slice(max(0, -right), side - max(0, right))
                there = slice(max(0, down), side + min(0, down)), slice(max(0, right), side + min(0, right))
                of_place = torch.einsum("nhwc,hwkc->nhwk", queries[:, here[0], here[1]], grid[there])
                squares, at = (norms[there] - 2 * of_place).min(3)
                found = places[there].expand(len(patches), -1, -1, -1).gather(3, at[..., None])[..., 0]
                nearer = squares < best[:, here[0], here[1]]
                best[:, here[0], here[1]] = torch.where(nearer, squares, best[:, here[0], here[1]])
                index[:, here[0], here[1]] = torch.where(nearer, found, index[:, here[0], here[1]])
        good = bank.flatten(0, 1)[index.flatten()].view_as(patches)
        distances = (patches - good).square().sum(-1).sqrt()
        return torch.where(best.flatten(1).isfinite(), distances, 0.0), good

    def digest(self) -> str:
        """Return a digest of everything that it computes with."""
        state = hashlib.blake2b(digest_size=16)
        for value in self.state_dict().values():
            state.update(value.cpu().contiguous().numpy().data)
        return state.hexdigest()

    def _norms(self, own: int) -> Tensor:
        norms = self.bank.float().square().sum(-1)
        left_out = (self.owner == -2) | ((self.owner == own) & (own >= 0))
        return norms.masked_fill(left_out, torch.inf)


def allowed(scores: np.ndarray) -> list[int]:
    """Return the views in which a good product may lie: those in which most good images would pass as good.

    A view is allowed if half of the good images, seen so, are no farther from the other good ones than 95% of them are
    as they are. So a bottle, which may turn, has all views; what is printed or mounted in one way has one.

    Args:
        scores: how far good images are from the others, [images, views]; view 0 is the image itself.
    """
    limit = np.quantile(scores[:, 0], PASSING)
    return [view for view in range(scores.shape[1]) if view == 0 or np.median(scores[:, view]) <= limit]
