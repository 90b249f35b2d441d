"""Prompts that need no mask: where a light decoder, a detector or a one-class model of the lab sees a defect.

The prompts of an image are a table [MOST, 7]: a box x0, y0, x1, y1, a point x, y, in pixels, and how certain it is that
they mark a defect, above 0 and below 1. A box names its first and last pixels, as SAM counts them. Above 0.5 whatever
finds them calls the image a defect. Rows of zeros are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.model import ABOUT, read_checkpoint
from mvtec_lab.errors import LabError
from mvtec_lab.models.weights import IMAGENET_MEAN, IMAGENET_STD
from mvtec_lab.problems import problem_of
from mvtec_lab.problems.segmentation.methods.sam.base import parts_of
from mvtec_lab.results import RESULT, SAMPLES, RunResult, table_of

MOST = 16  # prompts of an image, the most certain ones: a product with more defects at once is scrap
COLUMNS = 7
CELL = 4  # pixels a side of a cell of SAM's masks
SURE = 1 - 1e-4  # the highest certainty: SAM's logits, weighed by it, stay finite


def table(boxes: Tensor, points: Tensor, certainty: Tensor) -> Tensor:
    """Return the prompts [MOST, 7] of boxes [K, 4], points [K, 2] and their certainty [K]."""
    order = torch.argsort(certainty, descending=True, stable=True)[:MOST]
    rows = torch.cat([boxes, points, certainty.clamp(1e-4, SURE)[:, None]], dim=1)[order]
    return F.pad(rows, (0, 0, 0, MOST - len(rows)))


def of_logits(logits: Tensor) -> Tensor:
    """Return the prompts of a light decoder's logits [S / 4, S / 4]: each component of what it calls a defect.

    A component is as certain as its highest probability.
    """
    heat = logits.float().cpu().numpy()
    boxes, points, parts = parts_of(heat > 0)
    peaks = torch.tensor([float(heat[part > 0].max()) for part in parts.numpy()])
    return table(outer_pixels(boxes), centres(points), peaks.sigmoid())


def outer_pixels(cells: Tensor) -> Tensor:
    """Return boxes [K, 4] of cells of SAM's masks as boxes of their first and last pixels, as ``parts_of`` has them."""
    return torch.cat([cells[:, :2] * CELL, cells[:, 2:] * CELL + CELL - 1], dim=1)


def centres(cells: Tensor) -> Tensor:
    """Return the centres [K, 2] of cells of SAM's masks, in pixels; a pixel's own centre has its number."""
    return cells * CELL + (CELL - 1) / 2


def weighed(logits: Tensor, certainty: Tensor) -> Tensor:
    """Return logits of SAM's probabilities [K, h, w] times the certainty [K] of their prompts.

    SAM is sure of whatever a prompt marks; whether that is a defect, its finder knows.
    """
    product = F.logsigmoid(logits) + certainty.clamp(max=SURE).log()[:, None, None]
    return product - torch.log1p(-product.exp())


