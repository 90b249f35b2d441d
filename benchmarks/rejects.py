"""Measure how many new good images a threshold refuses that is to refuse one in twenty, by three rules.

``python -m benchmarks.rejects FOLDER IMAGES METHOD...``: of the good images of a product, IMAGES are learnt from and
all others are new, in 16 draws. FOLDER ``sample`` is the sample's cable with 700 of them. A rule's row has the mean
share of the new ones that it refuses, the standard deviation of that share over the draws, and the largest.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from mvtec_lab.data.cable import generate
from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.evaluation.anomaly import quantile_threshold
from mvtec_lab.problems.anomaly.frozen import FrozenFeatureModel, Maps
from mvtec_lab.problems.anomaly.models import build_anomaly_model
from mvtec_lab.results import GOOD

DRAWS, QUANTILE, FOLDS, SIZE, BATCH = 16, 0.95, 5, 224, 16
RULES = ("held-out fifth", "cross-fitted", "cross-fitted, then learnt from all")


class Cached:
    """Fit a method to some images of a product, and score others, from feature maps that are computed once."""

    def __init__(self, folder: Path, method: str) -> None:
        torch.manual_seed(0)
        settings = {"backbone": "mobilenet_v2", "weights": "IMAGENET1K_V1", "image_size": SIZE}
        model = build_anomaly_model(method, **settings).eval()
        assert isinstance(model, FrozenFeatureModel)
        self.model = model
        good = [sample for sample in read_folder(folder).samples if sample.label == GOOD]
        images = MVTecDataset(folder, good, image_size=SIZE, mean=self.model.mean, std=self.model.std)
        self.maps = [self.model.features(images[[k]]["image"]) for k in range(len(images))]

    def batches(self, places: Iterable[int]) -> Iterator[Maps]:
        of = [self.maps[place] for place in places]
        for start in range(0, len(of), BATCH):
            yield Maps([torch.cat(layers) for layers in zip(*of[start : start + BATCH], strict=True)])

    def fit(self, places: Iterable[int]) -> None:
        torch.manual_seed(0)
        self.model.model.fit(list(self.batches(places)))

    def score(self, places: Iterable[int]) -> np.ndarray:
        return torch.cat([self.model.model(maps, SIZE).image for maps in self.batches(places)]).numpy()


@torch.no_grad()
def refused(cached: Cached, images: int, draw: int) -> list[float]:
    """Return the share of the new good images above the threshold by each of RULES, in one draw."""
    order = np.random.default_rng(draw).permutation(len(cached.maps))
    learnt, new = order[:images], order[images:]
    out_of_fold, of_new = [], np.empty(0)
    for fold in np.array_split(np.arange(images), FOLDS):
        cached.fit(np.delete(learnt, fold))
        out_of_fold.append(cached.score(learnt[fold]))
        of_new = of_new if len(of_new) else cached.score(new)  # by the model that has not seen the first fold
    cached.fit(learnt)
    one, all_folds = (quantile_threshold(scores, QUANTILE) for scores in (out_of_fold[0], np.concatenate(out_of_fold)))
    return [float(np.mean(s > t)) for s, t in ((of_new, one), (of_new, all_folds), (cached.score(new), all_folds))]


def main(folder: Path, images: int, methods: list[str]) -> None:
    print("| method | learnt | new | rule | mean | sd | largest |", "|---|---|---|---|---|---|---|", sep="\n")
    for method in methods:
        cached = Cached(folder, method)
        shares = np.array([refused(cached, images, draw) for draw in range(DRAWS)])
        for rule, of_rule in zip(RULES, shares.T, strict=True):
            values = " | ".join(f"{value:.3f}" for value in (of_rule.mean(), of_rule.std(ddof=1), of_rule.max()))
            print(f"| {method} | {images} | {len(cached.maps) - images} | {rule} | {values} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        product = Path(sys.argv[1])
        if sys.argv[1] == "sample":
            product = generate(Path(scratch), counts={GOOD: 1}, train_good=700)
        main(product, int(sys.argv[2]), sys.argv[3:])
