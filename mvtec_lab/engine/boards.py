"""The loggers of a run: Lightning's own, with tags in the order in which one looks at them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from mvtec_lab.checks import loggers_of
from mvtec_lab.config import Config
from mvtec_lab.engine.loggers import LOGGED
from mvtec_lab.errors import redacted
from mvtec_lab.knobs import settings
from mvtec_lab.results import write_whole

PARTS = ("train", "val")  # TensorBoard draws a tag of several runs in one chart: these are runs below the run's own

# The keys that attempts usually differ in, for a run that is part of no grid: a page with every key could not be read.
SHOWN = [
    "attempt",
    "seed",
    "model.method",
    "model.backbone",
    "model.weights",
    "model.unfreeze",
    "model.warmup_epochs",
    "model.head",
    "model.generate",
    "loss.name",
    "loss.class_weights",
    "loss.defer",
    "loss.posthoc",
    "data.image_size",
    "data.fit",
    "data.tile",
    "data.batch_size",
    "data.sampler",
    "data.imbalance",
    "data.per_class",
    "augment.transforms",
    "augment.mix",
    "augment.paste",
    "optimizer.name",
    "optimizer.lr",
    "optimizer.weight_decay",
    "scheduler.name",
    "trainer.max_epochs",
    "trainer.patience",
    "split.fold",
]


def hyperparameters(config: Config, varied: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what tables of runs show of a configuration: attempt, seed, and the keys that vary in its sweep.

    Args:
        config: of the run.
        varied: those keys; None: the run is part of no grid, and what attempts usually differ in is shown.
    """
    values = settings(config) | {"augment.transforms": ", ".join(config.augment.transforms) or "none"}
    shown = {key: values.get(key) for key in (SHOWN if varied is None else ("attempt", "seed", *varied))}
    return {key: value if isinstance(value, int | float) else redacted(str(value)) for key, value in shown.items()}


class _FromOne:
    """Count epochs from 1, as the lab does everywhere; Lightning counts from 0."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        counted = {"epoch": metrics["epoch"] + 1} if "epoch" in metrics else {}
        super().log_metrics({**metrics, **counted}, step)  # type: ignore[misc]


class Board(TensorBoardLogger):
    """TensorBoard's events alone: config.yaml says more than hparams.yaml.

    TensorBoard sorts its charts by their names, so losses come first, then other metrics, the optimizer, and pictures.
    ``train/loss`` and ``val/loss`` are the tag ``loss`` of the runs ``train`` and ``val`` below the run's own: so they
    share a chart, which two tags cannot.
    """

    def __init__(self, run_dir: Path, purge_step: int | None) -> None:
        super().__init__(run_dir, name="", version="", default_hp_metric=False, purge_step=purge_step)
        self._purge_step, self._parts = purge_step, dict[str, SummaryWriter]()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, each where its chart is; Lightning's count of epochs, which begins with 0, becomes the lab's."""
        own: dict[str, float] = {}
        for key, value in metrics.items():
            part, _, name = key.partition("/")
            if key == "epoch":
                own["optimizer/epoch"] = value + 1
            elif part in PARTS:
                self._part(part).add_scalar(name if name == "loss" else f"metrics/{name}", value, step)
            elif part == "val_recall":
                self._part("val").add_scalar(f"metrics/recall_{name}", value, step)
            else:
                own[key] = value
        if own:
            super().log_metrics(own, step)

    def _part(self, name: str) -> SummaryWriter:
        if name not in self._parts:
            self._parts[name] = SummaryWriter(os.path.join(self.log_dir, name), purge_step=self._purge_step)  # noqa: PTH118
        return self._parts[name]

    def save(self) -> None:
        """Write the events that are still in memory."""
        for writer in (self.experiment, *self._parts.values()):
            writer.flush()

    def finalize(self, status: str) -> None:
        """Close the events; where a run failed, its own error counts, not that they cannot be written."""
        with suppress(OSError) if status == "failed" else nullcontext():
            super().finalize(status)
            for writer in self._parts.values():
                writer.close()


