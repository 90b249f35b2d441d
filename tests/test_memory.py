"""What is remembered of good images, searched: against SciPy, in parts, in batches and in an exported file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from mvtec_lab.problems import memory

PLACES = (6, 5)  # rows and columns of the maps


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 3])
def test_nearest_is_exact_whatever_the_parts(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(7)
    queries, bank = (torch.randn(n, 5, generator=generator) + 1000 for n in (30, 70))  # far from 0: digits get lost
    monkeypatch.setattr(memory, "SEARCH_BYTES", 4 * 70 * 8)
    distances, places = memory.nearest(queries, bank, k)
    expected = np.take_along_axis(cdist(queries.double(), bank.double()), places.numpy(), 1)
    assert np.allclose(distances, expected, rtol=1e-4)
    assert (distances.diff(dim=1) >= 0).all()
    near = queries - 1000, bank - 1000
    order = cdist(*near).argsort(1)[:, :k]
    assert (memory.nearest(*near, k)[1].numpy() == order).all()


def in_place(queries: Tensor, bank: Tensor, radius: int, hidden: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and indices of the nearest patches, a cell at a time."""
    distances = np.full(queries.shape[:3], np.inf)
    indices = np.zeros(queries.shape[:3], int)
    numbers = np.arange(hidden.numel()).reshape(hidden.shape)
    for image, row, column in np.ndindex(*queries.shape[:3]):
        near = np.s_[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1]
        shown = ~hidden[near].numpy()
        if shown.any():
            of_cell = cdist(queries[image, row, column][None], bank[near].numpy()[shown])[0]
            distances[image, row, column] = of_cell.min()
            indices[image, row, column] = numbers[near][shown][of_cell.argmin()]
    return distances, indices


@pytest.mark.parametrize("radius", [0, 1, 2, 9])
@pytest.mark.parametrize(("cache", "search"), [(1, 2**26), (4 * 7 * 3 * 12, 2**26), (2**20, 1), (2**20, 2**26)])
def test_a_cell_is_compared_with_the_patches_near_it(radius: int, cache: int, search: int, monkeypatch) -> None:
    monkeypatch.setattr(memory, "CACHE_BYTES", cache)  # of a place; of two rows and a bit; of all places
    monkeypatch.setattr(memory, "SEARCH_BYTES", search)
    queries, bank = random(4, *PLACES, 3), random(*PLACES, 7, 3, seed=1)
    hidden = torch.rand(*PLACES, 7, generator=torch.Generator().manual_seed(2)) < 0.5
    hidden[:3, :3] = True  # no candidate within one cell of the corner
    for left_out in (None, hidden):
        distances, indices = memory.nearest_in_place(queries, bank, radius, left_out)
        expected = in_place(queries, bank, radius, torch.zeros_like(hidden) if left_out is None else hidden)
        known = np.isfinite(expected[0])
        assert known.all() == (left_out is None or radius > 2)
        assert np.allclose(distances, expected[0], atol=1e-5)
        assert (indices.numpy() == expected[1])[known].all()
        residual = queries - bank.flatten(0, 2)[indices]
        assert np.allclose(residual.norm(dim=3)[known], distances[known], atol=1e-5)


def test_a_batch_of_any_size_has_the_same_distances_bit_for_bit() -> None:
    # Patches that are nearly alike, and sizes at which several images take another kernel than one: rounding would then
    # choose another patch.
    queries, bank = random(7, 8, 8, 17), random(8, 8, 1, 17, seed=1) + 1e-5 * random(8, 8, 9, 17, seed=2)
    whole = memory.nearest_in_place(queries, bank)
    for sizes in ([1] * 7, [3, 4]):
        parts = [memory.nearest_in_place(part, bank) for part in queries.split(sizes)]
        for of_parts, of_whole in zip(zip(*parts, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(of_parts), of_whole)


def test_a_search_in_place_is_exported_for_any_batch() -> None:
    class Search(nn.Module):
        def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
            return memory.nearest_in_place(queries, bank)

    bank = random(*PLACES, 7, 3, seed=1)
    sizes = ({0: torch.export.Dim("N")},)
    exported = torch.export.export(Search(), (random(2, *PLACES, 3),), dynamic_shapes=sizes).module()
    queries = random(5, *PLACES, 3, seed=3)
    for file, lab in zip(exported(queries), memory.nearest_in_place(queries, bank), strict=True):
        torch.testing.assert_close(file, lab)


def test_a_bank_holds_what_images_show_at_each_place() -> None:
    maps = torch.arange(3 * 2 * 4.0).view(3, 1, 2, 4)
    assert torch.equal(memory.in_places(maps), maps.permute(2, 3, 0, 1))
    shown = torch.ones(3, 2, 4, dtype=torch.bool)
    assert torch.equal(memory.in_places(maps, shown), maps.permute(2, 3, 0, 1))
    shown[1, :, 0] = shown[:2, :, 3] = False  # the second image does not show the first column ...
    shown[2, 1, 3] = False  # ... and none the last corner
    bank = memory.in_places(maps, shown)[..., 0]
    assert bank[0, 0].tolist() == [0, 16, 0]
    assert bank[0, 1].tolist() == [1, 9, 17]
    assert bank[0, 3].tolist() == [19, 19, 19]
    assert set(bank[1, 3].tolist()) <= {*bank[0, 3].tolist(), *bank[1, 2].tolist()}  # both are one cell away


@pytest.mark.parametrize("cache", [1, 2**20])
def test_a_thinned_bank_is_the_greedy_choice_at_each_place(cache: int, monkeypatch) -> None:
    monkeypatch.setattr(memory, "CACHE_BYTES", cache)
    bank = random(*PLACES, 20, 4, seed=4) ** 3
    thinned = memory.thinned(bank, 6)
    for row, column in np.ndindex(*PLACES):
        points = bank[row, column].numpy()
        chosen = [int(cdist(points, points.mean(0, keepdims=True)).argmax())]
        while len(chosen) < 6:
            chosen.append(int(cdist(points, points[chosen]).min(1).argmax()))
        assert np.array_equal(thinned[row, column], points[chosen])
    assert memory.thinned(bank, 20) is bank
    equal = torch.full((1, 1, 5, 2), 3.0)
    equal[0, 0, 4] = 9.0
    assert memory.thinned(equal, 3)[0, 0, :, 0].tolist() == [9, 3, 3]
