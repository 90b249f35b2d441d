"""What every one-class method is: it learns good images alone, and scores any image; the higher, the less like them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn, optim

from mvtec_lab.errors import LabError
from mvtec_lab.models.finite import require_finite
from mvtec_lab.models.optim import build_optimizer

# Good training images as normalised batches [N, 3, S, S], on the method's device, in the same order each time; asked
# for as often as a method needs to see them all.
Batches = Callable[[], Iterable[Tensor]]


class Scores(NamedTuple):
    """Raw, of no fixed range; both float32."""

    image: Tensor  # [N]
    map: Tensor | None  # [N, H, W], any H and W, that cover the whole image; None: the method does not localise


class AnomalyDetector(pl.LightningModule):
    """A method: a fit-once one does everything in ``prepare``; one that is trained by gradient has a ``loss`` as well.

    Buffers that are fitted may have any shape: ``load_state_dict`` takes the checkpoint's.
    """

    trains = False  # by gradient
    draws = True  # from torch's generators: another seed gives another model; False where fitting draws nothing
    mean: Sequence[float]  # of RGB in [0, 1], as are the images that it takes
    std: Sequence[float]
    weights_name: str | None
    weights_note: str | None

    def __init__(self) -> None:
        super().__init__()
        self.remarks: list[str] = []  # on the fit, where it is not what was asked for: a warning each

    def prepare(self, batches: Batches) -> None:
        """Before training by gradient, or instead of it."""

    def loss(self, images: Tensor) -> Tensor:
        """Of a batch of good images [N, 3, S, S], normalised; in training and in validation."""
        raise NotImplementedError

    def finish(self, batches: Batches) -> None:
        """After training by gradient."""

    def forward(self, images: Tensor) -> Scores:
        """Of images [N, 3, S, S], normalised, in eval mode."""
        raise NotImplementedError

    def scored(self, images: Tensor) -> Scores:
        """Score images as ``forward`` does.

        Raises:
            LabError: a score or a map holds NaN or infinity.
        """
        found: Scores = self(images)
        for values, what in zip(found, ("the scores", "the maps"), strict=True):
            if values is not None:
                require_finite(values, what)
        return found

    def on_train_start(self) -> None:
        self.train()  # Lightning leaves a module in the mode that it finds, and ``prepare`` wants eval mode

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = finite(self.loss(batch["image"]))
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["image"]), prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", finite(self.loss(batch["image"])), batch_size=len(batch["image"]), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return self.optimizer_of(p for p in self.parameters() if p.requires_grad)

    def optimizer_of(self, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
        """As the hyperparameters have it, which a trained method saves."""
        h = self.hparams
        return build_optimizer(h["optimizer"], parameters, h["lr"], h["weight_decay"], h["momentum"])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        for name, buffer in list(self.named_buffers()):
            if name in state_dict and state_dict[name].shape != buffer.shape:
                owner, _, key = name.rpartition(".")
                fitted = torch.empty_like(state_dict[name], device=buffer.device)
                self.get_submodule(owner).register_buffer(key, fitted)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def setting(name: str, given: int | None, default: int, least: int = 1) -> int:
    """What was given for model.options.<name>, or its default.

    Raises:
        LabError: it is below the least.
    """
    value = default if given is None else given
    if value < least:
        raise LabError(f"model.options.{name}={value} is out of range: give {least} or more")
    return value


def finite(loss: Tensor) -> Tensor:
    """The same loss.

    Raises:
        LabError: it is infinite or NaN, and would make every weight so.
    """
    if not loss.isfinite():
        raise LabError(f"the training has diverged, its loss is {loss.item()}: lower optimizer.lr")
    return loss
