"""Invented products to pretrain on: every kind of defect changes its picture there where its target says."""

from __future__ import annotations

import numpy as np
import pytest

from mvtec_lab.data import drawn
from mvtec_lab.data.drawn import CELLS, CHANNELS, HUES, KINDS, draw

SIZE = 64


def test_a_picture_is_its_seeds_alone() -> None:
    (image, targets), (again, targets_again), (other, _) = (draw([s, 0], 1, SIZE) for s in (1, 1, 2))
    assert (image.shape, image.dtype, targets.dtype) == ((SIZE, SIZE, 3), "u1", "u1")
    assert targets.shape == (CHANNELS, CELLS, CELLS)
    assert np.array_equal(image, again)
    assert np.array_equal(targets, targets_again)
    assert not np.array_equal(image, other)


def test_pictures_of_one_piece_differ_by_their_defects_alone() -> None:
    (good, none), (first, some), (second, others) = (
        draw([1, k], defects, SIZE) for k, defects in ((0, 0), (1, 1), (2, 2))
    )
    assert not none[: len(KINDS)].any()
    assert [kinds[: len(KINDS)].any((1, 2)).sum() for kinds in (some, others)] == [1, 2]
    for image in (first, second):
        assert 0 < (image != good).any(-1).mean() < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_changes_the_picture_where_its_target_says(kind: str) -> None:
    """Painted with and without what the defect does, a picture differs there, and next to nowhere else."""
    number, seen = list(KINDS).index(kind), 0
    for seed in range(200):
        piece = drawn._piece(np.random.default_rng(seed))
        if kind not in drawn._possible(piece):
            continue
        before, after = np.zeros((2, 256, 256, 3), np.uint8)
        drawn._paint(before, piece)
        marks = {kind: KINDS[kind](piece, np.random.default_rng(seed))}
        cells = drawn._targets(piece, marks)[number] > 0
        assert cells.any()
        assert not drawn._targets(piece, marks)[: len(KINDS)][np.arange(len(KINDS)) != number].any()
        drawn._paint(after, piece)
        changed = (before != after).any(-1).reshape(CELLS, 16, CELLS, 16).sum((1, 3))
        if piece.soft:  # blended into the finished picture
            continue
        seen += 1
        assert changed[cells].sum() > 0.7 * changed.sum() > 0  # what lies behind may change along
        if seen == 5:
            break
    assert seen == 5 or kind == "stain"


def test_every_kind_and_every_hue_occurs() -> None:
    there = np.stack([draw([seed, 0], 1, 32)[1] for seed in range(300)]).any((2, 3))
    assert there.shape[1] == len(KINDS) + HUES
    assert there.sum(0).min() > 0
    assert (there[:, : len(KINDS)].sum(1) == 1).all()


def test_the_sample_is_never_drawn() -> None:
    """No round body with a ring of three round parts that hold elements."""
    rings = 0
    for seed in range(2000):
        piece = drawn._piece(np.random.default_rng(seed))
        around = piece.body is not None and np.ptp(np.hypot(*(piece.body - piece.centre).T)) < 1e-6
        places = [np.hypot(*(part.centre - piece.centre)) for part in piece.parts]
        if around and len(places) == 3 and np.ptp(places) < 0.02 and min(places) > 0.05:
            rings += 1
            for part in piece.parts:
                shape = np.hypot(*(part.outline - part.centre).T)
                assert np.ptp(shape) > 1e-6 or not len(part.elements)
    assert rings > 20