class _MLFlow(_FromOne, MLFlowLogger):
    pass


class _Wandb(_FromOne, WandbLogger):
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Leave the run open: Lightning ends it with the training, before the test images are judged."""


def build_loggers(config: Config, run_dir: Path, step: int | None) -> list[Logger]:
    """Return the loggers that ``trainer.logger`` names.

    MLflow and Weights & Biases go where their own environment variables say (MLFLOW_TRACKING_URI, WANDB_PROJECT ...):
    without any into ``mlflow.db`` of the working directory, and into the run's directory, offline.

    Args:
        config: of the run.
        run_dir: where TensorBoard's events go.
        step: the optimizer step that the run continues from; None where it starts.
    """
    path, sweep = run_dir / LOGGED, run_dir.resolve().parent.name
    begun = json.loads(path.read_text(encoding="utf-8")) if step is not None and path.exists() else {}
    loggers: list[Logger] = []
    for name in loggers_of(config.trainer.logger):
        if name == "tensorboard":
            loggers.append(Board(run_dir, step))
        elif name == "mlflow":
            import mlflow

            loggers.append(
                _MLFlow(
                    os.environ.get("MLFLOW_EXPERIMENT_NAME", "mvtec_lab"),
                    run_name=run_dir.name,
                    tracking_uri=mlflow.get_tracking_uri(),
                    tags={"attempt": config.attempt, "sweep": sweep},
                    run_id=begun.get(name),
                )
            )
        else:
            loggers.append(
                _Wandb(
                    run_dir.name,
                    save_dir=run_dir,
                    id=begun.get(name),
                    project=os.environ.get("WANDB_PROJECT", "mvtec_lab"),
                    group=sweep,
                    mode=os.environ.get("WANDB_MODE", "offline"),
                    settings={"console": "off", "silent": True},
                )
            )
    if getattr(rank_zero_only, "rank", 0) == 0:
        for logger in loggers:
            if isinstance(logger, _MLFlow):
                begun["mlflow"] = logger.run_id
            elif isinstance(logger, _Wandb):
                begun["wandb"] = logger.experiment.id
        if begun:
            write_whole(path, json.dumps(begun) + "\n")
    return loggers


def board_of(loggers: Collection[Logger]) -> Board | None:
    """Return TensorBoard's logger; None where it was not asked for."""
    return next((logger for logger in loggers if isinstance(logger, Board)), None)


def log_results(
    loggers: Collection[Logger], shown: Mapping[str, Any], metrics: Mapping[str, dict[str, Any]], decides: str
) -> None:
    """Log the settings of a run and the metrics of its judgement: TensorBoard's hyperparameters, others' summary.

    TensorBoard gives each metric a column in HParams and a chart of a single point: it gets what decides and the loss.

    Args:
        loggers: of the run.
        shown: as ``hyperparameters`` returns them.
        metrics: by split.
        decides: the key of the metric by which attempts are compared.
    """
    for logger in loggers:
        if isinstance(logger, Board):
            columns = [(split, key) for key in dict.fromkeys((decides, "loss")) for split in ("test", "val")]
            values = {(split, key): metrics.get(split, {}).get(key) for split, key in columns}
            scores = {f"{split}_best/{key}": v for (split, key), v in values.items() if isinstance(v, float)}
            logger.log_hyperparams(dict(shown), scores)
            continue
        scores = {
            f"{split}_{key}": value  # as in runs.csv
            for split, of_split in metrics.items()
            for key, value in of_split.items()
            if isinstance(value, float)
        }
        logger.log_hyperparams(dict(shown))
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(scores)
        else:
            logger.log_metrics(scores)


def close(loggers: Collection[Logger], status: str) -> None:
    """End the runs of the loggers, so that the next run of this process begins its own.

    Args:
        loggers: of the run.
        status: success or failed.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(status == "failed"))
        else:
            logger.finalize(status)
