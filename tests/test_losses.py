"""Losses of the long tail against numbers worked out from the official formulas, in numpy, and at their edges."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvtec_lab.config import LossConfig
from mvtec_lab.data.sampling import class_weights
from mvtec_lab.errors import LabError
from mvtec_lab.models.backbones import CosineLinear
from mvtec_lab.problems.classification import LOSSES, losses
from mvtec_lab.problems.classification.groups import check_bins, count_bins, group_scores, group_softmax
from mvtec_lab.problems.classification.losses import Criterion, GroupSoftmax, options_of

COUNTS = [150, 14, 3, 1]
LOGITS = np.array([[2.0, -1.0, 0.5, 0.0], [0.3, 1.2, -0.7, 2.2], [-1.0, 0.4, 3.0, 0.1]])
LABELS = np.array([0, 3, 1])
BINS = [[1], [2, 3]]


def log_softmax(z: np.ndarray) -> np.ndarray:
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def expected(name: str, weight: np.ndarray | None) -> float:
    """Each sample's loss, then the mean, by the weights of the samples where there are any."""
    n, z, rows = np.array(COUNTS, float), LOGITS, np.arange(len(LABELS))
    log_p = log_softmax(z)[rows, LABELS]
    match name:
        case "cross_entropy":
            each = -log_p
        case "focal":
            each = -((1 - np.exp(log_p)) ** 2) * log_p
        case "ldam":  # losses.py of kaidic/LDAM-DRW: m / max(m) * max_m, s times the cosines less the margin
            m = 1 / np.sqrt(np.sqrt(n))
            m = m * (0.5 / m.max())
            cosines = z / 30
            cosines[rows, LABELS] -= m[LABELS]
            each = -log_softmax(30 * cosines)[rows, LABELS]
        case "logit_adjustment":
            each = -log_softmax(z + np.log(n / n.sum()))[rows, LABELS]
        case "balanced_softmax":
            each = -log_softmax(z + np.log(n))[rows, LABELS]
    w = np.ones(len(LABELS)) if weight is None else weight[LABELS]
    return float((w * each).sum() / w.sum())


def criterion(name: str, num_classes: int = 4, counts: list[int] | None = COUNTS, **options) -> Criterion:
    if name == "group_softmax":
        return GroupSoftmax(num_classes, counts, good=0, **options)
    return Criterion(name, num_classes, counts, **options)


@pytest.mark.parametrize("rule", [None, "inverse", "effective"])
@pytest.mark.parametrize("name", [name for name in LOSSES.names() if name != "group_softmax"])
def test_a_loss_is_what_the_official_formula_gives(name: str, rule: str | None) -> None:
    weight = None if rule is None else class_weights(COUNTS, rule, 0.99)
    loss = criterion(name, weights=weight)(torch.tensor(LOGITS).float(), torch.tensor(LABELS))
    assert float(loss) == pytest.approx(expected(name, weight), rel=1e-5)


def test_class_balanced_weights_are_the_effective_number_of_samples() -> None:
    """cifar_main.py of richardaecn/class-balanced-loss."""
    by_hand = (1 - 0.99) / (1 - np.power(0.99, COUNTS))
    assert class_weights(COUNTS, "effective", 0.99) == pytest.approx(by_hand / by_hand.sum() * 4)


def test_logit_adjustment_and_balanced_softmax_are_the_same_loss() -> None:
    logits, target = torch.randn(8, 4), torch.arange(8) % 4
    one, other = (criterion(name)(logits, target) for name in ("logit_adjustment", "balanced_softmax"))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", LOSSES.names())
def test_shares_of_one_class_are_that_class(name: str) -> None:
    """A mixed image's target; of group_softmax no other is left out with so large a ratio."""
    c = criterion(name, **({"others": 100.0} if name == "group_softmax" else {}))
    logits, target = torch.randn(12, c.outputs), torch.arange(12) % 4
    torch.testing.assert_close(c(logits, F.one_hot(target, 4).float()), c(logits, target))
    if name != "group_softmax":  # linear in the target
        half = (F.one_hot(target, 4) + F.one_hot(target.roll(1), 4)) / 2
        torch.testing.assert_close(c(logits, half), (c(logits, target) + c(logits, target.roll(1))) / 2)


@pytest.mark.parametrize("name", LOSSES.names())
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_losses_and_slopes_stay_finite(name: str, scale: float) -> None:
    """Also where training had a class of one image, one of none, and one is absent from the batch."""
    c = criterion(name, counts=[150, 14, 1, 0])
    torch.manual_seed(0)
    logits = (scale * torch.randn(6, c.outputs)).requires_grad_()
    loss = c(logits, torch.tensor([0, 0, 1, 1, 2, 0]))
    (slopes,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert loss >= 0
    assert slopes.isfinite().all()
    if scale == 1:
        assert slopes.abs().sum() > 0
    assert c.scores(logits).softmax(1).isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_has_the_right_slope_even_where_it_is_certain(gamma: float) -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: losses.focal(z, torch.arange(5) % 3, gamma=gamma), logits)
    certain = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(losses.focal(certain, torch.tensor([0]), gamma=gamma), certain)
    assert slope.isfinite().all()
    plain = losses.cross_entropy(logits, torch.arange(5) % 3)
    assert gamma or losses.focal(logits, torch.arange(5) % 3, gamma=0.0).item() == pytest.approx(plain.item())


