"""Where the spread of a run's figure comes from: the parts of its variance, the sentence and the figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from test_pairs import cross_validated, fold
from test_reporting import fabricate, text_of

from mvtec_lab.evaluation.components import Component, components, of_images
from mvtec_lab.reporting import report
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.reporting.spread import spreads
from mvtec_lab.results import CONFIG

SETS, SEEDS, IMAGES = 5, 3, 40


def simulated(rng: np.random.Generator, split: float, seed: float, image: float, rest: float) -> list[np.ndarray]:
    """Return the values of each test set, [S, N], whose parts have these standard deviations."""
    return [
        rng.normal(0, split)
        + rng.normal(0, seed, (SEEDS, 1))
        + rng.normal(0, image, IMAGES)
        + rng.normal(0, rest, (SEEDS, IMAGES))
        for _ in range(SETS)
    ]


@pytest.mark.parametrize(("split", "seed", "image"), [(0.05, 0.02, 0.3), (0.0, 0.05, 0.1), (0.04, 0.0, 0.0)])
def test_the_parts_are_found_again_on_average(split: float, seed: float, image: float) -> None:
    rng, rest, found = np.random.default_rng(0), 0.1, []
    for _ in range(400):
        sets = simulated(rng, split, seed, image, rest)
        parts = components([[each.mean(axis=1) for each in sets]], [float(np.mean([of_images(s) for s in sets]))], 200)
        assert parts is not None
        assert parts.split is not None
        assert parts.seed is not None
        # Before they are cut at 0, which makes small ones too large on average.
        raw = parts.split.raw - parts.images.variance - parts.seed.variance / SEEDS
        found.append((raw, parts.seed.variance, parts.images.variance))
    means, errors = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(len(found))
    expected = np.array([split**2, seed**2 + rest**2 / IMAGES, image**2 / IMAGES])
    assert np.all(np.abs(means - expected) < 4 * errors + 1.2e-5)  # 0.3 points: the images' part is cut at 0


def test_images_are_drawn_within_their_classes() -> None:
    values, strata = np.repeat([0.0, 1.0], 8), np.repeat(["a", "b"], 8)
    assert of_images(values) == pytest.approx(16 / 4 / 15 / 16)
    assert of_images(values, strata) == 0  # each class has its own value: no draw of them changes the mean


def test_the_bounds_hold_the_truth_and_stay_within_the_range() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        values = rng.normal(0.8, 0.05, (4, 3))
        parts = components([[*values]], [0.0], 20)
        assert parts is not None
        assert parts.seed is not None
        low, high = parts.seed.interval()
        held += low <= 0.05 <= high
    assert 0.92 <= held / 400 <= 0.98
    assert Component(0.2, 2, 0.2).interval(0.5)[1] == 0.5  # two seeds: no figure beyond what a share can vary


def test_without_repetition_there_is_nothing_to_divide() -> None:
    assert components([[[0.8]], [[0.7]]], [0.01], 20) is None
    assert components([[[0.8, 0.9]]], [0.01], 20) is None  # one degree of freedom


def seeds_on_folds(folder: Path, right: list[list[int]]) -> None:
    for place, counts in enumerate(right):
        for seed, count in enumerate(counts):
            run = fold(folder / f"{place}-{seed}", "a", place, count, seed=seed)
            path = Path(run.run_dir, CONFIG)
            settings = yaml.safe_load(path.read_text())
            settings["split"]["seed"] = 0
            path.write_text(yaml.safe_dump(settings))


def test_the_sentence_names_the_largest_part(tmp_path: Path) -> None:
    seeds_on_folds(tmp_path, [[3, 11, 7], [4, 7, 10], [7, 11, 4]])
    comparison = compare(load_runs(tmp_path))
    (spread,) = spreads(comparison)
    assert spread.parts.seed is not None
    assert spread.parts.seed.freedom == 6
    expected = np.mean([np.var(np.array(counts) / 12, ddof=1) for counts in ([3, 11, 7], [4, 7, 10], [7, 11, 4])])
    assert spread.parts.seed.variance == pytest.approx(expected)
    assert "Most of it is the seed: more seeds (seed=0,1,2,3,4) average it out." in spread.sentence
    assert spread.sentence in comparison.verdict


def test_folds_of_one_seed_do_not_claim_to_know_the_seeds_part(tmp_path: Path) -> None:
    cross_validated(tmp_path, a=[10, 9, 10, 9, 10], b=[9, 9, 10, 10, 9])
    _, comparison = report.sum_up(tmp_path)
    (spread,) = spreads(comparison)
    assert [*spread.named] == ["test images", "split and training"]
    assert spread.parts.images.variance > 0
    assert "Most of it is the choice of test images" in spread.sentence
    assert "several seeds would show" in spread.sentence
    text = text_of((tmp_path / report.REPORT).read_text(encoding="utf-8"))
    assert "Where the spread comes from" in text
    assert "which these runs cannot tell apart" in text


def test_two_seeds_make_no_statement(tmp_path: Path) -> None:
    for seed in range(2):
        fabricate(tmp_path / str(seed), "a", seed=seed, right=10 + 6 * seed)
    assert spreads(compare(load_runs(tmp_path))) == []
