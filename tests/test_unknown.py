"""Images that are unlike anything in training are called unknown, and those like it are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZE
from PIL import Image

from mvtec_lab.engine.model import Model
from mvtec_lab.engine.unknown import LEAST, distances, learn, misfit_of_known
from mvtec_lab.problems.model import load_model
from mvtec_lab.results import read_csv


def test_as_few_as_asked_are_called_unknown() -> None:
    shares = []
    for seed in range(30):
        features = torch.randn(400, 12, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, 13)
        known = learn(features[:200])
        assert known is not None
        shares.append(float((distances(known, features[200:]) > known["threshold"]).float().mean()))
    assert 0.002 < np.mean(shares) < 0.015
    assert (distances(known, features[200:] + 100) > known["threshold"]).all()


def test_a_feature_that_hardly_varied_does_not_decide_alone() -> None:
    features = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    features[:, 0] = 0
    known = learn(features[:50])
    assert known is not None
    near = features[50:].clone()
    near[:, 0] = 0.05
    assert (distances(known, near) <= 1.2 * distances(known, features[50:])).all()


def test_few_images_say_nothing_and_what_is_damaged_is_refused() -> None:
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert learn(features[: LEAST - 1]) is None
    known = learn(features)
    assert misfit_of_known(known) is None
    for wrong in (
        {},
        [],
        {**known, "rows": 3},
        {**known, "mean": known["mean"][:2]},
        {**known, "rows": known["rows"] * torch.nan},
        {**known, "spread": -known["spread"]},
        {**known, "threshold": float("nan")},
    ):
        assert misfit_of_known(wrong)


@pytest.fixture
def strict(lab, tmp_path: Path) -> Path:
    assert lab("attempt=base", "hydra.run.dir=run") == 0
    assert lab("task=threshold", "ckpt=run", "false_rejects=0.4", "hydra.run.dir=strict") == 0
    return tmp_path / "strict"


def test_an_image_unlike_those_of_training_is_unknown(strict: Path, lab, product: Path, tmp_path: Path) -> None:
    assert "UNKNOWN: farther from every training image than" in (strict / "report.html").read_text()
    facts = json.loads((strict / "operating.json").read_text())
    trained = [row for row in read_csv(tmp_path / "run/samples.csv") if row["split"] == "train"]
    assert facts["unknown"]["images"] == len(trained)
    folder = tmp_path / "new"
    folder.mkdir()
    checked = np.indices((SIZE, SIZE)).sum(0) % 2 * 255
    Image.fromarray(np.stack([checked] * 3, 2).astype(np.uint8)).save(folder / "checked.png")
    (folder / "good.png").write_bytes((product / trained[0]["path"]).read_bytes())
    assert lab("task=predict", "ckpt=strict", f"source={folder}", "hydra.run.dir=out") == 0
    rows = {Path(row["path"]).stem: row for row in read_csv(tmp_path / "out/predictions.csv")}
    assert rows["checked"]["decision"] == "UNKNOWN"
    assert rows["good"]["decision"] != "UNKNOWN"
    assert float(rows["good"]["distance"]) < 1e-2 < float(rows["checked"]["unknown_above"])
    assert "UNKNOWN" in (tmp_path / "out/report.html").read_text()


def test_a_model_of_good_images_alone_rejects_first() -> None:
    """Its defects are unlike all that it learnt, too."""
    known = {**learn(torch.randn(20, 4)), "threshold": 1.0}  # type: ignore[dict-item]
    model = Model(None, "patchcore", ["good", "defect"], SIZE, 255, [0] * 3, [1] * 3, threshold=0.5)
    far = {"distance": "2", "prediction": "defect"}
    for first, words in ((True, ["UNKNOWN", "UNKNOWN"]), (False, ["UNKNOWN", "REJECT"])):
        of = replace(model, unknown={**known, "first": first})
        assert [of.decision({**far, "score": score}) for score in ("0.4", "0.6")] == words
        assert [of.decision({**far, "distance": "0.5", "score": s}) for s in ("0.4", "0.6")] == ["OK", "REJECT"]


def test_without_its_images_nothing_is_unknown_and_this_is_said(lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab("attempt=base", "hydra.run.dir=run") == 0
    product.rename(product.with_name("gone"))
    assert lab("task=threshold", "ckpt=run", "false_rejects=0.4", "hydra.run.dir=strict") == 0
    assert "nothing is called unknown: the images that trained this model are not where" in capsys.readouterr().err
    assert load_model(tmp_path / "strict/best.ckpt").unknown is None
