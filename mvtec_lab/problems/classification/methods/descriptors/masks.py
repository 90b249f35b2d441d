"""The part ``masks``: what the masks of training images say of the patches of any image."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mvtec_lab.problems.classification.methods.descriptors.maps import Seen
from mvtec_lab.problems.classification.methods.descriptors.parts import TINY, Block, Part, Setting, Sums
from mvtec_lab.results import GOOD

SHRINKAGE = 0.5  # of the covariance to a sphere: with a few masks it is hardly known
HIGHEST = 5  # patches whose mean odds are told: of one alone they are chance
WIDEST = 512  # channels; what is wider is projected at random, as sums of squares of a resnet50's 3,584 take minutes


class Masks(Part):
    """Tell how high the odds are that a place shows a defect, of each type and of any.

    Linear discriminant analysis of how patches differ from good ones in the same place tells those that the masks of
    training images mark, by type, from those that they do not. Each type weighs alike, and a patch weighs by the share
    of it that is marked. An image without a mask teaches nothing. Where no mask is known, it tells how far the image is
    from good ones instead.
    """

    fits: ClassVar[bool] = True
    in_place: ClassVar[bool] = True
    directions: Tensor
    offsets: Tensor

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.kinds = [None, *(name for name in setting.classes if name != GOOD)]  # the first: good patches
        self.register_buffer("directions", torch.zeros(sum(setting.widths), len(self.kinds)))
        self.register_buffer("offsets", torch.full((len(self.kinds),), -torch.inf))

    @property
    def blocks(self) -> list[Block]:
        return [Block(len(self.kinds))]

    @property
    def typed(self) -> bool:
        """Return whether it has learnt from masks."""
        return bool(self.offsets.isfinite().any())

    def rows(self, seen: Seen) -> Tensor:
        if not self.typed:
            far = _highest(seen.local[:, None]).clamp_min(TINY).log()
            return torch.cat([far.new_zeros(len(self.kinds) - 1), far])
        scores = seen.away @ self.directions + self.offsets
        odds = scores[:, 1:] - scores[:, :1]
        odds = torch.cat([odds, odds.logsumexp(1, keepdim=True)], 1)
        shown = seen.shown(seen.side) > 0
        least = odds[shown][:, odds[0].isfinite()].min()  # what no mask shows is as unlikely as anything is
        return _highest(torch.where(odds.isfinite() & shown[:, None], odds, least))

    def sums(self, seen: Seen, marked: Tensor | None, label: str) -> Sums | None:
        if marked is None:
            return None
        shown = seen.shown(seen.side)
        of_kind = torch.zeros(len(self.kinds), len(shown), device=shown.device)
        of_kind[0] = shown * (marked == 0)
        if marked.any():
            of_kind[self.kinds.index(label)] = shown * marked
        patches = self._reduced(seen.away)
        squares = patches.new_zeros(len(self.kinds), patches.shape[1], patches.shape[1])
        for number, share in enumerate(of_kind):
            some = share > 0
            squares[number] = patches[some].T @ (patches[some] * share[some, None])
        return of_kind.sum(1), of_kind @ patches, squares

    def learn(self, sums: Sums | None) -> None:
        self.offsets.fill_(-torch.inf)
        self.directions.zero_()
        if sums is None:
            return
        count, total, squares = (each.cpu().double() for each in sums)
        known = (count > 0).nonzero()[:, 0].tolist()
        if known[:1] != [0] or len(known) < 2:
            return
        means = total[known] / count[known, None]
        scatter = squares[known] / count[known, None, None] - means[:, :, None] * means[:, None]
        within = scatter.mean(0)
        level = within.diagonal().mean().clamp_min(TINY)  # good ones' is about 1
        within = (1 - SHRINKAGE) * within + SHRINKAGE * level * torch.eye(len(within)).double()
        directions = torch.linalg.solve(within, means.T)
        self.offsets[known] = -0.5 * (means.T * directions).sum(0).to(self.offsets)
        self.directions[:, known] = self._reduced(directions.T, back=True).T.to(self.directions)

    def remark(self, silent: int, images: int) -> str:
        if not self.typed:
            return "no mask to learn from: the part masks tells no more than how far an image is from good ones"
        if silent:
            return f"{silent} of {images} training images have no mask of their defect: the part masks ignores them"
        return ""

    def _reduced(self, patches: Tensor, back: bool = False) -> Tensor:
        """Return patches [n, C] in which every channel's deviation is that of good ones, 1, and that are not too wide.

        Args:
            back: turn directions of such patches, [n, at most WIDEST], into those of patches, [n, C].
        """
        widths = self.setting.widths  # in patches, layers weigh alike
        unit = np.concatenate([np.full(width, (len(widths) * width) ** 0.5) for width in widths])
        if len(unit) <= WIDEST:
            return patches * torch.from_numpy(unit).to(patches)
        drawn = np.random.default_rng(0).normal(0, WIDEST**-0.5, (len(unit), WIDEST)) * unit[:, None]
        turn = torch.from_numpy(drawn).to(patches)
        return patches @ (turn.T if back else turn)


def _highest(values: Tensor) -> Tensor:
    """Return the mean over the places where values [cells, K] are highest, [K]."""
    return values.topk(min(HIGHEST, len(values)), dim=0).values.mean(0)
