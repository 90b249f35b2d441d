"""Look up the nearest training images, and count their classes or read the classes' names.

It follows Long et al., "Retrieval Augmented Classification for Long-Tail Visual Recognition" (CVPR 2022): a retrieval
branch finds an image's nearest neighbours by a fixed encoder and turns the text of their labels into logits, which are
added to a linear classifier's. Differences: the search is exact; the text encoder is small and learns from scratch, on
a dozen or two words of the class names; base and fixed encoder have the same backbone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvtec_lab.errors import LabError
from mvtec_lab.problems.memory import SEARCH_BYTES

PAIR_BYTES = 16  # per query and image of the memory: the cosine, the sorted one, and its place
FLOOR = 0.01  # added to each class's votes: 0 of 5 becomes 1 in 500, and its loss 6 instead of infinite
NEARER = 0.01  # what the nearest image's vote counts more; over all neighbours it must stay below one vote
# Of cosines: one 0.1 larger counts e times as much. Anything from 0.01 to 0.3 gave bottle the same accuracy, within
# a point; learnt, it would hardly move in a few hundred steps, and what nearness is worth is learnt with the ranks.
TEMPERATURE = 0.1


@torch.no_grad()
def nearest(queries: Tensor, memory: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the k rows of ``memory`` with the largest cosine to each query, the most similar first.

    Of equal ones the lower place comes first.

    Args:
        queries: [N, D], of any floating type; the search itself is in float32.
        memory: [M, D]. A row of zeros has the cosine 0 with everything.
        exclude: for each query the place in memory that must not be returned, [N]; -1: none.

    Returns:
        Cosines [N, k] and places in memory [N, k].

    Raises:
        LabError: the memory has fewer than k rows.
    """
    require_neighbours(len(memory) - (exclude is not None), k)
    # No index library: on one CPU thread the product of 32 queries with 10,000 images of 1280 features takes 24 ms and
    # the whole search 50, with 100,000 it is .2 and .6 s; a product has a few hundred images, which take 1 ms.
    if exclude is None:
        exclude = torch.full(queries.shape[:1], -1, device=queries.device)
    places = torch.arange(len(memory), device=queries.device)
    rows = max(1, SEARCH_BYTES // (PAIR_BYTES * len(memory)))
    nearest_rows = []
    with torch.autocast(queries.device.type, enabled=False):
        memory = memory.float()
        lengths = memory.norm(dim=1).clamp_min(1e-12)  # as F.normalize does
        # An exported file takes any number of queries, so none of its sizes may depend on it.
        whole = torch.compiler.is_compiling()
        parts = [(queries, exclude)] if whole else zip(queries.split(rows), exclude.split(rows), strict=True)
        for part, own in parts:
            cosines = (F.normalize(part.float(), dim=1) @ memory.T).div_(lengths)
            cosines.masked_fill_(own[:, None] == places, -torch.inf)
            if whole:  # ONNX's topk takes the lower place of equals; PyTorch's takes any
                values, order = cosines.topk(k)
            else:
                values, order = cosines.sort(dim=1, descending=True, stable=True)
            nearest_rows.append((values[:, :k].clone(), order[:, :k].clone()))  # a view would keep all M columns
            del cosines, values, order  # before the next part needs as much
    similarities, neighbours = zip(*nearest_rows, strict=True)
    return torch.cat(similarities), torch.cat(neighbours)


def vote(labels: Tensor, num_classes: int) -> Tensor:
    """Return log probabilities [N, C] from the neighbours' labels [N, k], nearest first: each class's share of them.

    Of classes with equally many votes the nearer one wins: the r-th neighbour counts NEARER / r more than one vote.
    """
    weights = 1 + NEARER / torch.arange(1, labels.shape[1] + 1, device=labels.device)
    votes = (F.one_hot(labels, num_classes) * weights[:, None]).sum(1) + FLOOR
    return (votes / votes.sum(1, keepdim=True)).log()


def words(name: str) -> list[str]:
    """Return the words of a class name in lower case, its numbers included; a name of signs alone is its own word.

    >>> words("cut_inner_insulation")
    ['cut', 'inner', 'insulation']
    """
    # Marks belong to the letter before them: in many scripts they are vowels, and macOS writes "ö" as o and a mark.
    kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in unicodedata.normalize("NFKC", name).lower())
    return "".join(kept).split() or [name]


class TextEncoder(nn.Module):
    """Turn the neighbours' labels [N, k] and cosines [N, k], nearest first, into logits [N, C] by their class names.

    A name is the mean of its words' embeddings, so that classes which share a word learn from each other's images.
    """

    shares: Tensor

    def __init__(self, classes: Sequence[str], neighbours: int, width: int = 64) -> None:
        super().__init__()
        texts = [sorted(words(name)) for name in classes]
        # Names of equal words, as a_b and b-a, have to differ in something.
        texts = [text if texts.count(text) == 1 else [*text, name] for text, name in zip(texts, classes, strict=True)]
        vocabulary = sorted({word for text in texts for word in text})
        shares = torch.tensor([[text.count(word) / len(text) for word in vocabulary] for text in texts])
        self.register_buffer("shares", shares, persistent=False)  # [C, words]; it follows from the class names
        self.words = nn.Embedding(len(vocabulary), width)
        self.ranks = nn.Embedding(neighbours, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        # Zero at first: a fused head starts as the linear one, and this branch adds no noise to the first steps.
        self.out = nn.Linear(width, len(classes))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, labels: Tensor, similarities: Tensor) -> Tensor:
        texts = F.embedding(labels, self.shares @ self.words.weight)
        texts = self.mlp(texts + self.ranks.weight)
        weights = (similarities / TEMPERATURE).softmax(dim=1)
        return self.out((weights[..., None] * texts).sum(1))


def require_neighbours(available: int, neighbours: int) -> None:
    if available < neighbours:
        raise LabError(
            f"model.neighbours={neighbours} is more than the {max(available, 0)} training images that can be looked "
            "up: give fewer neighbours, or more images"
        )
