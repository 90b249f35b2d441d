"""DRAEM (Zavrtanik et al., ICCV 2021): two networks, synthetic defects and their loss. Pictures are RGB in [0, 1]."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from torchvision.ops import sigmoid_focal_loss
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly.base import AnomalyModel, Scores
from mvtec_lab.problems.anomaly.methods.draem import METHOD
from mvtec_lab.problems.padding import within

# Small enough for a CPU: the paper's networks work at full size, with 64 or 128 channels in the finest of six scales.
FOLD = 2  # pixels a side that become channels of one place
WIDTHS = (16, 32, 64, 64)  # channels of each scale
LEAST = FOLD * 2 ** (len(WIDTHS) - 1)  # pixels a side: one cell of the coarsest scale
FINEST = 8  # pixels of the noise's finest cells: the official code's 32 cells across 256 pixels
THRESHOLD = 0.5  # of the noise; this and what follows are the official code's
TURN = 90.0  # degrees, either way
SPARED = 0.5  # share of pictures that stay as they are
TRANSPARENT = 0.8  # largest share of the picture that shines through
PLAIN = 0.5  # share of sources that keep their colours
CHANGES = 3  # colour changes of the other sources, out of:
COLOURS = (
    v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5),
    v2.RandomChannelPermutation(),
    v2.RandomInvert(1.0),
    v2.RandomPosterize(3, 1.0),
    v2.RandomSolarize(0.25, 1.0),
    v2.RandomAutocontrast(1.0),
    v2.RandomEqualize(1.0),
    v2.RandomAdjustSharpness(3.0, 1.0),
)
TILES = 4  # per side: a source's tiles are shuffled, so that parts of the product lie where they never do
SMOOTHING = 21 / 256  # of the map's side, width of the mean filter before the maximum; the official code's


class Hourglass(nn.Module):
    """Map images [N, inputs, S, S] to [N, outputs, S, S]; without skips only the coarsest scale passes on."""

    def __init__(self, inputs: int, outputs: int, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise((inputs * FOLD**2, *WIDTHS)))
        self.up = nn.ModuleList(_block(a + b * skips, b) for a, b in pairwise(WIDTHS[::-1]))
        self.last = nn.Conv2d(WIDTHS[0], outputs * FOLD**2, 1)

    def forward(self, images: Tensor) -> Tensor:
        size, odd = images.shape[-1], -images.shape[-1] % FOLD
        values, passed = F.pixel_unshuffle(F.pad(images, (0, odd, 0, odd), "replicate"), FOLD), []
        for i, block in enumerate(self.down):
            values = block(F.max_pool2d(values, 2) if i else values)
            passed.append(values)
        for block, skip in zip(self.up, passed[-2::-1], strict=True):
            values = F.interpolate(values, skip.shape[-2:])
            values = block(torch.cat([values, skip], 1) if self.skips else values)
        return F.pixel_shuffle(self.last(values), FOLD)[:, :, :size, :size]


class DraemNetwork(nn.Module):
    """Restore pictures [N, 3, S, S]; return them, and the logits [N, 1, S, S] of where they were corrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.reconstruct = Hourglass(3, 3, skips=False)
        self.discriminate = Hourglass(6, 1, skips=True)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        restored = self.reconstruct(pictures)
        return restored, self.discriminate(torch.cat([restored, pictures], 1))


def draem_loss(pictures: Tensor, mask: Tensor, restored: Tensor, logits: Tensor) -> Tensor:
    """Return L2 and SSIM losses of the restored pictures, plus the focal loss of where they were corrupted."""
    restored = restored.float()
    similar = ssim(restored, pictures, data_range=1.0)
    assert isinstance(similar, Tensor)
    return F.mse_loss(restored, pictures) + 1 - similar + sigmoid_focal_loss(logits.float(), mask, -1, 2, "mean")


def image_score(maps: Tensor) -> Tensor:
    """Return the maximum [N] of maps [N, S, S] after smoothing."""
    half = int(SMOOTHING * maps.shape[-1] / 2)
    return F.avg_pool2d(maps[:, None], 2 * half + 1, 1, half).amax((1, 2, 3))


