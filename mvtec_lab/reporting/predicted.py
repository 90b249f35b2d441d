"""Show predictions of new images: a sheet of pictures, and a page, the most doubtful first."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from mvtec_lab.evaluation.operating import OK, REJECT, REVIEW, UNKNOWN
from mvtec_lab.reporting.expected import Expected
from mvtec_lab.reporting.figures import PALETTE, to_data_uri
from mvtec_lab.reporting.pages import write_page

PAGE = "report.html"
MOST = 60  # images on the page: some 1.5 MB
SIDE = 320  # pixels of a kept picture's longer side
COLOURS = {OK: PALETTE[2], REVIEW: PALETTE[4], UNKNOWN: PALETTE[4], REJECT: PALETTE[1]}  # green, amber, red
CLASSES = {OK: "ok", REVIEW: "review", UNKNOWN: "review", REJECT: "reject"}


@dataclass(frozen=True)
class Shown:
    """Hold what the pages show of an image.

    Args:
        doubt: as ``evaluation.operating.doubt`` returns it.
        decision: OK, REVIEW, REJECT or UNKNOWN, perhaps empty.
        caption: of the image.
        path: of its file.
        tiles: caption -> uint8 RGB [H, W, 3]; the image itself has the caption "".
    """

    doubt: tuple[int, float]
    decision: str
    caption: str
    path: str
    tiles: Mapping[str, np.ndarray] = field(repr=False)


class Doubtful:
    """Keep the most doubtful of any number of images, their pictures reduced."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, float, int, Shown]] = []
        self._order = count()

    def add(self, shown: Shown) -> None:
        """Add an image, and drop the one of which the model is surest where there are too many."""
        asking, margin = shown.doubt
        entry = (-asking, -margin, -next(self._order), shown)
        if len(self._heap) == MOST and entry < self._heap[0]:
            return
        small = {caption: _small(tile) for caption, tile in shown.tiles.items()}
        kept = replace(shown, tiles=small)
        (heapq.heappush if len(self._heap) < MOST else heapq.heapreplace)(self._heap, (*entry[:3], kept))

    def most_doubtful(self) -> list[Shown]:
        """Return the images that were kept, the most doubtful first, of equal ones the earlier."""
        return [shown for *_, shown in sorted(self._heap, key=lambda entry: entry[:3], reverse=True)]


def _small(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def write_page_of(
    directory: Path,
    images: Sequence[Shown],
    counts: Mapping[str, int],
    expectation: Expected,
    notes: Sequence[str],
    source: str,
) -> None:
    """Write report.html, complete or not at all; where nothing shows that the model learnt, without green."""
    confident = expectation.light != "red"
    write_page(
        directory / PAGE,
        "predicted.html.j2",
        source=source,
        expectation=expectation,
        counts=counts,
        total=sum(counts.values()),
        notes=notes,
        most=MOST,
        images=[
            {
                "class": CLASSES.get(shown.decision, "plain") if confident else "plain",
                "word": shown.decision if confident or not shown.decision else f"{shown.decision}?",
                "caption": shown.caption.removeprefix(shown.decision).strip(),
                "path": shown.path,
                "pictures": [(caption, to_data_uri(tile)) for caption, tile in shown.tiles.items()],
            }
            for shown in images
        ],
    )
