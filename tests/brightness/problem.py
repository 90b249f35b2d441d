"""The problem itself: a linear model of the mean colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn, optim

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.pictures import sheet
from mvtec_lab.engine.run import Judgement, Run
from mvtec_lab.problems.base import Prediction, Problem
from mvtec_lab.results import MISTAKES


class Regressor(pl.LightningModule):
    """Images [N, 3, S, S] in [0, 1] to their mean grey level, [N] in [0, 255]."""

    def __init__(self, start: float, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.linear = nn.Linear(3, 1)
        nn.init.constant_(self.linear.bias, start)

    def forward(self, images: Tensor) -> Tensor:
        return 255 * self.linear(images.mean((2, 3)))[:, 0]

    def _loss(self, batch: dict[str, Tensor], name: str) -> Tensor:
        loss = (self(batch["image"]) / 255 - batch["image"].mean((1, 2, 3))).square().mean()
        self.log(f"{name}/loss", loss, on_epoch=True, on_step=False, batch_size=len(batch["image"]))
        return loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._loss(batch, "train")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._loss(batch, "val")

    def configure_optimizers(self) -> optim.Optimizer:
        return optim.SGD(self.parameters(), self.hparams["lr"])


class Brightness(Problem):
    name = "brightness"

    def normalisation(self, config: Config) -> tuple[Sequence[float], Sequence[float]]:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def build(self, config: Config, data: MVTecDataModule, weights: str | None) -> Model:
        module = Regressor(config.model.options.get("start", 0.0), config.optimizer.lr)
        size, white = config.data.image_size, data.white
        return Model(module, config.model.method, self.classes(data), size, white, data.mean, data.std)

    def restore(self, content: Mapping[str, Any]) -> pl.LightningModule:
        module = Regressor(**content["hyper_parameters"])
        module.load_state_dict(content["state_dict"])
        return module

    def fit(self, run: Run) -> None:
        run.build_trainer("val/loss")
        run.fit()

    def judge(self, run: Run) -> Judgement:
        metrics, rows = {}, []
        for split in ("val", "test"):
            dataset = run.data.dataset(split)
            images = dataset[list(range(len(dataset)))]["image"]
            with torch.no_grad():
                predicted = run.model.module.eval()(images).numpy()
            truth = 255 * images.mean((1, 2, 3)).numpy()
            metrics[split] = {"error": float(np.abs(truth - predicted).mean()), "images": len(truth)}
            rows += [
                {"split": split, "path": sample.path, "truth": f"{t:.9g}", "prediction": f"{p:.9g}"}
                for sample, t, p in zip(dataset.samples, truth, predicted, strict=True)
            ]
        page = sheet([dataset.picture(0)], [f"{truth[0]:.0f}"], [None])
        return Judgement(
            metrics, rows, {MISTAKES: page}, {"pictures/first": page}, f"error {metrics['test']['error']:.2f}"
        )

    def outputs(self, model: Model, images: Tensor) -> list[Mapping[str, Tensor]]:
        with torch.no_grad():
            return [{"brightness": value} for value in model.module(images)]

    def predictions(self, model: Model, outputs: Sequence[Mapping[str, Tensor]]) -> list[Prediction]:
        values = [float(of_image["brightness"]) for of_image in outputs]
        return [Prediction({"prediction": f"{value:.6g}"}, f"{value:.1f}") for value in values]


PROBLEM = Brightness()
