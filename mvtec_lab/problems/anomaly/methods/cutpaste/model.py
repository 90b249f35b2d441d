"""CutPaste (Li et al., CVPR 2021): two kinds of pasted defects, and a Gaussian density of embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.base import Batches, Scores
from mvtec_lab.problems.anomaly.frozen import collect
from mvtec_lab.problems.anomaly.methods.cutpaste import METHOD
from mvtec_lab.problems.anomaly.pretext import PretextModel

# The paper's values, for images of 256 pixels; lengths shrink and grow with the image.
AREA = (0.02, 0.15)  # of the image
ASPECT = 0.3  # of the shorter side of a patch to the longer one, at least
SCAR_WIDTH, SCAR_LENGTH = (2 / 256, 16 / 256), (10 / 256, 25 / 256)  # of the image's side
TURN = 45.0  # degrees, either way
JITTER = 0.1  # of brightness, contrast, saturation and hue


def paste_patch(image: Tensor) -> Tensor:
    """Return an image [3, H, W] of RGB in [0, 1] with a rectangle of its own pasted elsewhere, in jittered colours."""
    height, width = image.shape[-2:]
    area = _uniform(*AREA) * height * width
    aspect = _uniform(ASPECT, 1) ** (1 if torch.rand(()) < 0.5 else -1)
    size = _within(math.sqrt(area * aspect), height), _within(math.sqrt(area / aspect), width)
    return _paste(image, _jitter(_crop(image, size)), torch.ones(1, *size, device=image.device))


def paste_scar(image: Tensor) -> Tensor:
    """Return an image [3, H, W] of RGB in [0, 1] with a thin strip of its own pasted elsewhere, jittered and turned."""
    height, width = image.shape[-2:]
    size = _within(_uniform(*SCAR_LENGTH) * height, height), _within(_uniform(*SCAR_WIDTH) * width, width)
    strip = _jitter(_crop(image, size))
    opaque = torch.cat([strip, torch.ones_like(strip[:1])])
    turned = V.rotate(opaque, _uniform(-TURN, TURN), expand=True)[:, :height, :width]
    return _paste(image, turned[:3], turned[3:])


class Density(nn.Module):
    """Fit a Gaussian to embeddings; with fewer images than dimensions its covariance is Ledoit and Wolf's."""

    mean: Tensor
    precision: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("precision", torch.empty(0, 0))

    def fit(self, embeddings: Tensor) -> None:
        """Fit the Gaussian to embeddings [M, D]; raise LabError if they are fewer than two."""
        if len(embeddings) < 2:
            raise LabError(f"a covariance needs two good training images, not {len(embeddings)}: add images")
        fitted = LedoitWolf().fit(embeddings.double().cpu().numpy())
        self.mean, self.precision = (
            torch.from_numpy(values).to(embeddings) for values in (fitted.location_, fitted.precision_)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the Mahalanobis distances [N] of embeddings [N, D]."""
        centred = embeddings - self.mean
        return (centred @ self.precision * centred).sum(1).clamp(min=0).sqrt()


class CutPaste(PretextModel):
    """Train a classifier of good, patched and scarred images, the paper's 3-way variant.

    A score is the Mahalanobis distance of an image's embedding from good ones; there is no map.
    """

    method, ways = METHOD, 3

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.density = Density()

    def loss(self, images: Tensor) -> Tensor:
        pictures = self.pictures(images).clamp(0, 1)
        pasted = torch.stack([paste(picture) for paste in (paste_patch, paste_scar) for picture in pictures])
        kinds = torch.arange(self.ways, device=images.device).repeat_interleave(len(images))
        shown = torch.cat([images, (pasted - self.channel_mean) / self.channel_std])
        return F.cross_entropy(self.classifier(shown), kinds)

    @torch.no_grad()
    def finish(self, batches: Batches) -> None:
        """Fit the density; raise LabError if there are fewer than two good images."""
        self.eval()
        self.density.fit(collect(map(self.classifier.embed, batches())))

    def forward(self, images: Tensor) -> Scores:
        embeddings = self.classifier.embed(images)
        with torch.autocast(images.device.type, enabled=False):  # squares of small differences want float32
            return Scores(self.density(embeddings), None)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _within(length: float, side: int) -> int:
    return min(max(round(length), 1), side)


def _place(size: tuple[int, int], within: tuple[int, int]) -> tuple[int, int]:
    top, left = (int(torch.randint(whole - part + 1, ())) for part, whole in zip(size, within, strict=True))
    return top, left


def _crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    top, left = _place(size, (image.shape[1], image.shape[2]))
    return image[:, top : top + size[0], left : left + size[1]]


def _jitter(patch: Tensor) -> Tensor:
    return v2.ColorJitter(JITTER, JITTER, JITTER, JITTER)(patch)


def _paste(image: Tensor, patch: Tensor, alpha: Tensor) -> Tensor:
    height, width = patch.shape[-2:]
    top, left = _place((height, width), (image.shape[1], image.shape[2]))
    pasted = image.clone()
    covered = pasted[:, top : top + height, left : left + width]
    covered.copy_(alpha * patch + (1 - alpha) * covered)
    return pasted
