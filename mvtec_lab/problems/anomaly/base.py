"""The base of all anomaly models: a model learns good images and scores any image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn, optim

from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.models.buffers import resize_buffers
from mvtec_lab.models.finite import finite_loss, require_finite
from mvtec_lab.models.optim import Parameters, build_optimizer, one_kernel
from mvtec_lab.models.weights import Weights
from mvtec_lab.problems.base import Method, checked_options
from mvtec_lab.problems.padding import at, inside_of

# Return the good training images as normalised batches [N, 3, S, S] on the model's device, always in the same order. A
# model calls it once for each pass that it needs.
Batches = Callable[[], Iterable[Tensor]]


TOP = 0.01  # of a map's pixels, which ``score=top`` averages: as Dinomaly (Guo et al., CVPR 2025) and RAD do


class Scores(NamedTuple):
    """Hold raw scores of images: float32, of no fixed range; the higher, the less an image is like the good ones."""

    image: Tensor  #: [N]
    map: Tensor | None  #: [N, H, W] over the whole image, of any H and W; None: the method does not localise


class AnomalyModel(pl.LightningModule):
    """Learn good images and score any image.

    A method is a subclass. It sets ``method`` and defines ``forward``, and ``prepare`` if it is fitted without
    gradients, or ``loss`` if ``method.trains``. A constructor of its own hands all settings on::

        METHOD = Method("mean_image", "anomaly", home="my_package:MeanImage", trains=False, draws=False, backbone=False)

        @register_method  # in a package: the entry point mean_image = "my_package:METHOD" of mvtec_lab.methods
        class MeanImage(AnomalyModel):
            method = METHOD

            def __init__(self, **settings):
                super().__init__(**settings)
                self.register_buffer("expected", torch.zeros(0))

            def prepare(self, batches):
                self.expected = torch.cat(list(batches())).mean(0)

            def forward(self, images):
                errors = (images - self.expected).square().mean(1)
                return Scores(errors.mean((1, 2)), errors)

    ``BackboneModel``, ``FrozenFeatureModel``, ``PretextModel`` and ``ReconstructionModel`` hold what several methods
    share. Fitted buffers may have any shape: ``load_state_dict`` takes the checkpoint's.

    Args:
        backbone, weights: as in ``ModelConfig``; a method with networks of its own does not read them.
        image_size: pixels a side of the images.
        padded: whether images are letterboxed.
        optimizer, lr, weight_decay, momentum: as in ``OptimizerConfig``, for a method that trains.
        options: the method's own, by name; an option that is missing or None has its default.

    Raises:
        LabError: an option that the method does not know, or a value that it cannot work with.
    """

    method: ClassVar[Method]
    channel_mean: Tensor
    channel_std: Tensor

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        weights: str | None = "DEFAULT",
        image_size: int = 128,
        padded: bool = False,
        optimizer: str = "adam",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = checked_options(self.method, options)
        self._score = self.options.pop("score", None)
        self.save_hyperparameters(logger=False)
        self.use_weights(Weights("random"))
        self.remarks: list[str] = []  # where the fit is not what was asked for; each becomes a warning of the run

    def use_weights(self, weights: Weights) -> None:
        """Take over the normalisation that weights expect, and what they say about themselves."""
        self.mean, self.std = weights.mean, weights.std  # of RGB in [0, 1]
        self.weights_name, self.weights_note = weights.name, weights.note
        for name, values in (("channel_mean", self.mean), ("channel_std", self.std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def plan(self, images: int, device: torch.device) -> None:
        """Refuse ahead what fitting would be refused for.

        This is called on a model that was built on torch's meta device: shapes are known, values are not.

        Args:
            images: number of good training images.
            device: where the model will be fitted.

        Raises:
            LabError: too few images, or too little memory.
        """

    def prepare(self, batches: Batches) -> None:
        """Fit the model without gradients, before training if the method trains.

        Where it does not, copies of the fitted model are fitted again, to other images: nothing may be left of the fit
        before.
        """

    def loss(self, images: Tensor) -> Tensor:
        """Return the loss of a batch of normalised good images [N, 3, S, S], in training and in validation."""
        raise NotImplementedError

    @property
    def frozen(self) -> nn.Module | None:
        """Return the part that never changes: images [N, 3, S, S] to features [N, ...], float32; None: there is none.

        What it makes of training images is kept in the lab's cache: batches then have ``features`` in place of images,
        and where images are letterboxed ``inside``. A method with such a part defines ``loss_of`` as well.
        """
        return None

    def know(self, images: MVTecDataset) -> None:
        """Take over what is known of the defects among the training images; it is called after ``prepare``.

        Batches say by ``index`` which of them they hold.
        """

    def loss_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch of the data module, by default that of its images."""
        return self.loss(batch["image"])

    def finish(self, batches: Batches) -> None:
        """Fit what depends on trained weights, after training."""

    def forward(self, images: Tensor) -> Scores:
        """Score normalised images [N, 3, S, S], in eval mode."""
        raise NotImplementedError

    def scores(self, images: Tensor) -> Scores:
        """Score images as ``forward`` does, or by their maps, if ``model.options.score`` says so."""
        scores: Scores = self(images)
        if self._score is None or scores.map is None:
            return scores
        return scores._replace(image=of_map(scores.map, self._score, self.inside(images)))

    def scored(self, images: Tensor) -> Scores:
        """Return the same.

        Raises:
            LabError: a score or a map holds NaN or infinity.
        """
        scores = self.scores(images)
        for values, what in zip(scores, ("the scores", "the maps"), strict=True):
            if values is not None:
                require_finite(values, what)
        return scores

    def embed(self, images: Tensor) -> Tensor | None:
        """Return features as ``Problem.embed`` does."""
        return None

    def inside(self, images: Tensor) -> Tensor | None:
        """Return where images lie in normalised squares [N, 3, S, S]: [N, S, S] bool; None: there is no padding.

        A method whose score depends on places leaves padding out: ``problems.padding.within`` does so for a map.
        """
        return inside_of({"image": images}, self.hparams["padded"])

    def pictures(self, images: Tensor) -> Tensor:
        """Return normalised images [N, 3, S, S] as float32 RGB in [0, 1]."""
        return images.float() * self.channel_std + self.channel_mean

    def on_train_start(self) -> None:
        self.train()  # Lightning leaves a module in the mode that it finds, and ``prepare`` needs eval mode

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = finite_loss(self.loss_of(batch))
        self.log(
            "train/loss", loss, on_step=False, on_epoch=True, batch_size=len(next(iter(batch.values()))), prog_bar=True
        )
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss = finite_loss(self.loss_of(batch))
        self.log("val/loss", loss, batch_size=len(next(iter(batch.values()))), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return self.optimizer_of(p for p in self.parameters() if p.requires_grad)

    def optimizer_of(self, parameters: Parameters) -> optim.Optimizer:
        """Return an optimiser of these parameters, or of groups of them, with the model's settings."""
        h = self.hparams
        return build_optimizer(h["optimizer"], parameters, h["lr"], h["weight_decay"], h["momentum"], one_kernel(self))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        resize_buffers(self, state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def of_map(maps: Tensor, how: str, inside: Tensor | None = None) -> Tensor:
    """Return the scores [N] of images from their maps [N, H, W].

    Args:
        how: ``max``, the maximum; ``top``, the mean of the highest ``TOP`` of the pixels, of one at least.
        inside: as AnomalyModel.inside says; the share is of the pixels that show the image.
    """
    pixels = maps.flatten(1)
    if how == "max":
        return pixels.amax(1)
    highest = pixels.topk(max(1, round(TOP * pixels.shape[1]))).values
    if inside is None:
        return highest.mean(1)
    counts = (TOP * at(inside, maps.shape).flatten(1).sum(1, keepdim=True)).round().clamp_min(1)
    counted = torch.arange(highest.shape[1], device=maps.device) < counts
    return (highest * counted).sum(1) / counts[:, 0]
