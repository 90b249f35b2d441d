"""Detection as a problem of the lab."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.frame import Frame
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.pictures import boxed
from mvtec_lab.engine.run import Run
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.detection import Box
from mvtec_lab.problems.base import Prediction, Problem, require_onnx
from mvtec_lab.problems.detection.base import DetectionModel
from mvtec_lab.problems.detection.build import build, class_of, rehearse, restore
from mvtec_lab.problems.detection.exported import FoundBoxes
from mvtec_lab.problems.detection.judging import CUT, judge, named
from mvtec_lab.results import GOOD

log = logging.getLogger(__name__)


class Detection(Problem):
    """Learn from masked defects where a defect lies, as a box, and of which type it is."""

    name = "detection"
    targets = ("boxes",)
    rehearse = staticmethod(rehearse)
    build = staticmethod(build)
    restore = staticmethod(restore)
    judge = staticmethod(judge)

    def targets_of(self, method: str) -> Sequence[str]:
        return ("mask", *self.targets) if class_of(method).draws_masks else self.targets

    def classes(self, data: MVTecDataModule) -> list[str]:
        return [GOOD, *data.kinds]

    def chosen_on_val(self, config: Config) -> str:
        return f"the choice of the epoch by {class_of(config.model.method).monitor} and of the threshold"

    def single_device(self, config: Config) -> str | None:
        by_lightning = class_of(config.model.method).fit is DetectionModel.fit
        return None if by_lightning else f"model.method={config.model.method} trains on one device"

    def fit(self, run: Run) -> None:
        module = run.model.module
        counted = {"total": list(module.parameters()), "trained": [p for p in module.parameters() if p.requires_grad]}
        run.result.parameters = {name: sum(p.numel() for p in parameters) for name, parameters in counted.items()}
        log.info("%s: %s over %s (%s)", run.config.attempt, run.model.method, run.result.backbone, run.result.weights)
        run.result.startup_seconds = time.perf_counter() - run.began
        module.fit(run)
        run.result.fit_seconds = run.result.seconds

    def outputs(self, model: Model, images: Tensor) -> list[Mapping[str, Tensor]]:
        return model.module.found({"image": images}, model.module.views)

    def predictions(self, model: Model, outputs: Sequence[Mapping[str, Tensor]]) -> list[Prediction]:
        threshold, module = _threshold_of(model), model.module
        predictions = []
        for found in outputs:
            boxes = module.boxes(found)
            score, name = max((box.score for box in boxes), default=0.0), named(boxes, threshold)
            above = [box for box in boxes if box.score > threshold]
            row = {"prediction": name, "score": f"{score:.9g}", "threshold": f"{threshold:.9g}", "boxes": len(above)}
            masks = found["masks"][: len(above), 0] if "masks" in found else None
            files, scored = _Files(above, model.frame, masks), [(*box[2:], box.score) for box in boxes]
            table = np.array(scored, dtype=np.float32).reshape(-1, 5)
            predictions.append(Prediction(row, f"{name} ({len(above)} boxes)", files=files, boxes=table))
        return predictions

    def exported(self, model: Model) -> nn.Module:
        _threshold_of(model)
        require_onnx(model)
        return FoundBoxes(model.module)

    def conclude(self, model: Model, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        defects = sum(row["prediction"] != GOOD for row in rows)
        return [f"{defects} of {len(rows)} have a box with a score above the threshold {model.threshold:.4g}"]


def _threshold_of(model: Model) -> float:
    """Return the score above which a box is found.

    Raises:
        LabError: the checkpoint is of a run that ended before it was judged.
    """
    if model.threshold is None:
        raise LabError(f"this {model.method} has no threshold, as its run was stopped: go on with it (resume=true)")
    return model.threshold


class _Files:
    """Make the files of an image's boxes, which are in pixels of the square image: .json, .jpg, and .png of masks."""

    def __init__(self, boxes: Sequence[Box], frame: Frame, masks: Tensor | None) -> None:
        self.boxes, self.frame, self.masks = boxes, frame, masks

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray | str]:
        height, width = size = image.shape[:2]
        corners = [np.round(self.frame.out_of(np.array(b[2:]), size), 1).tolist() for b in self.boxes]
        boxes = [Box(b.kind, b.score, *box) for b, box in zip(self.boxes, corners, strict=True)]
        listed = [{"label": b.kind, "score": b.score, "box": list(b[2:])} for b in boxes]
        files: dict[str, np.ndarray | str] = {
            ".json": json.dumps({"width": width, "height": height, "boxes": listed}, ensure_ascii=False) + "\n",
            ".jpg": boxed(image, [], boxes),
        }
        if self.masks is not None:
            side = self.frame.size
            union = (self.masks > CUT).any(0) if len(self.masks) else torch.zeros(side, side)
            part = torch.from_numpy(self.frame.cut(union.float().numpy(), size))
            resized = nn.functional.interpolate(part[None, None], size=(height, width))[0, 0]
            files[".png"] = (resized.numpy() * 255).astype(np.uint8)
        return files


PROBLEM = Detection()
