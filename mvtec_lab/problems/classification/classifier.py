"""The classifier: a LightningModule around any backbone, and how it comes back from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from math import isfinite
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.seed import isolate_rng
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from mvtec_lab.config import Config, LossConfig, OptimizerConfig, SchedulerConfig
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.engine.run import Run
from mvtec_lab.engine.setup import rehearse_batch
from mvtec_lab.errors import LabError
from mvtec_lab.models.backbones import build, check_image_size, last_linear, stages, trainable_stages
from mvtec_lab.models.modes import PartlyFrozen
from mvtec_lab.models.optim import by_depth, configured
from mvtec_lab.models.weights import load_weights
from mvtec_lab.problems.classification import HEADS, METHOD, training
from mvtec_lab.problems.classification.activation import activation_maps
from mvtec_lab.problems.classification.base import Classifier, Evidence
from mvtec_lab.problems.classification.curriculum import Curriculum
from mvtec_lab.problems.classification.generator import Generated, balance
from mvtec_lab.problems.classification.heads import Setup
from mvtec_lab.problems.classification.losses import build_criterion

Settings = TypeVar("Settings", LossConfig, OptimizerConfig, SchedulerConfig)


SPLITS = {"train": "training", "val": "validation", "test": "test"}  # as keys begin -> as sentences say it


class TrainingDivergedError(RuntimeError):
    """Say that the loss became NaN or infinite."""


class BalancedAccuracy(MulticlassConfusionMatrix):
    """Average recall over the classes that occur, as scikit-learn does; torchmetrics' macro counts absent ones as 0."""

    def recalls(self) -> Tensor:
        """Return the recall of every class, [C]; NaN where it does not occur."""
        matrix = super().compute()
        return matrix.diag() / matrix.sum(dim=1)

    def compute(self) -> Tensor:
        return self.recalls().nanmean()


