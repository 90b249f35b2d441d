"""The classifier: a LightningModule around any TorchVision backbone, and how it comes back from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import takewhile
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from mvtec_lab.config import HEADS, RETRIEVING
from mvtec_lab.errors import LabError, unknown
from mvtec_lab.models.backbones import (
    build,
    check_image_size,
    last_layer,
    last_linear,
    stages,
    trainable_stages,
    use_cosine,
)
from mvtec_lab.models.finite import require_finite
from mvtec_lab.models.modes import evaluating
from mvtec_lab.models.optim import build_optimizer, build_scheduler
from mvtec_lab.models.weights import load_weights
from mvtec_lab.problems.classification.generator import balance
from mvtec_lab.problems.classification.losses import Criterion, GroupSoftmax
from mvtec_lab.problems.classification.retrieval import Retrieval


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite."""


class BalancedAccuracy(MulticlassConfusionMatrix):
    """Mean recall over the classes that occur, as scikit-learn has it; torchmetrics' macro counts absent ones as 0."""

    def recalls(self) -> Tensor:
        """Recall of every class, [C]; NaN where it does not occur."""
        matrix = super().compute()
        return matrix.diag() / matrix.sum(dim=1)

    def compute(self) -> Tensor:
        return self.recalls().nanmean()


class DefectClassifier(pl.LightningModule):
    """Images [N, 3, S, S], normalised, to logits [N, C].

    Batches are ``{"image": [N, 3, S, S], "label": [N]}``, or have ``features`` instead of the image: what ``prefix``
    makes of it; in training, ``target`` [N, C] where images are mixed, and ``index`` [N], their places among the
    training images. The network is ``self.model``: the backbone's stages in order, then its head, as one Sequential.
    Frozen stages stay in eval mode, batch normalisation and dropout included.
    Validation and test losses are plain cross-entropy (nats), whatever the training loss, so that attempts compare.

    A head that retrieves and ``generate`` know the training images' embeddings, which ``learn`` is to be given before
    training: what the stages make of them as they are before training, up to the head.

    Args:
        backbone: a TorchVision classification model by name.
        num_classes: C.
        classes: their names; numbers where None.
        weights: ``DEFAULT``, a TorchVision entry, a file, or None for random ones.
        unfreeze: how many of the last stages train beside the head, ``"all"``, or a list of stage names.
        warmup_epochs: epochs in which the head trains alone, before those stages join.
        class_counts: training images of each class, [C], for losses that ask for them.
        class_weights: of the training loss, [C].
        loss, loss_options, posthoc: name, own knobs and post-hoc adjustment, as in ``Criterion``.
        defer: share of the epochs without ``class_weights``, or before ``group_softmax``.
        head, scale, neighbours: as in ModelConfig.
        memory: images that a head that retrieves remembers.
        generate: as in ModelConfig.
        optimizer, lr, weight_decay, momentum: as in OptimizerConfig.
        scheduler, step_size, gamma, scheduler_patience: as in SchedulerConfig.
        image_size, white: of the images, as in DataConfig; a checkpoint carries them for prediction.
        mean, std: of RGB in [0, 1]; None: what the weights were trained with.

    Raises:
        LabError: an unknown backbone, stage or weights name, weights that cannot be had, a size that does not fit.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        backbone: str = "resnet18",
        num_classes: int = 2,
        *,
        classes: Sequence[str] | None = None,
        weights: str | None = "DEFAULT",
        unfreeze: int | str | Sequence[str] = 0,
        warmup_epochs: int = 0,
        class_counts: Sequence[int] | None = None,
        class_weights: Sequence[float] | None = None,
        loss: str = "cross_entropy",
        loss_options: Mapping[str, Any] | None = None,
        posthoc: float = 0.0,
        defer: float = 0.0,
        head: str = "linear",
        scale: float = 30.0,
        neighbours: int = 5,
        memory: int = 0,
        generate: bool = False,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        scheduler: str = "none",
        step_size: int = 10,
        gamma: float = 0.1,
        scheduler_patience: int = 3,
        image_size: int = 224,
        white: int = 65_535,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        check_image_size(backbone, image_size)
        loaded = load_weights(backbone, weights)
        self.weights_name, self.weights_note = loaded.name, loaded.note
        self.mean, self.std = list(mean or loaded.mean), list(std or loaded.std)
        self.classes = list(classes or map(str, range(num_classes)))
        self.hparams.update({"mean": self.mean, "std": self.std, "classes": self.classes, "weights": loaded.name})

        options = dict(loss_options or {})
        if loss == "ldam":
            options.setdefault("scale", scale)  # its margins are between cosines
        self.criterion: Criterion
        if loss == "group_softmax":
            good = self.classes.index("good") if "good" in self.classes else None
            self.criterion = GroupSoftmax(num_classes, class_counts, posthoc, good=good, **options)
        else:
            self.criterion = Criterion(loss, num_classes, class_counts, posthoc, **options)
        # Channels last is the faster layout of convolutions, by a tenth on a CPU and more on a GPU.
        self.model = build(backbone, self.criterion.outputs, weights=loaded.state_dict).to(
            memory_format=torch.channels_last
        )
        self.trained = {*trainable_stages(self.model, unfreeze), "head"}
        self.retrieval: Retrieval | None = None
        if head not in HEADS:
            raise unknown("head", head, HEADS)
        if head != "linear" or generate or loss == "group_softmax":
            features = last_linear(self.model).in_features  # raises where they are maps
        if generate and (self.trained != {"head"} or head in RETRIEVING):
            raise LabError("generate makes up features of a frozen backbone for a head of its own: give unfreeze=0")
        if head == "cosine":
            use_cosine(self.model, scale)
        elif head != "linear":
            self.retrieval = Retrieval(features, self.classes, head, neighbours, memory)
            self.encoder = deepcopy(nn.Sequential(*list(self.model)[len(self.prefix) : -1]))
            self.encoder.requires_grad_(False)
        self._batch: int | None = None  # of ``extract_in``
        self._taught = 0  # how many images ``learn`` was given
        self._made_up: tuple[Tensor, Tensor] | None = None  # features and labels
        self.deferring = False  # whether something that ``defer`` puts off has not begun
        self._active = self.trained
        self._freeze()

        self.register_buffer("class_weights", None if class_weights is None else torch.tensor(class_weights).float())
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "balanced_accuracy": BalancedAccuracy(num_classes),
                "macro_f1": MulticlassF1Score(num_classes, average="macro"),
            }
        )
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.val_recall = BalancedAccuracy(num_classes)

    @property
    def stages(self) -> list[str]:
        """The backbone's stages, in order."""
        return stages(self.model)

    @property
    def prefix(self) -> list[str]:
        """The leading parts of the network that never train, in order: what they make of an image never changes."""
        return list(takewhile(lambda name: name not in self.trained, (name for name, _ in self.model.named_children())))

    @property
    def trained_parameters(self) -> list[nn.Parameter]:
        """What training changes; nothing in a vote of neighbours."""
        trained = [child for name, child in self.model.named_children() if name in self.trained]
        if self.hparams["head"] in ("retrieval", "knn"):
            trained = []  # nothing of the network has a part in the logits
        if self.retrieval is not None:
            trained.append(self.retrieval)
        return [p for child in trained for p in child.parameters()]

    @property
    def changing(self) -> tuple[str, ...]:
        """How the keys of the state begin that training changes."""
        return ("retrieval.", "criterion.", *(f"model.{name}." for name in self.trained))

    @property
    def learns(self) -> bool:
        """Whether ``learn`` has to be called before training."""
        return self.retrieval is not None or self.hparams["generate"]

    def forward(self, images: Tensor) -> Tensor:
        return self.logits({"image": images})

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Class logits of a batch, [N, C], from its features where it has them."""
        return self.criterion.scores(self._outputs(self._prefixed(batch)))

    def extract(self, images: Tensor, batch: int | None = None) -> Tensor:
        """Return the features that ``prefix`` makes of images, [N, ...].

        Args:
            batch: how many images it is given at once, the last ones filled up, so that an image's features do not
                depend on N; None: as ``extract_in`` says, or all of them.
        """
        batch, prefix = batch or self._batch, slice(len(self.prefix))
        if batch is None:
            return self._run(images, prefix)
        parts = ((part, torch.arange(batch, device=part.device) % len(part)) for part in images.split(batch))
        return torch.cat([self._run(part[filled], prefix)[: len(part)] for part, filled in parts])

    def extract_in(self, batch: int) -> None:
        """Let ``prefix`` be given this many images at once from now on, in training as well."""
        self._batch = batch

    def embed(self, features: Tensor) -> Tensor:
        """What the head saw of images before training, from what ``prefix`` makes of them: [N, D]."""
        return features if self.retrieval is None else self.encoder(features)

    def learn(self, embeddings: Tensor, labels: Tensor, seed: int) -> str | None:
        """Take in the training images before training: embeddings [M, D] in their order, and classes [M].

        Args:
            seed: of what is made up.

        Returns:
            What was made up, in one line.

        Raises:
            LabError: fewer images than neighbours, or classes that nothing can be made up from.
        """
        self._taught = len(labels)
        if self.retrieval is not None:
            self.retrieval.remember(embeddings, labels)
        if not self.hparams["generate"]:
            return None
        made = balance(embeddings, labels, len(self.classes), seed)
        self._made_up = made.embeddings, made.labels
        counts = zip(self.classes, made.made, made.filtered, made.purified, made.kept, strict=True)
        told = [f"{name} {kept} ({n} less {f} filtered, {p} purified)" for name, n, f, p, kept in counts if n]
        return f"features made up: {', '.join(told) or 'none, all classes are as frequent'}"

    def _prefixed(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["features"] if "features" in batch else self.extract(batch["image"])

    def _outputs(self, features: Tensor, index: Tensor | None = None) -> Tensor:
        """Of the last layer, [N, K]; ``index``: places in memory that are not to be retrieved."""
        outputs = self._run(features, slice(len(self.prefix), None))
        return outputs if self.retrieval is None else self.retrieval(outputs, self.embed(features), index)

    def compile_network(self) -> None:
        """Let ``torch.compile`` translate the network when it first runs; dropout then draws other numbers."""
        self._run = torch.compile(self._run)  # type: ignore[method-assign]

    def _run(self, values: Tensor, part: slice) -> Tensor:
        for child in list(self.model)[part]:
            values = child(values)
        return values

    def train(self, mode: bool = True) -> DefectClassifier:
        super().train(mode)
        for name, child in self.model.named_children():
            child.train(mode and name in self._active)
        if self.retrieval is not None:
            self.encoder.eval()
        return self

    def _freeze(self) -> None:
        for name, child in self.model.named_children():
            child.requires_grad_(name in self._active)
        self.train(self.training)

    def on_fit_start(self) -> None:
        if self.learns and not self._taught:
            raise LabError(
                "this classifier has to know the training images: call learn(embeddings, labels, seed) first"
            )

    def on_train_epoch_start(self) -> None:
        puts_off = int(self.hparams["defer"] * (self.trainer.max_epochs or 1))
        self.deferring = self.current_epoch < puts_off
        grouped = isinstance(self.criterion, GroupSoftmax) and puts_off > 0
        if isinstance(self.criterion, GroupSoftmax):
            self.criterion.begun = not self.deferring
        if grouped and self.current_epoch == puts_off:
            self.criterion.begin(last_layer(self.model))
            self.trainer.optimizers[0].state.clear()  # of outputs that had no part so far
        head_alone = self.current_epoch < self.hparams["warmup_epochs"] or (grouped and not self.deferring)
        active = {"head"} if head_alone else self.trained
        if active != self._active:
            self._active = active
            self._freeze()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        features, target = self._prefixed(batch), batch.get("target", batch["label"])
        if self._made_up is not None:
            features, target = self._with_made_up(features, target)
        outputs = self._outputs(features, batch.get("index") if self.retrieval is not None else None)
        loss = self.criterion(outputs, target, None if self.deferring else self.class_weights)
        self._require_finite(loss, "training", batch_idx)
        scores, size = self.criterion.scores(outputs.detach()), len(batch["label"])
        self.train_metrics.update(scores[:size], target[:size] if target.ndim == 1 else target.argmax(1))
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size, prog_bar=True, sync_dist=True)
        self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
        return loss if loss.requires_grad else None  # a vote of neighbours has nothing to train

    def _with_made_up(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch and its share of what was made up, drawn at random: in an epoch about as many as there are."""
        assert self._made_up is not None
        made, of_class = self._made_up
        if not len(made):
            return features, labels
        share = len(labels) * len(made) / self._taught
        drawn = torch.randint(len(made), (int(share + torch.rand(())),))  # up or down by chance: never always down
        features = torch.cat([features, made[drawn].to(features)])
        return features, torch.cat([labels, of_class[drawn].to(labels)])

    def _require_finite(self, loss: Tensor, what: str, batch_idx: int) -> None:
        if not torch.isfinite(loss):
            raise TrainingDivergedError(
                f"the {what} loss is {loss.item()} in epoch {self.current_epoch + 1}, batch {batch_idx + 1}: "
                f"try a smaller optimizer.lr than {self.hparams['lr']:g}"
            )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self._evaluate(batch, "val", self.val_metrics, batch_idx)
        self.val_recall.update(logits, batch["label"])

    def on_validation_epoch_end(self) -> None:
        named = zip(self.classes, self.val_recall.recalls(), strict=True)
        self.log_dict({f"val_recall/{name}": value for name, value in named if not value.isnan()}, sync_dist=True)
        self.val_recall.reset()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_metrics, batch_idx)

    def _evaluate(self, batch: dict[str, Tensor], name: str, metrics: MetricCollection, batch_idx: int) -> Tensor:
        logits = self.logits(batch)
        loss = F.cross_entropy(logits, batch["label"])
        self._require_finite(loss, "validation" if name == "val" else name, batch_idx)
        self.log(f"{name}/loss", loss, batch_size=len(logits), prog_bar=True, sync_dist=True)
        metrics.update(logits, batch["label"])
        self.log_dict(metrics, on_epoch=True)
        return logits

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.logits(batch).softmax(dim=1)

    @torch.inference_mode()
    def probabilities(self, batches: Iterable[dict[str, Tensor]]) -> np.ndarray:
        """Return the class probabilities of every image of all batches, in their order: float32 [N, C], in full
        precision.

        Raises:
            LabError: some are NaN.
        """
        parts = []
        with evaluating(self):
            for batch in batches:
                on_device = {name: value.to(self.device) for name, value in batch.items()}
                parts.append(self.logits(on_device).float().softmax(dim=1).cpu())
        return require_finite(torch.cat(parts), "the class probabilities").numpy()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        # Stages that join after the warm-up belong to the optimizer from the start; without a gradient they rest.
        # An optimizer wants parameters even where none trains.
        parameters = self.trained_parameters or list(self.model.parameters())
        optimizer = build_optimizer(h["optimizer"], parameters, h["lr"], h["weight_decay"], h["momentum"])
        schedule = build_scheduler(
            h["scheduler"],
            optimizer,
            epochs=self.trainer.max_epochs or 1,
            steps=int(self.trainer.estimated_stepping_batches) if h["scheduler"] == "onecycle" else 0,
            step_size=h["step_size"],
            gamma=h["gamma"],
            patience=h["scheduler_patience"],
        )
        return optimizer if schedule is None else {"optimizer": optimizer, "lr_scheduler": schedule}  # type: ignore[return-value]


def restore(content: Mapping[str, Any]) -> DefectClassifier:
    """Return the classifier of a checkpoint's content (``engine.model.read_checkpoint``)."""
    hparams = dict(content["hyper_parameters"])
    weights = hparams.pop("weights", None)
    classifier = DefectClassifier(**hparams, weights=None)
    classifier.load_state_dict(content["state_dict"])
    classifier.weights_name = classifier.hparams["weights"] = weights
    return classifier
