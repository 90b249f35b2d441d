"""What a recipe is fitted on: images with their maps, good patches, and rows of descriptors, kept in the cache.

Whatever is drawn among images follows the digests of their files: with other names they give the same model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvtec_lab.data.images import digests
from mvtec_lab.data.samples import Sample
from mvtec_lab.engine.features import kept
from mvtec_lab.engine.run import Run
from mvtec_lab.errors import LabError
from mvtec_lab.models.maps import of_each
from mvtec_lab.problems.classification.methods.descriptors.heads import deal
from mvtec_lab.problems.classification.methods.descriptors.maps import Cells, Seen, joined
from mvtec_lab.problems.classification.methods.descriptors.memory import JUDGED, Memory
from mvtec_lab.problems.classification.methods.descriptors.parts import SETTINGS, Part
from mvtec_lab.problems.memory import require_memory
from mvtec_lab.progress import bar
from mvtec_lab.results import GOOD

log = logging.getLogger(__name__)

Out = frozenset[int]  # inner folds that a memory or a copy has not seen
NONE: Out = frozenset()
OWN_GOOD = "which are learnt as well: each image is compared with those of other inner folds"
FEW_GOOD = (
    "there are so few good images that inner folds compare with those of the fold that they judge: validation is a "
    "little too good"
)
NO_GOOD = "name their class (data.good=[OK]), or give attempt=lab/global, which compares with none"


class Images:
    """Give what parts see of some images of a run, by place.

    Args:
        run: the run, with its trainer.
        cells: gives the maps; its device is that of what is seen.
        samples: the images.
        remembered: keep their maps in the cache: those of images that every fold and attempt looks at.
    """

    def __init__(self, run: Run, cells: Cells, samples: Sequence[Sample], remembered: bool = True) -> None:
        self.run, self.cells, self.samples, self.remembered = run, cells, list(samples), remembered
        self.dataset = run.data.images(self.samples)
        self.classes, self.labels = self.dataset.classes, self.dataset.labels.numpy()
        self.digests = digests([run.data.folder / sample.path for sample in self.samples])
        self.groups = _by_content([sample.group for sample in self.samples], self.digests)
        self.memory: Memory | None = None
        # Where the good images are learnt from: the inner fold of each, and memories without those of some folds.
        self.folds: dict[int, int] = {}
        self.memories: dict[Out, Memory] = {}
        data = run.data
        self.name = f"{data.folder.name} {run.result.backbone} descriptors at {data.frame}"

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def _maps(self) -> Tensor | None:
        if not self.remembered:
            return None

        def blocks() -> Iterator[np.ndarray]:
            return (self._row(place).cpu().numpy() for place in range(len(self)))

        return self.keep("maps", len(self), {}, blocks)

    def keep(self, what: str, rows: int, further: Any, blocks: Callable[[], Any]) -> Tensor | None:
        """Return an array of these images that the cache keeps; None where it keeps none."""
        data, trainer = self.run.data, self.run.trainer
        return kept(f"{self.name} {what}", self.cells, data, self.dataset, rows, [what, further], trainer, blocks)

    def _row(self, place: int) -> Tensor:
        return of_each(self.cells, self.dataset[[place]]["image"].to(self.run.trainer.strategy.root_device))

    def inside(self, place: int) -> Tensor | None:
        """Return which pixels of its square show an image, [1, S, S] bool; None: all of them."""
        return self.dataset.inside(place)[None] if self.dataset.frame.pads else None

    def __getitem__(self, place: int) -> Seen:
        return self.seen(place)

    def seen(self, place: int, left: Out = NONE) -> Seen:
        """Return what parts see of an image; ``left``: as in ``memory_for``."""
        row, inside = self._row(place) if self._maps is None else self._maps[place][None], self.inside(place)
        device = self.run.trainer.strategy.root_device
        part = None if inside is None else inside.to(device)
        return Seen(self.cells.maps(row.to(device)), self.memory_for(place, left), part)

    def memory_for(self, place: int, left: Out = NONE) -> Memory | None:
        """Return the good patches that an image is compared with.

        An image that a memory has seen is near to it: what describes one that is learnt has not seen its inner fold.

        Args:
            left: the fold that is judged, which the memory must not have seen either.
        """
        if (own := self.folds.get(place)) is None:
            return self.memory
        alone = self.memories.get(frozenset({own}), self.memory)
        return self.memories.get(left | {own}, alone)  # a few good images cannot be without two folds

    def marked(self, place: int) -> Tensor | None:
        """Return the share of each cell that an image's mask marks as its type of defect, [cells] in [0, 1].

        None where that is not known: there is no mask or an empty one, or it shows several types.
        """
        sample, side = self.samples[place], self.cells.side
        device = self.run.trainer.strategy.root_device
        if sample.label == GOOD:
            return torch.zeros(side**2, device=device)
        if not sample.outlined or sample.mixed:
            return None
        mask = self.dataset.small_masks([place]).float().to(device)
        return F.adaptive_avg_pool2d(mask, side).flatten() if mask.any() else None

    def rows(self, parts: Sequence[Part], left: Out = NONE) -> list[Tensor]:
        """Return the rows [N, D] of each part, on the CPU; parts that are not kept yet are computed together.

        Args:
            left: as in ``memory_for``.
        """

        @cache
        def computed() -> list[Tensor]:
            with torch.no_grad(), bar() as progress:
                places = progress.track(range(len(self)), description="describing images")
                of_images = [[part.rows(seen).cpu() for part in parts] for seen in (self.seen(p, left) for p in places)]
            return [torch.stack(rows) for rows in zip(*of_images, strict=True)]

        memories = [self.memory_for(place, left) for place in range(len(self))]
        digests = {id(memory): memory.digest() for memory in (self.memory, *memories) if memory}
        further = [SETTINGS, list(digests.values()), [memory and digests[id(memory)] for memory in memories]]
        arrays = []
        for part in parts:
            key = [part.key, further] if part.memory else [part.key]

            def blocks(part: Part = part) -> Iterator[np.ndarray]:
                yield computed()[parts.index(part)].numpy()

            array = self.keep(type(part).__name__.lower(), len(self), key, blocks)
            arrays.append(computed()[parts.index(part)] if array is None else array)
        return arrays


def _by_content(groups: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return a number for the group of each image, in the order of the lowest digest of a group's files.

    Groups that share a file become one: a copy that another inner fold has seen would flatter what is held out.

    Args:
        groups: of the images.
        names: digests of their files.
    """
    joined: dict[str, str] = {}  # a digest or a group -> what stands for it

    def root(key: str) -> str:
        while (above := joined.setdefault(key, key)) != key:
            key = above
        return key

    keys = [(f"file {name}", f"group {group}") for group, name in zip(groups, names, strict=True)]
    for file, group in keys:
        joined[max(root(file), root(group))] = min(root(file), root(group))
    roots = [root(group) for _, group in keys]  # the lowest file of each, as "file" sorts before "group"
    rank = {key: number for number, key in enumerate(sorted(set(roots)))}
    return [rank[key] for key in roots]


