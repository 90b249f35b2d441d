"""One-class runs in tables, verdict and report: fabricated scores and maps, no network is fitted here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score
from test_reporting import fabricate, page, printed, text_of

from mvtec_lab.config import VerdictConfig
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation import anomaly, differences
from mvtec_lab.evaluation.metrics import classification_metrics
from mvtec_lab.reporting import report, summary
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.pairs import Comparison
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import CONFIG, EXPLANATIONS, MISTAKES, PIXELS, PREDICTIONS, RunResult, read_csv, write_csv

KINDS = ["good"] * 12 + ["crack"] * 14 + ["hole"] * 6
TRUTH = np.array([kind != "good" for kind in KINDS], dtype=np.int64)


def detect(
    run_dir: Path,
    attempt: str,
    apart: float = 2.0,
    *,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    maps: bool = True,
    made_up: float | None = None,
    rule: str = "quantile",
    **fields: Any,
) -> RunResult:
    """Write a one-class run's directory: defects score ``apart`` more than good images, in units of their spread, and
    so do the defective pixels of its maps; ``made_up``: image AUROC on validation's made-up defects."""
    run_dir.mkdir(parents=True)
    truth = np.array([kind != "good" for kind in kinds], dtype=np.int64)
    noise = np.random.default_rng(0).normal(size=len(kinds)) + np.random.default_rng(seed + 1).normal(size=len(kinds))
    scores = np.round(noise + apart * truth, 6)
    metrics = anomaly.image_metrics(scores, kinds, 1.0)
    metrics["recall_of_defects"] = metrics.pop("recall")
    metrics |= classification_metrics(truth, np.eye(2)[(scores > 1).astype(int)], ["good", "defect"])
    intervals: dict[str, Any] = anomaly.image_intervals(scores, kinds)
    paths = [f"test/{kind}/{i:03}.png" for i, kind in enumerate(kinds)]
    if maps:
        rng = np.random.default_rng(0)
        masks = [np.pad(np.full((2, 2), t), ((2, 4), (3, 3))) for t in truth]
        drawn = [np.asarray(rng.normal(size=(8, 8)) + apart * mask, dtype=np.float32) for mask in masks]
        pixels = anomaly.PixelScores(drawn)
        for path, heat, mask, kind in zip(paths, drawn, masks, kinds, strict=True):
            pixels.add(path, heat, mask, kind)
        pixels.save(run_dir / PIXELS)
        found = pixels.metrics()
        for kind, values in found.pop("by_type").items():
            metrics["by_type"][kind] |= values
        metrics |= {name: found[name] for name in anomaly.PIXEL_METRICS}
        intervals |= pixels.intervals()
    run = RunResult(
        **{
            "attempt": attempt,
            "seed": seed,
            "run_dir": str(run_dir),
            "data": "mvtec",
            "category": "bottle",
            "backbone": "resnet18",
            "status": "completed",
            "weights": "IMAGENET1K_V1",
            "classes": ["good", "defect"],
            "metrics": {"test": metrics | {"intervals": intervals}}
            | ({} if made_up is None else {"val": {"image_auroc": made_up}}),
            "counts": {"train": {"good": 40, "defect": 0}, "test": {"good": 12, "defect": 20}},
            "parameters": {"total": 11_176_512, "trained": 0},
            "problem": "anomaly",
            "method": attempt.partition("_")[0],
            "threshold": {"value": 1.0, "rule": rule, "map": 2.0},
            "fit_seconds": 12.34,
            "seconds_per_image": 0.0456,
            "peak_mib": 987.6,
            "captions": {} if maps else {EXPLANATIONS: ["", "This method has no map <b>."]},
            **fields,
        }
    )
    rows = [
        {
            "split": "test",
            "path": path,
            "label": "good" if kind == "good" else "defect",
            "prediction": "defect" if score > 1 else "good",
            "type": kind,
            "score": score,
        }
        for path, kind, score in zip(paths, kinds, scores, strict=True)
    ]
    rows += [dict(rows[0], split="val", path=f"train/good/{i:03}.png", score=i / 10) for i in range(4)]
    write_csv(run_dir / PREDICTIONS, rows, list(rows[0]))
    run.save()
    return run


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly, "RESAMPLES", 200)


def said(comparison: Comparison) -> str:
    return "\n".join(comparison.verdict)


