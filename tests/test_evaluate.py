"""``task=evaluate``: what it says of a checkpoint, of its run and of other images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import write_product

from mvtec_lab.evaluation.specs import metrics_of
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.summary import summarise
from mvtec_lab.results import RunResult

CHOSE = "chose this checkpoint or its threshold"
LAYERS = "model.options.layers=[features.relu1,features.relu2]"


def warnings_of(folder: Path) -> str:
    return " / ".join(json.loads((folder / "metrics.json").read_text())["warnings"])


@pytest.mark.slow
def test_a_split_that_tests_nothing_is_refused_for_its_own_reason(lab, product: Path, tmp_path: Path, capsys) -> None:
    assert lab("split.test=0", "trainer.max_epochs=1", "hydra.run.dir=kept") == 0
    assert lab("trainer.max_epochs=1", "hydra.run.dir=run") == 0
    others = write_product(tmp_path / "monday/widget", {"good": 3, "crack": 3, "hole": 3})
    capsys.readouterr()
    of_others = ("data=folder", f"data.root={others}")
    for settings, line in {
        ("ckpt=kept",): "so there is none to judge: give data.root=NEW_IMAGES split.protocol=test_only",
        ("ckpt=kept", *of_others): f"none to judge in {others}: give split.protocol=test_only as well",
        ("ckpt=run", "split.test=0"): "error: split.test=0 leaves no image to judge: leave it out",
        ("ckpt=run", "split.test=0", *of_others): "error: split.test=0 leaves no image to judge: leave it out",
    }.items():
        assert lab("task=evaluate", *settings, "hydra.run.dir=judged") == 2
        assert line in capsys.readouterr().err
    assert not (tmp_path / "judged").exists()
    assert lab("task=evaluate", "ckpt=kept", *of_others, "split.protocol=test_only", "hydra.run.dir=judged") == 0


@pytest.mark.slow
def test_what_chose_a_checkpoint_is_said_of_those_images_alone(lab, tmp_path: Path) -> None:
    """``split.val_is_test`` is the run's: of other images it is no flattery, and without it the same ones are."""
    assert lab("split.val_is_test=true", "trainer.max_epochs=1", "hydra.run.dir=run") == 0
    others = write_product(tmp_path / "monday/widget", {"good": 6, "crack": 6, "hole": 6}, size=26)
    judged = {
        "own": (),
        "others": ("data=folder", f"data.root={others}"),
        "new": ("data=folder", f"data.root={others}", "split.protocol=test_only"),
        "all": ("split.protocol=test_only", "split.val_is_test=false"),
    }
    said = {}
    for name, settings in judged.items():
        assert lab("task=evaluate", "ckpt=run", *settings, f"hydra.run.dir={name}") == 0
        said[name] = warnings_of(tmp_path / name)
    tested = sum(RunResult.load(tmp_path / "run").counts["test"].values())
    for name in ("own", "all"):
        assert f"{tested} of the test images {CHOSE} (validation = test in its run)" in said[name]
    for name in ("others", "new"):
        assert "too good" not in said[name]


def test_images_that_validated_flatter_where_they_are_tested(lab, tmp_path: Path) -> None:
    assert lab("trainer.max_epochs=1", "hydra.run.dir=run") == 0
    assert lab("task=evaluate", "ckpt=run", "hydra.run.dir=own") == 0
    assert CHOSE not in warnings_of(tmp_path / "own")
    assert (
        lab("task=evaluate", "ckpt=run", "split.val_is_test=true", "split.protocol=test_only", "hydra.run.dir=all") == 0
    )
    validated = sum(RunResult.load(tmp_path / "run").counts["val"].values())
    assert f"{validated} of the test images {CHOSE} (its run's validation images)" in warnings_of(tmp_path / "all")


@pytest.mark.slow
@pytest.mark.parametrize("attempt", [("attempt=base",), ("attempt=patchcore", LAYERS)], ids=["classifier", "anomaly"])
def test_a_table_has_the_intervals_of_the_run(attempt: tuple[str, ...], lab, tmp_path: Path, capsys) -> None:
    assert lab(*attempt, "hydra.run.dir=run") == 0
    capsys.readouterr()
    assert lab("task=evaluate", "ckpt=run", "hydra.run.dir=judged") == 0
    printed = capsys.readouterr().out
    run = RunResult.load(tmp_path / "run")
    (row,) = summarise(compare([run]))
    lowest = {metric.key: row.get(f"test_{metric.key}_low") for metric in metrics_of(run.problem)}
    intervals = json.loads((tmp_path / "judged/metrics.json").read_text())["intervals"]
    known = {key: low for key, low in lowest.items() if low is not None}
    assert {key: low for key, (low, _) in intervals.items()} == pytest.approx(known)
    named = ("false rejects", "accuracy") if attempt == ("attempt=base",) else ("image AUROC", "defects found")
    for name in named:
        line = next(line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert "[" in line
