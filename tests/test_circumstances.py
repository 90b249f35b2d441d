"""Attempts that differ in more than what they try: image size, backbone, the images that they learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from test_reporting import fabricate, text_of

from mvtec_lab.reporting import report
from mvtec_lab.reporting.comparison import compare
from mvtec_lab.reporting.runs import load_runs
from mvtec_lab.results import CONFIG

COUNTS = {"train": {"good": 30, "crack": 21}, "val": {"good": 9, "crack": 7}, "test": {"good": 20}}


def written(directory: Path, attempt: str, data: dict[str, Any], epochs: int = 5, **fields: Any) -> None:
    run = fabricate(directory / attempt, attempt, **{"counts": COUNTS, "idle": [], **fields})
    run.epochs = epochs
    run.save()
    path = directory / attempt / CONFIG
    method = {"method": run.method}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"data": data, "model": method}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A recipe, which learns the images of train and val, beside two networks."""
    fitted = {"method": "descriptors", "validates_by": "inner folds", "epochs": 0, "fit_seconds": 4.0}
    written(tmp_path, "recipe", {"image_size": 448, "masks": "optional"}, right=15, **fitted)
    written(tmp_path, "head", {"image_size": 224, "masks": "required"}, right=14)
    written(tmp_path, "full", {"image_size": 224, "masks": "required"}, right=13)
    return tmp_path


def test_the_verdict_says_what_else_differs(sweep: Path) -> None:
    said = (
        "recipe also differs from full, head in image size (448 and 224) and images learnt from (67 and 51), which may "
        "be what makes the difference."
    )
    assert said in compare(load_runs(sweep)).verdict


def test_over_products_it_is_said_once_and_where_only_some_differ(tmp_path: Path) -> None:
    larger = {"train": {"good": 40, "cut": 30}, "val": {"good": 9, "cut": 7}, "test": {"good": 20}}
    for category, counts, weights in (("bottle", COUNTS, "IMAGENET1K_V1"), ("cable", larger, "IMAGENET1K_V2")):
        fields = {"category": category, "counts": counts}
        fitted = {"method": "descriptors", "validates_by": "inner folds", "epochs": 0, **fields}
        written(tmp_path / category, "recipe", {"image_size": 448, "category": category}, right=17, **fitted)
        for name, right in (("head", 14), ("full", 13)):
            data = {"image_size": 224, "category": category}
            written(tmp_path / category, name, data, right=right, weights=weights, **fields)
    said = (
        "recipe also differs from full, head in image size (448 and 224), weights on cable (IMAGENET1K_V1 and "
        "IMAGENET1K_V2) and images learnt from (67–86 and 51–70), which may be what makes the difference."
    )
    comparison = compare(load_runs(tmp_path))
    assert comparison.best == "recipe"
    assert [line for line in comparison.verdict if "also differs" in line] == [said]
    alone = "recipe also differs from full, head in image size (448 and 224) and images learnt from (67 and 51), which"
    assert any(line.startswith(alone) for line in comparison.products["bottle"].verdict)


def test_what_a_sweep_varies_is_what_it_tries(tmp_path: Path) -> None:
    for size in (128, 224):
        fabricate(tmp_path / f"{size}", "head", right=size // 16)
        path = tmp_path / f"{size}" / CONFIG
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"data": {"image_size": size}}))
    comparison = compare(load_runs(tmp_path))
    assert {a.name for a in comparison.attempts} == {"head data.image_size=128", "head data.image_size=224"}
    assert not any("also differs" in line for line in comparison.verdict)


def test_the_page_says_what_each_learnt_from(sweep: Path) -> None:
    rows, _ = report.sum_up(sweep)
    html = (sweep / report.REPORT).read_text(encoding="utf-8")
    text = text_of(html)
    assert "full, head: 51 train, 16 val, 20 test; recipe: 67 train (validation by inner folds), 20 test images" in text
    assert '<li class="note">validation by inner folds, 20 images (recipe)</li>' in html  # a note, and no warning
    assert "images a batch" not in text  # of which the recipe has none
    assert "data.masks" not in text  # it changes no result
    assert {row["attempt"]: row["fit_seconds"] for row in rows} == {"full": 12.5, "head": 12.5, "recipe": 4.0}


def test_networks_alone_have_batches_and_validation_images(tmp_path: Path) -> None:
    written(tmp_path, "head", {"image_size": 224}, right=14)
    written(tmp_path, "full", {"image_size": 224}, right=13)
    rows, _ = report.sum_up(tmp_path)
    text = text_of((tmp_path / report.REPORT).read_text(encoding="utf-8"))
    assert "51 train, 16 val, 20 test images" in text
    assert "32 images a batch" in text
    assert all(row["fit_seconds"] is None for row in rows)
