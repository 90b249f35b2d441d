"""Pretrain the sample's own weights on invented products: ``python -m mvtec_lab.pretrain FILE``.

The backbone learns which kinds of defect a drawn picture has, which cells of its last map they lie in, and which
colours the parts there have. It sees no image of the sample, and no photograph. ``data/drawn.py`` draws the pictures.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.seed import isolate_rng
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from mvtec_lab.config import SAMPLE_BACKBONE
from mvtec_lab.data.drawn import CELLS, CHANNELS, KINDS, draw
from mvtec_lab.models.backbones import pretrained
from mvtec_lab.models.layouts import layout
from mvtec_lab.models.weights import IMAGENET_MEAN, IMAGENET_STD, save_file

log = logging.getLogger(__name__)

STEPS, RATE = 2400, 6e-3
POOL, FRESH = 2048, 8  # a picture stays for 256 steps, and is learnt from eight times: drawing costs a fifth of all
DEFECTS = (0, 1, 1, 2)  # of each piece these pictures are drawn, equal but for the defects, and they share a batch
# Up to which share of the steps, pixels, and how many: windows with a defect first, then whole pictures. A defect is a
# hundredth of a picture, which is learnt slowly, but a twentieth of a window, which costs a quarter.
PHASES = ((0.8, 64, 64), (1.0, 128, 32))
MAPS = 3  # so many of the last stages say where: the shorter way back to the first layers starts them sooner
HELD_OUT = 384  # pictures that are never learnt from


class Pretext(nn.Module):
    """Predict kinds of defects and colours from a backbone's network, whose modules it shares.

    Args:
        network: a TorchVision network, which trains along.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        parts = layout(network)
        after = {name: parts.pop(name) for name in ("pool", "neck", "head") if name in parts}
        self.trunk = nn.Sequential(OrderedDict(parts))
        self.features = nn.Sequential(OrderedDict((name, after[name]) for name in ("pool", "neck") if name in after))
        self.kinds = nn.LazyLinear(len(KINDS))
        self.cells = nn.ModuleList(nn.LazyConv2d(CHANNELS, 1) for _ in range(MAPS))

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return logits of images [N, 3, S, S]: of the last maps' cells [N, CHANNELS, G, G], of kinds [N, KINDS]."""
        maps = [images]
        for stage in self.trunk:
            maps.append(stage(maps[-1]))
        cells = [layer(of_stage) for layer, of_stage in zip(self.cells, maps[-MAPS:], strict=True)]
        return cells, self.kinds(self.features(maps[-1]))


