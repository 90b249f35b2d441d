"""Measure what twenty labels are worth at a line with few defects, the most doubtful or any.

``python -m benchmarks.review_line FOLDER`` draws the way of docs/line.md 40 times from a product in MVTec's layout:
five defects of each type and 109 good images train, five others of each type and 100 good images are new, the rest
tests. A logistic regression on MobileNetV2's features names the classes of the new ones, with the threshold that inner
folds give for 1% of false rejects; twenty of them are labelled, and it is fitted again. The table has the means, each
with the standard error of its difference from no labels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from benchmarks.review import features_of
from mvtec_lab.evaluation.operating import Scores, limit_of_false_rejects, margin
from mvtec_lab.results import GOOD

DRAWS, GOODS, EACH, LABELS, SHARE = 40, 109, 5, 20, 0.01


def model() -> LogisticRegression:
    """Return an untrained model."""
    return LogisticRegression(C=100, max_iter=300, class_weight="balanced")


def threshold_of(features: np.ndarray, classes: np.ndarray) -> float:
    """Return the threshold of 1 - p(good) that held-out good images give."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    held_out = cross_val_predict(model(), features, classes, cv=folds, method="predict_proba")
    scores, good = 1 - held_out[:, np.unique(classes).tolist().index(GOOD)], classes == GOOD
    return limit_of_false_rejects(Scores(np.sort(scores[good]), np.sort(scores[~good])), SHARE)


def orders(shares: np.ndarray, names: list[str], threshold: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the places of images with probabilities [N, C] by each order; one of them does not ask the threshold."""
    good, margins = names.index(GOOD), {"doubt": list[float](), "classes alone": list[float]()}
    for of_image in shares:
        rejected = 1 - of_image[good] > threshold
        left = [-1.0 if (name == GOOD) == rejected else share for name, share in zip(names, of_image, strict=True)]
        row = {f"prob_{name}": share for name, share in zip(names, of_image, strict=True)}
        label = names[int(np.argmax(left))]
        margins["doubt"].append(margin({**row, "threshold": threshold}, label))
        margins["classes alone"].append(margin(row, label))
    return {"any": rng.permutation(len(shares))} | {k: np.argsort(v, kind="stable") for k, v in margins.items()}


def draw(seed: int, features: np.ndarray, classes: np.ndarray, trains: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Return, by order, the accuracy, that of good or defect, and how many of the labelled images are defects.

    Args:
        trains: [N], the images of train/good, none of which is tested.
    """
    rng = np.random.default_rng(seed)
    first, new, test = (list[int]() for _ in range(3))
    for name in np.unique(classes):
        known = rng.permutation(np.flatnonzero((classes == name) & (trains | (name != GOOD)))).tolist()
        count = GOODS if name == GOOD else EACH
        first, new = first + known[:count], new + known[count : None if name == GOOD else 2 * EACH]
        test += np.flatnonzero((classes == GOOD) & ~trains).tolist() if name == GOOD else known[2 * EACH :]

    def judged(learnt: list[int]) -> tuple[LogisticRegression, tuple[float, float]]:
        fitted = model().fit(features[learnt], classes[learnt])
        rejected = 1 - fitted.predict_proba(features[test])[:, fitted.classes_ == GOOD][:, 0] > threshold_of(
            features[learnt], classes[learnt]
        )
        right = fitted.predict(features[test]) == classes[test]
        return fitted, (float(right.mean()), float((rejected == (classes[test] != GOOD)).mean()))

    fitted, before = judged(first)
    limit = threshold_of(features[first], classes[first])
    results = {"none": (*before, 0.0)}
    for name, order in orders(fitted.predict_proba(features[new]), fitted.classes_.tolist(), limit, rng).items():
        chosen = np.array(new)[order[:LABELS]]
        results[name] = (*judged([*first, *chosen])[1], float((classes[chosen] != GOOD).sum()))
    return results


def main(folder: str) -> None:
    """Measure, and print the table."""
    (tested, names), (good, of_good) = features_of(Path(folder)), features_of(Path(folder), "train/good/")
    features, classes = np.concatenate([tested, good]), np.concatenate([names, of_good])
    trains = np.arange(len(classes)) >= len(names)
    draws = [draw(seed, features, classes, trains) for seed in range(DRAWS)]
    print("| labelled | accuracy | good or defect | defects among them |\n|---|---|---|---|")
    for name in draws[0]:
        values = np.array([each[name] for each in draws])
        errors = (values - np.array([each["none"] for each in draws])).std(axis=0, ddof=1) / DRAWS**0.5
        shown = [f"{mean:.3f} ({error:.3f})" for mean, error in zip(values.mean(axis=0)[:2], errors[:2], strict=True)]
        print(f"| {name} | {' | '.join(shown)} | {values[:, 2].mean():.1f} |")
    apart = np.array([np.subtract(each["classes alone"], each["doubt"])[:2] for each in draws])
    said = (f"{m:+.4f} ({e:.4f})" for m, e in zip(apart.mean(0), apart.std(0, ddof=1) / DRAWS**0.5, strict=True))
    print("classes alone less doubt:", *said)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
