"""Where the test images spoke for the class that was predicted, beside the masks of their defects."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mvtec_lab.engine.pictures import heat_over, sheet
from mvtec_lab.problems.classification.base import Classifier
from mvtec_lab.problems.classification.outcome import Outcome

SHOWN = 12  # images, each beside its map: four rows of three pairs
SAID = {True: "peak inside the mask", False: "peak outside the mask", None: "no mask"}


def explain(
    classifier: Classifier, outcome: Outcome, batch_size: int
) -> tuple[dict[str, Any] | None, np.ndarray | None]:
    """Count how often the map of the predicted class peaks inside the defect's mask, and draw it.

    Returns:
        ``RunResult.explained``, and the worst mistakes (where there are none, the least certain of what is right), each
        beside its map: [H, W, 3] uint8. None and None where the classifier has no map.
    """
    dataset, predictions = outcome.dataset, outcome.predictions
    right, order = predictions == outcome.labels, outcome.order().tolist()
    shown = ([i for i in order if not right[i]] or order)[:SHOWN]
    places = [i for i, sample in enumerate(dataset.samples) if sample.mask or i in shown]
    tiles: dict[int, tuple[np.ndarray, bool | None]] = {}
    masked: list[tuple[bool, bool, float]] = []  # of each image with a mask: right, peak inside, the mask's share
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        maps = classifier.evidence(dataset, batch, torch.from_numpy(predictions[batch]))
        if maps is None:
            return None, None
        for i, heat, peak in zip(batch, maps[0].numpy(), maps[1].numpy(), strict=True):
            mask, inside, (top, left, *shape) = dataset.mask(i), None, dataset.place(i)
            peak = peak - (top, left)
            if mask is not None:  # the peak is looked up at the mask's own size: made smaller, a thin one has gaps
                on = bool(((peak >= 0) & (peak < shape)).all())  # padding is in no mask
                inside = on and bool(mask[tuple(((peak + 0.5) * mask.shape / shape).astype(int))])
                masked.append((bool(right[i]), inside, float(mask.mean())))
            if i in shown:
                tiles[i] = heat_over(dataset.shown(i), dataset.cut(i, heat), peak, mask), inside
    pictures = [picture for i in shown for picture in (dataset.shown(i), tiles[i][0])]
    captions = [caption for i in shown for caption in (outcome.caption(i), SAID[tiles[i][1]])]
    marks = [mark for i in shown for mark in (bool(right[i]), tiles[i][1])]
    files = [path for i in shown for path in (dataset.samples[i].path, "")]
    return _counted(masked), sheet(pictures, captions, marks, files=files)


def _counted(masked: list[tuple[bool, bool, float]]) -> dict[str, Any]:
    """Return ``RunResult.explained`` from images with a mask: right, peak inside, the mask's share."""
    wrong = [inside for right, inside, _ in masked if not right]
    return {
        "images": len(masked),
        "peak_in_mask": sum(inside for _, inside, _ in masked),
        "mistakes": len(wrong),
        "mistakes_peak_in_mask": sum(wrong),
        "chance": float(np.mean([share for *_, share in masked])) if masked else None,
    }
