"""The square that images are brought into."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import SIZE

from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.data.frame import Frame


def test_a_number_is_the_frame_of_that_size(product: Path) -> None:
    frames = [MVTecDataModule(product, image_size=size) for size in (SIZE, Frame(SIZE))]
    for data in frames:
        data.setup()
    one, other = (data.images(data.samples)[[0, 1]]["image"] for data in frames)
    assert torch.equal(one, other)
    assert frames[0].content(frames[0].samples) == frames[1].content(frames[1].samples)
