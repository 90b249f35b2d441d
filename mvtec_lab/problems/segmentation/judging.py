"""Choose a segmentation model's thresholds on validation, and judge it on the test images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.samples import by_image
from mvtec_lab.data.tiles import Window, stitch
from mvtec_lab.engine.features import seconds_per_image
from mvtec_lab.engine.run import Judgement, Run
from mvtec_lab.evaluation import segmentation
from mvtec_lab.evaluation.anomaly import best_f1_threshold
from mvtec_lab.evaluation.metrics import majority_baseline
from mvtec_lab.evaluation.specs import deciding
from mvtec_lab.models.modes import evaluating
from mvtec_lab.models.views import unviewed, view
from mvtec_lab.problems.scored import Scored, figures, prediction_rows
from mvtec_lab.problems.segmentation.base import SegmentationModel
from mvtec_lab.problems.segmentation.pictures import sheets
from mvtec_lab.results import EXPLANATIONS, GOOD, MISTAKES

# The score of an image or a tile, its probabilities of a defect [h, w], and those of its types [K].
Part = tuple[float, np.ndarray, torch.Tensor]
TAGS = {MISTAKES: "pictures/test_mistakes_first", EXPLANATIONS: "pictures/typical"}
CAPTIONS = {
    MISTAKES: [
        "Test images, worst mistakes first",
        "Escapes, false rejects, then the masks with the lowest IoU: the image, its true mask, the mask that was found "
        "and both outlines. The found mask is what exceeds the pixels' threshold; the image's own score decides on it.",
    ],
    EXPLANATIONS: ["Typical masks", "Images of a middle IoU of each type, drawn in the same way."],
}


def judge(run: Run) -> Judgement:
    """Predict the masks of all images; choose the thresholds where the model has none yet, and keep them in best.ckpt.

    With ``val_is_test`` the images are passed once and counted as both.
    """
    data, result, model = run.data, run.result, run.model
    scored, types = {}, {}
    for split in ("test",) if data.val_is_test or not data.of_split("val") else ("test", "val"):
        images = data.of_split(split)
        parts, tiles = _probabilities(data, model.module, split), by_image(data.tiles(images))
        found = [of_image(list(islice(parts, len(of_one))), [s.window for s in of_one]) for of_one in tiles]
        scores, maps, types[split] = zip(*found, strict=True)
        scored[split] = Scored(data.images(images), np.array(scores, dtype=np.float32), list(maps))
    result.seconds_per_image = seconds_per_image(data, model.module.probabilities)
    result.peak_mib = run.peak_mib()
    if data.val_is_test:
        scored["val"], types["val"] = scored["test"], types["test"]
    chosen = {}  # a loaded checkpoint does not say by which rule
    if model.threshold is None or model.map_threshold is None:
        model.threshold, model.map_threshold, chosen["rule"] = _thresholds(run, scored["val"])
        run.keep()
    value, map_threshold = model.threshold, model.map_threshold
    result.threshold = {"value": value, **chosen, "map": map_threshold}
    test = scored["test"]
    result.majority_baseline = majority_baseline(np.zeros(1, dtype=np.int64), test.defect.astype(np.int64))
    kinds = _kinds(run)
    rows = {split: mask_rows(split, part, value, map_threshold, kinds, types[split]) for split, part in scored.items()}
    metrics = {split: _metrics(run, part, rows[split], split == "test") for split, part in scored.items()}
    if (oracle := _oracle_iou(data, model.module, test, map_threshold)) is not None:
        metrics["test"]["oracle_iou"] = oracle
    pages = sheets(test, rows["test"], value, map_threshold)
    result.captions = {name: [*CAPTIONS[name]] for name in pages}
    board = {TAGS[name]: page for name, page in pages.items()}
    in_order = [row for split in ("val", "test") if split in rows for row in rows[split]]
    return Judgement(metrics, in_order, pages, board, _summary(metrics["test"], value, map_threshold))


def _probabilities(data: MVTecDataModule, module: SegmentationModel, split: str) -> Iterator[Part]:
    """Yield of a split's images, or of all their tiles, the score, the probabilities of a defect [h, w], which cover
    the image or tile, and those of its types [K]."""
    dataset = data.dataset(split)
    for place, batch in enumerate(_one_by_one(data, module, split)):
        maps, types = module.probabilities(batch)
        square = maps[0].numpy()
        yield segmentation.image_score(square), dataset.cut(place, square), types[0]


def _one_by_one(data: MVTecDataModule, module: SegmentationModel, split: str) -> Iterator[Mapping[str, Any]]:
    """Yield a batch of each image, or tile, of a split; it has the features of all its views where these are known."""
    features = data.features.get(split)
    dataset: Any = features or data.dataset(split)
    for place in range(len(dataset)):
        yield dataset[[place] if features is None else [(place, number) for number in range(module.views)]]


def _oracle_iou(data: MVTecDataModule, module: SegmentationModel, test: Scored, map_threshold: float) -> float | None:
    """Return the mean IoU over the defect images with prompts from the true masks: what no inspection can have, but
    where better prompts could lead. None where the method takes none, there are no defects, or images are cut.

    Views and threshold are those of the judged masks, so that the prompts alone differ.
    """
    ious: list[float] = []
    if data.frame.tile is not None:
        return None
    for place, batch in enumerate(_one_by_one(data, module, "test")):
        if (mask := test.dataset.mask(place)) is None:
            continue
        views = []
        with torch.inference_mode(), evaluating(module):
            for number in range(module.views):
                one = module.view_of(batch, 0, number)
                logits = module.oracle({**one, "mask": view(one["mask"], number)})
                if logits is None:
                    return None
                views.append(unviewed(logits[0].float().sigmoid(), number))
        score_map = test.dataset.cut(place, torch.stack(views).mean(0).cpu().numpy())
        both, either = segmentation.overlap(segmentation.spread(score_map, mask.shape) > map_threshold, mask)
        ious.append(both / max(either, 1))
    return float(np.mean(ious)) if ious else None


def of_image(parts: Sequence[Part], windows: Sequence[Window | None]) -> Part:
    """Return the score of an image, its probabilities of a defect [h, w] and of its types [K], from those of its tiles.

    The score is the highest of the tiles', and so are the types those of that tile: a mean over the largest thousandth
    of a large image would lose a defect that fills less. The maps are stitched.

    Args:
        parts: the same of all tiles, or of the image itself, if it is not cut.
        windows: where they lie; None: the image itself.
    """
    score, _, types = max(parts, key=lambda part: part[0])
    places = [window for window in windows if window is not None]
    return score, stitch([score_map for _, score_map, _ in parts], places), types


def _thresholds(run: Run, val: Scored) -> tuple[float, float, str]:
    """Return the threshold of an image's score, the probability above which a pixel belongs to a mask, and their rule
    in words."""
    masks = [val.dataset.mask(place) for place in range(len(val.scores))]
    known = [(score_map, mask) for score_map, mask in zip(val.maps or (), masks, strict=True) if mask is not None]
    map_threshold = segmentation.best_map_threshold([score_map for score_map, _ in known], [m for _, m in known])
    if not val.defect.any():
        run.warn("validation has no defect to choose a threshold with: both are 0.5")
        return 0.5, 0.5, "of 0.5, as validation has no defect"
    where = "the test images" if run.data.val_is_test else "validation"
    return best_f1_threshold(val.scores, val.defect), map_threshold, f"of best F1 on {where}"


def _kinds(run: Run) -> list[str]:
    """Return the types that the model names; none where it was not trained for those of the data. Warn of what is left
    out of the figures of types."""
    module, samples = run.model.module, [s for s in run.data.samples if s.split]
    if module.type_model is None:
        return []
    kinds: list[str] = module.kinds
    if strangers := sorted({s.label for s in samples if s.split != "train"} - {GOOD, *kinds}):
        run.warn(
            f"the model knows the types {', '.join(kinds)}, but the data has {', '.join(strangers)}: the figures of "
            "types are left out"
        )
        return []
    if mixed := sum(s.mixed for s in samples):
        run.warn(f"{mixed} image(s) have defects of several types: their types are neither learnt nor judged")
    return kinds


def mask_rows(
    split: str, of: Scored, value: float, map_threshold: float, kinds: Sequence[str], types: Sequence[torch.Tensor]
) -> list[dict[str, Any]]:
    """Return the rows of predictions.csv, with the type that was found; it is empty where an image has several types.

    Args:
        kinds, types: names of the defect types, and their probabilities [K] in each image; no names: none is found.
    """
    rows = zip(prediction_rows(split, of, value, map_threshold), types, of.dataset.samples, strict=True)
    return [
        {**row, "found_type": "" if sample.mixed else found_type(kinds, of_image, row["prediction"])}
        for row, of_image, sample in rows
    ]


def found_type(kinds: Sequence[str], types: torch.Tensor, prediction: str) -> str:
    """Return the type that was found: good in an image that is called so, an empty text where types are not named.

    Args:
        kinds, types: names of the defect types, and their probabilities [K]; K is 0 where they are not named.
        prediction: good or defect.
    """
    return "" if not len(kinds) or not len(types) else GOOD if prediction == GOOD else kinds[int(types.argmax())]


def _metrics(run: Run, part: Scored, rows: list[dict[str, Any]], whole: bool) -> dict[str, Any]:
    """Return the metrics of a split; those of pixels and the intervals on the test images alone."""
    assert run.model.threshold is not None
    known = part if whole else Scored(part.dataset, part.scores, None)
    metrics = figures(known, run, run.model.threshold, rows)
    called = part.scores > run.model.threshold
    counts = {"escapes": int((part.defect & ~called).sum()), "false_rejects": int((~part.defect & called).sum())}
    return {**metrics, **counts}


def _summary(metrics: Mapping[str, Any], value: float, map_threshold: float) -> str:
    known = [(m.title, v) for m in deciding("segmentation") if (v := m.of(metrics)) is not None]
    return (
        "".join(f"{title} {v:.3f}, " for title, v in known)
        + f"{metrics['escapes']} escapes and {metrics['false_rejects']} false rejects of {metrics['images']} images "
        f"(thresholds {value:.3g} of an image, {map_threshold:.2g} of a pixel)"
    )