def test_ldam_has_the_right_slope() -> None:
    logits = (10 * torch.randn(5, 4, dtype=torch.float64)).requires_grad_()
    counts = torch.tensor(COUNTS)
    assert torch.autograd.gradcheck(lambda z: losses.ldam(z, torch.arange(5) % 4, counts=counts), logits)


def test_the_rarest_class_has_the_whole_margin() -> None:
    """Level with one rival at 0.5 * 30 above it: log 2."""
    logits = torch.tensor([[-1e3, -1e3, 0.0, 15.0]])
    assert losses.ldam(logits, torch.tensor([3]), counts=torch.tensor(COUNTS)).item() == pytest.approx(np.log(2))


def test_posthoc_adjustment_moves_what_predicts_and_not_what_trains() -> None:
    plain, moved = criterion("cross_entropy"), criterion("cross_entropy", posthoc=1.5)
    logits = torch.randn(4, 4)
    assert moved(logits, torch.arange(4)) == plain(logits, torch.arange(4))
    by_hand = logits - 1.5 * torch.log(torch.tensor(COUNTS) / sum(COUNTS))
    torch.testing.assert_close(moved.scores(logits), by_hand)
    torch.testing.assert_close(plain.scores(logits), logits)


def test_adjusted_scores_undo_the_prior() -> None:
    """On features that say nothing, logit adjustment ends at equal logits, cross-entropy at the priors."""
    counts = [80, 15, 5]
    target = torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])
    for name, wanted in (("logit_adjustment", [1 / 3] * 3), ("cross_entropy", [0.80, 0.15, 0.05])):
        logits, c = torch.zeros(3, requires_grad=True), criterion(name, 3, counts)
        optimizer = torch.optim.Adam([logits], 0.1)
        for _ in range(300):
            optimizer.zero_grad()
            c(logits.expand(100, 3), target).backward()
            optimizer.step()
        assert logits.softmax(0).tolist() == pytest.approx(wanted, abs=0.01)


def test_names_and_options_are_those_of_the_configuration() -> None:
    settings = vars(LossConfig())
    for name in LOSSES.names():
        assert LOSSES[name].__name__ == name
    assert options_of("focal", settings) == {"gamma": 2.0}
    assert options_of("ldam", settings) == {"margin": 0.5}
    assert options_of("group_softmax", settings) == {"bins": 2, "others": 8.0}
    assert options_of("cross_entropy", settings) == {}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: criterion("focl"), "unknown loss 'focl': did you mean focal?"),
        (lambda: criterion("focal", gama=2), "unknown option of loss focal 'gama': did you mean gamma?"),
        (lambda: criterion("ldam", counts=None), "needs class_counts"),
        (lambda: criterion("cross_entropy", counts=None, posthoc=1.0), "needs class_counts"),
        (lambda: criterion("ldam", counts=[1, 2]), "2 numbers for 4 classes"),
        (lambda: criterion("group_softmax", counts=None), "needs class_counts"),
        (lambda: criterion("group_softmax", bins=[[1], [2]]), r"leave out class 3: put each"),
        (lambda: criterion("group_softmax", bins=[[1, 2], [2, 3]]), r"hold a class twice"),
        (lambda: losses.focal(torch.zeros(1, 2), torch.tensor([0]), gamma=-1), "loss.gamma=-1 is out of range"),
    ],
)
def test_bad_input_is_answered_with_one_line(make, said: str) -> None:
    with pytest.raises(LabError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


# balanced group softmax


@pytest.mark.parametrize(
    ("bins", "wanted"),
    [
        (1, [[1, 2, 3, 4, 5]]),
        (2, [[2, 4, 5], [1, 3]]),  # by rank: ties never make a bin empty
        (9, [[5], [2], [4], [1], [3]]),
        ([10, 100, 1000], [[2, 4, 5], [1], [3]]),  # the paper's: below 10, 10 to 99, 100 to 999
        ([10], [[2, 4, 5], [1, 3]]),
        ([5000], [[1, 2, 3, 4, 5]]),
    ],
)
def test_classes_are_binned_by_their_counts(bins, wanted: list[list[int]]) -> None:
    counts = [900, 10, 9, 100, 9, 2]
    found = count_bins(counts, bins, good=0)
    assert found == wanted
    check_bins(found, len(counts), good=0)


def grouped_by_hand(logits: np.ndarray, labels: np.ndarray) -> float:
    """The three softmaxes of BINS, one after the other: good or defect; others or 1; others, 2 or 3."""
    total = 0.0
    for columns, slot in (([0, 1], [0, 1, 1, 1]), ([2, 3], [0, 1, 0, 0]), ([4, 5, 6], [0, 0, 1, 2])):
        slots = np.array(slot)[labels]
        if columns[0] and not slots.any():
            continue
        total -= log_softmax(logits[:, columns])[np.arange(len(labels)), slots].mean()
    return total


@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 0], [0, 0, 2, 2, 2], [0, 0, 0, 0, 0]])
def test_group_softmax_is_the_sum_of_its_softmaxes(labels: list[int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 7)
    loss = group_softmax(logits, torch.tensor(labels), bins=BINS, good=0, others=100)
    assert loss.item() == pytest.approx(grouped_by_hand(logits.numpy(), np.array(labels)), rel=1e-5)


def test_others_are_sampled_for_each_of_a_bins_own() -> None:
    """One image of bin {1} and others = 3: it and three of the eight from outside count, which shows in the slopes."""
    labels = torch.tensor([1, *[0] * 8])
    logits = torch.randn(9, 7, requires_grad=True)

    def touched(seed: int) -> set[int]:
        torch.manual_seed(seed)
        loss = group_softmax(logits, labels, bins=BINS, good=0, others=3)
        (slopes,) = torch.autograd.grad(loss, logits)
        assert slopes[:, :2].abs().sum(1).all()  # bin 0 learns from every image
        assert not slopes[:, 4:].any()  # no image of bin {2, 3} in this batch
        return set(slopes[:, 2:4].abs().sum(1).nonzero()[:, 0].tolist())

    found = [touched(seed) for seed in range(8)]
    assert all(len(each) == 4 and 0 in each for each in found)
    assert len({frozenset(each) for each in found}) > 1
    assert touched(3) == found[3]


def test_group_scores_are_the_papers_scaled_to_a_distribution() -> None:
    logits = torch.randn(6, 7)
    first, second, third = (logits[:, part].softmax(1) for part in (slice(2), slice(2, 4), slice(4, 7)))
    merged = torch.stack([first[:, 0], first[:, 1] * second[:, 1], *(first[:, [1]] * third[:, 1:]).T], 1)
    p = group_scores(logits, BINS, good=0).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(6))
    torch.testing.assert_close(p, merged / merged.sum(1, keepdim=True))
    assert (p.argmax(1) == merged.argmax(1)).all()