class Draem(AnomalyModel):
    """Train two networks: one restores corrupted images, the other one shows what was corrupted.

    The map is the probability that a pixel is unlike good ones; the score is the maximum of the smoothed map.

    Raises:
        LabError: images too small for the networks.
    """

    method = METHOD

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        size = self.hparams["image_size"]
        if size < LEAST:
            raise LabError(f"data.image_size={size} is too small for draem: give {LEAST} or more, 128 are meant")
        self.network = DraemNetwork()

    def loss(self, images: Tensor) -> Tensor:
        pictures = self.pictures(images).clamp(0, 1)
        corrupted, mask = corrupt(pictures)
        return draem_loss(pictures, mask, *self.network(corrupted))

    def forward(self, images: Tensor) -> Scores:
        heat = self.network(self.pictures(images).clamp(0, 1))[1].float().sigmoid()[:, 0]
        heat = within(heat, self.inside(images))
        return Scores(image_score(heat), heat)


def corrupt(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return pictures [N, 3, S, S] with synthetic defects, and their masks [N, 1, S, S], float of 0 and 1.

    A defect shows another picture of the batch, its tiles shuffled and its colours changed: the paper's textures (DTD)
    are no part of an inspection's data.
    """
    size = pictures.shape[-1]
    masks = torch.stack([_mask(size) for _ in pictures]).to(pictures)
    masks *= (torch.rand(len(pictures), 1, 1, 1) >= SPARED).to(pictures)
    alpha = masks * (1 - TRANSPARENT * torch.rand(len(pictures), 1, 1, 1)).to(pictures)
    sources = torch.stack([_source(picture) for picture in pictures.roll(1, 0)])
    return pictures + alpha * (sources - pictures), masks


def perlin(size: int, rows: int, columns: int) -> Tensor:
    """Return Perlin's gradient noise of rows x columns cells, [size, size] in [-1, 1]."""
    angle = 2 * math.pi * torch.rand(rows + 1, columns + 1)
    y, x = (torch.arange(size)[:, None] * (rows / size)), torch.arange(size) * (columns / size)
    top, left = y.long(), x.long()
    y, x = y - top, x - left

    def corner(down: int, right: int) -> Tensor:
        direction = angle[top + down, left + right]
        return direction.sin() * (y - down) + direction.cos() * (x - right)

    fade_y, fade_x = (t**3 * (t * (6 * t - 15) + 10) for t in (y, x))
    above, below = (torch.lerp(corner(down, 0), corner(down, 1), fade_x.expand(size, size)) for down in (0, 1))
    return math.sqrt(2) * torch.lerp(above, below, fade_y.expand(size, size))


def _mask(size: int) -> Tensor:
    finest = int(math.log2(max(size / FINEST, 1)))
    rows, columns = (2 ** int(torch.randint(finest + 1, ())) for _ in range(2))
    noise = V.rotate(perlin(size, rows, columns)[None], TURN * (2 * float(torch.rand(())) - 1))
    return (noise > THRESHOLD).float()


def _source(picture: Tensor) -> Tensor:
    side = math.ceil(picture.shape[-1] / TILES)
    whole = F.pad(picture, (0, TILES * side - picture.shape[-1]) * 2, mode="replicate")
    tiles = whole.unfold(1, side, side).unfold(2, side, side).flatten(1, 2)[:, torch.randperm(TILES**2)]
    shuffled = tiles.unflatten(1, (TILES, TILES)).permute(0, 1, 3, 2, 4).reshape(whole.shape)
    source = shuffled[:, : picture.shape[-1], : picture.shape[-1]].rot90(int(torch.randint(4, ())), (1, 2))
    if torch.rand(()) >= PLAIN:
        for index in torch.randperm(len(COLOURS))[:CHANGES].tolist():
            source = COLOURS[index](source)
    return source


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*_layer(inputs, outputs), *_layer(outputs, outputs))


def _layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU(inplace=True)
