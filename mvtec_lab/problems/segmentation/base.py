"""The base of all segmentation models: a model learns the masks of defects and gives logits of any image's pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from mvtec_lab.config import OptimizerConfig, SchedulerConfig
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.models.finite import require_finite
from mvtec_lab.models.maps import of_views
from mvtec_lab.models.modes import evaluating
from mvtec_lab.models.optim import configured
from mvtec_lab.models.views import drawn, unviewed, view
from mvtec_lab.models.weights import Weights
from mvtec_lab.problems.base import Method, checked_options
from mvtec_lab.problems.epochs import EpochLosses
from mvtec_lab.problems.padding import inside_of, within
from mvtec_lab.problems.segmentation.types import PixelTypes, RegionTypes
from mvtec_lab.results import GOOD


class SegmentationModel(EpochLosses):
    """Learn defect masks, and give the defect logits of any image's pixels.

    A method is a subclass. It sets ``method`` and defines ``decode``, and ``frozen`` if a part of its network never
    changes: what that part makes of an image is computed once and kept in the lab's cache. Batches are ``{"image":
    [N, 3, S, S], "mask": uint8 [N, S, S], "seed": [N]}``, or have ``features`` in place of the image: what ``frozen``
    makes of the view that the seed chooses. ``loss`` may be replaced as well::

        METHOD = Method("thin", "segmentation", home="my_package:Thin")

        @register_method
        class Thin(SegmentationModel):
            method = METHOD

            def __init__(self, **settings):
                super().__init__(**settings)
                self.layer = nn.Conv2d(3, 1, 1)

            def decode(self, features):
                return self.layer(features)[:, 0]

    Args:
        backbone, weights, unfreeze: as in ``ModelConfig``; a method with networks of its own does not read them.
        image_size: S, pixels.
        padded: whether images are letterboxed.
        classes: names of the images' classes, in the order of their labels: the defect types, and good.
        optimizer, scheduler: the fields of ``OptimizerConfig`` and ``SchedulerConfig``, ``name`` among them.
        options: the method's own, by name; an option that is missing or None has its default.

    Raises:
        LabError: an option that the method does not know, or a value that it cannot work with.
    """

    method: ClassVar[Method]
    no_onnx: ClassVar[str] = ""  # why task=export cannot write it

    def __init__(
        self,
        *,
        backbone: str = "mobilenet_v2",
        weights: str | None = "DEFAULT",
        unfreeze: int | str | Sequence[str] = 0,
        image_size: int = 256,
        padded: bool = False,
        classes: Sequence[str] = (),
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = checked_options(self.method, options)
        self.save_hyperparameters(logger=False)
        self.weights_name = "random"
        self.weights_note: str | None = None
        self.kinds = [name for name in classes if name != GOOD]
        self.type_model: RegionTypes | PixelTypes | None = None  # names the type of a defect; None: nothing does

    @property
    def frozen(self) -> nn.Module | None:
        """Return the part that never changes: images [N, 3, S, S] to features [N, ...], float32; None: there is none.

        It is a property, as the part is a child under another name or within another child.
        """
        return None

    @property
    def views(self) -> int:
        """Return how many views of each image train: the first ones of ``view``."""
        return self.options.get("views") or 1

    def judged(self, views: Iterable[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the probability of a defect in each cell [N, h, w], and those of its types [N, K], from all views.

        Args:
            views: a batch of each view. K is 0 where types are not named.
        """
        pairs = [self.logits_and_evidence(batch) for batch in views]
        maps = torch.stack([unviewed(logits.float().sigmoid(), n) for n, (logits, _) in enumerate(pairs)]).mean(0)
        evidence = torch.stack([of_types.float() for _, of_types in pairs]).mean(0)
        return maps, evidence if self.type_model is None else self.type_model(evidence)

    def use_weights(self, weights: Weights) -> None:
        """Take over what weights say about themselves."""
        self.weights_name, self.weights_note = weights.name, weights.note
        self.hparams["weights"] = weights.name

    def decode(self, features: Tensor) -> Tensor:
        """Return defect logits [N, h, w] that cover the image, at any resolution.

        Args:
            features: what ``frozen`` gives; without it, normalised images [N, 3, S, S].
        """
        raise NotImplementedError

    def maps(self, features: Tensor) -> list[Tensor]:
        """Return the maps [N, C, H, W] of features that ``type_model`` reads; a method without one has none."""
        raise NotImplementedError

    def logits_and_evidence(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the defect logits [N, h, w] of a batch, and what they say of the types, [N, D]: ``type_model``'s."""
        features = self.features_of(batch)
        logits = self.decode(features)
        return logits, self.evidence(() if self.type_model is None else self.maps(features), logits.sigmoid())

    def evidence(self, maps: Sequence[Tensor], cover: Tensor, logits: Tensor | None = None) -> Tensor:
        """Return what is known of the types of defects [N, D], from maps, a mask [N, h, w], and logits of types."""
        if self.type_model is None:
            return cover.new_zeros(len(cover), 0)
        logits = cover.new_zeros(len(cover), 0, 1, 1) if logits is None else logits
        return self.type_model.evidence(maps, cover, logits)

    def features_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what ``frozen`` makes of a batch, which may have it already."""
        return batch["features"] if "features" in batch else self.extract(batch["image"], batch.get("view"))

    def extract(self, images: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Return what ``frozen`` makes of images, of each alone.

        Args:
            numbers: say which view of an image each of them is, [N]; None: they are no views.
        """
        if self.frozen is None:
            return images
        if torch.compiler.is_compiling() or type(images) is not Tensor:  # an exporter's symbol
            return self.frozen(images)
        views = [0] * len(images) if numbers is None else numbers.tolist()
        rows = [of_views(self.frozen, unviewed(i, n), [n]) for i, n in zip(images.split(1), views, strict=True)]
        return torch.cat(rows)

    def forward(self, images: Tensor) -> Tensor:
        """Return defect logits [N, h, w] of normalised images [N, 3, S, S]."""
        return self.decode(self.extract(images))

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the defect logits of a batch, from its features where it has them."""
        return self.decode(self.features_of(batch))

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch, in training and in validation."""
        return mask_loss(self.logits(batch), batch["mask"])

    def oracle(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """Return the logits [N, h, w] of a batch with prompts from its true masks, for comparison alone.

        It is what a method that takes prompts could do with perfect ones; None: the method takes none.
        """
        return None

    def require(self, data: MVTecDataModule) -> None:
        """Refuse data that the model must not be judged on; it is scanned.

        Raises:
            LabError: why it must not.
        """

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(drawn(batch, self.views))
        self.keep_loss(loss, len(batch["mask"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.keep_loss(self.loss(batch), len(batch["mask"]))

    @torch.inference_mode()
    def probabilities(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the probability of a defect in each cell [N, h, w], and of each type [N, K], float32 on the CPU.

        It is the mean over the views that train, in eval mode; beside a letterboxed image it is 0. K is 0 where types
        are not named. Images are taken one after another, so that none depends on others.

        Args:
            batch: images, or features with a row for each view of each image.

        Raises:
            LabError: some are NaN.
        """
        pairs = []
        with evaluating(self):
            for place in range(len(batch["image"]) if "image" in batch else len(batch["features"]) // self.views):
                pairs.append(self.judged(self.view_of(batch, place, number) for number in range(self.views)))
        maps, types = (torch.cat(values).cpu() for values in zip(*pairs, strict=True))
        part = inside_of(batch, self.hparams["padded"], self.views)
        maps = within(maps, None if part is None else part.cpu())
        return require_finite(maps, "the probabilities"), require_finite(types, "the probabilities of types")

    def view_of(self, batch: Mapping[str, Any], place: int, number: int) -> dict[str, Any]:
        """Return a batch of one view of one image of a batch, on the model's device."""
        stored = "features" in batch
        row = place * self.views + number if stored else place
        one = {name: values[row : row + 1] for name, values in batch.items()}
        one = {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in one.items()}
        return one if stored else {**one, "image": view(one["image"], number), "view": torch.tensor([number])}

    def trained(self, lr: float) -> list[dict[str, Any]]:
        """Return what trains, in groups as torch's optimizers take them, those with a rate of their own at another."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        o = OptimizerConfig(**(self.hparams["optimizer"] or _ADAMW))
        return configured(self, self.trained(o.lr), o, SchedulerConfig(**(self.hparams["scheduler"] or {})))


_ADAMW = {"name": "adamw", "lr": 4e-3, "weight_decay": 0.01, "momentum": 0.9}


def ious_of(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the IoU of each image that has a defect [D], with the pixels whose probability is above a half.

    Args:
        logits: [N, h, w].
        masks: uint8 [N, S, S]; the logits are spread over them.
    """
    found = F.interpolate(logits.float()[:, None], masks.shape[-2:], mode="bilinear")[:, 0] > 0
    marked = masks > 0
    both, either = (found & marked).sum((1, 2)), (found | marked).sum((1, 2))
    defect = marked.flatten(1).any(1)
    return (both / either.clamp(min=1))[defect]


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return cross-entropy plus the mean Dice loss of those images that have a defect.

    Dice weighs every defect alike, however small; cross-entropy keeps good images clean.

    Args:
        logits: [N, h, w].
        masks: uint8 [N, S, S]; the logits are spread over them.
    """
    spread = F.interpolate(logits.float()[:, None], masks.shape[-2:], mode="bilinear")[:, 0]
    target = masks.float()
    entropy = F.binary_cross_entropy_with_logits(spread, target)
    probability, marked = spread.sigmoid(), target.sum((1, 2))
    dice = 1 - (2 * (probability * target).sum((1, 2)) + 1) / (probability.sum((1, 2)) + marked + 1)
    defect = (marked > 0).float()
    return entropy + (dice * defect).sum() / defect.sum().clamp(min=1)
