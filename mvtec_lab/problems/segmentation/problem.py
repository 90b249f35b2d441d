"""Segmentation as a problem of the lab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.frame import Frame
from mvtec_lab.data.tiles import Window
from mvtec_lab.engine.model import Model
from mvtec_lab.evaluation.segmentation import image_score, spread
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.base import Prediction, Problem, require_onnx
from mvtec_lab.problems.scored import CLASSES, called, two_classes
from mvtec_lab.problems.segmentation.build import build, rehearse, restore
from mvtec_lab.problems.segmentation.exported import DefectMap
from mvtec_lab.problems.segmentation.judging import Part, found_type, judge, of_image
from mvtec_lab.problems.segmentation.pictures import files
from mvtec_lab.problems.segmentation.training import fit


class Segmentation(Problem):
    """Learn from masks which pixels of an image are defective."""

    name = "segmentation"
    targets = ("mask",)
    rehearse = staticmethod(rehearse)
    build = staticmethod(build)
    restore = staticmethod(restore)
    fit = staticmethod(fit)
    judge = staticmethod(judge)

    def chosen_on_val(self, config: Config) -> str:
        idle = METHODS[config.model.method].idle
        trains = idle is None or "trainer.max_epochs" not in idle(config)
        return "the choice of the " + ("epoch by val/loss and of the thresholds" if trains else "thresholds")

    def classes(self, data: MVTecDataModule) -> list[str]:
        return list(CLASSES)

    def counts(self, data: MVTecDataModule) -> dict[str, dict[str, int]]:
        return two_classes(data.counts())

    def outputs(self, model: Model, images: Tensor) -> list[Mapping[str, Tensor]]:
        maps, types = model.module.probabilities({"image": images})
        return [{"map": of_image, "types": kinds} for of_image, kinds in zip(maps, types, strict=True)]

    def predictions(self, model: Model, outputs: Sequence[Mapping[str, Tensor]]) -> list[Prediction]:
        frame = model.frame
        return [_prediction(model, *_scored(of_image), frame, (frame.size, frame.size)) for of_image in outputs]

    def prediction_of_tiles(
        self, model: Model, outputs: Sequence[Mapping[str, Tensor]], windows: Sequence[Window]
    ) -> Prediction:
        parts = [
            (score, model.frame.cut(score_map, (window.height, window.width)), kinds)
            for (score, score_map, kinds), window in zip(map(_scored, outputs), windows, strict=True)
        ]
        whole = Frame(model.image_size)  # the stitched map covers the image itself
        return _prediction(model, *of_image(parts, windows), whole, (whole.size, whole.size))

    def exported(self, model: Model) -> nn.Module:
        require_onnx(model)
        return DefectMap(model.module)

    def conclude(self, model: Model, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        return [called(rows, model.threshold)]


def _scored(outputs: Mapping[str, Tensor]) -> Part:
    score_map = outputs["map"].numpy()
    return image_score(score_map), score_map, outputs.get("types", torch.zeros(0))  # a file without types has no output


def _prediction(
    model: Model, score: float, score_map: np.ndarray, types: Tensor, frame: Frame, size: tuple[int, int]
) -> Prediction:
    """Return what score and probabilities of an image say, of a defect [h, w] and of its types [K].

    Args:
        frame: of the square that the map covers.
        size: (H, W) of the image and its mask.
    """
    assert model.threshold is not None
    assert model.map_threshold is not None
    # An image that is called good has an empty mask: what is written of it says the same everywhere.
    name, begins = (CLASSES[1], model.map_threshold) if score > model.threshold else (CLASSES[0], float("inf"))
    share = float((spread(frame.cut(score_map, size), size) > begins).mean())
    row = {
        "prediction": name,
        "score": f"{score:.9g}",
        "threshold": f"{model.threshold:.9g}",
        "mask_share": f"{share:.6g}",
        "found_type": found_type(model.module.kinds, types, name),
    }
    caption = f"{row['found_type'] or name} ({score:.3g}; mask {share:.1%})"
    sized = partial(_prediction, model, score, score_map, types, frame)
    return Prediction(row, caption, files=files(score_map, begins, frame), sized=sized)


PROBLEM = Segmentation()
