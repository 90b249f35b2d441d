"""Measure how often task=monitor calls images changed that are not, and finds those that are.

``python -m benchmarks.drift --data-root DIR``: of the good images of DIR/bottle, half is learnt by PatchCore; of the
others, 10, 20 or 40 are new ones, changed or not, and the rest is of training as well. 200 draws, the same for each
change; three models. The task's own functions compare them, with 999 random divisions.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
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

SIZE, BATCH, MODELS, DIVISIONS, FOLDS, QUANTILE = 224, 16, 3, 999, 5, 0.95
NEW = (10, 20, 40)


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
    "blur, sigma 1 pixel": blurred(1),
    "colour cast: red +5%, blue -5%": times(1.05, 1, 0.95),
    "colour cast: red +2%, blue -2%": times(1.02, 1, 0.98),
    "scale +5%": zoomed(1.05),
    "scale -5%": zoomed(0.95),
    "scale +2%": zoomed(1.02),
}


class Models:
    """Hold models of several halves of the good images, and what each says of an image that it has not learnt."""

    def __init__(self, paths: Sequence[Path]) -> None:
        torch.manual_seed(0)
        settings = {"backbone": "mobilenet_v2", "weights": "IMAGENET1K_V1", "image_size": SIZE}
        self.models, self.learnt, self.crossed = [], [], []
        for number in range(MODELS):
            model = build_anomaly_model("patchcore", **settings).eval()
            assert isinstance(model, FrozenFeatureModel)
            self.models.append(model)
            self.learnt.append(np.sort(np.random.default_rng(number).permutation(len(paths))[: len(paths) // 2]))
        self.reader = self.models[0]
        maps = [self._maps(read_image(path)) for path in paths]
        for model, learnt in zip(self.models, self.learnt, strict=True):
            scores = np.empty(len(learnt))
            for fold in np.array_split(np.random.default_rng(0).permutation(len(learnt)), FOLDS):
                self._fit(model, [maps[place] for place in np.delete(learnt, fold)])
                scores[fold] = [self._score(model, maps[place]) for place in learnt[fold]]
            self.crossed.append(scores)
            self._fit(model, [maps[place] for place in learnt])

    def measure(self, paths: Sequence[Path], change: Callable[[np.ndarray], np.ndarray]) -> tuple[Side, np.ndarray]:
        """Return what is measured of changed images, and the score of each by each model, [N, MODELS]."""
        side, features, scores = Side([], [], None, np.zeros(0)), [], []
        for path in paths:
            image = change(read_image(path))
            maps = self._maps(image)
            side.paths.append(path)
            side.looks.append(appearance(image))
            features.append(torch.cat([layer.mean((2, 3)) for layer in maps], 1)[0].numpy())
            scores.append([self._score(model, maps) for model in self.models])
        side.features = np.array(features)
        return side, np.array(scores)

    def _maps(self, image: np.ndarray) -> Maps:
        return Maps(self.reader.features(normalise(resize(image, SIZE)[None], self.reader.mean, self.reader.std)))

    def _fit(self, model: FrozenFeatureModel, maps: Sequence[Maps]) -> None:
        torch.manual_seed(0)
        starts = range(0, len(maps), BATCH)
        model.model.fit([Maps([torch.cat(x) for x in zip(*maps[s : s + BATCH], strict=True)]) for s in starts])

    def _score(self, model: FrozenFeatureModel, maps: Maps) -> float:
        return float(model.model(maps, SIZE).image)


def part(side: Side, places: Sequence[int], scores: np.ndarray) -> Side:
    assert side.features is not None
    paths, looks = [side.paths[place] for place in places], [side.looks[place] for place in places]
    return Side(paths, looks, side.features[places], scores)


def one_draw(
    models: Models, plain: tuple[Side, np.ndarray], changed: tuple[Side, np.ndarray], new: int, draw: int
) -> list[Tested]:
    """Return the tests of one draw, as the task makes them."""
    number, count = draw % MODELS, len(plain[0].paths)
    learnt, crossed = models.learnt[number], models.crossed[number]
    held_out = np.random.default_rng([draw, new]).permutation(np.setdiff1d(np.arange(count), learnt))
    chosen, others = held_out[:new], held_out[new:]
    limit = float(np.quantile(crossed, QUANTILE))
    known = np.concatenate([crossed, plain[1][others, number]])
    places = np.concatenate([learnt, others])[known <= limit]
    rows = [
        Judged(
            plain[0].paths[place], {"decision": REJECT if score > limit else OK, "score": str(score), "place": place}
        )
        for place in chosen
        for score in [changed[1][place, number]]
    ]
    kept = [each.row for each in compared(rows)[0]]
    scores = np.array([float(row["score"]) for row in kept])
    old = part(plain[0], places, known[known <= limit])
    return all_tested(samples_of(old, part(changed[0], [row["place"] for row in kept], scores))[0], DIVISIONS)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default=os.environ.get("MVTEC_ROOT"), help="holds bottle/")
    parser.add_argument("--product", default="bottle")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--new", type=int, nargs="+", default=NEW)
    options = parser.parse_args()
    folder = Path(options.data_root, options.product)
    paths = [folder / sample.path for sample in read_folder(folder).samples if sample.label == GOOD]
    models = Models(paths)
    plain, rows = None, []
    for name, change in CHANGES.items():
        changed = models.measure(paths, change)
        plain = plain or changed
        found, shown, by = [], [], dict[str, int]()
        for new in options.new:
            draws = [one_draw(models, plain, changed, new, draw) for draw in range(options.draws)]
            found.append(f"{100 * np.mean([any(t.changed for t in tests) for tests in draws]):.1f}")
            shown.append(f"{100 * np.mean([any(t.shown for t in tests) for tests in draws]):.1f}")
            for tests in draws if new == options.new[-1] else ():
                for test in tests:
                    by[test.sample.name] = by.get(test.sample.name, 0) + test.changed
        kinds = ", ".join(f"{kind} {100 * count / options.draws:.0f}" for kind, count in by.items() if count)
        rows.append([name, *found, *shown, kinds])
        print(rows[-1], file=sys.stderr, flush=True)
    counts = [f"{new} new" for new in options.new]
    header = ["change", *(f"called changed, {c}, %" for c in counts), *(f"p at most 0.05, {c}, %" for c in counts)]
    notes = [f"{len(paths)} good images of {options.product}, {options.draws} draws of each cell"]
    show("drift", notes, [*header, f"tests that call it changed, {counts[-1]}, %"], rows, timed=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
