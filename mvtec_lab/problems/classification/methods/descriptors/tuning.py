"""Train the backbone's last blocks under a recipe: how maps are pooled and the head's directions stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import softmax
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from mvtec_lab.errors import LabError
from mvtec_lab.models.views import unviewed, view
from mvtec_lab.problems.classification.methods.descriptors.heads import Fitted, Linear, log_loss
from mvtec_lab.problems.classification.methods.descriptors.maps import Cells, Seen
from mvtec_lab.problems.classification.methods.descriptors.parts import Part

# Parameters that train, but for a single block with more: MobileNetV2's features.16 and 17, ResNet-18's layer4.1. Five
# blocks took four times as long and were no better on drawn products; best.ckpt stays small.
MOST = 1_000_000
RATE, DECAY = 1e-4, 0.01  # on a drawn product 3e-4 cost 13 points of balanced accuracy, 1e-4 two
BATCH = 16  # images; four steps per epoch of a few dozen


def tuned(
    cells: Cells,
    parts: Sequence[Part],
    seen: Callable[[frozenset[int]], Sequence[Seen]],
    labels: np.ndarray,
    folds: np.ndarray,
    fitted: Fitted,
    head_of: Callable[[np.ndarray], Linear],
    epochs: int,
) -> tuple[Tail | None, np.ndarray, str]:
    """Train the backbone's last blocks, if inner folds say that it helps.

    Args:
        cells, parts: as in ``Tail``, and what describes images.
        seen: returns the images to learn from, N, compared with good ones of no fold that is given.
        labels, folds: their classes and their inner folds, [N].
        fitted: the head of frozen maps.
        head_of: returns the head of frozen maps that is fitted to some of the images, by their numbers.
        epochs: how often each image is shown.

    Returns:
        The blocks, None where they stay as they are; the out-of-fold probabilities, [N, C]; what inner folds said.
    """

    def trained(own: np.ndarray, head: Linear, images: Sequence[Seen]) -> Tail:
        device = next(cells.parameters()).device
        tail = Tail(cells).to(device)
        weight, bias = (torch.from_numpy(values).float().to(device) for values in head)
        tail.fit([images[i] for i in own.tolist()], labels[own], parts, (weight, bias), epochs)
        return tail

    probabilities = np.full_like(fitted.probabilities, np.nan)
    for fold in np.unique(folds[folds >= 0]):
        own, others = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(np.unique(labels[own])) < len(np.unique(labels)):
            continue
        head, images = head_of(own), seen(frozenset({int(fold)}))
        tail = trained(own, head, images)
        with torch.no_grad():
            after = [tail(images[i]) for i in others.tolist()]
            rows = torch.stack([torch.cat([part.rows(each) for part in parts]) for each in after])
        probabilities[others] = softmax(head(rows.cpu().numpy()), axis=1)
    both = np.isfinite(probabilities).all(1) & np.isfinite(fitted.probabilities).all(1)
    lost, frozen = (log_loss(each[both], labels[both]) for each in (probabilities, fitted.probabilities))
    helps = bool(both.any()) and lost < frozen
    said = f"{'yes' if helps else 'no'}: log loss {lost:.3f}, frozen {frozen:.3f}"
    if not helps:
        return None, fitted.probabilities, said
    return trained(np.arange(len(labels)), fitted.layer, seen(frozenset())), probabilities, said


class Tail(nn.Module):
    """Change the map of the last layer by what training makes of the backbone's last blocks.

    A map becomes ``map + trained(before) - frozen(before)``, the mean over views of the image. So it is the same before
    training, whatever it was averaged over.

    Args:
        cells: gives the maps; its backbone's modules are used, not copied.

    Raises:
        LabError: as ``FeatureMaps.last_blocks``; the layer before the last one is pooled to a coarser grid.
    """

    def __init__(self, cells: Cells) -> None:
        super().__init__()
        before, frozen = cells.features.last_blocks(MOST)
        (side, width), (last, _) = cells.shapes[-2:]
        with torch.no_grad():
            made = frozen(before(next(frozen.parameters()).new_zeros(1, width, side, side)))
        if made.shape[-1] != last:
            raise LabError(
                f"model.options.tune: the layer {cells.features.layers[-2]} is finer than the grid of patches, and its "
                "map is kept on that grid alone: name layers with larger cells in model.options.layers"
            )
        self._fixed = before, frozen  # in a tuple: a checkpoint has them once, as the backbone's
        self.trained = deepcopy(frozen).requires_grad_(True)
        self.cells = (cells,)  # in a tuple for the same reason

    @property
    def views(self) -> range:
        """Return the numbers of the views that maps are averaged over."""
        return range(self.cells[0].views)

    def entering(self, seen: Seen) -> Tensor:
        """Return what enters the blocks, from the map of the layer before them."""
        with torch.no_grad():
            return self._fixed[0](seen.maps[-2])

    def changed(self, seen: Seen, entering: Tensor, views: Sequence[int]) -> Seen:
        """Return what is seen with the last map changed, as the mean over some views."""
        changes = []
        for number in views:
            entered = view(entering, number)
            with torch.no_grad():
                before = self._fixed[1](entered)
            changes.append(unviewed(self.trained(entered) - before, number))
        return Changed(seen, seen.maps[-1] + torch.stack(changes).mean(0))

    def forward(self, seen: Seen) -> Seen:
        """Return what parts see of images after training."""
        return self.changed(seen, self.entering(seen), self.views)

    def train(self, mode: bool = True) -> Tail:
        return super().train(False)  # batches are small: batch normalisation keeps what it knows

    def fit(
        self,
        seen: Sequence[Seen],
        labels: np.ndarray,
        parts: Sequence[Part],
        head: tuple[Tensor, Tensor],
        epochs: int,
    ) -> None:
        """Train the blocks under a head that stays, with AdamW and one cycle of the rate; every class weighs alike.

        Args:
            seen: training images, one each.
            labels: their classes.
            parts: what describes them.
            head: weight [D, C] and bias [C] of their rows.
            epochs: how often each image is shown, by one of its views.
        """
        generator = torch.Generator().manual_seed(0)
        target = torch.as_tensor(labels, device=head[0].device)
        counts = target.bincount(minlength=head[0].shape[1]).clamp_min(1)
        entering = [self.entering(each) for each in seen]
        batches = max(1, len(seen) // BATCH)
        optimizer = AdamW(self.trained.parameters(), RATE, weight_decay=DECAY)
        schedule = OneCycleLR(optimizer, RATE, total_steps=epochs * batches, cycle_momentum=False)
        for _ in range(epochs):
            for chosen in torch.randperm(len(seen), generator=generator).tensor_split(batches):
                numbers = torch.randint(len(self.views), (len(chosen),), generator=generator).tolist()
                rows = []
                for place, number in zip(chosen.tolist(), numbers, strict=True):
                    changed = self.changed(seen[place], entering[place], [number])
                    rows.append(torch.cat([part.rows(changed) for part in parts]))
                logits = torch.stack(rows) @ head[0] + head[1]
                loss = F.cross_entropy(logits, target[chosen.to(target.device)], 1 / counts.float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()


class Changed(Seen):
    """Give what is seen of images with another last map; good patches are looked for by the maps as they were."""

    def __init__(self, origin: Seen, last: Tensor) -> None:
        super().__init__([*origin.maps[:-1], last], origin._memory, origin.inside)
        self.origin = origin

    @property
    def free(self) -> Tensor:
        return self.origin.free

    @property
    def local(self) -> Tensor:
        return self.origin.local