def test_without_a_good_class_there_is_no_bin_0() -> None:
    c = GroupSoftmax(3, [50, 10, 4], bins=2)
    assert c.options["bins"] == [[1, 2], [0]]
    assert c.outputs == 3 + 3 + 2
    logits = torch.randn(4, c.outputs)
    assert c(logits, torch.tensor([0, 1, 2, 0])).isfinite()
    torch.testing.assert_close(c.scores(logits).exp().sum(1), torch.ones(4))


@pytest.mark.parametrize("kind", [torch.nn.Linear, CosineLinear])
def test_the_groups_start_from_the_trained_layer(kind) -> None:
    c = criterion("group_softmax", bins=BINS)
    last = kind(5, c.outputs)
    x, target = torch.randn(9, 5), torch.tensor([0, 1, 2, 3, 0, 0, 1, 2, 3])
    c.defer(True)
    plain = last(x)[:, :4]
    assert c(last(x), target) == F.cross_entropy(plain, target)
    torch.testing.assert_close(c.scores(last(x)), plain)
    c.begin(last)
    rows = last.weight
    for place, members in {4: [0], 5: [1, 2, 3], 6: [0, 2, 3], 7: [1], 8: [0, 1], 9: [2], 10: [3]}.items():
        torch.testing.assert_close(rows[place], rows[members].mean(0))
    assert not c.deferred
    (slopes,) = torch.autograd.grad(c(last(x), target), last.weight)
    assert not slopes[:4].any()
    assert slopes[4:].any(dim=1).all()


def test_the_cosine_classifier_gives_scaled_cosines() -> None:
    layer, x = CosineLinear(5, 3, scale=30.0), torch.randn(4, 5)
    wanted = 30 * F.cosine_similarity(x[:, None], layer.weight[None], dim=2)
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(layer(100 * x), wanted)
    assert layer(torch.zeros(1, 5)).isfinite().all()


def test_the_loss_that_contributing_adds_works(lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code, attempt = (re.search(rf"```{kind}\n(.*?)```", text, re.S)[1] for kind in ("python", "yaml"))
    monkeypatch.setattr(LOSSES, "_own", dict(LOSSES._own))  # the name leaves with the test
    exec(code, {})
    (tmp_path / "conf/attempt/longtail").mkdir(parents=True)
    (tmp_path / "conf/attempt/longtail/mae.yaml").write_text(attempt)
    assert lab(f"--config-dir={tmp_path / 'conf'}", "attempt=longtail/mae", "hydra.run.dir=run") == 0
    assert (tmp_path / "run/best.ckpt").exists()
    assert criterion("mae")(torch.zeros(1, 4), torch.tensor([2])).item() == pytest.approx(0.75)
