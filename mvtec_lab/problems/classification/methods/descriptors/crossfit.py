"""Rows of a part that is fitted: of each training image by a copy that has not seen it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from mvtec_lab.problems.classification.methods.descriptors.parts import Part, Sums

Out = frozenset[int]  # inner folds that a copy has not seen


class Crossfitted:
    """Fit a part, and copies of it to all but one or two inner folds; describe training images by the latter.

    A head that is fitted to all but fold A gets the rows of fold B from the copy that has seen neither; so the rows it
    is fitted to are like those of images that are new to it. Copies differ by sums of the folds alone: an image is
    looked at twice, however many copies there are.

    Args:
        part: fitted to all images in the end.
        images: of the run (``fitting.Images``).
        places: the training images' places in it, N.
        folds: their inner folds, [N]; those of fold -1 are fitted to in every fold.
    """

    @torch.no_grad()
    def __init__(self, part: Part, images: Any, places: Sequence[int], folds: np.ndarray) -> None:
        self.folds = folds
        self.silent = 0  #: images that taught nothing
        self.width = sum(block.width for block in part.blocks)
        sums: dict[int, Sums | None] = {int(fold): None for fold in np.unique(folds)}
        for place, fold in zip(places, folds.tolist(), strict=True):
            of_image = part.sums(images[place], images.marked(place), images.samples[place].label)
            sums[fold] = _added(sums[fold], of_image)
            self.silent += of_image is None
        copies: dict[Out, Part] = {}
        self._rows: list[dict[Out, np.ndarray]] = []
        for place, own in zip(places, folds.tolist(), strict=True):
            seen, rows = images[place], {}
            for out in {frozenset({own, other}) for other in sums if other >= 0 or other == own}:
                if out not in copies:
                    copies[out] = deepcopy(part)
                    copies[out].learn(_added(*(each for fold, each in sums.items() if fold not in out)))
                rows[out] = copies[out].rows(seen).cpu().numpy()
            self._rows.append(rows)
        part.learn(_added(*sums.values()))

    def __call__(self, fitting: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of training images to fit a head to, and of those in the fold that it leaves out; or of none.

        Args:
            fitting, others: their numbers among the training images; ``others`` are one fold, or empty.
        """
        left = frozenset(self.folds[others].tolist())
        known = [self._rows[number][left | {int(self.folds[number])}] for number in fitting]
        unknown = [self._rows[number][left] for number in others]
        return np.stack(known), np.stack(unknown) if unknown else np.zeros((0, self.width), np.float32)


def _added(*sums: Sums | None) -> Sums | None:
    known = [each for each in sums if each is not None]
    return tuple(torch.stack(each).sum(0) for each in zip(*known, strict=True)) if known else None
