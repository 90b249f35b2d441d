"""The backbone's last blocks, trained under the lab's recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvtec_lab.errors import LabError
from mvtec_lab.models.maps import FeatureMaps
from mvtec_lab.problems.classification.methods.descriptors import tuning
from mvtec_lab.problems.classification.methods.descriptors.maps import Cells, Seen
from mvtec_lab.problems.classification.methods.descriptors.parts import Global, Setting
from mvtec_lab.problems.classification.methods.descriptors.tuning import Tail
from mvtec_lab.results import RunResult, read_csv

SMALL = [
    "model.method=descriptors",
    "model.backbone=shufflenet_v2_x1_0",
    "model.weights=SAMPLE_V1",
    "data.image_size=64",
]


@pytest.mark.parametrize(
    ("backbone", "starts"),
    [("mobilenet_v2", "features.16."), ("resnet18", "layer4.1."), ("shufflenet_v2_x1_0", "stage4.0.")],
)
def test_the_last_blocks_make_the_last_map(backbone: str, starts: str) -> None:
    torch.manual_seed(0)
    features = FeatureMaps(backbone, None, None, (8, 16, 32))
    maps = features(torch.randn(2, 3, 64, 64))
    before, blocks = features.last_blocks(1_000_000)
    assert torch.allclose(blocks(before(maps[1])), maps[2], atol=1e-6)
    assert next(iter(blocks.state_dict())).startswith(starts)
    assert next(blocks.parameters()) is dict(features.named_parameters())["network." + next(iter(blocks.state_dict()))]


def test_layers_that_do_not_follow_each_other_have_no_last_blocks() -> None:
    with pytest.raises(LabError, match="cannot be trained by themselves"):
        FeatureMaps("mobilenet_v2", None, ["features.13", "features.6"]).last_blocks(1_000_000)
    with pytest.raises(LabError, match="cannot be trained by themselves"):
        FeatureMaps("mobilenet_v2", None, ["features.13"]).last_blocks(1_000_000)


def seen_by(cells: Cells, count: int) -> list[Seen]:
    """Images of which every second one has a bright corner."""
    images = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1)) / 4
    images[::2, 0, :24, :24] += 2
    with torch.no_grad():
        return [Seen(cells.maps(cells(image)), None) for image in images.split(1)]


def loss_of(seen: list[Seen], part: Global, head: tuple[torch.Tensor, torch.Tensor], tail: Tail | None = None) -> float:
    with torch.no_grad():
        rows = torch.stack([part.rows(each if tail is None else tail(each)) for each in seen])
    return float(F.cross_entropy(rows @ head[0] + head[1], torch.arange(len(seen)) % 2))


@pytest.mark.slow
def test_the_blocks_train_under_the_head_and_the_backbone_rests() -> None:
    cells = Cells("shufflenet_v2_x1_0", "SAMPLE_V1", None, 64, 2)
    before = {name: value.clone() for name, value in cells.state_dict().items()}
    seen, part = seen_by(cells, 6), Global(Setting(["a", "b"], cells.widths, cells.side))
    width = sum(cells.widths)
    head = torch.randn(width, 2, generator=torch.Generator().manual_seed(2)) / 10, torch.zeros(2)
    tails = [Tail(cells) for _ in range(2)]
    assert loss_of(seen, part, head, tails[0]) == pytest.approx(loss_of(seen, part, head), rel=1e-5)  # not yet trained
    for tail in tails:
        tail.fit(seen, np.arange(6) % 2, [part], head, 12)
    assert loss_of(seen, part, head, tails[0]) < 0.9 * loss_of(seen, part, head)
    assert all(torch.equal(value, before[name]) for name, value in cells.state_dict().items())
    first, second = (tail.state_dict() for tail in tails)
    assert all(torch.equal(first[name], second[name]) for name in first)  # no luck in it
    assert not any(name.startswith("_fixed") for name in first)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "helps"), [(1e-4, "yes"), pytest.param(1.0, "no", marks=pytest.mark.slow)])
def test_inner_folds_say_whether_the_blocks_change(lab, tmp_path: Path, monkeypatch, rate: float, helps: str) -> None:
    monkeypatch.setattr(tuning, "RATE", rate)
    assert lab("attempt=lab/finetune", *SMALL, "model.options.tune=2", "hydra.run.dir=run") == 0
    result = RunResult.load(tmp_path / "run")
    assert result.decided["tune"].startswith(helps)
    assert (result.parameters["trained"] > 100_000) == (helps == "yes")  # the head alone has some thousands
    rows = read_csv(tmp_path / "run/predictions.csv")
    if helps == "no":  # then it is the recipe that it started from
        assert lab("attempt=lab/anomaly", *SMALL, "hydra.run.dir=frozen") == 0
        assert rows == read_csv(tmp_path / "frozen/predictions.csv")
    # What a checkpoint computes is what the run computed.
    source = tmp_path / "products/widget/test/crack"
    assert lab("task=predict", "ckpt=run", f"source={source}", "hydra.run.dir=new") == 0
    new = {Path(row["path"]).name: row["prob_crack"] for row in read_csv(tmp_path / "new/predictions.csv")}
    known = [row for row in rows if "/crack/" in row["path"] and row["split"] == "test"]
    assert known
    for row in known:
        assert float(new[Path(row["path"]).name]) == pytest.approx(float(row["prob_crack"]), rel=1e-4)
