"""The table of metrics, and a problem of one's own: brightness of an image, whose error is better when it is lower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_reporting import page, printed, text_of

from mvtec_lab import compose
from mvtec_lab.config import VerdictConfig
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import specs
from mvtec_lab.evaluation.specs import Metric
from mvtec_lab.evaluation.tested import Rows
from mvtec_lab.reporting import report, summary
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.pairs import Comparison
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import PREDICTIONS, RunResult, read_csv, write_csv


def errors(rows: Rows) -> np.ndarray:
    return np.array([abs(float(row["label"]) - float(row["prediction"])) for row in rows])


ERROR = Metric("error", "brightness", "error", "error", "lower", unit="levels", decides=True, of_images=errors)


@pytest.fixture(autouse=True)
def brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs.METRICS, "_own", dict(specs.METRICS._own))
    specs.register_metric(ERROR)


def measure(folder: Path, attempt: str, noise: float, *, seed: int = 0, fold: int = 0, images: int = 30) -> RunResult:
    """Write the directory of a run whose predictions are off by ``noise`` levels on average."""
    folder.mkdir(parents=True)
    truth = np.random.default_rng(fold).uniform(50, 200, images)
    off = np.random.default_rng([seed, fold, round(noise)]).exponential(noise, images)
    rows: list[dict[str, Any]] = [
        {"split": split, "path": f"{split}/{fold}/{i:03}.png", "label": f"{t:.3f}", "prediction": f"{t + e:.3f}"}
        for split in ("test", "val")
        for i, (t, e) in enumerate(zip(truth, off, strict=True))
    ]
    write_csv(folder / PREDICTIONS, rows, list(rows[0]))
    metrics = {"error": float(errors(rows[:images]).mean()), "images": images}
    run = RunResult(
        attempt,
        seed,
        "mvtec",
        "bottle",
        "none",
        str(folder),
        status="completed",
        classes=["good", "crack"],
        metrics={"test": metrics, "val": metrics},
        counts={"train": {"good": 60}, "val": {"good": 20}, "test": {"good": images}},
        problem="brightness",
        method="mean",
        epochs=3,
        luck=True,
    )
    run.save()
    return run


def compared(folder: Path, **verdict: str) -> Comparison:
    return compare(load_runs(folder), VerdictConfig(**verdict))


def test_the_first_metric_that_decides_is_a_problems_default() -> None:
    deciding = ["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier"]
    assert [metric.key for metric in specs.deciding("classification")] == deciding
    assert [specs.deciding(problem)[0].key for problem in ("anomaly", "brightness")] == ["image_auroc", "error"]
    assert specs.choosing("classification").key == "balanced_accuracy"
    assert specs.choosing("brightness") is ERROR
    assert [metric.key for metric in specs.metrics_of("segmentation")][:2] == ["iou", "dice"]
    keys = [metric.key for metric in specs.all_metrics()]
    assert keys[0] == "accuracy"
    assert keys.index("iou") < keys.index("image_auroc") < keys.index("error")  # as columns stand
    assert compose("verdict.metric=error").verdict.metric == "error"


@pytest.mark.parametrize("problem", ["anomaly", "classification"])
def test_every_built_in_metric_that_decides_can_be_tested(problem: str) -> None:
    for metric in specs.deciding(problem):
        assert metric.inference.paired or metric.of_images
        assert metric.share == (metric.key not in ("log_loss", "brier"))


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="two registrations of the metric 'error'"):
        specs.register_metric(Metric("error", "brightness", "another error"))
    with pytest.raises(LabError, match="'error' is 'less': give higher or lower"):
        Metric("error", "brightness", "error", better="less")
    with pytest.raises(LabError, match="give of_images or paired"):
        Metric("error", "brightness", "error", decides=True)
    run = measure(tmp_path / "a", "a", 5)
    run.problem = "brightnes"
    run.save()
    with pytest.raises(LabError, match="unknown problem 'brightnes': did you mean brightness"):
        load_runs(tmp_path)


def test_lower_is_better_in_ranking_lead_and_words(tmp_path: Path) -> None:
    for attempt, noise in (("coarse", 20.0), ("fine", 3.0)):
        measure(tmp_path / attempt, attempt, noise)
    comparison = compared(tmp_path)
    assert (comparison.best, comparison.metrics) == ("fine", ["error"])
    (pair,) = comparison.pairs
    coarse, fine = (run.metrics["test"]["error"] for run in load_runs(tmp_path))
    assert pair.test == pair.image_test == "paired permutation test"
    assert pair.difference.value == pytest.approx(coarse - fine)
    assert pair.difference.low > 1  # levels: no share, so that nothing is cut at 1
    assert pair.lead_of("fine") == pytest.approx(coarse - fine)
    assert pair.different
    assert 0 < pair.found < 20
    against = "\n".join(compared(tmp_path, reference="coarse").verdict)
    assert f"shown to be better: fine (+{coarse - fine:.3g} levels, p" in against.replace("Shown", "shown")
    against = "\n".join(compared(tmp_path, reference="fine").verdict)
    assert f"worse: coarse ({fine - coarse:+.3g} levels, p" in against


def test_interval_over_images_and_seeds_is_students(tmp_path: Path) -> None:
    measure(tmp_path / "a", "a", 5)
    estimate = compared(tmp_path).attempts[0].estimate()
    values = errors([row for row in read_csv(tmp_path / "a" / PREDICTIONS) if row["split"] == "test"])
    half = 2.045 * values.std(ddof=1) / np.sqrt(30)
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-3)
    for seed in (1, 2):
        measure(tmp_path / f"a{seed}", "a", 5, seed=seed)
    estimate = compared(tmp_path).attempts[0].estimate()
    assert estimate.method == "30 images and 3 runs"
    for seed in range(3):
        measure(tmp_path / f"b{seed}", "b", 15, seed=seed)
    (pair,) = compared(tmp_path).pairs
    assert (pair.test, pair.models, pair.different) == ("t-test over images and seeds", False, True)
    assert pair.lead_of("b") < -5


def test_folds_take_the_corrected_test(tmp_path: Path) -> None:
    for fold in range(5):
        for attempt, noise in (("coarse", 20.0), ("fine", 3.0)):
            measure(tmp_path / f"{attempt}{fold}", attempt, noise, fold=fold)
    comparison = compared(tmp_path)
    (pair,) = comparison.pairs
    assert (pair.test, pair.image_test) == ("corrected resampled t-test", "paired permutation test")
    assert (pair.different, pair.bayesian) == (True, None)  # one point means nothing here
    assert comparison.best == "fine"
    assert comparison.attempts[0].estimate().high > 15


def test_table_summary_and_report_show_it(tmp_path: Path) -> None:
    for attempt, noise in (("coarse", 20.0), ("fine", 3.0)):
        measure(tmp_path / attempt, attempt, noise)
    out, text = printed(tmp_path), text_of(page(tmp_path))
    value = load_runs(tmp_path)[0].metrics["test"]["error"]
    for where in (out, text):
        assert "test error" in where
        assert f"{value:.3f} [" in where
        assert "accuracy" not in where
    row = read_csv(tmp_path / summary.SUMMARY)[0]
    assert float(row["test_error"]) == pytest.approx(value)
    assert float(row["test_error_low"]) < value < float(row["test_error_high"])
    assert "test_accuracy" not in row  # what no attempt has is left out


def test_metrics_that_the_predictions_do_not_give_are_refused(tmp_path: Path) -> None:
    run = measure(tmp_path / "a", "a", 5)
    run.metrics["test"] = {"error": 1.0, "images": 30}
    run.save()
    with pytest.raises(LabError, match=r"says test error 1, its predictions\.csv gives"):
        report.sum_up(tmp_path)
    run.metrics["test"] = {"error": "low", "images": 30}
    run.save()
    with pytest.raises(LabError, match=r"result\.json is damaged \(metrics\.test\.error is 'low'\)"):
        load_runs(tmp_path)
