"""Rows of a part that is fitted: of each training image by a copy that has not seen it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch

from mvtec_lab.problems.classification.methods.descriptors.fitting import NONE, Images, Out
from mvtec_lab.problems.classification.methods.descriptors.parts import Part, Sums


class Crossfitted:
    """Fit a part, and copies of it to all but one or two inner folds; describe training images by the latter.

    A head that is fitted to all but fold A gets the rows of fold B from the copy that has seen neither; so the rows it
    is fitted to are like those of images that are new to it. Copies differ by sums of the folds alone: an image is
    looked at twice, however many copies there are; six times as often where its good patches are learnt from too.

    Args:
        part: fitted to all images in the end.
        images: of the run (``fitting.Images``).
        places: the training images' places in it, N.
        folds: their inner folds, [N]; those of fold -1 are fitted to in every fold.
    """

    @torch.no_grad()
    def __init__(self, part: Part, images: Images, places: Sequence[int], folds: np.ndarray) -> None:
        self.folds, kinds = folds, np.unique(folds).tolist()
        self.silent = 0  #: images that taught nothing
        self.width = sum(block.width for block in part.blocks)
        lefts = [NONE, *(frozenset({fold}) for fold in kinds if fold >= 0)]
        memories = lefts if images.memories else [NONE]  # what the good patches leave out
        sums: dict[Out, dict[int, Sums | None]] = {left: dict.fromkeys(kinds) for left in memories}
        for place, fold in zip(places, folds.tolist(), strict=True):
            for left, of_folds in sums.items():
                of_image = part.sums(images.seen(place, left), images.marked(place), images.samples[place].label)
                of_folds[fold] = _added(of_folds[fold], of_image)
            self.silent += of_image is None
        copies: dict[tuple[Out, Out], Part] = {}
        self._rows: list[dict[Out, np.ndarray]] = []
        for place, own in zip(places, folds.tolist(), strict=True):
            seen, rows = {memory: images.seen(place, memory) for memory in memories}, {}
            for left in lefts:
                memory, out = left if images.memories else NONE, left | {own}
                if (memory, out) not in copies:
                    copies[memory, out] = deepcopy(part)
                    copies[memory, out].learn(_added(*(each for fold, each in sums[memory].items() if fold not in out)))
                rows[left] = copies[memory, out].rows(seen[memory]).cpu().numpy()
            self._rows.append(rows)
        part.learn(_added(*sums[NONE].values()))

    def __call__(self, fitting: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of training images to fit a head to, and of those in the fold that it leaves out; or of none.

        Args:
            fitting, others: their numbers among the training images; ``others`` are one fold, or empty.
        """
        left = frozenset(self.folds[others].tolist())
        known, unknown = ([self._rows[number][left] for number in numbers] for numbers in (fitting, others))
        return np.stack(known), np.stack(unknown) if unknown else np.zeros((0, self.width), np.float32)


def _added(*sums: Sums | None) -> Sums | None:
    known = [each for each in sums if each is not None]
    return tuple(torch.stack(each).sum(0) for each in zip(*known, strict=True)) if known else None