def test_methods_are_compared_by_delong(tmp_path: Path) -> None:
    runs = [detect(tmp_path / name, name, apart) for name, apart in (("patchcore", 9), ("padim", 2.5), ("vae", 0.2))]
    comparison = compare(runs)
    assert comparison.metrics == ["image_auroc"]
    assert comparison.best is None  # validation had no defects
    first, second = (read_csv(tmp_path / name / PREDICTIONS)[: len(KINDS)] for name in ("patchcore", "vae"))
    ours, theirs = ([float(row["score"]) for row in rows] for rows in (first, second))
    expected = differences.auroc_difference(ours, theirs, TRUTH)
    pair = next(p for p in comparison.pairs if (p.first, p.second) == ("patchcore", "vae"))
    assert pair.test == "DeLong's test (made careful by one more image of each kind)"
    assert (pair.p, pair.difference.value) == (expected.p, expected.value)
    assert pair.different
    estimate = comparison.attempts[1].estimate("image_auroc")
    rows = read_csv(tmp_path / "padim" / PREDICTIONS)[: len(KINDS)]
    assert estimate.value == pytest.approx(roc_auc_score(TRUTH, [float(row["score"]) for row in rows]))
    assert estimate.low < estimate.value < estimate.high
    assert pair.lead_of("patchcore") > 0
    assert {attempt.name: attempt.learnt for attempt in comparison.attempts} == {
        "patchcore": True,
        "padim": True,
        "vae": False,
    }
    assert {attempt.baseline for attempt in comparison.attempts} == {0.5}
    headline, text = comparison.verdict[0], said(comparison)
    assert ": patchcore; test image AUROC" in headline  # the best on test
    for figure in (pair.test, "0.500", f"{100 * pair.lead:.1f} points", "patchcore 1.000 and"):
        assert figure in text


def test_made_up_defects_choose(tmp_path: Path) -> None:
    detect(tmp_path / "0", "patchcore", 9, made_up=0.8)
    detect(tmp_path / "1", "padim", 0.2, made_up=0.9, rule="synthetic")
    comparison = compare(load_runs(tmp_path))
    assert comparison.best == "padim"
    (pair,) = comparison.pairs
    assert pair.different
    assert pair.lead_of("padim") < 0
    assert "which validation chose" in comparison.headline[0]
    assert "Validation chose padim (image AUROC of made-up defects 0.900)" in comparison.verdict[1]


def test_what_was_never_validated_is_no_loser_on_validation(tmp_path: Path) -> None:
    detect(tmp_path / "0", "patchcore", 9)
    detect(tmp_path / "1", "padim", 0.1, made_up=0.55, rule="synthetic")
    comparison = compare(load_runs(tmp_path))
    assert comparison.best is None
    assert ": patchcore; test image AUROC" in comparison.verdict[0]


@pytest.mark.parametrize("metric", ["pixel_auroc", "pixel_aupro"])
def test_pixel_metrics_are_compared_image_by_image(tmp_path: Path, metric: str) -> None:
    detect(tmp_path / "0", "patchcore", 4)
    detect(tmp_path / "1", "padim", 1)
    detect(tmp_path / "2", "gaussian", maps=False)
    comparison = compare(load_runs(tmp_path), VerdictConfig(metric))
    pair = next(p for p in comparison.pairs if p.second == "padim")
    assert pair.test == "jackknife t-test over images"
    ours, theirs = (run.metrics["test"][metric] for run in load_runs(tmp_path)[:2])
    assert pair.difference.value == pytest.approx(ours - theirs, abs=1e-6)
    assert 0 < pair.difference.low < pair.difference.value < pair.difference.high
    assert pair.different
    refused = [p.refused for p in comparison.pairs if p.second == "gaussian"]
    assert len(refused) == 2
    assert all("without maps and masks" in text for text in refused)


def test_pixel_ap_on_one_test_set_is_stated_and_not_tested(tmp_path: Path) -> None:
    for name, apart in (("patchcore", 4.0), ("padim", 1.0)):
        detect(tmp_path / name, name, apart)
    comparison = compare(load_runs(tmp_path), VerdictConfig("pixel_ap"))
    assert comparison.pairs[0].p is None
    assert comparison.attempts[0].estimate("pixel_ap").low is not None
    assert comparison.pairs[0].refused is not None
    assert "verdict.metric=pixel_aupro" in comparison.pairs[0].refused


