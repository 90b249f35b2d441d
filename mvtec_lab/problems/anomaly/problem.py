"""Anomaly as a problem of the lab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvtec_lab.config import Config, SplitConfig
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.tiles import Window
from mvtec_lab.engine.model import Model
from mvtec_lab.models.weights import IMAGENET_MEAN, IMAGENET_STD
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.anomaly.build import build, marks, rehearse
from mvtec_lab.problems.anomaly.exported import ScoreAndMap
from mvtec_lab.problems.anomaly.judging import judge
from mvtec_lab.problems.anomaly.models import restore
from mvtec_lab.problems.anomaly.rules import known
from mvtec_lab.problems.anomaly.scores import of_image, scores_of
from mvtec_lab.problems.anomaly.training import fit
from mvtec_lab.problems.base import Prediction, Problem
from mvtec_lab.problems.scored import CLASSES, called, two_classes

BEST_F1_MARK = "threshold chosen on the test images, defects included: f1, recall and accuracy are too high"


class Anomaly(Problem):
    """Learn from good images alone how unlike them an image is, and where."""

    name = "anomaly"
    good_alone = True
    rehearse = staticmethod(rehearse)
    build = staticmethod(build)
    restore = staticmethod(restore)
    fit = staticmethod(fit)
    judge = staticmethod(judge)

    def chosen_on_val(self, config: Config) -> str:
        return "the threshold" if METHODS[config.model.method].trains else ""  # else it rests on all good images

    def known_defects(self, config: Config) -> int:
        return known(config)

    def single_device(self, config: Config) -> str | None:
        return f"model.method={config.model.method} runs on one device"

    def chosen_on_test(self, config: Config) -> list[str]:
        return [BEST_F1_MARK] if config.threshold.rule == "best_f1" else []

    def marks(self, config: Config, data: MVTecDataModule) -> list[str]:
        return [*self.chosen_on_test(config), *marks(config, data)]

    def normalisation(self, config: Config) -> tuple[Sequence[float], Sequence[float]]:
        return super().normalisation(config) if METHODS[config.model.method].backbone else (IMAGENET_MEAN, IMAGENET_STD)

    def classes(self, data: MVTecDataModule) -> list[str]:
        return list(CLASSES)

    def counts(self, data: MVTecDataModule) -> dict[str, dict[str, int]]:
        return two_classes(data.counts())

    def to_judge(self, config: Config, model: Model) -> Config:
        s = config.split
        protocol = s.protocol if s.protocol == "test_only" else "test_folder"
        split = SplitConfig(protocol=protocol, seed=s.seed, test=s.test, group_by=s.group_by)
        return replace(config, split=split, data=replace(config.data, masks="optional"))

    def outputs(self, model: Model, images: Tensor) -> list[Mapping[str, Tensor]]:
        pairs = scores_of(model.module, images)
        return [
            {"score": torch.tensor(score)} | ({} if heat is None else {"map": torch.from_numpy(heat)})
            for score, heat in pairs
        ]

    def predictions(self, model: Model, outputs: Sequence[Mapping[str, Tensor]]) -> list[Prediction]:
        return [_prediction(model, *_pair(of_image)) for of_image in outputs]

    def embed(self, model: Model, images: Tensor) -> Tensor | None:
        return model.module.embed(images)

    def prediction_of_tiles(
        self, model: Model, outputs: Sequence[Mapping[str, Tensor]], windows: Sequence[Window]
    ) -> Prediction:
        pairs = (_pair(of_tile) for of_tile in outputs)
        cut = [
            (score, None if score_map is None else model.frame.cut(score_map, (window.height, window.width)))
            for (score, score_map), window in zip(pairs, windows, strict=True)
        ]
        return _prediction(model, *of_image(cut, windows))

    def exported(self, model: Model) -> nn.Module:
        return ScoreAndMap(model.module, model.map_threshold is not None)

    def conclude(self, model: Model, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        lines = [called(rows, model.threshold)]
        return lines if model.map_threshold is not None else [*lines, f"{model.method} does not localise: no maps"]


def _pair(outputs: Mapping[str, Tensor]) -> tuple[np.float32, np.ndarray | None]:
    heat = outputs.get("map")
    return np.float32(outputs["score"].item()), None if heat is None else heat.numpy()


def _prediction(model: Model, score: np.float32, score_map: np.ndarray | None) -> Prediction:
    assert model.threshold is not None
    name = CLASSES[int(score > model.threshold)]
    row = {"prediction": name, "score": f"{score:.9g}", "threshold": f"{model.threshold:.9g}"}
    return Prediction(row, f"{name} ({score:.3g}; threshold {model.threshold:.3g})", score_map)


PROBLEM = Anomaly()
