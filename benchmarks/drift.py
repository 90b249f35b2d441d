"""Measure how often task=monitor calls images changed that are not, and finds those that are.

``python -m benchmarks.drift --data-root DIR``: of the good images of DIR/bottle, half is learnt by PatchCore; of the
others, 10, 20 or 40 are new ones, changed or not, and known are all that are left, or 20 that were not learnt, as many
as a small test set has. 200 draws without a change, and the first 60 of them with each. The task's own functions
compare them, with 499 random divisions.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.common import show
from mvtec_lab.data.appearance import appearance
from mvtec_lab.data.images import read_image
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.data.transforms import normalise, resize
from mvtec_lab.evaluation.drift import Tested, all_tested
from mvtec_lab.evaluation.operating import OK, REJECT
from mvtec_lab.problems.anomaly.frozen import FrozenFeatureModel, Maps
from mvtec_lab.problems.anomaly.models import build_anomaly_model
from mvtec_lab.results import GOOD
from mvtec_lab.tasks.batch import Judged, Side
from mvtec_lab.tasks.monitor import compared, samples_of

SIZE, BATCH, DIVISIONS, FOLDS, QUANTILE = 224, 16, 499, 5, 0.95
NEW = (10, 20, 40)
FEW = 20  # known images, in the last rows


def times(*factors: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return what multiplies the values of an image, of each colour by its own factor."""
    return lambda image: np.clip(image * np.array(factors) + 0.5, 0, 255).astype(np.uint8)