@pytest.mark.parametrize("luck", [False, True])
def test_methods_without_luck_need_no_seeds(tmp_path: Path, luck: bool) -> None:
    for name, apart in (("patchcore", 9.0), ("gaussian", 0.2)):
        detect(tmp_path / name, name, apart, luck=luck)
    (pair,) = compare(load_runs(tmp_path)).pairs
    assert pair.models == luck
    for seed in range(3):
        detect(tmp_path / f"vae{seed}", "vae", 0.2, seed=seed)
    pairs = compare(load_runs(tmp_path), VerdictConfig(reference="patchcore")).pairs
    assert {pair.first: pair.models for pair in pairs} == {"gaussian": luck, "vae": luck}


def test_seeds_of_the_split_are_no_copies(tmp_path: Path) -> None:
    for seed in range(3):
        detect(tmp_path / str(seed), "nearest", 2)
        config = {"split": {"protocol": "one_class", "seed": seed}, "model": {"method": "nearest"}}
        (tmp_path / str(seed) / CONFIG).write_text(yaml.safe_dump(config))
    assert compare(load_runs(tmp_path)).attempts[0].copies == 0


def test_several_seeds_are_one_attempt(tmp_path: Path) -> None:
    for seed in (0, 1):
        detect(tmp_path / f"d{seed}", "draem", 2, seed=seed)
    detect(tmp_path / "v", "vae", 0.3)
    comparison = compare(load_runs(tmp_path))
    draem = comparison.attempts[0]
    runs = [run.metrics["test"] for run in draem.done]
    estimate = draem.estimate("image_auroc")
    assert estimate.value == pytest.approx(np.mean([m["image_auroc"] for m in runs]))
    assert estimate.low == pytest.approx(np.mean([m["intervals"]["image_auroc"][0] for m in runs]))
    assert estimate.method == "32 images, means of 2 runs"
    (pair,) = comparison.pairs
    assert pair.difference.value == pytest.approx(estimate.value - comparison.attempts[1].estimate("image_auroc").value)
    (pair,) = compare(load_runs(tmp_path), VerdictConfig("pixel_aupro")).pairs
    assert pair.difference is not None


@pytest.mark.slow
def test_classifiers_and_methods_have_tables_of_their_own(tmp_path: Path) -> None:
    fabricate(tmp_path / "0", "base")
    detect(tmp_path / "1", "patchcore")
    rows, comparison = report.sum_up(tmp_path)
    assert comparison.metrics == ["accuracy", "image_auroc"]
    assert [len(part) for part in summary.parts(rows)] == [1, 1]
    (pair,) = comparison.pairs
    assert pair.refused == "they are judged by different metrics (accuracy and image AUROC)"
    html = text_of(page(tmp_path))
    assert "test accuracy" in html
    assert "test image AUROC" in html
    out = printed(tmp_path)
    assert "accuracy" in out
    assert "AUPRO" in out


def test_figures_of_two_metrics_name_their_attempts(tmp_path: Path) -> None:
    names = {"classifier": ["base", "head"], "patchcore": ["patchcore", "padim", "spade"]}
    for name in names["classifier"]:
        fabricate(tmp_path / name, name)
    for name in names["patchcore"]:
        detect(tmp_path / name, name)
    lines = compare(load_runs(tmp_path)).verdict
    for who, title in (("2 attempts are", "accuracy"), ("3 attempts are", "image AUROC")):
        (line,) = (line for line in lines if line.startswith(f"{who} judged by {title}. "))
        assert "in eight of ten cases" in line
    assert not any(line.startswith(("Defects found", "Accuracy on all")) for line in lines)
    (refused,) = (line for line in lines if line.startswith("Not compared: "))
    assert "each of base, head with each of padim, patchcore, spade, as they are judged by different" in refused


def test_a_metric_that_applies_to_nobody_is_said(tmp_path: Path) -> None:
    detect(tmp_path / "1", "patchcore")
    comparison = compare(load_runs(tmp_path), VerdictConfig("macro_f1"))
    assert comparison.metrics == ["image_auroc"]
    assert "verdict.metric=macro_f1" in said(comparison)
    with pytest.raises(LabError, match="image_auroc"):
        compare(load_runs(tmp_path), VerdictConfig("image_aurok"))


