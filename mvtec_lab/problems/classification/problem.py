"""Classification as a problem of the lab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.run import Run
from mvtec_lab.evaluation.operating import OK, REVIEW, score_of
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.base import Prediction, Problem, require_onnx
from mvtec_lab.problems.classification.build import build, class_of, rehearse, restore
from mvtec_lab.problems.classification.exported import Probabilities
from mvtec_lab.problems.classification.judging import judge
from mvtec_lab.problems.classification.rules import findings
from mvtec_lab.problems.classification.sets import SET, choose_sets, counted_unsure, doubt, set_columns
from mvtec_lab.results import CERTAINTY, GOOD, UNSURE


class Classification(Problem):
    """Learn from labelled images which class an image shows: good, or one of the defect types."""

    name = "classification"
    rehearse = staticmethod(rehearse)
    build = staticmethod(build)
    restore = staticmethod(restore)
    judge = staticmethod(judge)

    def single_device(self, config: Config) -> str | None:
        method, head = METHODS[config.model.method], config.model.head
        if method.trains and head != "knn":
            return None
        return (
            f"{'model.head=knn' if method.trains else f'model.method={method.name}'} trains nothing that several "
            "devices could share"
        )

    def chosen_on_val(self, config: Config) -> str:
        if self.validates_by(config):
            return ""
        if config.model.head == "knn" or not METHODS[config.model.method].trains:
            return super().chosen_on_val(config)
        return f"the choice of the epoch by {config.trainer.monitor}"

    def learns_from(self, config: Config) -> Sequence[str]:
        return class_of(config.model.method).learns_from(config)

    def validates_by(self, config: Config) -> str:
        return "" if config.split.val_is_test else class_of(config.model.method).validates_by

    def findings(self, config: Config) -> list[str]:
        return [*super().findings(config), *findings(config)]

    def outputs(self, model: Model, images: Tensor) -> list[Mapping[str, Tensor]]:
        together = torch.from_numpy(model.module.probabilities([{"image": images}]))
        return [{"probabilities": of_image} for of_image in together]

    def predictions(self, model: Model, outputs: Sequence[Mapping[str, Tensor]]) -> list[Prediction]:
        together = torch.stack([of_image["probabilities"] for of_image in outputs]).numpy()
        columns = set_columns(model.sets, model.classes, together)
        predictions = []
        for probabilities, of_set in zip(together, columns, strict=True):
            row = {"prediction": "", "confidence": "", **of_set}
            row |= {f"prob_{c}": f"{p:.6g}" for c, p in zip(model.classes, probabilities, strict=True)}
            row |= _scored(model, row)
            name = _named(model, probabilities, row)
            confidence = probabilities[model.classes.index(name)]
            row |= {"prediction": name, "confidence": f"{confidence:.6g}"}
            mark = ""
            if model.sets is not None and of_set[CERTAINTY] == UNSURE:
                mark = doubt(name, of_set[SET], model.sets["alpha"][model.classes.index(name)])
            predictions.append(Prediction(row, f"{name} ({confidence:.2f}){mark}"))
        return predictions

    def embed(self, model: Model, images: Tensor) -> Tensor | None:
        return model.module.embed(images)

    def conclude(self, model: Model, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        lines = counted_unsure(model.sets, model.classes, rows, model.module.judged_by)
        if model.sets is not None and model.threshold is not None:
            lines.append(
                "the decision (OK, REVIEW, REJECT) follows the threshold, not the classes that an image may be"
            )
        return lines

    def fit(self, run: Run) -> None:
        run.model.module.fit(run)
        if not run.trainer.is_global_zero or run.data.val_is_test:
            return
        if (validated := run.model.module.validated(run.data)) is not None:
            dataset, probabilities, _ = validated
            choose_sets(run, dataset.labels.numpy(), probabilities)

    def marks(self, config: Config, data: MVTecDataModule) -> list[str]:
        return class_of(config.model.method).marks(config, data)

    def exported(self, model: Model) -> nn.Module:
        require_onnx(model)
        return Probabilities(model.module, model.sets)


def _scored(model: Model, row: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of the good-or-defect score and its thresholds; none where no class is good."""
    if (score := score_of(row)) is None:
        return {}
    limits = {} if model.threshold is None else {"threshold": f"{model.threshold:.9g}"}
    return {"score": f"{score:.9g}", **limits}


def _named(model: Model, probabilities: np.ndarray, row: Mapping[str, str]) -> str:
    """Return the most probable class; where an operating point decided, of those that the decision leaves."""
    left = probabilities
    if model.threshold is not None and (decision := model.decision(row)) != REVIEW:
        good = np.array([name == GOOD for name in model.classes])
        left = np.where(good == (decision == OK), probabilities, -1.0)
    return model.classes[int(left.argmax())]


PROBLEM = Classification()
