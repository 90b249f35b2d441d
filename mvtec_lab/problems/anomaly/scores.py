"""Raw scores and maps of images by a one-class method, and sheets of pictures that show them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, repeat

import numpy as np
import torch

from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.samples import by_image
from mvtec_lab.data.tiles import Window, stitch
from mvtec_lab.engine.pictures import SIDE, heat_over, map_at, outlined, sheet, tile_of
from mvtec_lab.problems.anomaly.base import AnomalyModel
from mvtec_lab.problems.anomaly.frozen import bar
from mvtec_lab.problems.scored import Scored
from mvtec_lab.results import EXPLANATIONS, MISTAKES

log = logging.getLogger(__name__)

SHOWN = 4  # images of each kind on the sheet of maps: the worst escapes, the worst false rejects, typical ones


class Reading:
    """Pass over images once, in batches [N, 3, S, S]; its length lets a method estimate the memory it needs.

    Args:
        places: of the images in the data set; None: all of them.
    """

    def __init__(
        self, dataset: MVTecDataset, batch_size: int, device: torch.device, places: Sequence[int] | None = None
    ) -> None:
        self.dataset, self.batch_size, self.device = dataset, batch_size, device
        self.places = range(len(dataset)) if places is None else places

    def __len__(self) -> int:
        return -(-len(self.places) // self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for start in range(0, len(self.places), self.batch_size):
            yield self.dataset[list(self.places[start : start + self.batch_size])]["image"].to(self.device)


def score(
    model: AnomalyModel,
    dataset: MVTecDataset,
    batch_size: int,
    device: torch.device,
    places: Sequence[int] | None = None,
) -> tuple[np.ndarray, list[np.ndarray] | None]:
    """Return the raw scores [N] of images, and maps [h, w] that cover them; None where the method has none.

    Args:
        dataset: the images, or all of their tiles.
        places: as in ``Reading``.
    """
    model.to(device).eval()
    scores: list[np.float32] = []
    maps: list[np.ndarray] = []
    with bar() as progress:
        reading = Reading(dataset, batch_size, device, places)
        batches = progress.track(reading, description="scoring images")
        squares = (pair for images in batches for pair in scores_of(model, images))
        pairs = (
            (value, None if score_map is None else dataset.cut(place, score_map))
            for place, (value, score_map) in zip(reading.places, squares, strict=True)
        )
        for tiles in by_image([dataset.samples[place] for place in reading.places]):
            score, score_map = of_image(list(islice(pairs, len(tiles))), [s.window for s in tiles])
            scores.append(score)
            maps += [] if score_map is None else [score_map]
    return np.array(scores, np.float32), maps if len(maps) == len(scores) else None


def warm_up(model: AnomalyModel, dataset: MVTecDataset, batch_size: int, device: torch.device) -> None:
    """Score the first batch, and the last one where it is smaller, and forget the scores.

    A GPU's kernels are chosen and loaded at the first batch of each size, which takes seconds: no image's time.
    """
    model.to(device).eval()
    places = range(len(dataset))
    first, last = places[:batch_size], places[len(places) // batch_size * batch_size :]
    for some in dict.fromkeys([first, last]):
        for images in Reading(dataset, batch_size, device, some):
            list(scores_of(model, images))


def of_image(
    pairs: Sequence[tuple[np.float32, np.ndarray | None]], windows: Sequence[Window | None]
) -> tuple[np.float32, np.ndarray | None]:
    """Return the score and the map of an image from those of its tiles: the highest score, the maps stitched.

    So an image is a defect where any tile is, whatever the method's own rule for a whole picture, and a tile counts as
    much in a large image as in a small one: a mean over the image would lose a defect among sixty tiles.

    Args:
        pairs: of all tiles, or of the image itself, if it is not cut.
        windows: where they lie; None: the image itself.
    """
    score = max(score for score, _ in pairs)
    maps = [score_map for _, score_map in pairs if score_map is not None]
    places = [window for window in windows if window is not None]
    return score, stitch(maps, places) if maps else None


def sheets(scored: Mapping[str, Scored], value: float, on_map: float | None) -> dict[str, np.ndarray]:
    """Return the sheets of the test images by file name; ``value`` and ``on_map`` are the thresholds."""
    test = scored["test"]
    order = test.worst_first(value)
    pages = {MISTAKES: pictures(test, order[: 6 * SHOWN], value)}
    if test.maps is not None and on_map is not None:
        pages[EXPLANATIONS] = _map_sheet(scored, order, value, on_map)
    return pages


def pictures(of: Scored, places: np.ndarray, value: float) -> np.ndarray:
    right = (of.scores > value) == of.defect
    mistake = {True: "escape: ", False: "false reject: "}
    names = [("" if right[i] else mistake[bool(of.defect[i])]) + of.kinds[i] for i in places]
    captions = [f"{name}\n{of.scores[i]:.3g}, threshold {value:.3g}" for name, i in zip(names, places, strict=True)]
    files = [of.dataset.samples[i].path for i in places]
    return sheet([of.dataset.shown(int(i)) for i in places], captions, [bool(right[i]) for i in places], files=files)


def _map_sheet(scored: Mapping[str, Scored], order: np.ndarray, value: float, on_map: float) -> np.ndarray:
    """Draw the worst escapes (or the nearest to one), the worst false rejects and typical images.

    Every image stands beside its map and the outlines of mask and map; all maps are on one scale.

    Args:
        order: indices of the images, mistakes first.
    """
    test = scored["test"]
    assert test.maps is not None
    calm = scored["val"].maps if "val" in scored else None
    if calm is None:  # a checkpoint is judged on a test folder alone
        calm = [score_map for score_map, defect in zip(test.maps, test.defect, strict=True) if not defect] or test.maps
    # From the highest twentieth of a usual good map, so that good images look calm, to where most defects' maps end.
    low = float(np.median([np.quantile(score_map, 0.95) for score_map in calm]))
    tops = [
        score_map.max()
        for score_map, defect in zip(test.maps, test.defect, strict=True)
        if defect or not test.defect.any()
    ]
    span = max(float(np.quantile(tops, 0.75)) - low, 1e-12)
    tiles, texts, marks, files = [], [], [], []
    for i, role in _roles(test, order.tolist(), value).items():
        picture, mask = test.dataset.shown(i), test.dataset.mask(i)
        score_map = map_at(test.maps[i], tile_of(picture))
        peak = np.array(np.unravel_index(score_map.argmax(), score_map.shape)) * max(picture.shape) / SIDE
        hot = score_map > on_map
        tiles += [
            picture,
            heat_over(picture, np.clip((score_map - low) / span, 0, 1), peak.tolist()),
            outlined(picture, mask, hot),
        ]
        above = f"orange: map above {on_map:.3g}" if hot.any() else f"map nowhere above {on_map:.3g}"
        texts += [
            f"{role}{test.kinds[i]}\n{test.scores[i]:.3g}, threshold {value:.3g}",
            f"map, up to {score_map.max():.3g}",
            "blue: mask\n" + above if mask is not None else above,
        ]
        marks += [(test.scores[i] > value) == test.defect[i], None, None]
        files += [test.dataset.samples[i].path, "", ""]
    return sheet(tiles, texts, marks, files=files)


def _roles(test: Scored, order: list[int], value: float) -> dict[int, str]:
    """Return what each image shows on the sheet of maps, by its index; ``order``: mistakes first."""
    roles: dict[int, str] = {}
    for defect, mistake, nearest in ((True, "escape: ", "lowest defect: "), (False, "false reject: ", "highest ")):
        for i in [i for i in order if test.defect[i] == defect][:SHOWN]:
            roles[i] = mistake if (test.scores[i] > value) != defect else nearest
    for defect in (True, False):
        by_score = [i for i in np.argsort(test.scores, kind="stable").tolist() if test.defect[i] == defect]
        middle = max(0, (len(by_score) - SHOWN // 2) // 2)
        for i in by_score[middle : middle + SHOWN // 2]:
            roles.setdefault(i, "typical ")
    return roles


def scores_of(module: AnomalyModel, images: torch.Tensor) -> Iterator[tuple[np.float32, np.ndarray | None]]:
    """Yield the score of each image [N, 3, S, S], normalised, and its map [h, w]; None where there is none."""
    with torch.no_grad():
        scores = module.scored(images)
    maps = repeat(None) if scores.map is None else scores.map.float().cpu().numpy()
    yield from zip(scores.image.float().cpu().numpy(), maps)  # noqa: B905 # repeat has no end