def loss_of(cells: Sequence[Tensor], kinds: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of a batch, nats: of the kinds, and of the cells, a map's together as much as a kind.

    Args:
        cells, kinds: what Pretext returns.
        targets: [N, CHANNELS, CELLS, CELLS] in [0, 1].
    """
    loss = F.binary_cross_entropy_with_logits(kinds, _there(targets), reduction="none").sum(1).mean()
    for logits in cells:
        shares = F.adaptive_avg_pool2d(targets, (logits.shape[2], logits.shape[3]))
        shares[:, : len(KINDS)] = (32 * shares[:, : len(KINDS)]).clamp(max=1)  # so that a scratch counts
        # Rare cells weigh more: where nearly all are empty, a network begins by saying that all are.
        each = F.binary_cross_entropy_with_logits(logits, shares, 1 + 9 * shares, reduction="none")
        loss = loss + each.mean((2, 3)).sum(1).mean()
    return loss


def _there(targets: Tensor) -> Tensor:
    """Return which kinds of defect are anywhere in each picture, [N, KINDS], 0 or 1."""
    return (targets[:, : len(KINDS)].amax((2, 3)) > 0).float()


def pictures(seed: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return drawn pictures [count, S, S, 3] uint8 and their targets; number k depends on ``seed`` and k alone."""
    places = (divmod(k, len(DEFECTS)) for k in range(first, first + count))
    drawn = [draw([seed, piece, k], DEFECTS[k]) for piece, k in places]
    return np.stack([image for image, _ in drawn]), np.stack([targets for _, targets in drawn])


def batches(seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images [N, 3, S, S], normalised, and targets for each step, out of a pool that is renewed bit by bit."""
    rng, drawn = np.random.default_rng(seed), POOL
    images, targets = pictures(seed, 0, POOL)
    for step in range(steps):
        place = step * FRESH % POOL
        images[place : place + FRESH], targets[place : place + FRESH] = pictures(seed, drawn, FRESH)
        drawn += FRESH
        size, count = next((size, count) for until, size, count in PHASES if step < until * steps)
        pieces = rng.choice(POOL // len(DEFECTS), count // len(DEFECTS), replace=False)
        chosen = (pieces[:, None] * len(DEFECTS) + np.arange(len(DEFECTS))).ravel()
        windows = [window(images[k], targets[k], size, rng) for k in chosen]
        batch = as_batch(*(np.stack(arrays) for arrays in zip(*windows, strict=True)))
        yield _turned(*batch, int(rng.integers(8)))


def window(
    image: np.ndarray, targets: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a window [size, size, 3] of a picture that shows a part of a defect, if there is one, and its targets."""
    pixels = image.shape[0] // CELLS
    cells = size // pixels
    places = np.argwhere(targets[: len(KINDS)].any(0))
    shown = places[rng.integers(len(places))] if len(places) else rng.integers(CELLS, size=2)
    top, left = (shown - rng.integers(cells, size=2)).clip(0, CELLS - cells)
    part = image[top * pixels :, left * pixels :][:size, :size]
    return part, targets[:, top : top + cells, left : left + cells]


def as_batch(images: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return pictures as tensors: images [N, 3, S, S], normalised, and targets in [0, 1]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    return x.contiguous(memory_format=torch.channels_last), torch.from_numpy(targets).float() / 255


def _turned(images: Tensor, targets: Tensor, symmetry: int) -> tuple[Tensor, Tensor]:
    """Return both under one of a square's eight symmetries."""
    turns, mirrored = divmod(symmetry, 2)
    images, targets = (torch.rot90(t.flip(-1) if mirrored else t, turns, (-2, -1)) for t in (images, targets))
    return images.contiguous(memory_format=torch.channels_last), targets


def pretrain(file: str | Path, *, backbone: str = SAMPLE_BACKBONE, steps: int = STEPS, seed: int = 0) -> float:
    """Pretrain a backbone from random weights and write them, in half precision and without the last layer.

    Args:
        file: a file for ``model.weights``; it is written a tenth of the way each as well.
        backbone: a TorchVision name.
        steps: batches of BATCH pictures.
        seed: of pictures, batches and initial weights.

    Returns:
        The average precision of the kinds on pictures that were not learnt from, their mean.
    """
    begun, held_out = time.process_time(), as_batch(*pictures(seed + 1, 0, HELD_OUT))
    with isolate_rng():
        torch.manual_seed(seed)
        network = pretrained(backbone, None)
        model = Pretext(network).eval()
        model(held_out[0][:2])  # the lazy layers take their shapes
        model.to(memory_format=torch.channels_last)
        for layer in (*model.cells, model.kinds):
            nn.init.constant_(layer.bias, -3.0)  # defects are rare: the first steps need not learn that
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
        losses: list[float] = []
        for step, (images, targets) in enumerate(batches(seed, steps), start=1):
            cells, kinds = model.train()(images)
            loss = loss_of(cells, kinds, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if step % max(1, steps // 20) == 0 or step == steps:
                precision = _precision(model, held_out)
                spent = time.process_time() - begun
                log.info("%5d steps, %5.0f CPU s: loss %.3f, precision %.3f", step, spent, np.mean(losses), precision)
                losses.clear()
                _save(network, file)
    return precision


@torch.no_grad()
def _precision(model: Pretext, held_out: tuple[Tensor, Tensor]) -> float:
    model.eval()
    images, targets = held_out
    scores = torch.cat([model(batch)[1] for batch in images.split(32)]).numpy()
    there = _there(targets).numpy()
    return float(np.mean([average_precision_score(there[:, k], scores[:, k]) for k in range(len(KINDS))]))


def _save(network: nn.Module, file: str | Path) -> None:
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    state = {key: value for key, value in network.state_dict().items() if not key.startswith(f"{last}.")}
    save_file({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--backbone", default=SAMPLE_BACKBONE)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pretrain(arguments.file, backbone=arguments.backbone, steps=arguments.steps, seed=arguments.seed)
