"""A small convolutional encoder and decoder, trained from random weights, which the reconstructing methods share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from mvtec_lab.errors import LabError

Norm = Callable[[int], nn.Module]  # channels to a layer

# Channels of the layers with stride 2 in Bergmann et al., VISAPP 2019. Their layers of stride 1 between these are left
# out: the decoder mirrors the encoder, and an epoch of 167 images of 128 pixels takes a few seconds on two CPU cores.
WIDTHS = (32, 32, 64, 128)
CELL = 2 ** len(WIDTHS)  # pixels a side of one cell of the encoder's map
SLOPE = 0.2  # of the leaky ReLU, as there
# Width of the Gaussian that smooths a map, as a share of the image's side: 2 pixels of 128. A reconstruction misses
# single pixels along every edge; a defect is wider.
SMOOTHING = 1 / 64


class Reconstructor(nn.Module):
    """Learn to reconstruct pictures [N, 3, S, S] in [0, 1], and show where that fails."""

    def loss(self, pictures: Tensor) -> Tensor:
        """Return the training loss of good pictures."""
        raise NotImplementedError

    def residual(self, pictures: Tensor) -> Tensor:
        """Return the error of each pixel, [N, S, S], float32."""
        raise NotImplementedError


def check_size(image_size: int) -> None:
    """Raise LabError if the networks cannot reconstruct pictures of this size."""
    if image_size % CELL or image_size < 2 * CELL:  # a single cell would know no places
        raise LabError(
            f"data.image_size={image_size} cannot be reconstructed: give a multiple of {CELL} from {2 * CELL} on, "
            "64 to 256 are meant"
        )


def unchanged(channels: int) -> nn.Module:
    """Return no normalisation, as in the paper.

    The running statistics of batch normalisation lag far behind a training of a few hundred steps: validation losses
    jump by a factor of ten.
    """
    return nn.Identity()


def down(norm: Norm = unchanged) -> nn.Sequential:
    """Return an encoder of pictures [N, 3, S, S] to maps [N, 128, S / 16, S / 16]."""
    layers: list[nn.Module] = []
    for before, after in pairwise((3, *WIDTHS)):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), norm(after), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers)


def up(norm: Norm = unchanged) -> nn.Sequential:
    """Return a decoder of maps [N, 128, S / 16, S / 16] to pictures [N, 3, S, S] of unbounded values."""
    layers: list[nn.Module] = []
    for before, after in pairwise(reversed(WIDTHS)):
        layers += [_double(before, after), norm(after), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers, _double(WIDTHS[0], 3))


def _double(before: int, after: int) -> nn.Module:
    return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)


def encode(image_size: int, size: int, norm: Norm = unchanged) -> nn.Sequential:
    """Return an encoder of pictures [N, 3, S, S] to codes [N, size] of the whole picture."""
    cells = (image_size // CELL) ** 2
    return nn.Sequential(down(norm), nn.Flatten(), nn.Linear(WIDTHS[-1] * cells, size))


def decode(image_size: int, size: int, norm: Norm = unchanged) -> nn.Sequential:
    """Return a decoder of codes [N, size] to pictures [N, 3, S, S] of unbounded values."""
    side = image_size // CELL
    shape = (WIDTHS[-1], side, side)
    return nn.Sequential(nn.Linear(size, WIDTHS[-1] * side**2), nn.Unflatten(1, shape), up(norm))


def squared_error(reconstructions: Tensor, pictures: Tensor) -> Tensor:
    """Return the squared error of each pixel of [N, 3, S, S], mean over the channels: [N, S, S], float32."""
    return (reconstructions.float() - pictures).square().mean(1)


def smooth(maps: Tensor) -> Tensor:
    """Return maps [N, S, S] blurred by a Gaussian."""
    sigma = SMOOTHING * maps.shape[-1]
    return gaussian_blur(maps[:, None], 2 * round(3 * sigma) + 1, sigma)[:, 0]
