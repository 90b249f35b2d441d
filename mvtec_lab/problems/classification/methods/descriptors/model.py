"""The lab's own recipe: descriptors of frozen maps, and a linear layer that is fitted on them in seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.dataset import MVTecDataset, Rows
from mvtec_lab.data.images import digests
from mvtec_lab.data.samples import Sample
from mvtec_lab.engine.run import Run
from mvtec_lab.models.buffers import resize_buffers
from mvtec_lab.problems import settings_of
from mvtec_lab.problems.base import checked_options
from mvtec_lab.problems.classification.base import FOLDS, Classifier, Evidence, Validated, by_folds
from mvtec_lab.problems.classification.methods.descriptors import METHOD, PARTS, check_parts
from mvtec_lab.problems.classification.methods.descriptors.crossfit import Crossfitted
from mvtec_lab.problems.classification.methods.descriptors.fitting import NONE, Images, Out, good_patches
from mvtec_lab.problems.classification.methods.descriptors.heads import (
    Fitted,
    Linear,
    calibrated,
    deal,
    fit_heads,
)
from mvtec_lab.problems.classification.methods.descriptors.heads import Rows as RowsOf
from mvtec_lab.problems.classification.methods.descriptors.maps import Cells, Seen
from mvtec_lab.problems.classification.methods.descriptors.memory import Memory
from mvtec_lab.problems.classification.methods.descriptors.parts import Block, Distances, Part, Setting
from mvtec_lab.problems.classification.methods.descriptors.tuning import Tail, tuned
from mvtec_lab.problems.padding import inside_of
from mvtec_lab.results import BEST

log = logging.getLogger(__name__)

SMALL = 224  # pixels; below it a run warns of what the size costs: docs/recipe.md has the figures


class Descriptors(Classifier):
    """Describe images by frozen maps and classify the descriptors.

    It is fitted on training and validation images. What is chosen is chosen by inner folds, whose predictions of the
    images that they left out are ``held_out``: validation's figures, and sets of classes, are of these.

    Args:
        classes: the class names in the order of their index.
        backbone, weights: as in ``ModelConfig``.
        image_size: S, pixels.
        padded: whether images are letterboxed.
        class_counts: training images of each class, [C].
        held_out: digest of the file of an image that was learnt -> its label and the out-of-fold probabilities of the
            classes, and those of copies of it; nothing, where no inner fold left it out.
        tuned: whether the backbone's last blocks are the trained ones, where ``tune`` asks for that.
        options: the method's own, by name.

    Raises:
        LabError: an option that the method does not know, or a layer that the backbone does not have.
    """

    method = METHOD
    single = True
    shows = (
        "Where the image is unlike good ones",
        "The distance of each place to the nearest good patch: the ring is the peak, the blue line the outline of the "
        "defect's mask.",
    )
    validates_by = FOLDS
    hides = "There is no map: nothing of model.options.parts compares an image with good ones."

    def __init__(
        self,
        classes: Sequence[str],
        *,
        backbone: str = "mobilenet_v2",
        weights: str | None = "DEFAULT",
        image_size: int = 448,
        padded: bool = False,
        class_counts: Sequence[int] | None = None,
        held_out: Mapping[str, Sequence[Sequence[float]]] | None = None,
        tuned: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = checked_options(self.method, options)
        check_parts(self.options)
        self.classes = list(classes)
        self.save_hyperparameters(logger=False)
        self.cells = Cells(backbone, weights, self.options["layers"], image_size, self.options["views"])
        loaded = self.cells.features.weights
        self.weights_name, self.weights_note = loaded.name, loaded.note
        setting = Setting(self.classes, self.cells.widths, self.cells.side)
        self.hparams.update({"classes": self.classes, "weights": loaded.name, "held_out": dict(held_out or {})})
        self.parts: list[Part] = [PARTS[name](setting) for name in self.options["parts"]]
        self.fitted = nn.ModuleList(self.parts)
        compares = any(part.memory for part in self.parts)
        self.memory = Memory(self.cells.widths, self.cells.side) if compares else None
        self._map = Distances(setting, any(part.in_place for part in self.parts))
        self.tail = Tail(self.cells) if self.options["tune"] and tuned else None
        self._heat: dict[str, Tensor] = {}  # distances [cells] of images by their paths, as far as they are known
        self.register_buffer("weight", torch.zeros(sum(block.width for block in self.blocks), len(self.classes)))
        self.register_buffer("bias", torch.zeros(len(self.classes)))

    @classmethod
    def of(cls, config: Config, data: MVTecDataModule, weights: str | None) -> Descriptors:
        return cls(
            data.classes,
            backbone=config.model.backbone,
            weights=weights,
            image_size=config.data.image_size,
            padded=data.frame.pads,
            class_counts=list(data.counts()["train"].values()),
            **settings_of(config),
        )

    @classmethod
    def learns_from(cls, config: Config) -> Sequence[str]:
        # Training images that were thinned out would grow back by those for validation.
        thinned = config.data.imbalance is not None or config.data.per_class is not None
        alone = config.split.val_is_test or thinned
        return ("train",) if alone else ("train", "val")

    @classmethod
    def marks(cls, config: Config, data: MVTecDataModule) -> list[str]:
        size = config.data.image_size
        if size >= SMALL:
            return []
        return [
            f"data.image_size={size} hides small defects from this recipe: on MVTec's bottle, lab/all had a balanced "
            "accuracy of 0.82 at 128 pixels, 0.92 at 224 and 0.93 at 448"
        ]

    @property
    def blocks(self) -> list[Block]:
        """Return the blocks of all parts, in their order."""
        return [block for part in self.parts for block in part.blocks]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state; raise ValueError where its head was fitted to other parts, as older versions had by default."""
        if "weight" in state_dict and (width := len(state_dict["weight"])) != len(self.weight):
            raise ValueError(
                f"its head reads {width} numbers of an image, and the parts {', '.join(self.options['parts'])} give "
                f"{len(self.weight)}: it was fitted to others: train that run again"
            )
        resize_buffers(self, state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def forward(self, images: Tensor) -> Tensor:
        """Return the class logits [N, C] of normalised images [N, 3, S, S], of each by itself."""
        return self._classified(torch.stack([self._described(self._seen(image)) for image in images.split(1)]))

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self._classified(batch["features"]) if "features" in batch else self(batch["image"])

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor | None:
        return torch.cat([layer.mean((2, 3)) for layer in self.cells.features(images)], 1)

    def _seen(self, image: Tensor) -> Seen:
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(image.device.type, enabled=False):
            maps = self.cells.maps(self.cells(image))
        return Seen(maps, self.memory, inside_of({"image": image}, self.hparams["padded"]))

    def _described(self, seen: Seen) -> Tensor:
        return self._rows_in(seen if self.tail is None else self.tail(seen))

    def _rows_in(self, seen: Seen) -> Tensor:
        return torch.cat([part.rows(seen) for part in self.parts])

    def _classified(self, rows: Tensor) -> Tensor:
        return rows @ self.weight + self.bias

    def validated(self, data: MVTecDataModule) -> Validated | None:
        """Return learnt images with the inner folds' probabilities, and images of val that are new with its own.

        A learnt image that no inner fold leaves out, the only one of its class, does not validate.
        """
        rest = {digest: list(rows) for digest, rows in self.hparams["held_out"].items()}
        learnt, validation = ([*data.of_split(split)] for split in ("train", "val"))
        names = digests([data.folder / sample.path for sample in learnt + validation])
        samples, shares = [], []
        for sample, name in zip(learnt + validation, names, strict=True):
            label = self.classes.index(sample.label)
            if (own := next((row for row in rest.get(name, ()) if row[0] == label), None)) is not None:
                rest[name].remove(own)
                samples.append(sample)
                shares.append(own[1:])
        folds = len(samples)
        if new := [place for place, name in enumerate(names[len(learnt) :]) if name not in rest]:
            samples += [validation[place] for place in new]
            shares += self.probabilities(data.val_dataloader())[new].tolist()
        by = by_folds(folds, len(new))
        return Validated(data.images(samples), np.array(shares, dtype=np.float32), by) if samples else None

    def judged_by(self, held_out: int) -> str:
        folds = sum(map(len, self.hparams["held_out"].values()))
        return by_folds(folds, held_out - folds)

    @torch.no_grad()
    def evidence(self, dataset: MVTecDataset, places: Sequence[int], classes: Tensor) -> Evidence | None:
        if self.memory is None:
            return None
        side, size = self.cells.side, self.hparams["image_size"]
        heat = torch.stack([self._heat_of(dataset, place) for place in places]).view(-1, side, side)
        cell = heat.flatten(1).argmax(1)  # interpolation has its maximum at the middle of a cell
        peaks = ((torch.stack([cell // side, cell % side], 1) + 0.5) * size / side).long()
        heat = F.interpolate(heat[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
        return heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny), peaks

    def _heat_of(self, dataset: MVTecDataset, place: int) -> Tensor:
        path = dataset.samples[place].path
        if path not in self._heat:
            self._heat[path] = self._map.rows(self._seen(dataset[[place]]["image"].to(self.device))).cpu()
        return self._heat[path]

    def fit(self, run: Run) -> None:
        """Remember good patches, describe all images and fit the head; write best.ckpt."""
        started = time.perf_counter()
        data, result, config = run.data, run.result, run.config
        trainer = run.build_trainer()
        self.to(trainer.strategy.root_device).eval()
        result.parameters = {"total": sum(p.numel() for p in self.parameters()), "trained": self.weight.numel()}
        result.luck = result.weights == "random"
        learnt = [sample for split in self.learns_from(config) for sample in data.of_split(split)]
        # By content, as all that is drawn: with other names the images give the same model, to the last digit.
        order = np.argsort(digests([data.folder / sample.path for sample in learnt]), kind="stable")
        learnt = [learnt[place] for place in order]
        images = Images(run, self.cells, [sample for sample in data.samples if sample.split])
        if self.memory is not None:
            self.memory = images.memory = good_patches(run, images, learnt, self.options["memory"])
        log.info(
            "%s: %s over %s (%s), %d images to learn from, %d views; %s, %d CPU thread(s)",
            config.attempt,
            " + ".join(self.options["parts"]),
            result.backbone,
            result.weights,
            len(learnt),
            self.cells.views,
            trainer.strategy.root_device,
            torch.get_num_threads(),
        )
        result.startup_seconds = time.perf_counter() - run.began
        run.watch_memory()
        self._fit_head(run, images, learnt)
        result.seconds = result.fit_seconds = time.perf_counter() - started
        run.model.save(run.run_dir / BEST)

    def _fit_head(self, run: Run, images: Images, learnt: Sequence[Sample]) -> None:
        """Fit parts that are fitted and the head, and hand the data module the rows of the test images."""
        place_of = {sample.path: place for place, sample in enumerate(images.samples)}
        places = np.array([place_of[sample.path] for sample in learnt])
        fixed = [part for part in self.parts if not part.fits]
        shown = [] if self.memory is None else [self._map]
        arrays = images.rows([*fixed, *shown])
        known = {NONE: dict(zip(fixed, (array.numpy() for array in arrays), strict=False))}
        if self.memory is not None:
            self._heat = {sample.path: row.clone() for sample, row in zip(images.samples, arrays[-1], strict=True)}
            if all(float(np.ptp(row)) < EQUAL for row in arrays[-1].numpy()):
                run.warn("every place is equally far from the good patches: the parts pool images as a whole")

        labels, groups = images.labels[places], [images.groups[place] for place in places]
        folds = deal(labels, groups)
        comparing = [part for part in fixed if part.memory]
        for fold in np.unique(folds[folds >= 0]).tolist() if images.memories and comparing else ():
            left = frozenset({fold})
            arrays = images.rows(comparing, left)
            known[left] = known[NONE] | dict(zip(comparing, (array.numpy() for array in arrays), strict=True))
        crossfitted = {part: Crossfitted(part, images, places.tolist(), folds) for part in self.parts if part.fits}
        for part, of_part in crossfitted.items():
            if remark := part.remark(of_part.silent, len(places)):
                run.warn(remark)

        def rows_without(left: Out, fitting: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            of = known.get(left, known[NONE])
            pairs = [
                (of[part][places[fitting]], of[part][places[others]])
                if part in of
                else crossfitted[part](fitting, others)
                for part in self.parts
            ]
            of_fitting, of_others = zip(*pairs, strict=True)
            return np.concatenate(of_fitting, 1).astype(np.float64), np.concatenate(of_others, 1).astype(np.float64)

        def rows(fitting: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return rows_without(frozenset(folds[others].tolist()), fitting, others)

        fitted = self._head(rows, labels, folds)
        if not fitted.chosen:
            run.warn(f"too few images for inner folds: the head's strength is {fitted.strength}, and nothing chose it")
        run.result.decided["strength"] = str(fitted.strength)
        if fitted.left_out:
            pairs = zip(self.options["parts"], self.parts, strict=True)
            optional = [name for name, part in pairs if all(block.optional for block in part.blocks)]
            run.result.decided["left out"] = ", ".join(optional)
        probabilities = fitted.probabilities
        if epochs := self.options["tune"]:  # they train from the head as it was fitted
            whole = [images[place] for place in places.tolist()]

            def seen(left: Out) -> list[Seen]:
                return [images.seen(place, left) for place in places.tolist()] if images.memories and left else whole

            def head_of(own: np.ndarray) -> Linear:
                left = frozenset(folds.tolist()) - frozenset(folds[own].tolist())  # the fold that is judged
                inner = deal(labels[own], [groups[place] for place in own])
                of_own = partial(_of_some, partial(rows_without, left), own)
                return self._head(of_own, labels[own], inner).layer

            tail, probabilities, said = tuned(self.cells, self.parts, seen, labels, folds, fitted, head_of, epochs)
            self._take(tail, run, said)
        if self.tail is None:  # also where inner folds say that the blocks stay as they are
            fitted = calibrated(fitted, labels)
            probabilities = fitted.probabilities
        self.weight = torch.from_numpy(fitted.layer.weight).float().to(self.device)
        self.bias = torch.from_numpy(fitted.layer.bias).float().to(self.device)
        names = digests([run.data.folder / sample.path for sample in learnt])
        held_out: dict[str, list[list[float]]] = {}
        for name, label, shares in zip(names, labels, probabilities, strict=True):
            of_file = held_out.setdefault(name, [])
            if np.isfinite(shares).all():
                of_file.append([int(label), *shares.astype(np.float32).tolist()])
        self.hparams["held_out"] = held_out
        for split in ("val", "test"):
            if split in self.learns_from(run.config):
                continue  # judged by inner folds
            if samples := run.data.of_split(split):
                at = np.array([place_of[sample.path] for sample in samples])
                array = self._rows_of(images, at, known[NONE])
                run.data.load_features(split, Rows(array, range(len(array))))
        run.result.features = sorted(run.data.features)

    def _take(self, tail: Tail | None, run: Run, said: str) -> None:
        """Take over trained last blocks, or leave the backbone's as they are; ``said``: why."""
        self.tail = tail
        self.hparams["tuned"] = tail is not None
        run.result.decided["tune"] = said
        if tail is not None:
            run.result.parameters["trained"] += sum(p.numel() for p in tail.parameters())
        run.result.parameters["total"] = sum(p.numel() for p in self.parameters())

    def _head(self, rows: RowsOf, labels: np.ndarray, folds: np.ndarray) -> Fitted:
        """Return the head, or the mean of several, fitted to rows of images; arguments as in ``fit_heads``."""
        alone = [self.options["parts"].index(name) for name in self.options["alone"] or ()]
        return fit_heads(self.options["head"], rows, [part.blocks for part in self.parts], alone, labels, folds)

    @torch.no_grad()
    def _rows_of(self, images: Images, places: np.ndarray, known: Mapping[Part, np.ndarray]) -> Tensor:
        """Return the rows of images by which they are classified; ``known``: of parts of frozen maps, by place."""
        if self.tail is not None:
            return torch.stack([self._described(images[place]).cpu() for place in places.tolist()])
        blocks = [known[part][places] if part in known else _rows(part, images, places) for part in self.parts]
        return torch.from_numpy(np.concatenate(blocks, 1)).float()


EQUAL = (
    0.01  # difference of distances that is rounding: they are about 1 between good patches, and kept in half precision
)


def _rows(part: Part, images: Images, places: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.stack([part.rows(images[int(place)]).cpu().numpy() for place in places])


def _of_some(rows: RowsOf, own: np.ndarray, fitting: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as ``fit_head`` takes them, of those images alone that ``own`` numbers."""
    return rows(own[fitting], own[others])