class DefectClassifier(Classifier):
    """Classify images [N, 3, S, S], normalised as the backbone's weights expect, by logits [N, C].

    Batches are ``{"image": [N, 3, S, S], "label": [N]}``, or have ``features`` instead of the image: what the frozen
    ``model.prefix`` makes of it. In training they may have ``target`` [N, C], where images are mixed, and ``index``
    [N], their places among the training images. ``model`` is the network: the backbone's stages in order, then its last
    layer. ``head`` makes the logits. Validation and test losses are plain cross-entropy (nats), whatever the training
    loss is, so that attempts can be compared.

    A head that retrieves, and ``generate``, need the training images' embeddings: call ``learn`` before training.

    Args:
        backbone: a backbone's name.
        classes: the class names in the order of their index, or C.
        weights: ``DEFAULT``, a TorchVision entry, a file, or None for random ones.
        unfreeze: the number of last stages that train beside the head, ``"all"``, or a list of stage names.
        warmup_epochs: epochs in which the head trains alone, before those stages join.
        class_counts: training images of each class, [C], for losses, class weights and heads that ask for them.
        loss: the training loss, or the fields of LossConfig that differ from its defaults; None: cross-entropy without
            class weights.
        head, scale, neighbours, generate: as in ModelConfig.
        optimizer, scheduler: as ``loss``; None: their defaults.
        image_size: S, pixels.

    Raises:
        LabError: an unknown backbone, stage, head, loss or weights name, weights that cannot be fetched, a size or
            settings that do not fit.
    """

    method = METHOD
    shows = (
        "What spoke for the predicted class",
        "Class-activation maps (HiResCAM): the ring is the peak, the blue line the outline of the defect's mask.",
    )
    hides = "There is no class-activation map for this backbone, or for neighbours that predict."

    def __init__(
        self,
        backbone: str = "resnet18",
        classes: int | Sequence[str] = 2,
        *,
        weights: str | None = "DEFAULT",
        unfreeze: int | str | Sequence[str] = 0,
        warmup_epochs: int = 0,
        class_counts: Sequence[int] | None = None,
        loss: LossConfig | Mapping[str, Any] | None = None,
        head: str = "linear",
        scale: float = 30.0,
        neighbours: int = 5,
        generate: bool = False,
        optimizer: OptimizerConfig | Mapping[str, Any] | None = None,
        scheduler: SchedulerConfig | Mapping[str, Any] | None = None,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        check_image_size(backbone, image_size)
        loaded = load_weights(backbone, weights)
        self.weights_name, self.weights_note = loaded.name, loaded.note
        self.classes = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        loss = _settings(LossConfig, loss or {"class_weights": "none"})
        self.optimizer, self.scheduler = _settings(OptimizerConfig, optimizer), _settings(SchedulerConfig, scheduler)
        self.save_hyperparameters(logger=False)
        self.hparams.update({"classes": self.classes, "weights": loaded.name, "loss": asdict(loss)})  # plain values
        self.hparams.update({"optimizer": asdict(self.optimizer), "scheduler": asdict(self.scheduler)})

        self.criterion = build_criterion(loss, self.classes, class_counts, scale)
        # Channels last is the faster layout of convolutions, by a tenth on a CPU and more on a GPU.
        network = build(backbone, self.criterion.outputs, weights=loaded.state_dict).to(
            memory_format=torch.channels_last
        )
        trained = {*trainable_stages(network, unfreeze), "head"}
        if generate or loss.name == "group_softmax":
            last_linear(network)  # raises where its features are maps
        if generate and (trained != {"head"} or HEADS[head].learns):
            raise LabError(
                "generate draws features of a frozen backbone for a head that trains on them: give unfreeze=0 and "
                "head=linear or head=cosine"
            )
        self.model = PartlyFrozen(dict(network.named_children()), trained)
        self.head = HEADS[head](Setup(self.model, self.classes, sum(class_counts or ()), scale, neighbours))
        self.model.train_only(trained)
        self._learned = False
        self._generated: Generated | None = None

        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(len(self.classes), average="micro"),
                "balanced_accuracy": BalancedAccuracy(len(self.classes)),
                "macro_f1": MulticlassF1Score(len(self.classes), average="macro"),
            }
        )
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self._seen: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in SPLITS}

    @classmethod
    def of(cls, config: Config, data: MVTecDataModule, weights: str | None) -> DefectClassifier:
        if data.smallest_batch == 1:
            cls.rehearse(config, data)
        return _of(config, data)(weights=weights)

    @classmethod
    def rehearse(cls, config: Config, data: MVTecDataModule) -> None:
        """Refuse an architecture that cannot be built, or cannot train on the smallest batch; it gets no values.

        Raises:
            LabError: what building the classifier would raise, or a batch of one image before a batch normalisation.
        """
        with torch.device("meta"), isolate_rng():
            classifier = _of(config, data)(weights=None)
            rehearse_batch(config, data, classifier.train().model)

    def fit(self, run: Run) -> None:
        training.fit(run)

    @property
    def trained_parts(self) -> list[list[nn.Parameter]]:
        """Return what training changes in each stage, in order, and in the head; nothing in a vote of neighbours."""
        trained = self.model.trained if self.head.uses_network else ()
        names = [*stages(self.model), "head"]
        parts = [list(self.model.get_submodule(name).parameters()) if name in trained else [] for name in names]
        parts[-1] += [p for p in self.head.parameters() if p.requires_grad]
        return parts

    @property
    def trained_parameters(self) -> list[nn.Parameter]:
        """Return what training changes; nothing in a vote of neighbours."""
        return [p for part in self.trained_parts for p in part]

    @property
    def changing(self) -> tuple[str, ...]:
        """Return the beginnings of those keys of the state that training changes."""
        own = (f"head.{name}" for name in self.head.changing)
        return ("criterion.", *own, *(f"model.{name}." for name in self.model.trained))

    @property
    def deferring(self) -> bool:
        """Return whether a part of the training that ``loss.defer`` puts off has not begun."""
        return self.criterion.deferred

    @property
    def learns(self) -> bool:
        """Return whether ``learn`` has to be called before training."""
        return self.head.learns or self.hparams["generate"]

    def learn(self, embeddings: Tensor, labels: Tensor, seed: int) -> str | None:
        """Take in the training images before training.

        Args:
            embeddings: what ``head.embed`` makes of their features, [M, D], in their order.
            labels: their classes, [M].
            seed: of embeddings that are generated.

        Returns:
            What was generated, in one line; None where nothing was.

        Raises:
            LabError: another number of images than the head was made for, or classes that nothing can be generated
                from.
        """
        self._learned = True
        self.head.remember(embeddings, labels)
        if not self.hparams["generate"]:
            return None
        self._generated = balance(embeddings, labels, len(self.classes), seed)
        return self._generated.summary(self.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class logits [N, C] of normalised images [N, 3, S, S]."""
        return self.logits({"image": images})

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the class logits of a batch, [N, C], from its features where it has them."""
        return self.criterion.scores(self._outputs(self._features(batch)))

    def _features(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["features"] if "features" in batch else self.model.extract(batch["image"])

    def _outputs(self, features: Tensor, index: Tensor | None = None) -> Tensor:
        return self.head(self.model.complete(features), features, index)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor | None:
        if not self.model.prefix:
            return None
        features = self.model.extract(images)
        if features.ndim == 3:  # [N, tokens, D]
            return features.mean(1)
        return features.mean((2, 3)) if features.ndim == 4 else features

    def configure_callbacks(self) -> list[pl.Callback]:
        return [Curriculum(self.model, self.criterion, self.hparams["warmup_epochs"], self.hparams["loss"]["defer"])]

    def on_fit_start(self) -> None:
        if self.learns and not self._learned:
            raise LabError(
                "this classifier has to know the training images: call learn(embeddings, labels, seed) first"
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        features, target = self._features(batch), batch.get("target", batch["label"])
        if self._generated is not None:
            features, target = self._generated.join(features, target)
        outputs = self._outputs(features, batch.get("index"))
        loss = self.criterion(outputs, target)
        scores, size = self.criterion.scores(outputs.detach()), len(batch["label"])
        own = target[:size]  # without those of generated features
        self._seen["train"].append((loss.detach(), scores[:size], own if own.ndim == 1 else own.argmax(1)))
        return loss if loss.requires_grad else None  # a vote of neighbours has nothing to train

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._judge("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._judge("test", batch)

    def _judge(self, split: str, batch: dict[str, Tensor]) -> None:
        logits = self.logits(batch).detach()
        self._seen[split].append((F.cross_entropy(logits, batch["label"]), logits, batch["label"]))

    # A step waits for nothing: its loss is looked at, and its images are counted, at the end of the epoch. Once per
    # batch this took longer than a GPU's step.
    def on_train_epoch_start(self) -> None:
        self._seen["train"].clear()  # what an epoch that was stopped has left

    def on_validation_epoch_start(self) -> None:
        self._seen["val"].clear()
        self._losses("train")  # where validation comes within an epoch, a training loss that is NaN is named first

    def on_test_epoch_start(self) -> None:
        self._seen["test"].clear()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:  # before validation, as callbacks look at training metrics after it
            self._log_epoch("train", self.train_metrics)

    def on_train_epoch_end(self) -> None:
        if self._seen["train"]:  # max_steps or max_time ended the epoch before its last batch
            self._log_epoch("train", self.train_metrics)

    def on_validation_epoch_end(self) -> None:
        self._log_epoch("val", self.val_metrics)
        balanced = self.val_metrics["balanced_accuracy"]
        assert isinstance(balanced, BalancedAccuracy)
        named = zip(self.classes, balanced.recalls(), strict=True)
        self.log_dict({f"val_recall/{name}": value for name, value in named if not value.isnan()}, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        self._log_epoch("test", self.test_metrics)

    def _losses(self, split: str) -> list[float]:
        """Return the losses of the batches seen in this epoch.

        Raises:
            TrainingDivergedError: one of them is NaN or infinite.
        """
        losses = torch.stack([loss for loss, _, _ in self._seen[split]]).tolist() if self._seen[split] else []
        for number, loss in enumerate(losses, start=1):
            if not isfinite(loss):
                raise TrainingDivergedError(
                    f"the {SPLITS[split]} loss is {loss} in epoch {self.current_epoch + 1}, batch {number}: try a "
                    f"smaller optimizer.lr than {self.optimizer.lr:g}"
                )
        return losses

    def _log_epoch(self, split: str, metrics: MetricCollection) -> None:
        """Log the mean loss and the metrics of the batches seen, and forget them."""
        losses = self._losses(split)
        _, scores, labels = zip(*self._seen[split], strict=True)
        self._seen[split].clear()
        size = sum(map(len, labels))
        mean = sum(loss * len(part) for loss, part in zip(losses, labels, strict=True)) / size
        metrics.reset()  # a validation by itself leaves tensors of inference mode, which none other may change
        metrics.update(torch.cat(scores), torch.cat(labels))
        together: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": size}
        self.log(f"{split}/loss", mean, prog_bar=True, sync_dist=True, **together)
        self.log_dict(metrics, **together)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.logits(batch).softmax(dim=1)

    def evidence(self, dataset: MVTecDataset, places: Sequence[int], classes: Tensor) -> Evidence | None:
        return activation_maps(self, dataset[list(places)]["image"], classes)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # Stages that join after the warm-up belong to the optimizer from the start; without a gradient they rest.
        # An optimizer wants parameters even where none trains.
        o, parameters = self.optimizer, self.trained_parameters or list(self.model.parameters())
        groups = parameters if o.first_stage == 1 else by_depth(self.trained_parts, o.lr, o.first_stage)
        return configured(self, groups, o, self.scheduler)


def _of(config: Config, data: MVTecDataModule) -> partial[DefectClassifier]:
    """Return what builds the classifier of a configuration, given its weights."""
    m = config.model
    return partial(
        DefectClassifier,
        m.backbone,
        data.classes,
        unfreeze=m.unfreeze,
        warmup_epochs=m.warmup_epochs,
        class_counts=list(data.counts()["train"].values()),
        loss=config.loss,
        head=m.head,
        scale=m.scale,
        neighbours=m.neighbours,
        generate=m.generate,
        optimizer=config.optimizer,
        scheduler=config.scheduler,
        image_size=config.data.image_size,
    )


def _settings(kind: type[Settings], given: Settings | Mapping[str, Any] | None) -> Settings:
    return kind(**given) if isinstance(given, Mapping) else given or kind()
