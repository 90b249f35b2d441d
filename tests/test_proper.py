"""Log loss and Brier score: their values, and what a verdict makes of the probabilities that runs state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import brier_score_loss, log_loss

from mvtec_lab.config import VerdictConfig
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import differences, proper, statistics
from mvtec_lab.evaluation.metrics import classification_metrics
from mvtec_lab.evaluation.specs import add_means
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.pairs import COMPARISON, Comparison
from mvtec_lab.reporting.report import sum_up
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import PREDICTIONS, RESULT, RunResult, read_csv, write_csv

CLASSES = ["good", "crack", "hole"]


def drawn(images: int, clear: float, sure: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities: the true class leads by ``clear`` logits on average, all times ``sure``."""
    rng, labels = np.random.default_rng(seed), np.arange(images) % len(CLASSES)
    logits = np.random.default_rng(7).normal(size=(images, 3)) + rng.normal(size=(images, 3)) / 4  # 7: hard images
    logits[np.arange(images), labels] += clear
    powers = np.exp(sure * logits)
    return labels, powers / powers.sum(axis=1, keepdims=True)


def stating(folder: Path, attempt: str, clear: float, sure: float, *, fold: int = 0, images: int = 24) -> RunResult:
    """Write the directory of a run that states probabilities."""
    folder.mkdir(parents=True)
    labels, probabilities = drawn(images, clear, sure, seed=fold)
    rows: list[dict[str, Any]] = [
        {
            "split": split,
            "path": f"{split}/{fold}/{i:03}.png",
            "label": CLASSES[label],
            "prediction": CLASSES[p.argmax()],
            **{f"prob_{name}": f"{value:.6g}" for name, value in zip(CLASSES, p, strict=True)},
        }
        for split in ("test", "val")
        for i, (label, p) in enumerate(zip(labels, probabilities, strict=True))
    ]
    write_csv(folder / PREDICTIONS, rows, list(rows[0]))
    metrics = {split: classification_metrics(labels, probabilities, CLASSES) for split in ("test", "val")}
    add_means("classification", metrics, rows)
    counts = {"train": {"good": 40, "crack": 20, "hole": 20}, "test": dict.fromkeys(CLASSES, images // 3)}
    run = RunResult(
        attempt,
        0,
        "mvtec",
        "bottle",
        "resnet18",
        str(folder),
        status="completed",
        classes=CLASSES,
        metrics=metrics,
        counts=counts,
        problem="classification",
        method="classifier",
        majority_baseline=1 / 3,
        luck=True,
    )
    run.save()
    return run


def compared(folder: Path, metric: str = "log_loss") -> Comparison:
    return compare(load_runs(folder), VerdictConfig(metric=metric))


@pytest.mark.parametrize("sure", [0.5, 4.0])
def test_values_are_scikit_learns(sure: float) -> None:
    labels, probabilities = drawn(60, 1.0, sure)
    assert proper.log_losses(labels, probabilities).mean() == pytest.approx(log_loss(labels, probabilities))
    of_two = probabilities[:, :1], (labels == 0).astype(int)
    halves = proper.brier_scores(of_two[1], np.hstack([1 - of_two[0], of_two[0]])) / 2
    assert halves.mean() == pytest.approx(brier_score_loss(of_two[1], of_two[0][:, 0]))


def test_values_by_hand() -> None:
    probabilities = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]
    assert proper.log_losses([0, 1], probabilities) == pytest.approx([np.log(2), 0])
    assert proper.log_losses([2, 0], probabilities) == pytest.approx([36.04, 36.04], abs=0.01)  # and not infinite
    assert proper.brier_scores([0, 0], probabilities) == pytest.approx([0.5, 2.0])
    shares = proper.of_shares({"a": 3, "b": 1}, {"a": 1, "b": 1}, "log_loss")
    assert shares == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)
    assert proper.of_shares({"a": 3, "b": 1}, {"a": 1, "b": 1}, "brier") == pytest.approx((2 / 16 + 18 / 16) / 2)
    assert proper.of_shares({}, {"a": 1}, "brier") is None


def test_one_split_is_decided_by_brier_scores(tmp_path: Path) -> None:
    for name, clear in (("dull", 1.0), ("sharp", 1.25)):
        stating(tmp_path / name, name, clear, 1.0)
    comparison = compared(tmp_path, "brier")
    (pair,) = comparison.pairs
    assert (pair.metric, pair.test, pair.different) == ("brier", "t-test over images", True)
    assert pair.lead_of("sharp") > 0  # lower is better
    (dull, sharp), text = load_runs(tmp_path), " ".join(comparison.verdict)
    assert pair.difference.value == pytest.approx(dull.metrics["test"]["brier"] - sharp.metrics["test"]["brier"])
    for part in ("better in Brier score than", f"(behind by {pair.difference.value:.3g}, p"):
        assert part in text
    assert "points" not in text
    assert not compared(tmp_path, "accuracy").pairs[0].different  # a count tells nothing of these images


def test_log_loss_is_not_tested_on_one_split(tmp_path: Path) -> None:
    """One image that a model is sure of, and wrong, decides it."""
    for name, clear in (("dull", 1.0), ("sharp", 1.4)):
        stating(tmp_path / name, name, clear, 1.0)
    comparison = compared(tmp_path)
    assert comparison.pairs[0].refused.endswith("give cv.folds, or verdict.metric=brier")
    assert f"test log loss {load_runs(tmp_path)[1].metrics['test']['loss']:.3f}" in " ".join(comparison.verdict)


