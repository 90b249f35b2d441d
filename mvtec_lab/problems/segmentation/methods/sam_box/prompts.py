"""Where another run of the lab sees a defect, a detector or a one-class model: prompts that need no mask."""

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
from mvtec_lab.results import RESULT, SAMPLES, RunResult, table_of


class Finder(nn.Module):
    """Mark where another model of the lab sees a defect: a detector's boxes, or the peak of a one-class model's map.

    It takes images [N, 3, S, S], normalised by ImageNet's mean and standard deviation, and gives [N, cells, cells],
    1 there and 0 elsewhere; 0 everywhere in what the model calls a good image.

    Args:
        content: of the model's checkpoint.
        cells: a side of what is marked.
    """

    network: Any  # a LightningModule: each problem calls its own's methods
    factor: Tensor
    offset: Tensor

    def __init__(self, content: Mapping[str, Any], cells: int) -> None:
        super().__init__()
        about = content[ABOUT]
        self.network = problem_of(about["method"]).restore(content).requires_grad_(False)
        self.about, self.cells = about, cells
        mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
        ours, spread = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("factor", spread / std, persistent=False)  # from one normalisation to the other
        self.register_buffer("offset", (ours - mean) / std, persistent=False)

    @classmethod
    def of(cls, path: str, cells: int) -> Finder:
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
        return cls(content, cells)

    def plan(self) -> dict[str, Any]:
        """Return what ``planned`` needs beside the weights, as plain values."""
        shapes = {name: list(value.shape) for name, value in self.network.state_dict().items()}
        kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in self.network.state_dict().items()}
        settings = dict(self.network.hparams)
        return {"hyper_parameters": settings, ABOUT: dict(self.about), "shapes": shapes, "kinds": kinds}

    @classmethod
    def planned(cls, plan: Mapping[str, Any], cells: int) -> Finder:
        """Return the same with weights that are yet to be loaded."""
        shapes, kinds = plan["shapes"], plan["kinds"]
        state = {name: torch.zeros(shape, dtype=getattr(torch, kinds[name])) for name, shape in shapes.items()}
        return cls({**plan, "state_dict": state}, cells)

    def train(self, mode: bool = True) -> Finder:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        size = self.about["image_size"]
        smaller = F.interpolate(images, (size, size), mode="bilinear", antialias=True) * self.factor + self.offset
        threshold = self.about["threshold"] or 0.0
        if problem_of(self.about["method"]).name == "detection":
            found = self.network.found(smaller)
            sure = [each["boxes"][each["scores"] > threshold] / size * self.cells for each in found]
            marked = [filled(boxes.numpy(), self.cells) for boxes in sure]
        else:
            scores, maps = self.network(smaller)
            marked = [
                peak(heat, self.about["map_threshold"], self.cells) * (score > threshold)
                for score, heat in zip(scores.tolist(), maps.float().cpu().numpy(), strict=True)
            ]
        return torch.from_numpy(np.stack(marked)).to(images.device)


def filled(boxes: np.ndarray, cells: int) -> np.ndarray:
    """Return the cells of boxes [K, 4], x0, y0, x1, y1, one at least of each: float32 [cells, cells], 0 or 1."""
    marked = np.zeros((cells, cells), np.float32)
    for left, top, right, bottom in np.clip(np.round(boxes), 0, cells).astype(int):
        left, top = min(left, cells - 1), min(top, cells - 1)
        marked[top : max(bottom, top + 1), left : max(right, left + 1)] = 1
    return marked


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
    if rows is None:
        raise LabError(
            f"{key} has no {SAMPLES} beside it, which says what its run was trained on: give a run's own file"
        )
    seen, digests = {row["digest"] for row in rows if row.get("split") in ("train", "val")}, data.contents()
    if known := [s.path for s in data.of_split("test") if digests[s.path] in seen]:
        raise LabError(
            f"{key} was trained on {len(known)} of the images that this run is judged on ({known[0]}): give a run of "
            "the same split, of a cross-validation the same fold"
        )
    rule = (RunResult.load(folder).threshold or {}).get("rule") if (folder / RESULT).is_file() else None
    if rule == "best_f1":
        raise LabError(f"{key} chose its threshold on the test images: give a run with threshold.rule=quantile")
