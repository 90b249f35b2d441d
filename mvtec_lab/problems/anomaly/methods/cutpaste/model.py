"""CutPaste's two defects and the Gaussian density of embeddings (Li et al., CVPR 2021)."""

from __future__ import annotations

import math

import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from mvtec_lab.errors import LabError

# The paper's, of images of 256 pixels; lengths shrink and grow with the image.
AREA = (0.02, 0.15)  # of the image
ASPECT = 0.3  # of the shorter side of a patch to the longer one, at least
SCAR_WIDTH, SCAR_LENGTH = (2 / 256, 16 / 256), (10 / 256, 25 / 256)  # of the image's side
TURN = 45.0  # degrees, either way
JITTER = 0.1  # of brightness, contrast, saturation and hue


def paste_patch(image: Tensor) -> Tensor:
    """A rectangle of an image [3, H, W] of RGB in [0, 1], its colours jittered, somewhere else on it."""
    height, width = image.shape[-2:]
    area = _uniform(*AREA) * height * width
    aspect = _uniform(ASPECT, 1) ** (1 if torch.rand(()) < 0.5 else -1)
    size = _within(math.sqrt(area * aspect), height), _within(math.sqrt(area / aspect), width)
    return _paste(image, _jitter(_crop(image, size)), torch.ones(1, *size, device=image.device))


def paste_scar(image: Tensor) -> Tensor:
    """A thin strip of an image [3, H, W] of RGB in [0, 1], its colours jittered, turned, somewhere else on it."""
    height, width = image.shape[-2:]
    size = _within(_uniform(*SCAR_LENGTH) * height, height), _within(_uniform(*SCAR_WIDTH) * width, width)
    strip = _jitter(_crop(image, size))
    opaque = torch.cat([strip, torch.ones_like(strip[:1])])
    turned = V.rotate(opaque, _uniform(-TURN, TURN), expand=True)[:, :height, :width]
    return _paste(image, turned[:3], turned[3:])


class Density(nn.Module):
    """A Gaussian of embeddings, whose covariance is Ledoit and Wolf's (there are fewer images than dimensions)."""

    mean: Tensor
    precision: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("precision", torch.empty(0, 0))

    def fit(self, embeddings: Tensor) -> None:
        """To embeddings [M, D].

        Raises:
            LabError: fewer than two.
        """
        if len(embeddings) < 2:
            raise LabError(f"a covariance needs two good training images, not {len(embeddings)}: add images")
        fitted = LedoitWolf().fit(embeddings.double().cpu().numpy())
        self.mean, self.precision = (
            torch.from_numpy(values).to(embeddings) for values in (fitted.location_, fitted.precision_)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Mahalanobis distance of embeddings [N, D]: [N]."""
        away = embeddings - self.mean
        return (away @ self.precision * away).sum(1).clamp(min=0).sqrt()


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
    there = pasted[:, top : top + height, left : left + width]
    there.copy_(alpha * patch + (1 - alpha) * there)
    return pasted
