"""The base of all classifiers: what building, judging, predicting and exporting ask of any of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.engine.run import Run
from mvtec_lab.models.finite import require_finite
from mvtec_lab.models.modes import evaluating
from mvtec_lab.problems.base import Method

FOLDS = "inner folds"
Evidence = tuple[Tensor, Tensor]  # heat [N, S, S] in [0, 1], and the row and column of its peak [N, 2], pixels


class Validated(NamedTuple):
    """Hold the images that validate, and their class probabilities [N, C]; ``by``: as ``RunResult.validates_by``."""

    dataset: MVTecDataset
    probabilities: np.ndarray
    by: str = ""


def by_folds(folds: int, new: int) -> str:
    """Return what judged the images that validate, as ``RunResult.validates_by``.

    Args:
        folds: how many were learnt, and judged by inner folds.
        new: how many were new to the model, and judged by it.
    """
    return "" if not folds else f"the model itself and {FOLDS}" if new else FOLDS


class Classifier(pl.LightningModule):
    """Give class probabilities of images.

    A method is a subclass. It sets ``method``, and in its constructor ``classes``, ``weights_name`` and
    ``weights_note``; it defines ``of``, ``fit`` and ``forward``. A constructor's settings are plain values, and
    ``weights=None`` among them builds the module without looking for a file: so it comes back from a checkpoint.
    """

    method: ClassVar[Method]
    no_onnx: ClassVar[str] = ""  # why task=export cannot write it
    single: ClassVar[bool] = False  # it looks at each image by itself: so does the file that task=export writes
    #: title and sentence of the sheet of ``evidence``, and why there is none where it returns None
    shows: ClassVar[tuple[str, str]] = ("", "")
    hides: ClassVar[str] = "This method has no map of what spoke for a class."
    validates_by: ClassVar[str] = ""  # as ``Problem.validates_by``

    classes: list[str]
    weights_name: str
    weights_note: str | None

    @classmethod
    def of(cls, config: Config, data: MVTecDataModule, weights: str | None) -> Classifier:
        """Return a new classifier of a configuration.

        Args:
            weights: ``model.weights``, or None where random ones stand in.

        Raises:
            LabError: settings, weights or data that do not fit.
        """
        raise NotImplementedError

    @classmethod
    def rehearse(cls, config: Config, data: MVTecDataModule) -> None:
        """Refuse what ``of`` or training would refuse, without weights.

        Raises:
            LabError: what they would raise.
        """

    @classmethod
    def learns_from(cls, config: Config) -> Sequence[str]:
        """Return the splits from whose images it learns."""
        return ("train",)

    @classmethod
    def marks(cls, config: Config, data: MVTecDataModule) -> list[str]:
        """Return warnings that are known before training, a line each."""
        return []

    @classmethod
    def restore(cls, content: Mapping[str, Any]) -> Classifier:
        """Return the classifier of a checkpoint's content (``engine.model.read_checkpoint``)."""
        settings = content["hyper_parameters"]
        classifier = cls(**{**settings, "weights": None})
        classifier.load_state_dict(content["state_dict"])
        classifier.weights_name = classifier.hparams["weights"] = settings["weights"]
        return classifier

    def fit(self, run: Run) -> None:
        """Train or fit on ``run.data``."""
        raise NotImplementedError

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the class logits of a batch, [N, C], from its features where it has them."""
        return self(batch["image"])

    @torch.inference_mode()
    def probabilities(self, batches: Iterable[dict[str, Tensor]]) -> np.ndarray:
        """Return the class probabilities of all images in their order: float32 [N, C], in full precision.

        Raises:
            LabError: some are NaN.
        """
        parts = []
        with evaluating(self):
            for batch in batches:
                on_device = {name: value.to(self.device) for name, value in batch.items()}
                parts.append(self.logits(on_device).float().softmax(dim=1).cpu())
        return require_finite(torch.cat(parts), "the class probabilities").numpy()

    def validated(self, data: MVTecDataModule) -> Validated | None:
        """Return the images that validate, with their class probabilities; None where there are none.

        Whatever predicts an image has not been fitted to it. By default these are the images of val. Those chose the
        epoch, so that the probabilities are a little too good.
        """
        dataset = data.dataset("val")
        return Validated(dataset, self.probabilities(data.val_dataloader())) if len(dataset) else None

    def judged_by(self, held_out: int) -> str:
        """Return what judged the images that chose its sets, as ``RunResult.validates_by``; ``held_out``: how many."""
        return ""

    def embed(self, images: Tensor) -> Tensor | None:
        """Return features as ``Problem.embed`` does."""
        return None

    def evidence(self, dataset: MVTecDataset, places: Sequence[int], classes: Tensor) -> Evidence | None:
        """Return which parts of some images spoke for a class, on the CPU; None where the classifier cannot say.

        Args:
            dataset: of the images.
            places: theirs in it, N.
            classes: one class per image, [N].
        """
        return None
