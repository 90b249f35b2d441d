"""NaN and infinity are errors wherever a decision would be made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import SIZE

from mvtec_lab.errors import LabError
from mvtec_lab.problems.model import load_model
from mvtec_lab.results import read_csv, write_csv

ATTEMPTS = {
    "finetune": ["trainer.max_epochs=1"],
    "patchcore": ["model.options.layers=[features.relu1,features.relu2]"],
}


@pytest.fixture(params=list(ATTEMPTS))
def ckpt(request, lab, tmp_path: Path) -> Path:
    assert lab(f"attempt={request.param}", *ATTEMPTS[request.param], "hydra.run.dir=run") == 0
    return tmp_path / "run/best.ckpt"


def refused(lab, capsys, said: str, *arguments: str) -> None:
    capsys.readouterr()
    assert lab(*arguments, "hydra.run.dir=out") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("error: ") == 1
    assert not Path("out").exists()


def damage(ckpt: Path, how: str) -> str:
    """Damage a checkpoint, which is written as a whole file; returns what is to be said."""
    found = torch.load(ckpt, weights_only=True)
    if how == "threshold":
        found["about"]["threshold"] = float("nan")
    else:
        values = [v for k, v in found["state_dict"].items() if v.is_floating_point() and "running" not in k]
        values[-1].view(-1)[0] = float(how)
    torch.save(found, ckpt)
    return "holds nan as its threshold" if how == "threshold" else f"{ckpt} holds NaN or infinity in "


@pytest.mark.slow
def test_a_damaged_checkpoint_decides_nothing(ckpt: Path, lab, product: Path, capsys) -> None:
    whole, one_class = ckpt.read_bytes(), torch.load(ckpt, weights_only=True)["about"]["threshold"] is not None
    for how in ("nan", "inf", "threshold") if one_class else ("nan", "inf"):
        ckpt.write_bytes(whole)
        said = damage(ckpt, how)
        for task in (["task=evaluate"], ["task=predict", f"source={product / 'test/hole'}"], ["task=export"]):
            refused(lab, capsys, said, *task, f"ckpt={ckpt}")


def test_results_that_are_not_finite_decide_nothing(ckpt: Path, lab, product: Path, tmp_path: Path, capsys) -> None:
    images = torch.rand(3, 3, SIZE, SIZE)
    images[1] = torch.inf
    if torch.load(ckpt, weights_only=True)["about"]["threshold"] is not None:
        with pytest.raises(LabError, match="the scores of 1 of 3 images are NaN or infinite"):
            load_model(ckpt).module.scored(images)
    else:
        with pytest.raises(LabError, match="the class probabilities of 1 of 3 images are NaN or infinite"):
            load_model(ckpt).module.probabilities([{"image": images}])

    path = tmp_path / "run/predictions.csv"
    rows = read_csv(path)
    column = "score" if "score" in rows[0] else "prob_good"
    for row in rows:
        row[column] = "nan" if row["split"] == "test" else row[column]
    write_csv(path, rows, list(rows[0]))
    first = next(line for line, row in enumerate(rows, 2) if row["split"] == "test")
    said = f"run/predictions.csv is damaged (line {first} has the {column} 'nan')"
    refused(lab, capsys, said, "task=compare", "dirs=run")
