"""Prompts that need no mask: where a light decoder, a detector or a one-class model of the lab sees a defect.

The prompts of an image are a table [MOST, 7]: a box x0, y0, x1, y1, a point x, y, in pixels, and how certain it is that
they mark a defect, above 0 and below 1. A box names its first and last pixels, as SAM counts them. Above 0.5 whatever
finds them calls the image a defect. Rows of zeros are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.model import ABOUT, Model, read_checkpoint
from mvtec_lab.errors import LabError
from mvtec_lab.models.views import viewed_boxes
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
    [N, MOST, 7]. What the model calls a good image has one prompt at most, of a certainty below 0.5. The model sees an
    image as it is, as it was trained to and as its threshold was chosen; the prompts of a view are moved as it is.

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
        self.problem = problem_of(about["method"])
        self.network = self.problem.restore(content).requires_grad_(False)
        self.model = Model(self.network, **about)
        self.size = size
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
        content = read_checkpoint(Path(path).expanduser(), f"model.options.prompts={path}")
        finder = cls(content, size)
        side = finder.model.image_size
        (blank,) = finder.problem.predict(finder.model, torch.zeros(1, 3, side, side))
        if blank.boxes is None and (blank.heat is None or finder.model.map_threshold is None):
            raise LabError(
                f"model.options.prompts={path} is a run of {finder.model.method}, which marks no place: "
                "give best.ckpt of a detector, or of a one-class run that localises, as attempt=patchcore leaves it"
            )
        return finder

    def plan(self) -> dict[str, Any]:
        """Return what ``planned`` needs beside the weights, as plain values."""
        shapes = {name: list(value.shape) for name, value in self.network.state_dict().items()}
        kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in self.network.state_dict().items()}
        settings = dict(self.network.hparams)
        return {"hyper_parameters": settings, ABOUT: self.model.about(), "shapes": shapes, "kinds": kinds}

    @classmethod
    def planned(cls, plan: Mapping[str, Any], size: int) -> Finder:
        """Return the same with weights that are yet to be loaded."""
        shapes, kinds = plan["shapes"], plan["kinds"]
        state = {name: torch.zeros(shape, dtype=getattr(torch, kinds[name])) for name, shape in shapes.items()}
        return cls({**plan, "state_dict": state}, size)

    def extra_repr(self) -> str:  # a cache's key: the weights do not say it
        return f"size={self.size}, {self.model.about()}"

    def train(self, mode: bool = True) -> Finder:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        size = self.model.image_size
        smaller = F.interpolate(images, (size, size), mode="bilinear", antialias=True) * self.factor + self.offset
        tables = [
            self._of_map(prediction.heat, float(prediction.row["score"]))
            if prediction.boxes is None
            else self._of_boxes(torch.from_numpy(prediction.boxes))
            for prediction in self.problem.predict(self.model, smaller)
        ]
        return torch.stack(tables).to(images.device)

    def of_views(self, image: Tensor, numbers: Sequence[int]) -> Tensor:
        """Return the prompts of some views of an image [1, 3, S, S], moved from those of the image: [V, MOST, 7]."""
        prompts = self(image)[0]
        return torch.stack([viewed_prompts(prompts, number, self.size) for number in numbers])

    def _of_boxes(self, boxes: Tensor) -> Tensor:
        """Return the prompts of those boxes [K, 5] that make an image a defect; where there are none, of the best."""
        scores = boxes[:, 4]
        sure = scores > (self.model.threshold or 0.0)
        sure[:1] = True  # they come with the highest score first
        corners = boxes[sure, :4] * (self.size / self.model.image_size)
        corners = torch.cat([corners[:, :2], corners[:, 2:] - 1], dim=1)  # a detector's end behind their last pixels
        middles = (corners[:, :2] + corners[:, 2:]) / 2
        return table(corners, middles, self._certainty(scores[sure]))

    def _of_map(self, heat: Any, score: float) -> Tensor:
        """Return the prompt of the peak of a map [h, w]."""
        assert self.model.map_threshold is not None
        boxes, points, _ = parts_of(peak(heat, self.model.map_threshold, self.size // CELL))
        return table(outer_pixels(boxes), centres(points), self._certainty(torch.tensor([score])).expand(len(boxes)))

    def _certainty(self, scores: Tensor) -> Tensor:
        """Return the certainty of scores [K]: 0.5 at the model's threshold, 0.73 a quarter of it above."""
        threshold = self.model.threshold or 0.0
        return torch.sigmoid(4 * (scores - threshold) / max(abs(threshold), 1e-6))


def viewed_prompts(prompts: Tensor, number: int, size: int) -> Tensor:
    """Return an image's prompts [MOST, 7] in its view of this number (``view``); ``size``: pixels a side."""
    last = size - 1  # prompts name pixels, the first of which is 0
    boxes = viewed_boxes(prompts[:, :4], number, last)
    points = viewed_boxes(prompts[:, [4, 5, 4, 5]], number, last)[:, :2]
    return torch.cat([boxes, points, prompts[:, 6:]], dim=1) * (prompts[:, 6:] > 0)


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