class Finder(nn.Module):
    """Say where another model of the lab sees a defect: a detector's boxes, or the peak of a one-class model's map.

    It takes images [N, 3, S, S], normalised by ImageNet's mean and standard deviation, and gives their prompts
    [N, MOST, 7]. What the model calls a good image has one prompt at most, of a certainty below 0.5.

    Args:
        content: of the model's checkpoint.
        size: S, pixels.
    """

    network: Any  # a LightningModule: each problem calls its own's methods
    factor: Tensor
    offset: Tensor

    def __init__(self, content: Mapping[str, Any], size: int) -> None:
        super().__init__()
        about = content[ABOUT]
        self.network = problem_of(about["method"]).restore(content).requires_grad_(False)
        self.about, self.size = about, size
        mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
        ours, spread = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("factor", spread / std, persistent=False)  # from one normalisation to the other
        self.register_buffer("offset", (ours - mean) / std, persistent=False)

    @classmethod
    def of(cls, path: str, size: int) -> Finder:
        """Return the finder of a run's best.ckpt.

        Raises:
            LabError: the file is missing, damaged, or of a run that marks no place.
        """
        content = read_checkpoint(Path(path).expanduser())
        about = content[ABOUT]
        what = f"model.options.prompts={path} is a run of {about['method']}"
        if problem_of(about["method"]).name not in ("anomaly", "detection"):
            raise LabError(
                f"{what}: give best.ckpt of a detector or of a one-class run, as attempt=patchcore leaves it"
            )
        if problem_of(about["method"]).name == "anomaly" and about["map_threshold"] is None:
            raise LabError(f"{what}, which does not localise: give best.ckpt of patchcore, padim or stfpm")
        return cls(content, size)

    def plan(self) -> dict[str, Any]:
        """Return what ``planned`` needs beside the weights, as plain values."""
        shapes = {name: list(value.shape) for name, value in self.network.state_dict().items()}
        kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in self.network.state_dict().items()}
        settings = dict(self.network.hparams)
        return {"hyper_parameters": settings, ABOUT: dict(self.about), "shapes": shapes, "kinds": kinds}

    @classmethod
    def planned(cls, plan: Mapping[str, Any], size: int) -> Finder:
        """Return the same with weights that are yet to be loaded."""
        shapes, kinds = plan["shapes"], plan["kinds"]
        state = {name: torch.zeros(shape, dtype=getattr(torch, kinds[name])) for name, shape in shapes.items()}
        return cls({**plan, "state_dict": state}, size)

    def extra_repr(self) -> str:  # a cache's key: the weights do not say it
        return f"size={self.size}, {self.about}"

    def train(self, mode: bool = True) -> Finder:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        size = self.about["image_size"]
        smaller = F.interpolate(images, (size, size), mode="bilinear", antialias=True) * self.factor + self.offset
        if problem_of(self.about["method"]).name == "detection":
            tables = [
                self._of_boxes(each["boxes"] * (self.size / size), each["scores"])
                for each in self.network.found({"image": smaller}, self.network.views)
            ]
        else:
            scores, maps = self.network(smaller)
            tables = [
                self._of_map(heat, score)
                for score, heat in zip(scores.float().cpu(), maps.float().cpu().numpy(), strict=True)
            ]
        return torch.stack(tables).to(images.device)

    def _of_boxes(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Return the prompts of those boxes that make an image a defect; where there are none, of the best one."""
        sure = scores > (self.about["threshold"] or 0.0)
        sure[:1] = True  # they come with the highest score first
        boxes = boxes[sure]
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - 1], dim=1)  # a detector's end behind their last pixels
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        return table(boxes, middles, self._certainty(scores[sure]))

    def _of_map(self, heat: np.ndarray, score: Tensor) -> Tensor:
        """Return the prompt of the map's peak."""
        boxes, points, _ = parts_of(peak(heat, self.about["map_threshold"], self.size // CELL))
        return table(outer_pixels(boxes), centres(points), self._certainty(score[None]).expand(len(boxes)))

    def _certainty(self, scores: Tensor) -> Tensor:
        """Return the certainty of scores [K]: 0.5 at the model's threshold, 0.73 a quarter of it above."""
        threshold = self.about["threshold"] or 0.0
        return torch.sigmoid(4 * (scores - threshold) / max(abs(threshold), 1e-6))


def peak(heat: np.ndarray, threshold: float, cells: int) -> np.ndarray:
    """Return the part of a map [h, w] that is above a threshold around its peak: float32 [cells, cells], 0 or 1.

    A map that is nowhere above it is cut half-way between its median and its peak.
    """
    heat = cv2.resize(heat, (cells, cells), interpolation=cv2.INTER_LINEAR)
    top = float(heat.max())
    _, labels = cv2.connectedComponents(
        (heat > (threshold if top > threshold else (top + float(np.median(heat))) / 2)).astype(np.uint8), connectivity=8
    )
    inside = labels[np.unravel_index(heat.argmax(), heat.shape)]
    return ((labels == inside) & (inside > 0)).astype(np.float32)


def require_unseen(path: str, data: MVTecDataModule) -> None:
    """Refuse prompts of a run that was trained, or whose threshold was chosen, on images that data will be judged on.

    Args:
        path: the run's best.ckpt.
        data: scanned.

    Raises:
        LabError: it was, or nothing says so.
    """
    folder, key = Path(path).expanduser().parent, f"model.options.prompts={path}"
    rows = table_of(folder, SAMPLES)
    if rows is None or not (folder / RESULT).is_file():
        lacking = SAMPLES if rows is None else RESULT
        raise LabError(f"{key} has no {lacking} beside it, which says what its run has seen: give a run's own file")
    result = RunResult.load(folder)
    on_test = result.val_is_test or (result.threshold or {}).get("rule") == "best_f1"
    splits = ("train", "val", "test") if on_test else ("train", "val")
    seen, digests = {row["digest"] for row in rows if row.get("split") in splits}, data.contents()
    if known := [s.path for s in data.of_split("test") if digests[s.path] in seen]:
        how = "chose its epoch or threshold" if on_test else "was trained"
        raise LabError(
            f"{key} {how} on {len(known)} of the images that this run is judged on ({known[0]}): give a run of the "
            "same split without split.val_is_test and threshold.rule=best_f1, in a cross-validation of the same fold: "
            "'...fold_${split.fold}/best.ckpt'"
        )
