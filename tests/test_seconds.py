"""An image's seconds are those of its own: what a device prepares at its first image is not counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from mvtec_lab.engine import features
from mvtec_lab.problems.anomaly.base import Scores
from mvtec_lab.problems.anomaly.scores import warm_up


class Clock:
    """A clock that runs where a test says so."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("images", [1, 3, 20])
def test_the_first_image_is_not_timed(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, judged = Clock(), []
    samples = [SimpleNamespace(path=f"{i}.png") for i in range(images)]
    whole = SimpleNamespace(tile=None)
    data = SimpleNamespace(of_split=lambda split: samples, tiles=list, images=_Pictures, frame=whole)
    monkeypatch.setattr(features, "time", clock)

    def judge(batch: Any) -> None:
        clock.now += 0.25 if judged else 10.0
        judged.append(batch)

    assert features.seconds_per_image(cast(Any, data), judge) == 0.25
    assert judged[1] == judged[0]  # of one image too there is a figure


class _Pictures(list):
    def __getitem__(self, places: Any) -> Any:
        return [list.__getitem__(self, place) for place in places]


@pytest.mark.parametrize(("images", "sizes"), [(11, [4, 3]), (8, [4]), (3, [3])])
def test_a_one_class_model_warms_up_on_batches_of_each_size(images: int, sizes: list[int]) -> None:
    seen = []

    class Model(nn.Module):
        def scored(self, batch: torch.Tensor) -> Scores:
            assert not self.training
            seen.append(len(batch))
            return Scores(batch.flatten(1).sum(1), None)

    pictures = torch.zeros(images, 3, 2, 2)

    class Images:
        def __len__(self) -> int:
            return images

        def __getitem__(self, places: list[int]) -> dict[str, torch.Tensor]:
            return {"image": pictures[places]}

    warm_up(cast(Any, Model()), cast(Any, Images()), 4, torch.device("cpu"))
    assert seen == sizes
