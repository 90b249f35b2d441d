"""Pretraining on invented products: the file, its seed, and what the backbone is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mvtec_lab import pretrain
from mvtec_lab.data.drawn import CHANNELS, KINDS
from mvtec_lab.models.backbones import build
from mvtec_lab.models.weights import load_file, load_weights

BACKBONE = "mobilenet_v3_small"  # the fastest, and one with hidden layers before its last


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = (0.5, 64, 8), (1.0, 128, 4)
    for name, value in {"POOL": 16, "FRESH": 4, "HELD_OUT": 64, "PHASES": phases}.items():
        monkeypatch.setattr(pretrain, name, value)


@pytest.mark.slow
def test_its_file_is_weights_of_its_backbone(tmp_path: Path) -> None:
    first, again, other = (tmp_path / f"{name}.pth" for name in ("first", "again", "other"))
    before = torch.random.get_rng_state()
    precisions = [pretrain.pretrain(first, backbone=BACKBONE, steps=2)]
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's generator is left alone
    torch.manual_seed(5)
    precisions += [pretrain.pretrain(again, backbone=BACKBONE, steps=2)]
    pretrain.pretrain(other, backbone=BACKBONE, steps=2, seed=1)
    state, same, another = (load_file(file) for file in (first, again, other))
    assert state.keys() == same.keys()
    assert all(torch.equal(state[key], same[key]) for key in state)
    assert precisions[0] == precisions[1]
    assert not torch.equal(state["features.0.0.weight"], another["features.0.0.weight"])
    assert {value.dtype for value in state.values()} == {torch.float16, torch.int64}
    assert "classifier.0.weight" in state
    assert "classifier.3.weight" not in state  # the last layer, which every attempt makes itself
    loaded = load_weights(BACKBONE, str(first)).state_dict
    assert torch.equal(build(BACKBONE, 3, weights=loaded)[0][0][0].weight, state["features.0.0.weight"].float())


def test_a_picture_and_its_targets_turn_together() -> None:
    images, targets = torch.zeros(1, 3, 32, 32), torch.zeros(1, CHANNELS, 16, 16)
    images[..., 0:2, 14:16] = targets[..., 0, 7] = 1
    seen = set()
    for symmetry in range(8):
        turned, moved = pretrain._turned(images, targets, symmetry)
        assert torch.equal(torch.nn.functional.avg_pool2d(turned, 2)[:, 0], moved[:, 0])
        seen.add(tuple(moved[0, 0].flatten().tolist()))
    assert len(seen) == 8


def test_a_window_shows_a_defect_where_there_is_one() -> None:
    images, targets = pretrain.pictures(0, 0, 12)
    rng = np.random.default_rng(0)
    for image, of_image in zip(images, targets, strict=True):
        for _ in range(5):
            part, of_part = pretrain.window(image, of_image, 64, rng)
            assert (part.shape, of_part.shape) == ((64, 64, 3), (CHANNELS, 8, 8))
            assert of_part[: len(KINDS)].any() == of_image[: len(KINDS)].any()
    targets[:] = np.arange(16 * 16).reshape(16, 16)  # cells that say where they are
    image = np.repeat(np.repeat(targets[0, 0], 8, 0), 8, 1)[..., None].repeat(3, 2)
    part, of_part = pretrain.window(image, targets[0], 64, rng)
    assert np.array_equal(part[::8, ::8, 0], of_part[0])
    whole, of_whole = pretrain.window(image, targets[0], 128, rng)
    assert np.array_equal(whole, image)
    assert np.array_equal(of_whole, targets[0])


def test_the_loss_is_least_where_the_answer_is_right() -> None:
    targets = torch.zeros(2, CHANNELS, 16, 16)
    targets[0, 0, 4:6, 5:7] = targets[:, len(KINDS), :4, :4] = 1  # each lies in one cell of a map of 4 x 4
    cells = torch.where(torch.nn.functional.avg_pool2d(targets, 4) > 0, 9.0, -9.0)
    kinds = torch.where(targets[:, : len(KINDS)].amax((2, 3)) > 0, 9.0, -9.0)
    right = pretrain.loss_of([cells], kinds, targets)
    for wrong in (pretrain.loss_of([-cells], kinds, targets), pretrain.loss_of([cells], -kinds, targets)):
        assert wrong > 10 * right


def test_pictures_that_are_held_out_are_others() -> None:
    learnt, held_out = pretrain.pictures(0, 0, 4)[0], pretrain.pictures(1, 0, 4)[0]
    assert not any(np.array_equal(a, b) for a in learnt for b in held_out)
    assert np.array_equal(pretrain.pictures(0, 2, 2)[0], learnt[2:])  # a picture does not depend on those before it
