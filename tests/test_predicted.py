"""Predictions that something else than the lab made become a run, and are compared with the lab's."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SIZE

import mvtec_lab as lab
from mvtec_lab.reporting.report import REPORT, sum_up
from mvtec_lab.results import PREDICTIONS, RESULT


def module(product: Path, **options: object) -> lab.MVTecDataModule:
    data = lab.MVTecDataModule(product, image_size=SIZE, **options)  # type: ignore[arg-type]
    data.setup()
    return data


def right(data: lab.MVTecDataModule, split: str, share: float = 0.7) -> np.ndarray:
    labels = [data.classes.index(sample.label) for sample in data.of_split(split)]
    values = np.full((len(labels), len(data.classes)), (1 - share) / (len(data.classes) - 1))
    values[np.arange(len(labels)), labels] = share
    return values


@pytest.mark.slow
def test_own_predictions_are_compared_with_the_lab_s_own_fold_by_fold(
    tiny_net: str, product: Path, tmp_path: Path
) -> None:
    words = ["data=folder", f"data.root={product}", f"data.image_size={SIZE}", "model.weights=null"]
    words += [f"model.backbone={tiny_net}", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    lab.run_sweep("attempt=base", "cv.folds=3", *words, directory=tmp_path / "lab")
    for fold in range(3):
        data = module(product, split=lab.SplitConfig(protocol="kfold", folds=3, fold=fold))
        probabilities = {split: right(data, split) for split in ("val", "test")}
        run = lab.write_run(tmp_path / f"own/{fold}", "own", data, probabilities)
        assert run == lab.RunResult.load(run.run_dir)
        assert run.metrics["test"]["accuracy"] == 1
        assert run.metrics["test"]["loss"] == pytest.approx(-np.log(0.7))
    comparison = lab.compare(lab.load_runs(tmp_path))
    (pair,) = comparison.pairs
    assert isinstance(pair, lab.Pair)
    assert (pair.refused, pair.test_sets, pair.images) == (None, 3, 22)  # the lab's own splits, image by image
    assert comparison.best == "own"
    assert pair.lead_of("own") > 0
    sum_up(tmp_path)
    assert "own" in (tmp_path / REPORT).read_text(encoding="utf-8")


def test_validation_on_the_test_images_counts_as_both(product: Path, tmp_path: Path) -> None:
    data = module(product, split=lab.SplitConfig(val_is_test=True))
    run = lab.write_run(tmp_path / "run", "own", data, {"test": right(data, "test")})
    assert run.val_is_test
    assert run.metrics["val"] == run.metrics["test"]
    assert lab.compare([run]).best == "own"


def test_what_are_no_probabilities_of_the_images_is_refused_before_anything_is_written(
    product: Path, tmp_path: Path
) -> None:
    data = module(product)
    test = right(data, "test")
    wrong = {
        "has no test": {"val": right(data, "val")},
        r"are \[2, 3\], expected \[\d+, 3\]": {"test": test[:2]},
        "softmax": {"test": test * 4},
        "rows that sum to 1": {"test": np.where(test > 0.5, np.nan, test)},
        "'train': give those of test": {"test": test, "train": test},
    }
    for message, probabilities in wrong.items():
        with pytest.raises(lab.LabError, match=message):
            lab.write_run(tmp_path / "run", "own", data, probabilities)
    assert not (tmp_path / "run").exists()
    lab.write_run(tmp_path / "run", "own", data, {"test": test})
    with pytest.raises(lab.LabError, match="holds a run"):
        lab.write_run(tmp_path / "run", "own", data, {"test": test})
    assert {file.name for file in (tmp_path / "run").iterdir()} == {RESULT, PREDICTIONS}


@pytest.mark.parametrize("metrics", [{}, {"test": {"accuracy": 0.25}}, {"test": {"images": 16}}])
def test_a_run_without_its_metrics_is_left_out_by_compare(product: Path, tmp_path: Path, metrics: dict) -> None:
    """A script may change what load_runs gave it."""
    data = module(product)
    run = lab.write_run(tmp_path / "run", "own", data, {"test": right(data, "test")})
    comparison = lab.compare([run, replace(run, attempt="other", metrics=metrics)])
    assert [attempt.name for attempt in comparison.done] == ["own"]
    assert any(line.startswith("Left out, as a file of theirs is damaged: 1 of 2 runs") for line in comparison.verdict)
    (left_out,) = (run for attempt in comparison.attempts for run in attempt.runs if run.damaged)
    assert re.search(r"metrics\.test has no \w+.*write_run", left_out.error)
