"""Made-up embeddings of synthetic classes: Gaussian clouds in 32 dimensions, of unequal sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mvtec_lab.errors import LabError
from mvtec_lab.problems.classification import generator
from mvtec_lab.problems.classification.generator import (
    ConditionalGenerator,
    Generated,
    balance,
    keep_confident,
    keep_near,
)

DIMENSIONS = 32
COUNTS = (40, 12, 8, 1)


def clouds(counts: Sequence[int] = COUNTS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Non-negative embeddings [M, 32] and labels [M]; a class's mean is 8 in four dimensions, 4 elsewhere."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    centres = torch.full((len(counts), DIMENSIONS), 4.0)
    for label, centre in enumerate(centres):
        centre[4 * label : 4 * label + 4] = 8
    noise = torch.randn(len(labels), DIMENSIONS, generator=torch.Generator().manual_seed(seed))
    return (centres[labels] + 0.5 * noise).clamp(min=0), labels


def same(a: Generated, b: Generated) -> bool:
    return torch.equal(a.embeddings, b.embeddings) and torch.equal(a.labels, b.labels) and a.drawn == b.drawn


def test_every_class_becomes_as_frequent_as_the_most_frequent_one() -> None:
    x, y = clouds()
    new = balance(x, y, 4, seed=0)
    assert new.embeddings.dtype == x.dtype
    assert new.embeddings.shape == (len(new.labels), DIMENSIONS)
    assert new.kept == (0, 28, 32, 39) == tuple(torch.bincount(new.labels, minlength=4).tolist())
    assert new.drawn == tuple(np.add(np.add(new.filtered, new.purified), new.kept))


def test_the_seed_decides_and_the_global_random_states_neither_matter_nor_change() -> None:
    x, y = clouds()
    torch.manual_seed(1)
    np.random.seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    first = balance(x, y, 4, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # type: ignore[index]
    torch.manual_seed(2)
    np.random.seed(2)
    assert same(balance(x, y, 4, seed=0), first)
    assert not same(balance(x, y, 4, seed=1), first)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients(mode: type[torch.no_grad]) -> None:
    x, y = clouds()
    with mode():
        inside = balance(x * 1, y, 4, seed=0)
    assert same(inside, balance(x, y, 4, seed=0))


@pytest.mark.parametrize("label", range(4))
def test_samples_have_the_mean_of_their_class_and_vary_as_images_of_a_class_do(label: int) -> None:
    x, y = clouds()
    model = ConditionalGenerator(DIMENSIONS, 4).fit(x, y, seed=0)
    made = model.sample(label, 500, torch.Generator().manual_seed(0))
    assert (made.mean(0) - x[y == label].double().mean(0)).abs().max() < 0.2  # the standard deviation is 0.5
    assert made.std(0).mean() == pytest.approx(0.5, rel=0.3)
    assert len(made.unique(dim=0)) == 500


@pytest.mark.slow
def test_offsets_that_only_the_latent_code_can_give_are_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that is independent in each component cannot make two clusters of a class."""
    monkeypatch.setattr(generator, "STEPS", 600)
    x, y = clouds((200, 100))
    x[::2, -8:] += 8
    made = ConditionalGenerator(DIMENSIONS, 2).fit(x, y, seed=0).sample(1, 500, torch.Generator().manual_seed(0))
    heights = made[:, -8:].mean(1)
    between = ((heights - 8).abs() < 2).double().mean()  # the clusters lie at 4 and 12
    assert between < 0.2  # of a normal distribution 0.38
    assert 0.3 < (heights > 8).double().mean() < 0.7


def test_a_class_without_images_is_refused_with_the_remedy() -> None:
    x, y = clouds((10, 5))
    model = ConditionalGenerator(DIMENSIONS, 3).fit(x, y, seed=0)
    with pytest.raises(LabError, match=r"class 2 has no training image .* put one of its images into"):
        model.sample(2, 1, torch.Generator())
    with pytest.raises(LabError, match=r"class 2 has no training image"):
        balance(x, y, 3, seed=0)
    with pytest.raises(LabError, match=r"no class has two training images .* add images"):
        model.fit(*clouds((1, 1)), seed=0)


@pytest.mark.parametrize("counts", [(5, 5), (1, 1)])
def test_equal_classes_need_nothing(counts: tuple[int, int]) -> None:
    new = balance(*clouds(counts), 2, seed=0)
    assert new.embeddings.shape == (0, DIMENSIONS)
    assert new.drawn == new.kept == (0, 0)


def test_filtering_and_purification_drop_what_is_planted() -> None:
    """Of four made-up ones of class 1: its own, another class's, one between the two, one far beyond its own."""
    x, y = (part.numpy() for part in clouds((40, 12, 8)))
    of = [x[y == label].mean(axis=0) for label in range(3)]
    made = np.stack([of[1], of[2], (of[1] + of[2]) / 2, of[1] + 3 * (of[1] - of[0])])
    labels = np.ones(4, dtype=int)
    assert keep_confident(made, labels, x, y).tolist() == [True, False, False, True]
    assert keep_near(made, labels, x, y).tolist() == [True, False, False, False]
    assert not keep_near(made[:1], np.array([2]), x, y).any()


def test_purification_of_a_class_with_one_image_goes_by_the_other_classes() -> None:
    x, y = (part.numpy() for part in clouds())
    only = x[y == 3]
    reach = np.median(
        [np.sort(np.linalg.norm(a[:, None] - a, axis=2))[:, 1].max() for a in (x[y == c] for c in range(3))]
    )
    away = np.eye(1, DIMENSIONS, 31) * reach
    made = np.concatenate([only + 0.99 * away, only + 1.01 * away])
    assert keep_near(made, np.array([3, 3]), x, y).tolist() == [True, False]


def test_where_few_survive_it_goes_on_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = clouds((40, 12))
    monkeypatch.setattr(generator, "ODDS", np.inf)
    new = balance(x, y, 2, seed=0)
    assert (len(new.labels), new.kept, new.purified) == (0, (0, 0), (0, 0))
    assert new.drawn == new.filtered == (0, 28 * generator.ROUNDS)


def test_constant_and_extreme_features_stay_finite() -> None:
    x, y = clouds()
    x[:, 0] = 0.1
    x[:, 1] *= 1e30
    x[:, 2] *= 1e-30
    x[:, 3] = torch.arange(len(x)) == 5  # fires for one image
    new = balance(x, y, 4, seed=0)
    assert new.kept == (0, 28, 32, 39)
    assert new.embeddings.isfinite().all()
    assert (new.embeddings[:, 0] == x[0, 0]).all()
    alike = balance(torch.ones_like(x), y, 4, seed=0)
    assert alike.embeddings.isfinite().all()


def test_made_up_embeddings_are_negative_only_where_real_ones_are() -> None:
    x, y = clouds((40, 12))
    x -= 4
    assert (balance(x, y, 2, seed=0).embeddings < -0.5).any()
    assert (balance(x.clamp(min=0), y, 2, seed=0).embeddings >= 0).all()