def test_the_test_of_brier_scores_by_hand() -> None:
    change = np.array([0.3, -0.1, 0.2, 0.4])
    found, _ = differences.careful_difference(change, np.zeros(4), 0.5, 2.0)
    error = np.sqrt(((change**2).sum() + 0.5 - 0.8**2 / 4.5) / 4.5 / 4.5)  # half an image more, which differs by 1
    assert found.value == pytest.approx(0.2)
    assert found.p == pytest.approx(2 * stats.t.sf(0.2 / error, 3))
    assert (found.low, found.high) == pytest.approx(tuple(0.2 + sign * 3.182 * error for sign in (-1, 1)), rel=1e-3)
    # Two attempts that seem to differ alike in every image are no certainty.
    assert differences.careful_difference(np.full(4, 0.1), np.zeros(4), 0.5, 2.0)[0].p > 0.5


def test_folds_take_the_corrected_test_and_the_bounds_are_possible(tmp_path: Path) -> None:
    for fold in range(5):
        for name, clear in (("dull", 0.8), ("sharp", 4.0)):
            stating(tmp_path / f"{name}{fold}", name, clear, 1.0, fold=fold)
    comparison = compared(tmp_path)
    (pair,) = comparison.pairs
    assert (pair.test, pair.different, pair.bayesian) == ("corrected resampled t-test", True, None)
    ours, theirs = (
        [r.metrics["test"]["loss"] for r in load_runs(tmp_path) if r.attempt == a] for a in ("dull", "sharp")
    )
    ratio = 24 / 80  # by which four test sets are a round, where no config.yaml says how many folds there are
    p = statistics.corrected_t_test(np.array(ours) - theirs, ratio, one_round=4)  # one image's step is no least spread
    assert pair.p == pytest.approx(p, rel=0.01)
    for attempt in comparison.attempts:
        estimate = attempt.estimate("brier")
        assert 0 <= estimate.low < estimate.value < estimate.high <= 2


def test_a_second_round_of_folds_does_not_make_a_score_more_certain(tmp_path: Path) -> None:
    """It tests the same images again: two rounds alike say what one does, but for the degrees of freedom."""
    for index in range(10):
        for name, clear in (("dull", 0.8), ("sharp", 4.0)):
            stating(tmp_path / f"{name}{index}", name, clear, 1.0, fold=index)
    by_accuracy, by_score = (compared(tmp_path, metric).pairs[0] for metric in ("accuracy", "log_loss"))
    change, ratio = np.array(_losses(tmp_path, "dull")) - _losses(tmp_path, "sharp"), 24 / 80
    assert by_score.p == pytest.approx(statistics.corrected_t_test(change, ratio, one_round=4), rel=1e-6)
    assert by_score.error == pytest.approx(change.std(ddof=1) * np.sqrt(1 / 4), rel=1e-6)  # as it seems
    assert by_score.evidence.once
    assert not by_accuracy.evidence.once


def _losses(folder: Path, name: str) -> list[float]:
    return [run.metrics["test"]["loss"] for run in load_runs(folder) if run.attempt == name]


def test_a_model_that_is_too_sure_is_not_said_to_have_learnt_nothing(tmp_path: Path) -> None:
    stating(tmp_path / "sure", "sure", 1.0, 12.0)
    (attempt,) = compared(tmp_path).attempts
    assert attempt.baseline == pytest.approx(-np.log([0.5, 0.25, 0.25]).mean())
    text = compared(tmp_path).verdict[0]
    assert text.startswith("The probabilities say nothing: sure is not better on test than stating for every image how")
    assert "learnt" not in text
    assert compared(tmp_path, "accuracy").attempts[0].estimate().value > 0.5


def test_runs_older_than_the_metric_are_compared_by_it(tmp_path: Path) -> None:
    for name, clear in (("dull", 0.8), ("sharp", 1.4)):
        stating(tmp_path / name, name, clear, 1.0)
        path = tmp_path / name / RESULT
        result = json.loads(path.read_text(encoding="utf-8"))
        for split in ("test", "val"):
            del result["metrics"][split]["brier"]
        path.write_text(json.dumps(result), encoding="utf-8")
    comparison = compared(tmp_path, "brier")
    assert comparison.metrics == ["brier"]
    assert comparison.pairs[0].different
    sum_up(tmp_path, verdict=VerdictConfig(metric="brier"))
    (row, _) = read_csv(tmp_path / "summary.csv")
    assert 0 < float(row["test_brier_low"]) < float(row["test_brier"]) < float(row["test_brier_high"])
    assert json.loads((tmp_path / COMPARISON).read_text(encoding="utf-8"))["metric"] == "brier"


def test_predictions_without_probabilities_are_judged_by_another_metric(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = stating(tmp_path / name, name, 1.0, 1.0)
        rows = read_csv(tmp_path / name / PREDICTIONS)
        bare = [{key: row[key] for key in ("split", "path", "label", "prediction")} for row in rows]
        write_csv(tmp_path / name / PREDICTIONS, bare, list(bare[0]))
        for split in ("test", "val"):
            del run.metrics[split]["brier"]
        run.save()
    comparison = compared(tmp_path, "brier")
    assert comparison.metrics == ["accuracy"]
    assert "verdict.metric=brier is not what these attempts are judged by: accuracy instead." in comparison.verdict


def test_a_changed_score_and_impossible_probabilities_are_refused(tmp_path: Path) -> None:
    run = stating(tmp_path / "a", "a", 1.0, 1.0)
    run.metrics["test"]["brier"] -= 0.1
    run.save()
    with pytest.raises(LabError, match="says test brier"):
        compared(tmp_path)
    run.metrics["test"]["brier"] += 0.1
    run.save()
    path = tmp_path / "a" / PREDICTIONS
    rows = read_csv(path)
    rows[0]["prob_hole"] = "1.5"
    write_csv(path, rows, list(rows[0]))
    with pytest.raises(LabError, match="a probability lies outside"):
        compared(tmp_path)