def blurred(sigma: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda image: cv2.GaussianBlur(image, (0, 0), sigma)


def zoomed(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return what enlarges an image around its middle and keeps its size, as a camera that is nearer does."""

    def zoom(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        turn = np.array([[factor, 0, (1 - factor) * width / 2], [0, factor, (1 - factor) * height / 2]])
        return cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)

    return zoom


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda image: image,
    "10% brighter": times(1.1, 1.1, 1.1),
    "blur, sigma 3 pixels": blurred(3),
    "colour cast: red +5%, blue -5%": times(1.05, 1, 0.95),
    "scale +5%": zoomed(1.05),
    "scale +2%": zoomed(1.02),
    "colour cast: red +2%, blue -2%": times(1.02, 1, 0.98),
}


class Learnt:
    """Hold a model of half of the good images, and the scores of these by models of the other folds."""

    def __init__(self, paths: Sequence[Path]) -> None:
        torch.manual_seed(0)
        settings = {"backbone": "mobilenet_v2", "weights": "IMAGENET1K_V1", "image_size": SIZE}
        model = build_anomaly_model("patchcore", **settings).eval()
        assert isinstance(model, FrozenFeatureModel)
        self.model = model
        order = np.random.default_rng(0).permutation(len(paths))
        self.learnt, self.held_out = np.sort(order[: len(paths) // 2]), np.sort(order[len(paths) // 2 :])
        maps = [part for batch in self._batches([read_image(paths[place]) for place in self.learnt]) for part in batch]
        self.crossed = np.empty(len(maps))
        for fold in np.array_split(np.random.default_rng(0).permutation(len(maps)), FOLDS):
            self._fit([maps[place] for place in np.delete(np.arange(len(maps)), fold)])
            self.crossed[fold] = [self._score(maps[place]) for place in fold]
        self._fit(maps)

    def measure(self, paths: Sequence[Path], change: Callable[[np.ndarray], np.ndarray]) -> Side:
        """Return what is measured of changed images, with the score of each."""
        images = [change(read_image(path)) for path in paths]
        maps = [part for batch in self._batches(images) for part in batch]
        features = np.array([torch.cat([layer.mean((2, 3)) for layer in part], 1)[0].numpy() for part in maps])
        scores = np.array([self._score(part) for part in maps])
        return Side(list(paths), [appearance(image) for image in images], features, scores)

    def _batches(self, images: Sequence[np.ndarray]) -> Iterator[list[Maps]]:
        """Yield the maps of each image, read in batches."""
        for start in range(0, len(images), BATCH):
            squares = np.stack([resize(image, SIZE) for image in images[start : start + BATCH]])
            layers = self.model.features(normalise(squares, self.model.mean, self.model.std))
            yield [Maps(row) for row in zip(*(layer.split(1) for layer in layers), strict=True)]

    def _fit(self, maps: Sequence[Maps]) -> None:
        torch.manual_seed(0)
        starts = range(0, len(maps), BATCH)
        self.model.model.fit([Maps([torch.cat(x) for x in zip(*maps[s : s + BATCH], strict=True)]) for s in starts])

    def _score(self, maps: Maps) -> float:
        return float(self.model.model(maps, SIZE).image)


def part(side: Side, places: np.ndarray, scores: np.ndarray) -> Side:
    assert side.features is not None
    paths, looks = [side.paths[place] for place in places], [side.looks[place] for place in places]
    return Side(paths, looks, side.features[places], scores)


def one_draw(learnt: Learnt, plain: Side, changed: Side, new: int, draw: int, few: int | None = None) -> list[Tested]:
    """Return the tests of one draw, as the task makes them.

    Args:
        plain: all images, those that were learnt first.
        changed: those that were not learnt.
        few: so many known images, of those that were not learnt; None for all that are left.
    """
    first = len(learnt.learnt)
    order = np.random.default_rng([draw, new]).permutation(len(changed.paths))
    chosen, others = order[:new], order[new:][:few]
    limit = float(np.quantile(learnt.crossed, QUANTILE))
    own = plain.scores[first + others]
    known = np.concatenate([learnt.crossed, own])
    places = np.concatenate([np.arange(first), first + others])
    places = places[(known <= limit) & ((few is None) | (places >= first))]
    rows = [{"decision": REJECT if changed.scores[place] > limit else OK, "place": place} for place in chosen]
    kept = np.array([each.row["place"] for each in compared([Judged(Path(), row) for row in rows])[0]])
    sides = part(plain, places, own[own <= limit]), part(changed, kept, changed.scores[kept])
    return all_tested(samples_of(*sides)[0], DIVISIONS)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default=os.environ.get("MVTEC_ROOT"), help="holds bottle/")
    parser.add_argument("--product", default="bottle")
    parser.add_argument("--draws", type=int, default=200, help="without a change")
    parser.add_argument("--changed", type=int, default=60, help="draws with a change")
    parser.add_argument("--new", type=int, nargs="+", default=NEW)
    options = parser.parse_args()
    folder = Path(options.data_root, options.product)
    paths = [folder / sample.path for sample in read_folder(folder).samples if sample.label == GOOD]
    learnt, rows = Learnt(paths), []
    held_out = [paths[place] for place in learnt.held_out]
    plain = learnt.measure([*(paths[place] for place in learnt.learnt), *held_out], CHANGES["none"])
    sides = {name: learnt.measure(held_out, change) for name, change in CHANGES.items()}
    for few, (name, changed) in product((None, FEW), sides.items()):
        found, shown = [], []
        count = options.draws if name == "none" else options.changed
        by: Counter[str] = Counter()
        for new in options.new:
            draws = [one_draw(learnt, plain, changed, new, draw, few) for draw in range(count)]
            found.append(f"{100 * np.mean([any(t.changed for t in tests) for tests in draws]):.1f}")
            shown.append(f"{100 * np.mean([any(t.shown for t in tests) for tests in draws]):.1f}")
            if new == options.new[-1]:
                by.update(test.sample.name for tests in draws for test in tests if test.shown)
        kinds = ", ".join(f"{kind} {100 * hits / count:.0f}" for kind, hits in by.items())
        rows.append([f"{name}; {few} known" if few else name, *found, *shown, kinds])
        print(rows[-1], file=sys.stderr, flush=True)
    counts = [f"{new} new" for new in options.new]
    header = ["change", *(f"called changed, {c}, %" for c in counts), *(f"p at most 0.05, {c}, %" for c in counts)]
    draws = f"without a change {options.draws} draws of each cell, of the others {options.changed}"
    notes = [f"{len(paths)} good images of {options.product}; {draws}"]
    show("drift", notes, [*header, f"p at most 0.05 by test, {counts[-1]}, %"], rows, timed=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
