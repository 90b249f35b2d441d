"""Draw images with their masks, the predicted ones and both outlines: sheets of a run, and files of new images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import ImageColor

from mvtec_lab.data.frame import Frame
from mvtec_lab.engine.pictures import SIDE, outlined, sheet, tile_of
from mvtec_lab.evaluation.segmentation import spread
from mvtec_lab.problems.scored import Scored
from mvtec_lab.reporting.figures import INK, PALETTE
from mvtec_lab.results import EXPLANATIONS, GOOD, MISTAKES

SHOWN = 12  # images on a sheet, of four tiles each: six rows of two
TYPICAL = 2  # images of each type on the sheet of typical ones


def sheets(
    test: Scored, rows: Sequence[Mapping[str, Any]], value: float, map_threshold: float
) -> dict[str, np.ndarray]:
    """Return the sheets of the test images by file name.

    Args:
        value, map_threshold: the thresholds of an image and of a pixel.
        rows: of predictions.csv, in the order of ``test``.
    """
    ious = np.array([float(row["iou"] or 1) for row in rows])
    wrong = (test.scores > value) != test.defect
    beyond = np.abs(test.scores - value)
    # Escapes first, then false rejects, each the worst first; then the masks with the lowest IoU.
    order = np.lexsort((np.where(wrong, -beyond, ious), ~test.defect, ~wrong))
    typical: list[int] = []
    for kind in dict.fromkeys(test.kinds):
        of_kind = [place for place in np.argsort(ious, kind="stable").tolist() if test.kinds[place] == kind]
        middle = max(0, (len(of_kind) - TYPICAL) // 2)
        typical += of_kind[middle : middle + TYPICAL]
    return {
        MISTAKES: _page(test, rows, order[:SHOWN].tolist(), value, map_threshold),
        EXPLANATIONS: _page(test, rows, typical, value, map_threshold),
    }


def _page(
    test: Scored, rows: Sequence[Mapping[str, Any]], places: Sequence[int], value: float, map_threshold: float
) -> np.ndarray:
    assert test.maps is not None
    tiles, texts, marks = [], [], []
    for place in places:
        picture, mask, kind = test.dataset.shown(place), test.dataset.mask(place), test.kinds[place]
        predicted = spread(test.maps[place], tile_of(picture)) > map_threshold
        right = bool((test.scores[place] > value) == test.defect[place])
        mistake = "" if right else "escape: " if test.defect[place] else "false reject: "
        iou = f", IoU {float(rows[place]['iou']):.2f}" if rows[place]["iou"] else ""
        kind_found = rows[place]["found_type"]
        named = f"\nnamed {kind_found}" if kind_found not in ("", GOOD) else ""
        tiles += [
            picture,
            _plain(mask),
            _plain(predicted),
            outlined(picture, mask, predicted if predicted.any() else None),
        ]
        texts += [
            f"{mistake}{kind}\n{test.scores[place]:.3g}, threshold {value:.3g}",
            "mask" if mask is not None else "no mask",
            (f"found{iou}" if predicted.any() else f"nothing found{iou}") + named,
            "blue: mask\norange: found",
        ]
        marks += [right, None, None, None]
    files = [path for place in places for path in (test.dataset.samples[place].path, "", "", "")]
    return sheet(tiles, texts, marks, columns=8, files=files)


def _plain(mask: np.ndarray | None) -> np.ndarray:
    """Return a mask as a picture [H, W, 3], white in the defect."""
    part = np.zeros((SIDE, SIDE), dtype=bool) if mask is None else mask
    return np.repeat((part * 255).astype(np.uint8)[..., None], 3, axis=2)


def files(
    score_map: np.ndarray, map_threshold: float, frame: Frame
) -> Callable[[np.ndarray], Mapping[str, np.ndarray]]:
    """Return what makes the files of a new image: its mask as .png, 0 and 255, and the mask's outline over it as .jpg.

    Args:
        score_map: [h, w], over the image's square, ``frame``.
        map_threshold: above which a pixel belongs to the mask; infinity: it is empty.
    """

    def make(image: np.ndarray) -> Mapping[str, np.ndarray]:
        size = image.shape[:2]
        found = (spread(frame.cut(score_map, size), size) > map_threshold).astype(np.uint8)
        drawn, width = image.copy(), max(1, max(image.shape[:2]) // 300)
        lines, _ = cv2.findContours(found, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        for wide, colour in ((3 * width, INK), (width, PALETTE[4])):  # a dark rim, as it crosses bright and dark
            cv2.drawContours(drawn, lines, -1, ImageColor.getrgb(colour), wide)
        return {".png": found * 255, ".jpg": drawn}

    return make
