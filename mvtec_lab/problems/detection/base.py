"""The base of all detectors: a network of TorchVision that finds boxes, trained by Lightning."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from mvtec_lab.config import OptimizerConfig, SchedulerConfig
from mvtec_lab.data.targets import components
from mvtec_lab.engine.features import use_views
from mvtec_lab.engine.run import Run
from mvtec_lab.evaluation.detection import Box, box_metrics, match
from mvtec_lab.models.finite import require_finite
from mvtec_lab.models.maps import Flat
from mvtec_lab.models.modes import evaluating
from mvtec_lab.models.optim import configured
from mvtec_lab.models.views import drawn, view, viewed_boxes
from mvtec_lab.problems.base import Method, checked_options
from mvtec_lab.problems.detection.pyramid import Pyramid
from mvtec_lab.problems.detection.views import Found, kept_inside, merged
from mvtec_lab.problems.epochs import EpochLosses
from mvtec_lab.problems.padding import inside_of
from mvtec_lab.results import GOOD

LEAST, MOST = 0.05, 100  # score and number of an image's boxes: COCO's; less certain ones hardly change its figures


class DetectionModel(EpochLosses):
    """Find the boxes of defects in images, each with its type and a score.

    A method is a subclass. It sets ``method``, and defines ``build`` (``losses`` and ``detect`` where its network is
    none of TorchVision's, ``fit`` where it is not trained by Lightning)::

        class MyDetector(DetectionModel):
            method = METHOD

            def build(self, pyramid, classes):
                return FCOS(pyramid, classes, **as_given(self.hparams["image_size"]))

    Args:
        classes: names, good first; the others are the types of boxes, from 1.
        backbone, weights, unfreeze: as in ``ModelConfig``.
        image_size: pixels a side of the images.
        padded: whether images are letterboxed.
        optimizer, scheduler: settings, or their values by name.
        options: the method's own, by name; an option that is missing or None has its default.

    Raises:
        LabError: a backbone without maps, stages that it does not have, or options that the method does not know.
    """

    method: ClassVar[Method]
    draws_masks: ClassVar[bool] = False  # its boxes have masks, and it learns from masks as well
    # Chooses the epoch, and training stops early when it no longer improves: the mAP of a few images is luck.
    monitor: ClassVar[str] = "val/loss"
    no_onnx: ClassVar[str] = ""  # why task=export cannot write it

    def __init__(
        self,
        classes: Sequence[str],
        *,
        backbone: str = "resnet18",
        weights: str | None = "DEFAULT",
        unfreeze: int | str | Sequence[str] = 0,
        image_size: int = 256,
        padded: bool = False,
        optimizer: OptimizerConfig | Mapping[str, Any] | None = None,
        scheduler: SchedulerConfig | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = checked_options(self.method, options)
        self.classes = list(classes)
        self.save_hyperparameters(logger=False)
        self.optimizer = optimizer if isinstance(optimizer, OptimizerConfig) else OptimizerConfig(**(optimizer or {}))
        self.scheduler = scheduler if isinstance(scheduler, SchedulerConfig) else SchedulerConfig(**(scheduler or {}))
        plain = {"optimizer": asdict(self.optimizer), "scheduler": asdict(self.scheduler), "classes": self.classes}
        self.hparams.update(plain)
        self.weights_name = "random"
        self.weights_note: str | None = None
        self._flat: list[Flat] = []  # in a list: its parameters belong to the network
        self.network = self.make()
        self._seen: list[tuple[list[Box], list[Box], str]] = []

    def make(self) -> nn.Module:
        """Return the network; a method whose network has no pyramid returns its own."""
        h = self.hparams
        pyramid = Pyramid(h["backbone"], h["weights"], h["unfreeze"], self.options["channels"], self.options["finest"])
        self.weights_name, self.weights_note = pyramid.loaded.name, pyramid.loaded.note
        if pyramid.frozen:
            self._flat.append(Flat(pyramid.leading, h["image_size"]))
        return self.build(pyramid, len(self.classes))

    def build(self, pyramid: Pyramid, classes: int) -> nn.Module:
        """Return a network of TorchVision over the maps of a pyramid; ``classes`` counts good, as the background."""
        raise NotImplementedError

    @property
    def views(self) -> int:
        """Return how many views of each image train, and are judged together: the first ones of ``view``."""
        return self.options.get("views") or 1

    @property
    def frozen(self) -> nn.Module | None:
        """Return the part that never changes: images [N, 3, S, S] to a row of its maps each; None: there is none."""
        return self._flat[0] if self._flat else None

    def losses(self, images: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        """Return the loss of normalised images [N, 3, S, S]; targets have boxes, labels and masks [K, S, S]."""
        parts = self.network(list(images), targets)
        return torch.stack(list(parts.values())).sum()

    def detect(self, images: Tensor) -> list[Found]:
        """Find boxes in normalised images [N, 3, S, S], in eval mode: MOST at most, with scores of LEAST or more."""
        return self.network(list(images))

    @contextmanager
    def reading(self, batch: Mapping[str, Any]) -> Iterator[Tensor]:
        """Give a batch's images to a block; blank ones where it has features, which the network reads instead."""
        if "features" not in batch:
            yield batch["image"]
            return
        network: Any = self.network
        size, features = self.hparams["image_size"], batch["features"]
        with network.backbone.given(self._flat[0].maps(features)):
            yield features.new_zeros(1).expand(len(features), 3, size, size)

    def found(self, batch: Mapping[str, Any], views: int = 1) -> list[Found]:
        """Find boxes in each image of a batch, or from its features: the highest score first, on the CPU.

        They end where a letterboxed image ends. Images are taken one after another, so that none depends on others.

        Args:
            batch: images, or features with a row for each of these views of each image.
            views: that are looked at.

        Raises:
            LabError: a box or a score is NaN or infinite.
        """
        name, rows = ("features", views) if "features" in batch else ("image", 1)
        part = inside_of(batch, self.hparams["padded"], views)
        found = []
        for place, one in enumerate(batch[name].to(self.device).split(rows)):
            each = one if name == "features" else torch.cat([view(one, number) for number in range(views)])
            with torch.no_grad(), evaluating(self), self.reading({name: each}) as seen:
                of_image = self.fused(seen)
            of_image = {key: values.cpu() for key, values in of_image.items()}
            found.append(of_image if part is None else kept_inside(of_image, part[place].cpu()))
        return found

    def fused(self, views: Tensor) -> Found:
        """Find boxes in the first views of an image, [V, 3, S, S], and return those of the image: MOST at most."""
        each = self.detect(views)
        for name in ("scores", "boxes"):
            require_finite(torch.cat([found[name] for found in each]), f"the {name}")
        together = merged([without_background(found) for found in each], self.hparams["image_size"])
        return {name: values[:MOST] for name, values in together.items()}

    def boxes(self, found: Mapping[str, Tensor]) -> list[Box]:
        """Return an image's boxes with the names of their types, rounded to what predictions.csv holds."""
        columns = zip(found["labels"].long().tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        return [
            Box(self.classes[label], round(score, 6), *(round(value, 2) for value in corners))
            for label, score, corners in columns
            if corners[2] > corners[0] and corners[3] > corners[1]
        ]

    def fit(self, run: Run) -> None:
        """Train on ``run.data``; the weights of the epoch with the best ``monitor`` remain."""
        run.build_trainer(self.monitor, self.monitor)
        run.result.features = use_views(run, self.frozen, self.views, self.hparams["backbone"])
        run.result.startup_seconds = time.perf_counter() - run.began
        run.watch_memory()
        run.fit()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        batch = self.seen(batch)
        with self.reading(batch) as images:
            loss = self.losses(images, self.targets(batch))
        self.keep_loss(loss, len(images))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        targets = self.targets(batch)
        with isolate_rng(), self.reading(batch) as images:  # Faster R-CNN samples regions: training draws the same
            torch.manual_seed(0)  # whether this runs or not
            self.train()
            self.keep_loss(self.losses(images, targets), len(images))
            self.eval()
        for found, target in zip(self.found(batch), targets, strict=True):
            truth = [
                Box(self.classes[kind], 1.0, *box)
                for kind, box in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)
            ]
            self._seen.append((self.boxes(found), truth, truth[0].kind if truth else GOOD))

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._seen.clear()

    def seen(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a training batch as its views: those that the seeds choose, of images, boxes and masks."""
        batch, size = drawn(batch, self.views), self.hparams["image_size"]
        chosen = batch["view"].tolist()
        boxes = [viewed_boxes(boxes, v, size) for boxes, v in zip(batch["boxes"], chosen, strict=True)]
        return {**batch, "boxes": boxes}

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        found, truth, labels = zip(*self._seen, strict=True)
        metrics = box_metrics(match(found, truth, labels))
        values = {f"val/{key}": float(metrics[key] or 0.0) for key in ("map50", "map")}
        self.log_dict(values, prog_bar=True, sync_dist=True)  # each device has seen all images: they differ by rounding

    def targets(self, batch: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """Return the targets of a batch's images as TorchVision takes them.

        Every box surrounds a pixel at least: annotations of flat ones are refused with their file and line.
        """
        targets = []
        for place, (boxes, labels) in enumerate(zip(batch["boxes"], batch["labels"], strict=True)):
            targets.append({"boxes": boxes, "labels": labels})
            if "mask" in batch:
                targets[-1]["masks"] = instances(batch["mask"][place], boxes)
        return targets

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = (p for p in self.parameters() if p.requires_grad)
        return configured(self, trained, self.optimizer, self.scheduler)


def without_background(found: Found) -> Found:
    """Return what was found but for the background, of which one-stage networks have an output, too, and flat boxes."""
    boxes = found["boxes"]
    kept = (found["labels"] > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return {name: values[kept] for name, values in found.items()}


def instances(mask: Tensor, boxes: Tensor) -> Tensor:
    """Return the masks of single objects, uint8 [K, S, S], of a mask [S, S] of all of them and their boxes [K, 4].

    They are its 8-connected components, which ``boxes_of`` numbers alike. Objects that were annotated one by one may
    touch: where the numbers differ, an object is what lies in its box.
    """
    parts = torch.from_numpy(components(mask.cpu().numpy())).to(mask.device)
    if len(parts) == len(boxes):
        return parts
    parts = torch.zeros(len(boxes), *mask.shape, dtype=torch.uint8, device=mask.device)
    for part, (x0, y0, x1, y1) in zip(parts, boxes.round().long().tolist(), strict=True):
        part[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
    return parts


class AsGiven(GeneralizedRCNNTransform):
    """Take images as they are: the lab has resized and normalised them already."""

    def __init__(self, size: int) -> None:
        # TorchVision pads to multiples of 32: maps of images would be larger than those that are kept of them.
        super().__init__(size, size, [0.0] * 3, [1.0] * 3, size_divisible=1)

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target
