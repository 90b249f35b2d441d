"""Classification as a problem of the lab."""

from __future__ import annotations

from torch import Tensor, nn

from mvtec_lab.config import Config
from mvtec_lab.engine.model import Model
from mvtec_lab.problems.base import Prediction, Problem
from mvtec_lab.problems.classification.build import build, rehearse
from mvtec_lab.problems.classification.classifier import restore
from mvtec_lab.problems.classification.exported import Probabilities
from mvtec_lab.problems.classification.judging import judge
from mvtec_lab.problems.classification.rules import findings
from mvtec_lab.problems.classification.training import fit


class Classification(Problem):
    """Learn from labelled images which class an image shows: good, or one of the defect types."""

    name = "classification"
    rehearse = staticmethod(rehearse)
    build = staticmethod(build)
    restore = staticmethod(restore)
    fit = staticmethod(fit)
    judge = staticmethod(judge)

    def single_device(self, config: Config) -> str | None:
        heads = {"knn": "model.head=knn trains nothing that several devices could share"}
        return heads.get(config.model.head)

    def chosen_on_val(self, config: Config) -> str:
        if config.model.head == "knn":
            return super().chosen_on_val(config)
        return f"the choice of the epoch by {config.trainer.monitor}"

    def findings(self, config: Config) -> list[str]:
        return [*super().findings(config), *findings(config)]

    def predict(self, model: Model, images: Tensor) -> list[Prediction]:
        predictions = []
        for probabilities in model.module.probabilities([{"image": images}]):
            name, confidence = model.classes[probabilities.argmax()], probabilities.max()
            row = {"prediction": name, "confidence": f"{confidence:.6g}"}
            row |= {f"prob_{c}": f"{p:.6g}" for c, p in zip(model.classes, probabilities, strict=True)}
            predictions.append(Prediction(row, f"{name} ({confidence:.2f})"))
        return predictions

    def exported(self, model: Model) -> nn.Module:
        return Probabilities(model.module)


PROBLEM = Classification()
