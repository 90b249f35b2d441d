"""Write an exported model in 8-bit integers as well, and measure what that costs and gains on the run's images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvtec_lab.data.transforms import read_cut
from mvtec_lab.engine.bundle import judged
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.onnx import FILES
from mvtec_lab.engine.quantise import CALIBRATED, milliseconds, to_int8
from mvtec_lab.errors import LabError
from mvtec_lab.results import write_whole
from mvtec_lab.tasks.parity import MOST, images_of

ONNX, INT8 = FILES["onnx"], "model_int8.onnx"


def add_int8(folder: Path, ckpt: Path, model: Model, file: bytes) -> dict[str, Any]:
    """Write a bundle's model in 8-bit integers beside it, and return what that costs and gains on the run's images.

    Args:
        file: the model in 32 bits.

    Raises:
        LabError: the run's training or test images are gone, or it cannot be quantised.
    """
    learnt, tested = images_of(ckpt, "train", CALIBRATED), images_of(ckpt, "test", MOST)
    if not learnt or not tested:
        missing = "training" if not learnt else "test"
        raise LabError(
            f"format=int8 measures ranges on the training images of {ckpt} and its worth on the test images, and its "
            f"run's {missing} images are gone: restore them, or leave it out"
        )
    seen = [_given(path, model) for path in learnt]
    write_whole(folder / INT8, to_int8(file, seen, str(ckpt)))
    whole, small = judged(folder, tested), judged(folder, tested, INT8)
    changed = [path for path in whole if whole[path][:2] != small[path][:2]]
    pairs = [(float(whole[path].score), float(small[path].score)) for path in whole if whole[path].score != "-"]
    top = max((abs(value) for value, _ in pairs), default=1.0) or 1.0
    return {
        "calibrated_on": len(learnt),
        "images": len(whole),
        "changed": changed,
        "decisions": {
            name: dict(Counter(line.decision for line in of.values()))
            for name, of in (("float32", whole), ("int8", small))
        },
        "difference": max((abs(a - b) / top for a, b in pairs), default=0.0),
        "timed": "an image" if model.tile is None else "a tile",  # of which an image has several
        "milliseconds": {
            "float32": milliseconds(folder / ONNX, seen),
            "int8": milliseconds(folder / INT8, seen),
        },
    }


def told_of_int8(found: Mapping[str, Any]) -> str:
    """Return in a line what ``add_int8`` found."""
    before, now = (f"{found['milliseconds'][of]:.3g}" for of in ("float32", "int8"))
    return (
        f"{INT8}: {len(found['changed'])} of {found['images']} test images are decided or named otherwise than by "
        f"{ONNX}; scores differ by {found['difference']:.1g} of the largest at most; {now} ms {found['timed']} instead "
        f"of {before} on one thread of this processor; calibrated on {found['calibrated_on']} training images"
    )


def _given(path: Path, model: Model) -> np.ndarray:
    """Return what the file takes of an image, or of its middle tile: float32 [1, 3, S, S]."""
    cut = read_cut(path, model.frame, model.white)
    picture = cut.picture if cut.tiles is None else cut.tiles[len(cut.tiles) // 2]
    return (picture.transpose(2, 0, 1)[None] / 255).astype(np.float32)
