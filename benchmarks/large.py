"""Draw a product of large photographs with tiny defects, to see what ``data.tile`` does: a perforated sheet.

``python -m benchmarks.large FOLDER`` writes 60 images of 4000 x 3000 pixels in MVTec's layout: a minute and 200 MB.
docs/data.md says what was measured on them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 3000, 4000
DEFECT = 30  # pixels across
PITCH, RADIUS = 96, 13  # of the holes
SPLITS = {"train/good": 24, "test/good": 12, "test/clogged": 8, "test/scratch": 8, "test/speck": 8}


def draw(defect: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture [H, W, 3] uint8, BGR, and the mask of its one defect [H, W] uint8, 0 or 255."""
    light = cv2.resize(rng.normal(150, 12, (4, 5)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    brushed = cv2.blur(rng.normal(0, 30, (HEIGHT, WIDTH)).astype(np.float32), (41, 1))
    sheet = light + brushed
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    rows, columns = np.mgrid[PITCH : HEIGHT - PITCH : PITCH, PITCH : WIDTH - PITCH : PITCH]
    holes = np.stack([columns.ravel(), rows.ravel()], 1) + rng.integers(-8, 9, 2) + rng.integers(-1, 2, (rows.size, 2))
    odd = int(rng.integers(len(holes)))
    for k, (x, y) in enumerate(holes.tolist()):
        if k != odd or defect != "clogged":
            cv2.circle(sheet, (x, y), RADIUS, 45, -1, cv2.LINE_AA)
    centre = holes[odd] + (0 if defect == "clogged" else PITCH // 2)  # on a hole, or between four of them
    across = DEFECT // 2 * np.stack([np.cos(turn := rng.uniform(0, np.pi)), np.sin(turn)])
    one, other = (np.rint(centre + way * across).astype(int).tolist() for way in (-1, 1))
    if defect == "clogged":
        cv2.circle(mask, centre.tolist(), RADIUS, 255, -1)
    elif defect == "scratch":
        cv2.line(sheet, one, other, 215, 3, cv2.LINE_AA)
        cv2.line(mask, one, other, 255, 5)
    elif defect == "speck":
        for canvas, grey in ((sheet, 100), (mask, 255)):
            cv2.ellipse(canvas, centre.tolist(), (DEFECT // 2, DEFECT // 3), np.degrees(turn), 0, 360, grey, -1)
    grain = rng.normal(0, 4, (HEIGHT, WIDTH)).astype(np.float32)
    grey = np.clip(sheet + grain, 0, 255).astype(np.uint8)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), mask


def main(folder: Path) -> None:
    for part, count in SPLITS.items():
        defect = Path(part).name
        (folder / part).mkdir(parents=True)
        for k in range(count):
            picture, mask = draw(defect, np.random.default_rng([*part.encode(), k]))
            cv2.imwrite(str(folder / part / f"{k:03}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
            if defect != "good":
                (folder / "ground_truth" / defect).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / "ground_truth" / defect / f"{k:03}_mask.png"), mask)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
