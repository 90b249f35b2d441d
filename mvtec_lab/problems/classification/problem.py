"""Classification as a problem of the lab. Light to import: what needs torch is imported where it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mvtec_lab.problems.base import Method, Prediction, Problem
from mvtec_lab.problems.classification import rules

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
    from torch import Tensor, nn

    from mvtec_lab.config import Config
    from mvtec_lab.data.datamodule import MVTecDataModule
    from mvtec_lab.engine.model import Model
    from mvtec_lab.engine.run import Judgement, Run


class Classification(Problem):
    """Which class an image shows: good, or one of the defect types. Learnt from labelled images."""

    name = "classification"

    def without_effect(self, method: Method) -> Mapping[str, str]:
        return rules.without_effect(method)

    def check(self, config: Config) -> None:
        rules.check(config)

    def single_device(self, config: Config) -> str | None:
        heads = {"knn": "model.head=knn trains nothing that several devices could share"}
        return heads.get(config.model.head)

    def findings(self, config: Config) -> list[str]:
        return [*super().findings(config), *rules.findings(config)]

    def rehearse(self, config: Config, data: MVTecDataModule) -> None:
        from mvtec_lab.problems.classification.build import rehearse

        rehearse(config, data)

    def build(self, config: Config, data: MVTecDataModule, weights: str | None) -> Model:
        from mvtec_lab.problems.classification.build import build

        return build(config, data, weights)

    def restore(self, content: Mapping[str, Any]) -> LightningModule:
        from mvtec_lab.problems.classification.classifier import restore

        return restore(content)

    def fit(self, run: Run) -> None:
        from mvtec_lab.problems.classification.training import fit

        fit(run)

    def judge(self, run: Run) -> Judgement:
        from mvtec_lab.problems.classification.judging import judge

        return judge(run)

    def predict(self, model: Model, images: Tensor) -> list[Prediction]:
        predictions = []
        for probabilities in model.module.probabilities([{"image": images}]):
            name, confidence = model.classes[probabilities.argmax()], probabilities.max()
            row = {"prediction": name, "confidence": f"{confidence:.6g}"}
            row |= {f"prob_{c}": f"{p:.6g}" for c, p in zip(model.classes, probabilities, strict=True)}
            predictions.append(Prediction(row, f"{name} ({confidence:.2f})"))
        return predictions

    def exported(self, model: Model) -> nn.Module:
        from mvtec_lab.problems.classification.exported import Probabilities

        return Probabilities(model.module)


PROBLEM = Classification()