def good_patches(run: Run, images: Images, learnt: Sequence[Sample], most: int) -> Memory:
    """Return a memory of good images that take no part, else of those that are learnt from; ``decided`` says which.

    Args:
        images: all that take part; where the good ones are learnt, its ``folds`` and ``memories`` are filled.
        learnt: the images to learn from.
        most: how many are remembered at most.

    Raises:
        LabError: there is no good image, or what is held while the memory is filled takes more than is free.
    """
    spare, good = run.data.spare_good(), [sample for sample in learnt if sample.label == GOOD]
    if not spare and not good:
        raise LabError(f"{run.data.folder} has no good images to compare others with: {NO_GOOD}")
    if spare:
        of_spare = Images(run, images.cells, spare, remembered=False)
        memory = remember(_memory_for(of_spare, len(spare), most), of_spare, range(len(spare)))
    else:
        place_of = {sample.path: place for place, sample in enumerate(images.samples)}
        places = np.array([place_of[sample.path] for sample in learnt])
        folds = deal(images.labels[places], [images.groups[place] for place in places])
        is_good = np.array([sample.label == GOOD for sample in learnt])
        memory = remember(_memory_for(images, len(good), most), images, places[is_good].tolist())
        images.folds = dict(zip(places.tolist(), folds.tolist(), strict=True))
        known = np.unique(folds).tolist()
        outs = {frozenset({own, other}) for own in known for other in known if other >= 0 or other == own}
        for out in sorted(outs, key=sorted):
            if rest := places[is_good & ~np.isin(folds, list(out))].tolist():
                images.memories[out] = remember(_memory_for(images, len(rest), most), images, rest)
        if len(images.memories) < len(outs):
            run.warn(f"{run.data.folder}: {FEW_GOOD}")
    remembered = f"{len(memory.owner)} of {len(spare or good)} good images" + ("" if spare else f", {OWN_GOOD}")
    run.result.decided["memory"] = remembered
    if not spare:  # a note: nothing is wrong, and nothing is to be done
        log.info("remembered are %s", remembered)
    return memory


def _memory_for(images: Images, count: int, most: int) -> Memory:
    cells, device, count = images.cells, images.run.trainer.strategy.root_device, min(most, count)
    kept = 4 * cells.side**2 * sum(cells.widths) * (count + JUDGED)  # bytes
    require_memory(kept, device, f"the patches of {count} good images", "give a smaller model.options.memory")
    return Memory(cells.widths, cells.side, count).to(device)


def remember(memory: Memory, images: Images, places: Sequence[int]) -> Memory:
    """Fill a memory with good images and return it.

    It remembers those whose files have the lowest digests: a draw that depends on their content, not on their names.

    Args:
        places: of the good images.
    """
    places = sorted(places, key=lambda place: images.digests[place])
    own = {group: number for number, group in enumerate(dict.fromkeys(images.groups[place] for place in places))}
    groups = [own[images.groups[place]] for place in places]

    def patches() -> Iterator[tuple[Tensor, Tensor]]:
        with bar() as progress:
            for place in progress.track(places, description="reading good images"):
                seen = images[place]
                yield joined(seen.maps), seen.shown(seen.side)

    def blocks() -> Iterator[np.ndarray]:
        with torch.no_grad():
            memory.learn(patches(), groups)
        yield memory.packed()

    array = images.keep("good patches", 1, [len(memory.owner), places, groups], blocks)
    if array is None:
        next(blocks())
    else:
        memory.hold(array[0])
    return memory
