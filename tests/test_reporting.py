"""Summary, table, figures and report of fabricated runs: no network is trained here."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from mvtec_lab.config import VerdictConfig
from mvtec_lab.engine import pictures
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.metrics import classification_metrics, majority_baseline
from mvtec_lab.reporting import details, figures, pages, report, summary
from mvtec_lab.reporting.attempts import Estimate
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.reporting.words import p_value
from mvtec_lab.results import (
    CONFIG,
    EXPLANATIONS,
    HISTORY,
    MISTAKES,
    PREDICTIONS,
    RESULT,
    RunResult,
    read_csv,
    write_csv,
)

CLASSES = ["good", "broken_large", "broken_small", "contamination"]
PANELS = ("train/loss", "val/loss", "val/accuracy", "val/balanced_accuracy")


def fabricate(
    run_dir: Path,
    attempt: str,
    *,
    seed: int = 0,
    right: int = 14,
    images: int = 20,
    per_class: Sequence[int] | None = None,
    train_counts: Sequence[int] | None = None,
    verdict: dict[str, str | None] | None = None,
    epochs: int = 5,
    **fields: Any,
) -> RunResult:
    """Write a whole run directory of which the first ``right`` of the test images are classified correctly.

    Labels take turns, or there are ``per_class`` of each class, the last class first.
    """
    run_dir.mkdir(parents=True)
    classes = fields.get("classes", CLASSES)
    labels = np.arange(images) % len(classes)
    if per_class is not None:
        labels = np.repeat(np.arange(len(classes)), per_class)[::-1]
        images = len(labels)
    predictions = np.where(np.arange(images) < right, labels, (labels + 1) % len(classes))
    probabilities = np.full((images, len(classes)), 0.4 / (len(classes) - 1))
    probabilities[np.arange(images), predictions] = 0.6
    metrics = classification_metrics(labels, probabilities, classes, train_counts)
    run = RunResult(
        attempt=attempt,
        seed=seed,
        run_dir=str(run_dir),
        **{
            "data": "mvtec",
            "category": "bottle",
            "backbone": "resnet18",
            "status": "completed",
            "weights": "IMAGENET1K_V1",
            "classes": classes,
            "metrics": {"val": metrics, "test": metrics},
            "majority_baseline": majority_baseline(labels, labels),
            "counts": {"train": {"good": 40}, "test": {"good": images}},
            "parameters": {"total": 11_178_564, "trained": 2052},
            "epochs": epochs,
            "best_epoch": epochs,
            "seconds": 12.5,
            "versions": {"torch": "2.6.0"},
            "git_revision": "0123abc",
            "problem": "classification",
            "method": "classifier",
            **fields,
        },
    )
    rows = [
        {"split": "test", "path": f"{i:03}.png", "label": classes[labels[i]], "prediction": classes[predictions[i]]}
        for i in range(images)
    ]
    write_csv(run_dir / PREDICTIONS, rows, ["split", "path", "label", "prediction"])
    history: list[dict[str, Any]] = [
        {"epoch": e, **dict.fromkeys(PANELS, 1 / (e + 0.5 + seed))} for e in range(1, epochs + 1)
    ]
    history[0]["val/loss"] = None
    write_csv(run_dir / HISTORY, history, ["epoch", *PANELS])
    config = {
        "attempt": attempt,
        "seed": seed,
        "split": {"protocol": "holdout", "val": 0.2, "test": 0.2, "pool": "test", "per_class": None, "seed": seed},
        "optimizer": {"name": "adam", "lr": 0.001 if attempt == "base" else 0.0001},
        "augment": {"transforms": {} if attempt == "base" else {"Rotate": {"limit": 15, "p": 0.8}}},
    }
    if verdict:
        config["verdict"] = verdict
    (run_dir / CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
    tiles = np.random.default_rng(seed).integers(0, 255, (7, 24, 32, 3), dtype=np.uint8)
    Image.fromarray(pictures.sheet(list(tiles), ["bottle"] * 7, [False] * 6 + [True])).save(run_dir / MISTAKES)
    run.save()
    return run


def fail(run_dir: Path, attempt: str, error: str = "CUDA out of memory") -> RunResult:
    """Write what a run leaves that failed before it had anything but its result."""
    run_dir.mkdir(parents=True)
    run = RunResult(attempt, seed=1, data="mvtec", category="bottle", backbone="resnet18", run_dir=str(run_dir))
    run.problem, run.method, run.error = "classification", "classifier", error
    run.save()
    return run


def printed(directory: Path, width: int = 100) -> str:
    out = io.StringIO()
    rows, comparison = report.sum_up(directory)
    summary.print_table(rows, comparison.verdict, Console(file=out, width=width))
    return out.getvalue()


def page(directory: Path, **verdict: str) -> str:
    """The report on a directory."""
    report.sum_up(directory, verdict=VerdictConfig(**verdict))
    return (directory / report.REPORT).read_text(encoding="utf-8")


def summarise(runs: list[RunResult]) -> list[summary.Row]:
    return summary.summarise(compare(runs))


def text_of(html: str) -> str:
    html = html.replace("<wbr>", "")
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL))


def test_summary_of_completed_failed_and_several_seeds(tmp_path: Path) -> None:
    fabricate(tmp_path / "0", "base", right=14)
    fabricate(tmp_path / "1", "finetune", seed=0, right=12, epochs=4)
    fabricate(tmp_path / "2", "finetune", seed=1, right=16, epochs=8, weights="random")
    fail(tmp_path / "3", "finetune")
    fail(tmp_path / "4", "full", "ValueError:\n  too big")
    rows, _ = report.sum_up(tmp_path)

    base, finetune, full = rows
    assert [row["attempt"] for row in rows] == ["base", "finetune", "full"]
    assert (base["runs"], base["completed"], base["failed"]) == (1, 1, 0)
    assert base["test_accuracy"] == pytest.approx(0.7)
    assert (round(base["test_accuracy_low"], 2), round(base["test_accuracy_high"], 2)) == (0.48, 0.85)
    assert (base["majority_baseline"], base["test_images"], base["data"]) == (0.25, 20, "mvtec/bottle")

    assert (finetune["runs"], finetune["completed"], finetune["failed"]) == (3, 2, 1)
    assert finetune["test_accuracy"] == pytest.approx(0.7)
    assert finetune["test_values"] == pytest.approx([0.7])  # two seeds on one test set
    assert (round(finetune["test_accuracy_low"], 2), round(finetune["test_accuracy_high"], 2)) == (0.48, 0.85)
    assert finetune["test_accuracy_sd"] == pytest.approx(np.std([0.6, 0.8], ddof=1))
    assert (finetune["epochs"], finetune["seconds"]) == (6, 25)
    assert finetune["weights"] == "IMAGENET1K_V1, random"
    assert finetune["marks"] == ["random weights", "runs of one attempt differ in their weights"]

    assert (full["completed"], full["test_accuracy"], full["error"]) == (0, None, "ValueError: too big")

    written = read_csv(tmp_path / summary.SUMMARY)
    assert list(written[0]) == [column.key for column in summary.columns() if column.key in written[0]]
    assert "test_image_auroc" not in written[0]  # no attempt has one
    assert float(written[0]["test_accuracy"]) == pytest.approx(0.7)
    assert written[2]["test_accuracy"] == written[2]["test_accuracy_low"] == ""
    assert written[1]["marks"].startswith("random weights; runs of")
    assert not list(tmp_path.glob("*.tmp"))


def test_marks_name_their_attempts(tmp_path: Path) -> None:
    runs = [
        fabricate(tmp_path / "0", "base", data="sample", category="cable", warnings=["7 images have no mask"]),
        fabricate(tmp_path / "1", "full", data="sample", category="cable", val_is_test=True, weights="random"),
        fabricate(tmp_path / "drawn", "head", data="sample", category="cable", weights="SAMPLE_V1"),
    ]
    rows = summarise(runs)
    assert summary.remarks(rows, "marks") == [
        "sample data: procedural, not MVTec (every attempt)",
        "random weights (full)",
        "validation = test (full)",
        "pretrained on drawn images (head)",
    ]
    assert summary.remarks(rows, "warnings") == ["7 images have no mask (base)"]
    assert summary.remarks(rows[:1], "warnings") == ["7 images have no mask"]

    rows = summarise([runs[1], fail(tmp_path / "2", "head")])
    assert "random weights (every completed attempt)" in summary.remarks(rows, "marks")


@pytest.mark.parametrize("width", [80, 100])
def test_table_fits_and_shows_every_figure(tmp_path: Path, width: int) -> None:
    rare = {"per_class": [10, 5, 3, 2], "train_counts": [50, 20, 10, 8]}  # a tail: one more column, where it fits
    fabricate(tmp_path / "0", "all_of_them[red]", right=13, seconds=1234.0, warnings=["[bold]odd"], **rare)
    fail(tmp_path / "1", "full")
    out = printed(tmp_path, width)
    assert max(map(len, out.splitlines())) <= width
    for part in ("0.650 [0.43, 0.82]", "0.500", "1234", "0/1", "failed: full: CUDA out of memory", "[bold]odd"):
        assert part in out
    assert "all_of_them[red]" in out or width == 80  # folded there
    assert "…" not in out


def test_rare_classes_and_the_verdicts_metric_have_their_columns(tmp_path: Path) -> None:
    verdict = {"metric": "balanced_accuracy"}
    for name, right in (("longtail/balanced_softmax", 17), ("longtail/ce", 12)):
        counts = {"per_class": [10, 5, 3, 2], "train_counts": [50, 20, 10, 8], "verdict": verdict}
        fabricate(tmp_path / name.replace("/", "_"), name, right=right, **counts)
    out = printed(tmp_path)
    assert max(map(len, out.splitlines())) <= 100
    for part in ("test balanced", "0.925 [0.66, 0.99]", " acc.", "longtail/balanced_softmax", "rare", "0.850"):
        assert part in out
    (row, _) = read_csv(tmp_path / summary.SUMMARY)
    assert (float(row["test_head_recall"]), float(row["test_tail_recall"])) == (0.7, 1)
    assert float(row["test_middle_recall"]) == 1
    assert float(row["test_balanced_accuracy"]) == pytest.approx(0.925)
    assert 0 < float(row["test_balanced_accuracy_low"]) < 0.925 < float(row["test_balanced_accuracy_high"]) < 1
    assert float(row["test_calibration_error"]) == pytest.approx(0.85 - 0.6)
    text = text_of((tmp_path / report.REPORT).read_text(encoding="utf-8"))
    for part in (
        "test balanced accuracy accuracy macro F1",
        "validation balanced accuracy baseline epochs",  # what chooses the best, and the baseline of the first column
        "head recall middle recall tail recall",
        "0.700 1.000 1.000",
        "calibration error",
    ):
        assert part in text
    assert (float(row["baseline"]), float(row["majority_baseline"])) == (0.25, 0.5)  # balanced, as it is ranked
    assert float(row["val_balanced_accuracy"]) == pytest.approx(0.925)
    assert "Frequent and rare classes" in text


def test_where_all_classes_are_frequent_nothing_speaks_of_groups(tmp_path: Path) -> None:
    for name in ("base", "augment"):
        fabricate(tmp_path / name, name, train_counts=[20, 18, 17, 15])
    assert "rare" not in printed(tmp_path)
    text = text_of(page(tmp_path))
    assert "head recall" not in text
    assert "rare" not in text
    assert "Calibration error: how far" in text


@pytest.mark.slow
def test_report_names_the_settings_that_all_attempts_share(tmp_path: Path) -> None:
    """They stood in no table: what differs has differences alone."""
    fabricate(tmp_path / "0", "base", idle=["loss.gamma"])
    assert (
        "Settings: backbone resnet18, weights IMAGENET1K_V1, images of 128 x 128 pixels, optimizer adam, learning rate "
        "0.001, 32 images a batch, loss cross_entropy, at most 30 epochs." in text_of(page(tmp_path))
    )
    fabricate(tmp_path / "1", "augment", idle=["loss.name"])  # another learning rate, and a loss of its own
    fail(tmp_path / "2", "full")
    assert (
        "The same for all attempts: backbone resnet18, weights IMAGENET1K_V1, images of 128 x 128 pixels, optimizer "
        "adam, 32 images a batch, at most 30 epochs." in text_of(page(tmp_path))
    )
    fabricate(tmp_path / "3", "head")  # of an older version: what it used is not known
    assert "The same for all attempts" not in text_of(page(tmp_path))


@pytest.mark.slow
def test_a_setting_without_effect_on_an_attempt_is_no_difference(tmp_path: Path) -> None:
    """The epochs of an attempt that trains by none stood beside those of a network."""
    fabricate(tmp_path / "0", "base", idle=["optimizer.lr", "augment.transforms"])
    fabricate(tmp_path / "1", "augment", idle=["augment.transforms"])
    text = text_of(page(tmp_path)).rpartition("What differs")[2].partition("Attempt by attempt")[0]
    assert " optimizer.lr – 0.0001 " in text
    assert "Rotate" not in text  # of no effect on either
    shown = page(tmp_path)
    assert "<code>optimizer.<wbr>lr</code>" in shown


def test_names_break_at_their_joints(tmp_path: Path) -> None:
    fabricate(tmp_path / "0", "base")
    fabricate(tmp_path / "1", "lab/all_of_<them> loss.gamma=0.001")  # a number stays whole
    assert "<th>lab/<wbr>all_<wbr>of_&lt;them&gt; loss.<wbr>gamma=<wbr>0.001</th>" in page(tmp_path)


def test_results_from_before_the_long_tail_are_shown(tmp_path: Path) -> None:
    for name in ("base", "augment"):
        run = fabricate(tmp_path / name, name)
        for key in ("calibration_error", "group_recall"):
            del run.metrics["test"][key]
        run.save()
    out = printed(tmp_path)
    assert "tail" not in out
    (row, _) = read_csv(tmp_path / summary.SUMMARY)
    assert not {"test_tail_recall", "test_calibration_error"} & row.keys()
    assert "Rare classes" not in page(tmp_path)


def test_a_p_is_never_zero(tmp_path: Path) -> None:
    fabricate(tmp_path / "0", "base", right=40, images=40)
    fabricate(tmp_path / "1", "augment", right=0, images=40)
    table = text_of(page(tmp_path)).rpartition("Pair by pair")[2].partition("Training curves")[0]
    assert table.count("&lt;0.001") == 1  # McNemar's test decides: no column repeats it as one that does not
    assert "image by image" not in table
    assert "Holm" not in table  # a single pair has nothing to be corrected for
    assert "0.000" not in table
    assert [p_value(value) for value in (None, 0.0, 0.001, 1.0)] == ["–", "<0.001", "0.001", "1.000"]


def test_the_baseline_is_said_to_be_that_of_the_metric_that_decides(tmp_path: Path) -> None:
    fabricate(tmp_path / "0", "base", right=16)
    for asked, what in (
        ("accuracy", "always naming the most frequent class"),
        ("log_loss", "how frequent the classes"),
    ):
        text = text_of(page(tmp_path, metric=asked))
        (said,) = re.findall(r"Baseline: what [^.]*\.", text)
        assert what in said
        assert said.endswith(f" in {asked.replace('_', ' ')}.")


def test_images_by_defect_type_are_those_of_all_folds() -> None:
    """The images of the first fold stood beside means of all, and a type that it lacks was left out."""
    folds = [
        {"crack": {"images": 2, "recall": 0.5}},
        {"crack": {"images": 1, "recall": 1.0}, "hole": {"images": 1, "recall": 0.0}},
    ]
    kinds = [("a", "crack"), ("b", "crack")], [("c", "crack"), ("d", "hole")], [("a", "crack"), ("b", "crack")]
    attempt = SimpleNamespace(
        done=[SimpleNamespace(metrics={"test": {"by_type": types}}) for types in (*folds, folds[0])],  # two seeds
        on=lambda: [SimpleNamespace(images=[i for i, _ in of], rows=[{"type": k} for _, k in of]) for of in kinds],
    )
    part = details.by_type(attempt)  # type: ignore[arg-type]
    assert part is not None
    assert [row[:2] for row in part.rows] == [["crack", 3], ["hole", 1]]
    assert part.rows[0][2] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_many_attempts_stay_readable(tmp_path: Path) -> None:
    for index, right in enumerate((20, 19, 19, 18, 18, 15, 12, 4, 3, 2)):
        fabricate(tmp_path / str(index), f"attempt{index}", right=right)
    text = text_of(page(tmp_path))
    assert "Not shown to differ from it: attempt5 (-25.0 points, p = " in text
    assert "attempt6 (-40.0 points, p = " in text
    assert "with p = 1: attempt1 (-5.0), attempt2 (-5.0), attempt3 (-10.0), attempt4 (-10.0)" in text
    assert "The 36 pairs of the other attempts" in text
    assert text.count("not shown") + text.count(" different ") >= 45  # all pairs are there
    assert "0.100 to 1.000 and" in text  # accuracies of the ten attempts


def test_a_table_that_is_too_wide_for_a_phone_has_its_titles_in_its_cells() -> None:
    """Columns were out of sight; pairs of long names had five columns, as the recall of classes, which fits."""
    titles = re.compile(r'data-title="([^"]*)"')

    def table(*rows: Sequence[str], kind: str = "") -> str:
        head, *body = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
        head = head.replace("td>", "th>")
        return pages._TABLE.sub(pages._with_titles, f"<table{kind}><tr>{head}</tr><tr>{''.join(body)}</tr></table>")

    names = ["first", "second", "points", "p", "verdict"]
    wide = table(names, ["detect/ssdlite", "detect/fcos", "+1.9 <small>[-15.6, +19.5]</small>", "0.818", "not shown"])
    assert titles.findall(wide) == names
    assert '<table class="many">' in wide
    fits = ["cut_inner_insulation", "12", "12", "0.67", "[0.39, 0.86]"]
    assert table(["class", "right", "images", "recall", "95% interval"], fits).count("data-title") == 0
    texts = table(["setting", "a", "b", "c"], ["lr", "1", "2", "3"], kind=' class="config"')
    assert (titles.findall(texts), texts[:27]) == (["setting", "a", "b", "c"], '<table class="many config">')
    assert "data-title" not in table(["setting", "a", "b"], ["lr", "x" * 90, "2"], kind=' class="config"')


def test_a_validation_figure_that_luck_has_raised_is_called_no_promise(tmp_path: Path) -> None:
    """The best by validation, 1.000, was the worst on test, and the first line said nothing of it."""
    for name, right, validation in (("base", 14, 0.75), ("augment", 12, 1.0)):
        run = fabricate(tmp_path / name, name, right=right)
        run.metrics["val"] = {**run.metrics["val"], "balanced_accuracy": validation, "images": 16}
        run.save()
    first, *_ = compare(load_runs(tmp_path)).verdict
    assert first.startswith("No attempt is shown to be the best. Best on validation: augment (balanced accuracy 1.000)")
    assert (
        "The 1.000 on validation is no promise for new images: the 16 validation images chose the epoch and the attempt"
        in first
    )
    run.metrics["val"]["balanced_accuracy"] = 0.76  # within the interval of the test
    run.save()
    assert "no promise" not in compare(load_runs(tmp_path)).verdict[0]


def test_no_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="holds no run"):
        report.sum_up(tmp_path)


def test_report_has_every_section(tmp_path: Path) -> None:
    fabricate(tmp_path / "0", "base", right=14, warnings=["mixed precision is off"], weights="random")
    fabricate(tmp_path / "1", "augment", seed=0, right=12)
    fabricate(tmp_path / "2", "augment", seed=1, right=16)
    fail(tmp_path / "3", "full")
    html = page(tmp_path)
    text = text_of(html)

    for part in (
        "mvtec/bottle: 3 attempts",
        "Holdout, validation 0.2, test 0.2 of the test folder.",
        "40 train, 20 test images",
        "random weights (base)",
        "0.700 [0.48, 0.85]",
        "Pair by pair",
        "no attempt is shown to be the best.",
        "Best on validation: base",
        "CUDA out of memory",
        "mixed precision is off",
        "Training curves",
        "A dot marks the epoch whose weights were kept",
        "Confusion matrix, test images of 2 runs together",
        "Worst mistakes".lower(),
        f"tensorboard --logdir {tmp_path}",
        "torch 2.6.0",
        "git 0123abc",
    ):
        assert part in text
    assert "optimizer.lr 0.001 0.0001" in text
    assert "augment.transforms.Rotate – limit=15, p=0.8" in text
    assert "split.seed 0 0, 1" in text
    assert "broken_large 7 10 0.70" in text  # images 1, 5, 9 of the first run, and 13 of the second
    assert html.count("data:image/svg+xml") == 5  # accuracy, curves in two forms, two confusion matrices
    assert html.count("data:image/jpeg") == 2
    assert not re.search(r"https?:|<script|<link|@import|url\(", html)
    assert not list(tmp_path.glob("*.tmp"))


def test_report_escapes_what_comes_from_files(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    fabricate(tmp_path / "0", evil, classes=["good", evil, "$x^$"], warnings=[evil])
    fail(tmp_path / "1", "full", evil)
    html = page(tmp_path)
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4  # attempt, class, warning, error


def test_report_says_what_is_missing(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "0", "base")
    for name in (HISTORY, PREDICTIONS, CONFIG, MISTAKES):
        (Path(run.run_dir) / name).unlink()
    text = text_of(page(tmp_path))
    for part in (
        "how the images were split is not known",
        "Without a history: base",
        "there is no confusion matrix",
        "No picture sheet was left",
        "One attempt: there is nothing to compare it with",
    ):
        assert part in text


def test_report_on_failures_alone(tmp_path: Path) -> None:
    fail(tmp_path / "0", "base")
    fail(tmp_path / "1", "full", "")
    text = text_of(page(tmp_path))
    assert "No run was completed: there is nothing to compare." in text
    assert "CUDA out of memory" in text
    assert "no reason recorded" in text
    assert "nothing to compare" in printed(tmp_path)


def test_predictions_of_another_class_list_are_named(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "0", "base")
    run.classes = CLASSES[:2]
    run.save()
    with pytest.raises(LabError, match=r"predictions\.csv is damaged .*'broken_small'"):
        report.sum_up(tmp_path)


def test_seeds_that_differ_by_run_only_are_no_difference(tmp_path: Path) -> None:
    for index in range(4):
        fabricate(tmp_path / str(index), ("base", "augment")[index // 2], seed=index % 2)
    for path in (tmp_path / "0" / CONFIG, tmp_path / "1" / CONFIG):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["model"] = {**config.get("model", {}), "options": {"parts": ["global", "where"]}}
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
    text = text_of(page(tmp_path))
    assert "model.options.parts [global,where]" in text  # as it is typed
    assert "optimizer.lr" in text
    assert "split.seed" not in text.rpartition("What differs")[2]


def test_a_key_that_varies_within_one_attempt_is_shown(tmp_path: Path) -> None:
    for index, lr in enumerate((0.001, 0.01)):
        run = fabricate(tmp_path / str(index), "base", seed=index)
        path = Path(run.run_dir) / CONFIG
        path.write_text(path.read_text(encoding="utf-8").replace("lr: 0.001", f"lr: {lr}"), encoding="utf-8")
    text = text_of(page(tmp_path))
    assert "base optimizer.lr=0.001" in text
    assert "base optimizer.lr=0.01" in text
    assert "2 attempts" in text  # they are no repeats of each other


@pytest.mark.slow
def test_many_classes_are_a_table_and_every_figure_is_bounded(tmp_path: Path) -> None:
    """250 classes were a figure 112 inches wide, drawn twice: 135 seconds and 6 GiB."""
    classes = ["good", *(f"defect_{i:03}" for i in range(249))]
    many = fabricate(tmp_path / "many", "base", classes=classes, per_class=[1, 2] + [0] * 247 + [3], right=4)
    confused = text_of(page(tmp_path / "many"))
    assert "Most frequent mistakes" in confused
    assert "defect_000 defect_001 1 2" in confused  # taken for it once, of two images
    with pytest.raises(ValueError, match="250 classes"):
        figures.confusion_figure(np.eye(250), many.classes)
    rows = summary.summarise(compare([many]))
    figure = figures.verdict_figure([dict(rows[0], estimate=Estimate(i / 100)) for i in range(80)])
    assert len(figure.axes[0].get_yticks()) == figures.MOST
    assert figure.axes[0].get_xlabel() == "test accuracy, the best 30 of 80 attempts"
    figure = figures.scores_figure({"good": [0.0], **{f"d{i}": [i] for i in range(99)}}, 1.0, ["good"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][-1] == "69 further types (69)"
    history = [{"epoch": "1", "train/loss": "1", "val/loss": "1"}]
    figure = figures.curves_figure({f"a{i}": [history] for i in range(80)})
    assert len(figure.axes[0].lines) == figures.MOST
    assert all(max(f.get_size_inches()) < 16 for f in (figure, figures.confusion_figure(np.eye(30), classes[:30])))


def test_epochs_are_counted_from_one_and_older_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal and the report said 14 of 30 of the epoch that result.json and history.csv called 13."""
    drawn: list[list[int]] = []
    whole = figures.curves_figure

    def curves_figure(histories: Any, *args: Any) -> Any:
        drawn.append([row["epoch"] for row in histories["base"][0]])
        return whole(histories, *args)

    monkeypatch.setattr(figures, "curves_figure", curves_figure)
    run = fabricate(tmp_path / "0", "base", epochs=30, best_epoch=14)
    assert "best epoch 14 of 30" in text_of(page(tmp_path))
    history, record = Path(run.run_dir, HISTORY), Path(run.run_dir, RESULT)
    rows = read_csv(history)
    write_csv(history, [row | {"epoch": int(row["epoch"]) - 1} for row in rows], list(rows[0]))
    older = json.loads(record.read_text()) | {"best_epoch": 13}
    del older["first_epoch"]
    record.write_text(json.dumps(older))
    assert "best epoch 14 of 30" in text_of(page(tmp_path))
    assert drawn == [list(range(1, 31))] * 4  # for a screen and for a phone, twice
    again = RunResult.load(run.run_dir)
    again.save()
    assert RunResult.load(run.run_dir).best_epoch == again.best_epoch == 14


def test_a_picture_that_is_missing_is_not_explained(tmp_path: Path) -> None:
    """Its legend was printed as the reason why there is none; other keys than those of pictures were read as files."""
    legend = {"explanations.jpg": ["Where", "Orange: found."], "result.json": ["", "no picture"]}
    fabricate(tmp_path / "0", "base")  # of a version that said nothing
    fabricate(tmp_path / "1", "base", seed=1, captions=legend)
    text = text_of(page(tmp_path))
    assert "The pictures “Where” were not left." in text
    assert "Orange" not in text
    assert "no picture" not in text
    Image.new("RGB", (40, 40)).save(tmp_path / "0" / EXPLANATIONS)
    text = text_of(page(tmp_path))
    assert "Where, of the first run Orange: found." in " ".join(text.split())
