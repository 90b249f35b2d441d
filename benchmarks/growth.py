"""Growth with the number of images: time must be linear, memory must not grow with them beyond the batch."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common

SIDE = 256  # pixels of a generated image
SHARES = {"good": 0.5, "hole": 0.25, "scratch": 0.25}
# A small network at a small size: what grows with the images is the lab's own share, and 10,000 of them take minutes.
RUN = ("attempt=head", "data=folder", "data.image_size=64", "model.backbone=mobilenet_v2", "model.weights=null")
EPOCHS = 2


def generate(folder: Path, images: int) -> None:
    """Draw ``images`` PNGs in MVTec's layout: coarse noise, and on a defect a disc or a line in another colour."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(images)
    for label, share in SHARES.items():
        (folder / "test" / label).mkdir(parents=True)
        for i in range(round(images * share)):
            noise = rng.integers(80, 130, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
            picture = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)  # blocks keep the files small
            x, y, length = (int(v) for v in rng.integers(SIDE // 4, 3 * SIDE // 4, 3))
            if label == "hole":
                cv2.circle(picture, (x, y), SIDE // 10, (20, 20, 250), -1)
            elif label == "scratch":
                cv2.line(picture, (x, y), (x - length // 2, y + length // 4), (250, 60, 20), 6)
            cv2.imwrite(str(folder / "test" / label / f"{i:05}.png"), picture)


def run(product: str, cache: str, run_dir: str, extra: tuple[str, ...] = ()) -> float:
    """Seconds of a whole attempt."""
    from mvtec_lab import compose, run_attempt

    overrides = [*RUN, f"data.root={product}", f"trainer.max_epochs={EPOCHS}", f"cache.dir={cache}", *extra]
    return common.timed(lambda: run_attempt(compose(*overrides), run_dir))[0]


def main() -> None:
    args = common.options(__doc__)
    found: dict[tuple[int, str], list[Any]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for n in args.images:
            common.fresh(generate, Path(folder) / str(n), n)
        for repeat in range(args.repeats):
            for n in args.images:
                for variant in ("cold", "warm"):
                    paths = (f"{folder}/{n}", f"{folder}/cache-{repeat}", f"{folder}/{n}-{repeat}-{variant}")
                    found[n, variant].append(common.fresh(run, *paths))
    rows = []
    for variant in ("cold", "warm"):
        before: tuple[int, float, float] | None = None
        for n in args.images:
            runs = found[n, variant]
            seconds, anonymous = median(r.value for r in runs), median(r.anonymous for r in runs)
            resident = median(r.resident for r in runs)
            time = memory = ""
            if before:
                time = (seconds - before[1]) / (n - before[0]) * 1e3
                memory = (anonymous - before[2]) / (n - before[0]) * 2**20
            before = n, seconds, anonymous
            rows.append([variant, n, seconds, seconds / n * 1e3, time, anonymous, memory, resident])
    notes = [
        f"{SIDE}x{SIDE} PNGs in three classes, {' '.join(RUN)}, {EPOCHS} epochs; medians of {args.repeats} repeats",
        "each further one: the difference to the row above over the difference in images",
        "anonymous memory: what the process allocated; resident: mapped cache files included",
    ]
    header = ["cache", "images", "seconds", "ms an image", "ms each further one", "peak anonymous, MiB"]
    common.show("growth", notes, [*header, "bytes each further one", "peak resident, MiB"], rows)


if __name__ == "__main__":
    main()
