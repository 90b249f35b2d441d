"""Measure how many labelled images a model needs when people label the most doubtful ones first, and not any.

``python -m benchmarks.review FOLDER``: of the test images of a product in MVTec's layout a fifth is tested, and two of
each class are labelled at first; then five at a time, chosen from the others by a rule from what the model says of
them, and the model is fitted again: a logistic regression on MobileNetV2's features. 10 draws of five folds. The table
has the mean accuracy with so many labelled images, and the first number with which a rule is as accurate as random
choice is with 48.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from mvtec_lab.data.images import read_image
from mvtec_lab.data.layouts import read_folder
from mvtec_lab.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise
from mvtec_lab.evaluation.operating import margin

DRAWS, FOLDS, FIRST, BATCH, SIZE, AS_MANY = 10, 5, 2, 5, 224, 48


def random(rng: np.random.Generator, shares: np.ndarray, features: np.ndarray, known: np.ndarray) -> list[int]:
    """Choose any images."""
    return rng.permutation(len(shares))[:BATCH].tolist()


def doubt(rng: np.random.Generator, shares: np.ndarray, features: np.ndarray, known: np.ndarray) -> list[int]:
    """Choose as review.order=doubt does where no threshold decides."""
    return sorted(range(len(shares)), key=_margins(shares).__getitem__)[:BATCH]


def turns(rng: np.random.Generator, shares: np.ndarray, features: np.ndarray, known: np.ndarray) -> list[int]:
    """Choose the most doubtful image of each predicted class in turn."""
    margins, counts, chosen = _margins(shares), np.zeros(shares.shape[1]), list[int]()
    for _ in range(min(BATCH, len(shares))):
        left = [place for place in range(len(shares)) if place not in chosen]
        chosen.append(min(left, key=lambda place: (counts[shares[place].argmax()], margins[place])))
        counts[shares[chosen[-1]].argmax()] += 1
    return chosen


def spread(rng: np.random.Generator, shares: np.ndarray, features: np.ndarray, known: np.ndarray) -> list[int]:
    """Choose by doubt times the distance of the features to the nearest image that is labelled or chosen."""
    doubts, chosen = 1 - np.diff(np.sort(shares, axis=1)[:, -2:])[:, 0], list[int]()
    nearest = np.linalg.norm(features[:, None] - known, axis=2).min(axis=1)
    for _ in range(min(BATCH, len(shares))):
        values = doubts * nearest
        values[chosen] = -1
        chosen.append(int(values.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(features - features[chosen[-1]], axis=1))
    return chosen


RULES: dict[str, Callable[..., list[int]]] = {"random": random, "doubt": doubt, "turns": turns, "spread": spread}


def _margins(shares: np.ndarray) -> list[float]:
    rows = [{f"prob_{place}": str(share) for place, share in enumerate(row)} for row in shares]
    return [margin(row, str(place)) for row, place in zip(rows, shares.argmax(axis=1), strict=True)]


@torch.inference_mode()
def features_of(folder: Path, part: str = "test/") -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the largest of MobileNetV2's last maps, [N, 2560] of length 1, and the classes."""
    from torchvision.models import mobilenet_v2

    network = mobilenet_v2(weights="IMAGENET1K_V1").eval().features
    samples = [s for s in read_folder(folder).samples if s.path.startswith(part)]
    rows = []
    for s in samples:
        image = cv2.resize(read_image(folder / s.path), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        maps = network(normalise(image[None], IMAGENET_MEAN, IMAGENET_STD))
        rows.append(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)[0].numpy())
    features = np.array(rows)
    return features / np.linalg.norm(features, axis=1, keepdims=True), np.array([s.label for s in samples])


def learn(features: np.ndarray, classes: np.ndarray, rule: str, draw: int) -> list[list[float]]:
    """Return the accuracies of each fold with more and more labelled images."""
    curves = []
    for fold, (pool, tested) in enumerate(
        StratifiedKFold(FOLDS, shuffle=True, random_state=draw).split(features, classes)
    ):
        first, rng = np.random.default_rng([draw, fold]), np.random.default_rng([draw, fold, 1])
        known = [i for name in np.unique(classes) for i in first.permutation(pool[classes[pool] == name])[:FIRST]]
        curve = []
        while True:
            model = LogisticRegression(C=100, max_iter=300, class_weight="balanced")
            model.fit(features[known], classes[known])
            curve.append(float(np.mean(model.predict(features[tested]) == classes[tested])))
            left = np.setdiff1d(pool, known)
            if len(left) < BATCH:
                break
            chosen = RULES[rule](rng, model.predict_proba(features[left]), features[left], features[known])
            known += left[chosen].tolist()
        curves.append(curve)
    return curves


def main(folder: str) -> None:
    """Measure, and print the table."""
    features, classes = features_of(Path(folder))
    start = FIRST * len(np.unique(classes))
    means = {}
    for rule in RULES:
        curves = [curve for draw in range(DRAWS) for curve in learn(features, classes, rule, draw)]
        steps = min(map(len, curves))
        means[rule] = np.array([curve[:steps] for curve in curves])
    sizes = [start + BATCH * step for step in range(min(m.shape[1] for m in means.values()))]
    goal = means["random"].mean(axis=0)[next(k for k, size in enumerate(sizes) if size >= AS_MANY)]
    print(f"| labelled | {' | '.join(means)} |\n|---|{'---|' * len(means)}")
    for step, size in enumerate(sizes):
        print(f"| {size} | {' | '.join(f'{m[:, step].mean():.3f}' for m in means.values())} |")
    for rule, m in means.items():
        needed = next((s for s, accuracy in zip(sizes, m.mean(axis=0), strict=False) if accuracy >= goal), None)
        # By draw: the folds of one draw are of the same images.
        by_draw = (m - means["random"]).mean(axis=1).reshape(DRAWS, FOLDS).mean(axis=1)
        error = by_draw.std(ddof=1) / DRAWS**0.5
        print(f"{rule}: {needed} labelled images for {goal:.3f}; {by_draw.mean():+.3f} over all sizes ({error:.3f})")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
