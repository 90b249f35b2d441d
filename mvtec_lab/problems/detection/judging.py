"""Choose a detector's threshold on validation, and judge it on the test images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.targets import boxes_of
from mvtec_lab.engine.features import seconds_per_image
from mvtec_lab.engine.pictures import boxed, sheet
from mvtec_lab.engine.run import Judgement, Run
from mvtec_lab.evaluation.anomaly import best_f1_threshold, decision_intervals, image_figures, image_intervals
from mvtec_lab.evaluation.detection import Box, Matches, as_text, box_intervals, box_metrics, match
from mvtec_lab.evaluation.segmentation import mask_figures, mask_intervals
from mvtec_lab.problems.detection.base import DetectionModel
from mvtec_lab.problems.detection.views import Found
from mvtec_lab.problems.scored import overlap_row
from mvtec_lab.progress import bar
from mvtec_lab.results import GOOD, MISTAKES

CUT = 0.5  # a box's mask is where it is more likely than not: Mask R-CNN's rule
SHOWN = 12  # images on a sheet, each without and with the boxes that were found
CAPTION = [
    "Test images, worst mistakes first",
    "Escapes and false rejects, then wrong types, then the nearest to a mistake. Blue: true boxes; orange, in the "
    "picture beside: the boxes above the threshold, each with its type and score.",
]


@dataclass
class Judged:
    """Hold the found and the true boxes of a split's images, in the order of ``dataset``, in pixels of its squares.

    ``heats`` are maps [h, w] of the images, the highest score of the boxes whose masks cover a pixel; none without
    masks.
    """

    dataset: MVTecDataset
    found: list[list[Box]]
    heats: list[np.ndarray]

    @cached_property
    def truth(self) -> list[list[Box]]:
        """Return a box per component of each mask in its file's own size: no image size changes what is to be found."""
        return [true_boxes(self.dataset, place) for place in range(len(self.dataset))]

    @property
    def labels(self) -> list[str]:
        return [sample.label for sample in self.dataset.samples]

    @cached_property
    def scores(self) -> np.ndarray:
        """Return the score of each image's best box, [N]; 0 where there is none."""
        return np.array([max((box.score for box in boxes), default=0.0) for boxes in self.found], dtype=np.float32)

    @property
    def defect(self) -> np.ndarray:
        return np.array([label != GOOD for label in self.labels])

    @cached_property
    def matches(self) -> Matches:
        order = np.argsort([sample.path for sample in self.dataset.samples])  # as rows are read back
        found, truth, labels = self.found, self.truth, self.labels
        return match([found[i] for i in order], [truth[i] for i in order], [labels[i] for i in order])

    def metrics(self, threshold: float, intervals: bool) -> dict[str, Any]:
        """Return the metrics of boxes, and those of images at a threshold."""
        metrics = image_figures(self.scores, self.labels, threshold)
        of_boxes = box_metrics(self.matches)
        for kind, values in of_boxes.pop("by_type").items():
            metrics["by_type"].setdefault(kind, {}).update(values)
        metrics |= of_boxes
        masks = self.overlaps(threshold)
        if masks:
            of_masks = mask_figures(masks)
            for kind, values in of_masks.pop("by_type").items():
                metrics["by_type"][kind] |= values
            metrics |= of_masks
        if intervals:
            metrics["intervals"] = {**image_intervals(self.scores, self.labels), **box_intervals(self.matches, metrics)}
            metrics["intervals"] |= decision_intervals(self.scores, self.labels, threshold)
            metrics["intervals"] |= mask_intervals(masks) if masks else {}
        return metrics

    def overlaps(self, threshold: float) -> list[dict[str, Any]]:
        """Return a row per image that compares the masks of its boxes above the threshold with its true mask."""
        return [
            {"type": sample.label, **overlap_row(self.dataset, place, heat > threshold, CUT)}
            for place, (sample, heat) in enumerate(zip(self.dataset.samples, self.heats, strict=False))
        ]

    def rows(self, split: str, threshold: float) -> list[dict[str, Any]]:
        """Return the rows of predictions.csv; boxes are in pixels of the square image."""
        masks = self.overlaps(threshold) or [{}] * len(self.found)
        return [
            {
                "split": split,
                "path": sample.path,
                "label": sample.label,
                "prediction": named(boxes, threshold),
                "type": sample.label,
                "score": f"{score:.9g}",  # float32 to the bit
                "found": as_text(boxes),
                "truth": as_text(truth),
                **of_mask,
            }
            for sample, score, boxes, truth, of_mask in zip(
                self.dataset.samples, self.scores, self.found, self.truth, masks, strict=True
            )
        ]

    def mistakes(self, threshold: float) -> list[str]:
        """Return what is wrong about each image's verdict, or about the type that it names; nothing: ``""``."""
        texts = []
        for boxes, truth, score, defect in zip(self.found, self.truth, self.scores, self.defect, strict=True):
            kind = named(boxes, threshold)
            if (score > threshold) != defect:
                texts.append("escape" if defect else "false reject")
            else:
                texts.append(f"taken for {kind}" if defect and kind not in {box.kind for box in truth} else "")
        return texts

    def page(self, threshold: float) -> np.ndarray:
        """Draw the worst escapes and false rejects first, then wrong types, each beside what was found."""
        mistakes, wrong = self.mistakes(threshold), (self.scores > threshold) != self.defect
        margin = np.where(self.defect, self.scores - threshold, threshold - self.scores)
        order = np.lexsort((margin, np.array([not text for text in mistakes]), ~wrong))
        tiles, captions, marks, files = [], [], [], []
        for i in order[:SHOWN]:
            picture, (top, left, *_) = self.dataset.shown(int(i)), self.dataset.place(int(i))
            truth, above = (
                [Box(b.kind, b.score, b.x0 - left, b.y0 - top, b.x1 - left, b.y1 - top) for b in boxes]
                for boxes in (self.truth[i], [box for box in self.found[i] if box.score > threshold])
            )
            tiles += [boxed(picture, truth, []), boxed(picture, [], above)]
            captions += [
                f"{mistakes[i]}{': ' * bool(mistakes[i])}{self.labels[i]}\ntrue boxes: {len(self.truth[i])}",
                f"best box {self.scores[i]:.2f}, threshold {threshold:.2f}",
            ]
            marks += [not mistakes[i], None]
            files += [self.dataset.samples[i].path, ""]
        return sheet(tiles, captions, marks, files=files)


