"""New defect images: a defect, cut out along its mask, turned about its object's centre and pasted onto a good image.

It follows Cut, Paste and Learn (Dwibedi et al., ICCV 2017), but pastes onto an image of the same product, where such
defects occur; and NSA (Schlüter et al., ECCV 2022), but with real defects that keep their class, blended by a feathered
edge: Poisson blending solves for the colour from the edge inwards, and would remove the colour of a stain or a hole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mvtec_lab.data.frame import Frame, size_of
from mvtec_lab.data.images import digests, each_image, odd_masks
from mvtec_lab.data.samples import Sample
from mvtec_lab.errors import LabError
from mvtec_lab.results import GOOD

VERSION = 1  # counted up when Paste draws anything else from the same seed
TRIES = 20  # turns of one defect on one good image; most land within three on a round object
INSIDE = 0.95  # of the region lies on the object, at least: masks are drawn generously at the object's edge
FEATHER = 0.02  # of the image's size: narrower shows as an outline, wider brings much of the other image along
SHIFT = 0.01  # of the image's size, at most and each way: a larger one takes a defect out of a round object's rings
_Region = tuple[int, int, np.ndarray]  # top, left, and the crop of a mask [h, w] bool: thousands fit into memory


class Paste:
    """Draw the picture that training sees of a training image: the image itself, or its defect on a good image.

    Args:
        chance: that a defect image is replaced, in [0, 1].
        folder: the product folder.
        samples: the training images, in the order of their places.
        frame: of the pictures.

    Raises:
        LabError: as ``check_sources``; a mask that cannot be read or marks nothing.
    """

    def __init__(self, chance: float, folder: Path, samples: Sequence[Sample], frame: Frame) -> None:
        check_sources(samples)
        self.chance, self.frame = chance, frame
        self.sizes = [size_of(folder / s.path) if frame.pads else (1, 1) for s in samples]
        self.good = [place for place, s in enumerate(samples) if s.label == GOOD]
        defects = {place: folder / s.mask for place, s in enumerate(samples) if s.label != GOOD and s.mask}
        owners = {folder / samples[place].path: samples[place] for place in defects}
        regions = each_image(list(owners), lambda path: _region(folder, owners[path], frame))
        self.regions = dict(zip(defects, regions, strict=True))
        # its pictures depend on this, beside the images and the seed: a part of a cache's key
        self.key: list[Any] = [VERSION, cv2.__version__, chance, self.good, digests(list(defects.values()))]

    def __call__(
        self, picture: Callable[[int], np.ndarray], place: int, seed: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the picture [S, S, 3] uint8 of a place, drawn from the seed alone, and its mask, moved along.

        Args:
            picture: gives the pictures of all places.
            mask: of the place, [S, S] uint8, or None.
        """
        image = picture(place)
        rng = np.random.default_rng([seed, 1])  # another stream than albumentations', which has the seed itself
        if place not in self.regions or rng.random() >= self.chance:
            return image, mask
        under = self.good[rng.integers(len(self.good))]
        good = picture(under)
        top, left, crop = self.regions[place]
        region = np.zeros(image.shape[:2], np.float32)
        region[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        on = self._object(good, under)
        here, there = _centre(self._object(image, place)), _centre(on)
        for _ in range(TRIES):
            moved = _turn(here, there, rng, SHIFT * self.frame.size)
            if (_warp(region, moved) * on).sum() >= INSIDE * region.sum():
                break
        else:
            moved = np.column_stack([np.eye(2), there - here])  # where it was on its own object
        within = self._whole(under)
        alpha = _warp(feathered(region > 0, FEATHER * self.frame.size) * self._whole(place), moved) * within
        pasted = np.rint(alpha[..., None] * _warp(image, moved) + (1 - alpha[..., None]) * good).astype(np.uint8)
        if mask is None:
            return pasted, None
        seen = _warp(mask.astype(np.float32), moved)  # of a single object OpenCV leaves out the axis
        return pasted, (seen * (within if seen.ndim == 2 else within[..., None]) > 0.5).astype(np.uint8)

    def _object(self, picture: np.ndarray, place: int) -> np.ndarray:
        """Return the object of a picture, as ``object_mask`` does, without what lies beside the image."""
        size = self.sizes[place]
        return self.frame.pad(object_mask(self.frame.cut(picture, size)), size)

    def _whole(self, place: int) -> np.ndarray:
        """Return 1 where a picture shows its image, [S, S] float32, 0 beside it."""
        size = self.sizes[place]
        return self.frame.pad(np.ones(self.frame.place(size)[2:], np.float32), size)


def check_sources(samples: Sequence[Sample]) -> None:
    """Raise LabError where a defect among the training images has no mask to cut along, or none of them is good."""
    bare = [s.path for s in samples if s.label != GOOD and not s.outlined]
    if bare:
        more = f" (and {len(bare) - 1} more)" if len(bare) > 1 else ""
        raise LabError(
            f"augment.paste cuts defects out by their masks, but {bare[0]} has none{more}: add it, or augment.paste=0"
        )
    if not any(s.label == GOOD for s in samples):
        raise LabError(
            f"augment.paste pastes defects onto training images of the class {GOOD!r}, but there is none: "
            "give split.pool=all where train/good has some, or augment.paste=0"
        )


def object_mask(picture: np.ndarray) -> np.ndarray:
    """Return where the object lies, [H, W] bool: what departs from the colour of the picture's border, holes filled.

    It is True everywhere if the border has no colour of its own, as in a texture or an object that fills the picture.
    """
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    colour = np.full_like(picture, np.median(border, axis=0))
    away = reduce(cv2.max, cv2.split(cv2.absdiff(picture, colour)))
    # The root: else an object's bright parts draw the threshold above its dark ones. 15: the root of 255 becomes 240.
    away = (15 * np.sqrt(cv2.GaussianBlur(away, (3, 3), 0))).astype(np.uint8)
    _, departs = cv2.threshold(away, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    outlines, _ = cv2.findContours(departs, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(departs.shape, np.uint8)
    if outlines:
        cv2.drawContours(filled, [max(outlines, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    edge = np.concatenate([departs[0], departs[-1], departs[:, 0], departs[:, -1]])
    # A tenth: less of a border in another colour is an object's tip or a lead, less of a picture is no object.
    return filled > 0 if edge.mean() < 0.1 < filled.mean() else np.ones(departs.shape, bool)


def feathered(region: np.ndarray, width: float) -> np.ndarray:
    """Return 1 in a region [H, W] bool, falling to 0 over ``width`` pixels around it: inwards, a scratch would fade."""
    away = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ramp = np.clip(1 - away / (width + 1), 0, 1)
    return ramp * ramp * (3 - 2 * ramp)  # smoothstep: a straight ramp shows where it begins


def _region(folder: Path, sample: Sample, frame: Frame) -> _Region:
    # Every pixel of which the mask covers a part: a scratch of one pixel survives.
    mask = sample.read_mask(folder)
    assert mask is not None  # as check_sources saw to it
    assert sample.mask is not None
    if not sample.objects and (odd := odd_masks([folder / sample.mask])):
        raise LabError(f"augment.paste cuts defects out by their masks, but {odd[0]}; or give augment.paste=0")
    size = mask.shape[0], mask.shape[1]
    *_, height, width = frame.place(size)
    part = frame.pad(cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0, size)
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return top, left, part[top : rows[-1] + 1, left : columns[-1] + 1].copy()


def _centre(mask: np.ndarray) -> np.ndarray:
    """Return a mask's centre, (x, y) in pixels."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])


def _turn(here: np.ndarray, there: np.ndarray, rng: np.random.Generator, shift: float) -> np.ndarray:
    """Return a random turn or flip about ``here`` that moves it to ``there`` or up to ``shift`` away: [2, 3]."""
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn[:, 0] *= rng.choice([-1, 1])
    return np.column_stack([turn, there + rng.uniform(-shift, shift, 2) - turn @ here])


def _warp(image: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Return an image [H, W, ...] moved; beyond its border a picture repeats its edge, a region is 0."""
    border = cv2.BORDER_REPLICATE if image.ndim == 3 else cv2.BORDER_CONSTANT
    return cv2.warpAffine(image, moved, image.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=border)
