"""Where a one-class model of the lab sees a defect: prompts that need no mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.engine.model import ABOUT, read_checkpoint
from mvtec_lab.errors import LabError
from mvtec_lab.models.weights import IMAGENET_MEAN, IMAGENET_STD
from mvtec_lab.problems import problem_of


class Peaks(nn.Module):
    """Mark where a one-class model's map of an image has its peak.

    It takes images [N, 3, S, S], normalised by ImageNet's mean and standard deviation, and gives [N, cells, cells],
    1 there and 0 elsewhere; 0 everywhere if the model calls the image good.

    Args:
        content: of the model's checkpoint.
        cells: a side of what is marked.
    """

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
    def of(cls, path: str, cells: int) -> Peaks:
        """Return the peaks of a run's best.ckpt.

        Raises:
            LabError: the file is missing, damaged or no one-class run's; its method gives no maps.
        """
        content = read_checkpoint(path)
        about = content[ABOUT]
        if problem_of(about["method"]).name != "anomaly":
            raise LabError(
                f"model.options.prompts={path} is a run of {about['method']}: give best.ckpt of a one-class run, as "
                "attempt=patchcore leaves it"
            )
        if about["map_threshold"] is None:
            raise LabError(
                f"model.options.prompts={path} is a run of {about['method']}, which does not localise: give best.ckpt "
                "of patchcore, padim or stfpm"
            )
        return cls(content, cells)

    def plan(self) -> dict[str, Any]:
        """Return what ``planned`` needs beside the weights, as plain values."""
        shapes = {name: list(value.shape) for name, value in self.network.state_dict().items()}
        kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in self.network.state_dict().items()}
        settings = dict(self.network.hparams)
        return {"hyper_parameters": settings, ABOUT: dict(self.about), "shapes": shapes, "kinds": kinds}

    @classmethod
    def planned(cls, plan: Mapping[str, Any], cells: int) -> Peaks:
        """Return the same with weights that are yet to be loaded."""
        shapes, kinds = plan["shapes"], plan["kinds"]
        state = {name: torch.zeros(shape, dtype=getattr(torch, kinds[name])) for name, shape in shapes.items()}
        return cls({**plan, "state_dict": state}, cells)

    def train(self, mode: bool = True) -> Peaks:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        size = self.about["image_size"]
        smaller = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        scores, maps = self.network(smaller * self.factor + self.offset)
        marked = [
            peak(heat, self.about["map_threshold"], self.cells) * (score > self.about["threshold"])
            for score, heat in zip(scores.tolist(), maps.float().cpu().numpy(), strict=True)
        ]
        return torch.from_numpy(np.stack(marked)).to(images.device)


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
