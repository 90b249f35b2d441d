"""Retrieval: exact neighbours, their vote, the reading of class names, and the head that puts them together."""

from __future__ import annotations

import unicodedata

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from mvtec_lab.errors import LabError
from mvtec_lab.models.modes import PartlyFrozen
from mvtec_lab.problems.classification import HEADS, retrieval
from mvtec_lab.problems.classification.heads import Setup
from mvtec_lab.problems.classification.retrieval import TextEncoder, nearest, vote, words

CLASSES = ["good", "cut_inner_insulation", "cut_outer_insulation"]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


class Head(torch.nn.Module):
    """A linear layer and the head beside it; where the backbone is frozen, both see the same features."""

    def __init__(self, features: int, kind: str, neighbours: int, memory: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(features, len(CLASSES))
        network = PartlyFrozen({"head": torch.nn.Sequential(self.linear)}, {"head"})
        self.branch = HEADS[kind](Setup(network, CLASSES, memory, neighbours=neighbours))

    def forward(self, x: Tensor, embeddings: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        return self.branch(self.linear(x), x if embeddings is None else embeddings, index)


def make(kind: str, features: int = 8, neighbours: int = 5, memory: int = 30) -> Head:
    torch.manual_seed(0)
    head = Head(features, kind, neighbours, memory)
    head.branch.remember(draw(memory, features), torch.arange(memory) % len(CLASSES))
    return head


@pytest.mark.parametrize("limit", [2**26, 16 * 50 * 7, 1], ids=["at once", "seven at a time", "one at a time"])
def test_neighbours_are_those_of_scikit_learn(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "SEARCH_BYTES", limit)
    queries, memory = draw(23, 16, seed=1) * 40, draw(50, 16, seed=2) * draw(50, 1, seed=3).exp()
    distances, expected = NearestNeighbors(metric="cosine", algorithm="brute").fit(memory).kneighbors(queries, 50)
    similarities, places = nearest(queries, memory, 6)
    assert places.tolist() == expected[:, :6].tolist()
    torch.testing.assert_close(similarities, torch.from_numpy(1 - distances[:, :6]).float(), atol=1e-5, rtol=0)

    exclude = torch.from_numpy(expected[:, 2].copy())
    exclude[::4] = -1
    left = [[p for p in row if p != own][:6] for row, own in zip(expected.tolist(), exclude.tolist(), strict=True)]
    assert nearest(queries, memory, 6, exclude)[1].tolist() == left


def test_of_equals_the_lower_place_comes_first() -> None:
    memory = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(500, 1)
    places = nearest(torch.tensor([[3.0, 0.0], [0.0, 0.5]]), memory, 4)[1]
    assert places.tolist() == [[1, 3, 5, 7], [0, 2, 4, 6]]


def test_an_image_never_finds_itself() -> None:
    memory = draw(40, 8)
    own = torch.arange(40)
    assert nearest(memory, memory, 1)[1][:, 0].equal(own)
    places = nearest(memory, memory, 39, own)[1]  # all others, and not it
    assert not (places == own[:, None]).any()
    assert places.sort(1).values.unique(dim=0).shape == (40, 39)

    head = make("knn", neighbours=1)
    # each image's copy has another label
    head.branch.remember(draw(30, 8).repeat_interleave(2, 0)[:30], torch.arange(30) % 2)
    assert head(head.branch.memory).argmax(1).equal(torch.zeros(30).long())  # of both the first
    assert head(head.branch.memory, index=torch.arange(30)).argmax(1).equal(1 - torch.arange(30) % 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_search_is_exact_in_mixed_precision(dtype: torch.dtype) -> None:
    head, x = make("fused", features=64), draw(9, 64, seed=1)
    expected = nearest(x, head.branch.memory, 5)
    with torch.autocast("cpu", dtype):
        found = nearest(x, head.branch.memory, 5)
        assert head(x).isfinite().all()
    assert found[0].equal(expected[0])
    assert found[1].equal(expected[1])
    half = nearest(x.to(dtype), head.branch.memory, 5)
    assert half[0].dtype == torch.float32


def test_a_vote_is_a_distribution_and_the_majority_wins() -> None:
    labels = torch.tensor([[1, 0, 0, 2, 0], [2, 2, 2, 2, 2], [2, 1, 1, 2, 0]])
    result = vote(labels, 4)
    torch.testing.assert_close(result.exp().sum(1), torch.ones(3))
    assert result.isfinite().all()
    assert result.argmax(1).tolist() == [0, 2, 2]  # the last: two votes each, and 2 has the nearest
    torch.testing.assert_close(result[0].exp(), torch.tensor([0.6, 0.2, 0.2, 0.0]), atol=0.01, rtol=0)


@pytest.mark.parametrize("k", [4, 40])
def test_nearness_decides_between_equals_only(k: int) -> None:
    nearer = torch.arange(k) % 2  # 0 first, 1 second, ... : as many of both
    assert vote(nearer[None], 2).argmax() == 0
    assert vote(1 - nearer[None], 2).argmax() == 1
    outvoted = torch.cat([torch.zeros(k), torch.ones(k + 1)]).long()  # all nearer ones 0, one more vote for 1
    assert vote(outvoted[None], 2).argmax() == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cut_inner_insulation", ["cut", "inner", "insulation"]),
        ("Kratzer-tief", ["kratzer", "tief"]),
        ("断线", ["断线"]),
        ("दरार 2", ["दरार", "2"]),
        (unicodedata.normalize("NFD", "Lötstelle"), ["lötstelle"]),
        ("type 12 (new)", ["type", "12", "new"]),
        ("_", ["_"]),
        ("--", ["--"]),
        ("", [""]),
    ],
)
def test_words_of_a_class_name(name: str, expected: list[str]) -> None:
    assert words(name) == expected


def test_classes_share_the_words_that_they_share_and_differ_in_something() -> None:
    assert TextEncoder(CLASSES, 5).words.num_embeddings == 5  # good, cut, inner, outer, insulation
    odd = TextEncoder(["wire_bent", "Bent-wire", "断线", "--", "", "wire"], 5)
    assert len(odd.shares.unique(dim=0)) == 6
    torch.testing.assert_close(odd.shares.sum(1), torch.ones(6))


def test_a_fused_head_starts_as_the_linear_one() -> None:
    head, x = make("fused"), draw(4, 8, seed=1)
    assert head(x).equal(head.linear(x))
    assert not make("retrieval")(x).any()


def test_gradients_reach_both_branches_but_neither_memory_nor_fixed_encoder() -> None:
    head = make("fused")
    x, embeddings = draw(12, 8, seed=1).requires_grad_(), draw(12, 8, seed=2).requires_grad_()
    torch.nn.init.normal_(head.branch.text.out.weight)  # past the first step, where zeros stop the gradient
    F.cross_entropy(head(x, embeddings), torch.arange(12) % 3).backward()
    assert {name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()} == set()
    assert x.grad is not None
    assert embeddings.grad is None
    assert not head.branch.memory.requires_grad
    assert not list(make("knn").branch.parameters())


@pytest.mark.parametrize("kind", ["fused", "retrieval", "knn"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_extreme_features_give_finite_results(kind: str, scale: float) -> None:
    head = make(kind)
    head.branch.remember(draw(30, 8) * scale, torch.arange(30) % 3)
    assert head.branch.memory.isfinite().all()
    for features in (torch.zeros(4, 8), draw(4, 8, seed=1) * 1e-30, draw(4, 8, seed=1) * 1e30):
        similarities, places = nearest(features, draw(30, 8) * scale, 5)
        assert similarities.abs().max() < 1.001
        assert places.max() < 30
        assert head(draw(4, 8, seed=2), features).isfinite().all()


@pytest.mark.parametrize("kind", ["fused", "retrieval", "knn"])
def test_a_checkpoint_carries_the_memory(kind: str) -> None:
    trained, x = make(kind), draw(7, 8, seed=1)
    if kind != "knn":
        torch.nn.init.normal_(trained.branch.text.out.weight)
    again = Head(8, kind, 5, 30)
    again.load_state_dict(trained.state_dict())
    assert again(x).equal(trained(x))
    torch.testing.assert_close(again.branch.memory.norm(dim=1), torch.ones(30))


def test_an_empty_memory_is_no_answer() -> None:
    for kind in ("fused", "knn"):
        with pytest.raises((IndexError, RuntimeError)):
            Head(8, kind, 5, 30)(draw(2, 8))


def test_too_few_images_are_one_line_with_the_remedy() -> None:
    memory = draw(5, 8)
    assert nearest(memory, memory, 5)[1].shape == (5, 5)
    for k, exclude in ((6, None), (5, torch.arange(5))):
        with pytest.raises(LabError, match=rf"^model\.neighbours={k} .*: give fewer neighbours, or more images$"):
            nearest(memory, memory, k, exclude)
    with pytest.raises(LabError, match=r"model\.neighbours=5 is more than the 4 training images"):
        make("knn", memory=5)


@pytest.mark.parametrize(("embeddings", "labels"), [((29, 8), 29), ((30, 9), 30), ((30, 8), 29)])
def test_a_memory_of_another_size_is_one_line(embeddings: tuple[int, int], labels: int) -> None:
    with pytest.raises(LabError, match=r"^this head remembers 30 images of 8 features, not .*: train it again"):
        make("fused").branch.remember(draw(*embeddings), torch.zeros(labels).long())


def learn(kind: str, x: Tensor, embeddings: Tensor, y: Tensor) -> float:
    """The accuracy on the second half of the images after 100 steps on the first, which is the memory."""
    torch.manual_seed(0)
    half = len(x) // 2
    head = Head(x.shape[1], kind, 5, half)
    head.branch.remember(embeddings[:half], y[:half])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(head(x[:half], embeddings[:half], torch.arange(half)), y[:half]).backward()
        optimizer.step()
    return float((head(x[half:], embeddings[half:]).argmax(1) == y[half:]).float().mean())


@pytest.mark.slow
def test_each_branch_learns_where_the_other_is_blind() -> None:
    y = torch.arange(200) % 3
    told, noise = draw(3, 16, seed=1)[y] * 2 + draw(200, 16, seed=2), draw(200, 16, seed=3)
    assert learn("fused", noise, told, y) > 0.9
    assert learn("retrieval", noise, told, y) > 0.9
    assert learn("retrieval", told, noise, y) < 0.5
    assert learn("fused", told, noise, y) > 0.9