def test_table_and_csv(tmp_path: Path) -> None:
    for name, apart in (("patchcore", 4.0), ("autoencoder_ssim", 1.0)):
        run = detect(tmp_path / name, name, apart, rule="best_f1", weights="random", backbone="none")
    report.sum_up(tmp_path)
    written = read_csv(tmp_path / summary.SUMMARY)[0]
    metrics = run.metrics["test"]
    for name in ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_aupro", "f1", "recall_of_defects"):
        assert float(written[f"test_{name}"]) == pytest.approx(metrics[name])
    assert [float(written[f"test_image_ap_{b}"]) for b in ("low", "high")] == pytest.approx(
        metrics["intervals"]["image_ap"]
    )
    scores = [float(row["score"]) for row in read_csv(tmp_path / "autoencoder_ssim" / PREDICTIONS)[: len(KINDS)]]
    assert float(written["test_image_ap"]) == pytest.approx(average_precision_score(TRUTH, scores))
    assert (written["method"], written["threshold_rule"], written["fit_seconds"]) == ("autoencoder", "best_f1", "12.34")
    assert "random weights" not in written["marks"]  # it has no backbone that could have been pretrained
    for width in (80, 100):
        out = printed(tmp_path, width)
        assert max(map(len, out.splitlines())) <= width
        assert "12.3" in out
        assert "0.046" in out
        assert "threshold chosen on the test images, defects included" in out
        assert "peak" in out
        assert "F1" in out.partition("Left out")[0]
        assert "AP" in out.split()  # of pixels: a heading of two lines


@pytest.mark.parametrize("width", [30, 40, 200])
def test_columns_without_room_make_another_table(tmp_path: Path, width: int) -> None:
    rows = summary.summarise(compare([detect(tmp_path / "a", "patchcore")], VerdictConfig(metric="pixel_ap")))
    out = io.StringIO()
    summary.print_table(rows, [], Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in out.getvalue()
    for heading in ("AP", "AUPRO", "found", "rejects", "fit,", "image"):  # the last lines of their headings, but one
        assert heading in out.getvalue().split()
    assert out.getvalue().count("attempt") == {30: 5, 40: 3, 200: 1}[width]  # that of time and memory is one of them


def test_report_of_methods(tmp_path: Path) -> None:
    detect(tmp_path / "0", "patchcore", 4)
    detect(tmp_path / "1", "gaussian", maps=False)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0" / MISTAKES)
    report.sum_up(tmp_path)
    html = page(tmp_path)
    text = unescape(text_of(html))
    for part in (
        "By defect type",
        "crack 14",
        "hole 6",
        "Threshold 1, a quantile of the good validation images' scores.",
        "This method has no map <b>.",
        "the seconds of the fit, or of a network's training, leave out the decoding of images",
        "988",
        "12.3",
    ):
        assert part in text, part
    assert "Training curves" not in text  # nothing trained by epochs
    assert "image by image" not in text.lower()  # DeLong's test is that
    assert html.count('alt="Scores of') == 2
    assert "\\n" not in text


def test_without_defects_nothing_is_compared(tmp_path: Path) -> None:
    for name in ("patchcore", "padim"):
        detect(tmp_path / name, name, kinds=["good"] * 12, maps=False)
    rows, comparison = report.sum_up(tmp_path)
    assert rows[0]["test_image_auroc"] is None
    assert rows[0]["test_false_alarm_rate"] is not None
    (pair,) = comparison.pairs
    assert (pair.test, pair.p) == (None, None)
    assert f"{pair.first} and {pair.second}, as {pair.refused}." in said(comparison)
    assert "–" in printed(tmp_path)


@pytest.mark.parametrize("name", [PIXELS, PREDICTIONS])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    for attempt in ("patchcore", "padim"):
        detect(tmp_path / attempt, attempt)
    path = tmp_path / "padim" / name
    path.write_bytes(path.read_bytes()[:100] if name == PIXELS else b"split,path,label,prediction\ntest,a,good,good\n")
    comparison = compare(load_runs(tmp_path), VerdictConfig("pixel_aupro"))
    assert f"padim/{name} is damaged" in comparison.damaged[0]
    assert [attempt.name for attempt in comparison.done] == ["patchcore"]
