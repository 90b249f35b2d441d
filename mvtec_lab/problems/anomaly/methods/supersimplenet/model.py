"""SuperSimpleNet: an adaptor of frozen features, noise as made-up defects, a head for cells and one for the image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.models.maps import FeatureMaps, Flat, of_each
from mvtec_lab.problems.anomaly.base import AnomalyModel, Batches, Scores
from mvtec_lab.problems.anomaly.features import CELLS
from mvtec_lab.problems.anomaly.frozen import joined, smooth
from mvtec_lab.problems.anomaly.methods.draem.model import perlin
from mvtec_lab.problems.anomaly.methods.supersimplenet import METHOD
from mvtec_lab.problems.padding import at, inside_of
from mvtec_lab.results import GOOD

# Small enough for a CPU: the paper's heads have 1024 and 128 channels, and see 5 x 5 cells.
HIDDEN, WIDTH, AROUND = 256, 32, 3
SLOPE = 0.2  # of the leaky ReLU; this and what follows are the official code's
MARGIN = 0.5  # beyond which a cell's logit is right enough
GAMMA = 4.0  # of the focal loss
SPARED = 0.5  # share of the images without noise
THRESHOLD = 0.2  # of Perlin's noise: a fifth of an image is above it
STEEPEST = 1.0  # norm of a gradient beside known defects
SLOWER = 0.5  # of the rate: the adaptor's
LEAST = 1e-4  # least spread of a channel: one that good images do not use must not become noise


class Heads(nn.Module):
    """Give the logits of an anomaly in each cell of features [N, C, h, w], and in the image.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cells = nn.Sequential(
            nn.Conv2d(channels, HIDDEN, 1),
            nn.BatchNorm2d(HIDDEN),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(HIDDEN, 1, 1, bias=False),
        )
        self.around = nn.Sequential(
            nn.Conv2d(channels + 1, WIDTH, AROUND, padding=AROUND // 2), nn.BatchNorm2d(WIDTH), nn.ReLU()
        )
        self.image = nn.Linear(2 * WIDTH + 2, 1)

    def forward(self, features: Tensor, shown: Tensor | None, together: bool = False) -> tuple[Tensor, Tensor]:
        """Return the logits of cells [N, h, w] and of images [N].

        Args:
            shown: which cells show the images, [N, h, w], 0 or 1; None: all of them do.
            together: the head of cells learns from the labels of images as well, not from cells alone.
        """
        logits = self.cells(features)
        seen = logits if together else logits.detach()
        around = self.around(torch.cat([features, seen], 1))
        pooled = torch.cat([*pools(around, shown), *pools(seen, shown)], 1)
        return logits[:, 0], self.image(pooled)[:, 0]


def pools(values: Tensor, shown: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the largest value and the mean of each channel of [N, C, h, w], both [N, C]; ``shown`` as in ``Heads``."""
    if shown is None:
        return values.amax((2, 3)), values.mean((2, 3))
    part = shown[:, None].to(values)
    return values.masked_fill(part == 0, -torch.inf).amax((2, 3)), (values * part).sum((2, 3)) / part.sum((2, 3))


def truncated_l1(logits: Tensor, anomalous: Tensor) -> Tensor:
    """Return by how much good cells exceed -MARGIN and anomalous ones fall short of MARGIN: the sum of both means.

    Args:
        logits: of cells [M].
        anomalous: bool [M].
    """
    wrong = F.relu(MARGIN + torch.where(anomalous, -logits, logits))
    return torch.stack([wrong[part].sum() / part.sum().clamp(min=1) for part in (anomalous, ~anomalous)]).sum()


def focal(logits: Tensor, anomalous: Tensor) -> Tensor:
    """Return the mean focal loss of logits [M], both classes alike."""
    return sigmoid_focal_loss(logits, anomalous.float(), -1, GAMMA, "mean")


def blots(count: int, side: int) -> Tensor:
    """Return which cells of images get noise, bool [count, side, side]: blots of any size, in half of the images none.

    They are where Perlin's noise of 1, 2, 4 ... cells of its own a side is high; its finest cells are two cells wide.
    """
    finest = int(math.log2(max(side / 2, 1)))
    masks = []
    for _ in range(count):
        rows, columns = (2 ** int(torch.randint(finest + 1, ())) for _ in range(2))
        masks.append((perlin(side, rows, columns) > THRESHOLD) & (torch.rand(()) >= SPARED))
    return torch.stack(masks)


class Known(NamedTuple):
    """Hold what is known of the training images N."""

    defect: Tensor  #: [N] bool
    marked: Tensor  #: which cells of the finest map their masks mark, [N, h, w] bool
    bare: Tensor  #: [N] bool: defects without a mask, of which no cell is known


class SuperSimpleNet(AnomalyModel):
    """Learn to find noise in the features of good images, and known defects (Rolih et al., ICPR 2024).

    Features are standardised by those of the good images, so that noise of one strength suits any backbone. The map is
    the probability of an anomaly in each cell, smoothed; the image's score is the second head's logit.
    """

    method = METHOD
    centre: Tensor
    spread: Tensor

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        h = self.hparams
        features = FeatureMaps(h["backbone"], h["weights"], self.options["layers"], CELLS)
        self.use_weights(features.weights)
        self.features, channels = Flat(features, h["image_size"]), sum(features.channels)
        self.register_buffer("centre", torch.zeros(channels, 1, 1))
        self.register_buffer("spread", torch.ones(channels, 1, 1))
        self.adaptor, self.heads = nn.Conv2d(channels, channels, 1), Heads(channels)
        for layer in (self.adaptor, *self.heads.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(layer.weight)
        self.known: Known | None = None

    @property
    def frozen(self) -> nn.Module:
        return self.features

    @torch.no_grad()
    def prepare(self, batches: Batches) -> None:
        """Take the mean and the spread of each channel from the good images' cells."""
        count, sums, squares = torch.zeros(3, 1, dtype=torch.float64, device=self.device)
        for images in batches():
            joint = self.joint(self.features(images)).double()
            shown = self.shown({"image": images}, joint)
            part = torch.ones_like(joint[:, 0]) if shown is None else shown.double()
            count = count + part.sum()
            sums = sums + (joint * part[:, None]).sum((0, 2, 3))
            squares = squares + (joint.square() * part[:, None]).sum((0, 2, 3))
        mean = sums / count
        self.centre = mean.float()[:, None, None]
        self.spread = (squares / count - mean.square()).clamp(min=LEAST**2).sqrt().float()[:, None, None]

    def know(self, images: MVTecDataset) -> None:
        samples, side = images.samples, max(height for _, height, _ in self.features.shapes)
        defects = [place for place, s in enumerate(samples) if s.label != GOOD]
        if not defects:
            return
        bare = torch.tensor([s.label != GOOD and not s.outlined for s in samples])
        marked = torch.zeros(len(samples), side, side, dtype=torch.bool)
        for place in defects:
            cover = F.adaptive_avg_pool2d(images.small_masks([place]).float(), side)[0]
            over_half = cover > 0.5
            marked[place] = over_half if over_half.any() else cover > 0  # one smaller than a cell is in it all the same
        self.known = Known(*(part.to(self.device) for part in (bare | marked.flatten(1).any(1), marked, bare)))

    def joint(self, rows: Tensor) -> Tensor:
        """Return features of images, a row each, as one map [N, C, h, w]: every cell is the mean of 3 x 3."""
        maps = [F.avg_pool2d(layer, 3, 1, 1, count_include_pad=False) for layer in self.features.maps(rows)]
        return joined(maps, "bilinear")

    def shown(self, batch: Mapping[str, Tensor], joint: Tensor) -> Tensor | None:
        """Return which cells of a batch show its images, [N, h, w], 0 or 1; None where all of them do."""
        inside = inside_of(batch, self.hparams["padded"])
        return None if inside is None else at(inside, joint.shape[-2:])

    def adapted(self, joint: Tensor) -> Tensor:
        """Return what the heads read of a map [N, C, h, w]."""
        return self.adaptor((joint - self.centre) / self.spread)

    def loss(self, images: Tensor) -> Tensor:
        return self.loss_of({"image": images})

    def loss_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        rows = batch["features"] if "features" in batch else of_each(self.features, batch["image"])
        joint = self.joint(rows)
        shown, known = self.shown(batch, joint), None
        if self.known is not None and self.training:  # it says nothing of validation images
            known = Known(*(part[batch["index"].to(part.device)] for part in self.known))
        counted = torch.ones_like(joint[:, 0], dtype=torch.bool) if shown is None else shown > 0
        noisy = blots(len(joint), joint.shape[-1]).to(joint.device) & counted
        anomalous, of_images = noisy, noisy.flatten(1).any(1)
        if known is not None:  # noise lies beside defects, not on them
            noisy = noisy & ~known.marked
            anomalous, of_images = noisy | known.marked, noisy.flatten(1).any(1) | known.defect
            counted = counted & ~known.bare[:, None, None]
        adapted = self.adapted(joint)
        noise = torch.zeros_like(adapted)
        # Drawn for a tenth of the cells: for all of them it took a quarter of a step.
        drawn = torch.randn(int(noisy.sum()), adapted.shape[1], device=adapted.device)
        noise.movedim(1, -1)[noisy] = (self.options["noise"] * drawn).to(noise)
        logits, scores = self.heads(adapted + noise, shown, together=known is not None)
        logits, anomalous = logits.float()[counted], anomalous[counted]
        loss = focal(scores.float(), of_images)
        if len(logits):  # else all images of the batch are defects without a mask
            loss = truncated_l1(logits, anomalous) + focal(logits, anomalous) + loss
        return loss

    def forward(self, images: Tensor) -> Scores:
        joint = self.joint(self.features(images))
        logits, scores = self.heads(self.adapted(joint), self.shown({"image": images}, joint))
        with torch.autocast(images.device.type, enabled=False):
            heat = smooth(logits.float().sigmoid(), images.shape[-1], self.inside(images))
        return Scores(scores.float(), heat)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        if self.known is not None:
            self.clip_gradients(optimizer, STEEPEST, "norm")

    def configure_optimizers(self) -> Any:
        rate = self.hparams["lr"]
        parts = [{"params": [*self.adaptor.parameters()], "lr": SLOWER * rate}, {"params": [*self.heads.parameters()]}]
        return self.optimizer_of(parts)