def judge(run: Run) -> Judgement:
    """Find boxes in all images, choose the threshold where the model has none yet, and write best.ckpt then."""
    data, result, model = run.data, run.result, run.model
    names = ["test"] if data.val_is_test or not data.of_split("val") else ["val", "test"]
    judged = {name: find(model.module, data, name) for name in names}
    result.seconds_per_image = seconds_per_image(data, lambda batch: model.module.found(batch, model.module.views))
    result.peak_mib = run.peak_mib()
    test, chooser = judged["test"], judged.get("val", judged["test"])
    chosen = {}  # a loaded checkpoint does not say by which rule
    if model.threshold is None:
        best = best_f1_threshold(chooser.scores, chooser.defect)
        where = "validation" if "val" in judged else "the test images"
        chosen = {"rule": f"of best F1 on {where}" if best >= 0 else "as an image without a box is good"}
        model.threshold = max(best, 0.0)
        run.keep()
    value = model.threshold
    result.threshold = {"value": value, **chosen}
    metrics = {name: part.metrics(value, name == "test") for name, part in judged.items()}
    if data.val_is_test:
        metrics["val"] = metrics["test"]
    result.majority_baseline = float((~test.defect).mean())
    rows = [row for name, part in judged.items() for row in part.rows(name, value)]
    result.captions = {MISTAKES: [*CAPTION]}
    pages = {name: part.page(value) for name, part in judged.items()}
    board = {f"pictures/{name}_mistakes_first": page for name, page in pages.items()}
    return Judgement(metrics, rows, {MISTAKES: pages["test"]}, board, _summary(run, test, metrics["test"], value))


def find(module: DetectionModel, data: MVTecDataModule, split: str) -> Judged:
    """Find the boxes of a split's images, from their features where these were computed."""
    dataset, features = data.images(data.of_split(split)), data.features.get(split)
    source: Any = features or dataset
    found: list[list[Box]] = []
    heats: list[np.ndarray] = []
    with bar() as progress:
        for place in progress.track(range(len(dataset)), description="finding boxes"):
            keys = [place] if features is None else [(place, number) for number in range(module.views)]
            (boxes,) = module.found(source[keys], module.views)
            found.append(module.boxes(boxes))
            if "masks" in boxes:
                heats.append(dataset.cut(place, heat_of(boxes, dataset.frame.size)))
    return Judged(dataset, found, heats)


def heat_of(found: Found, size: int) -> np.ndarray:
    """Return the highest score of the boxes whose masks cover each pixel, float32 [size, size]; 0 where none does."""
    heat = torch.zeros(size, size)
    for score, mask in zip(found["scores"], found["masks"][:, 0], strict=True):
        heat = torch.where(mask > CUT, heat.maximum(score), heat)
    return heat.numpy()


def true_boxes(dataset: MVTecDataset, place: int) -> list[Box]:
    """Return the true boxes of an image, in pixels of the square image."""
    sample, frame = dataset.samples[place], dataset.frame
    if sample.objects:
        return [Box(r.label, 1.0, *np.round(frame.into(np.array(r.box), r.size), 2).tolist()) for r in sample.objects]
    mask = dataset.mask(place)
    if mask is None:
        return []
    boxes = frame.into(boxes_of(mask).numpy(), (mask.shape[0], mask.shape[1]))
    return [Box(sample.label, 1.0, *box) for box in np.round(boxes, 2).tolist()]


def named(boxes: list[Box], threshold: float) -> str:
    """Return the type of the best box above the threshold; good where there is none."""
    best = max(boxes, key=lambda box: box.score, default=None)
    return GOOD if best is None or best.score <= threshold else best.kind


def _summary(run: Run, test: Judged, metrics: dict[str, Any], value: float) -> str:
    figures = ", ".join(
        f"{title} {metrics[key]:.3f}"
        for key, title in (("map50", "mAP50"), ("map", "mAP50-95"), ("image_auroc", "image AUROC"))
        if metrics[key] is not None
    )
    called = test.scores > value
    return (
        f"test {figures}, escapes {(~called & test.defect).sum()} of {test.defect.sum()}, false rejects "
        f"{(called & ~test.defect).sum()} of {(~test.defect).sum()} (threshold {value:.3g}); best epoch "
        f"{run.result.best_epoch} of {run.result.epochs}"
    )
