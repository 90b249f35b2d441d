"""Tables in the terminal: what they show at which width."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_reporting import fabricate, printed

from mvtec_lab.results import RunResult
from mvtec_lab.tasks import evaluate

DETECTION = RunResult("detect/fcos", 0, "mvtec", "bottle", "mobilenet_v2", "run", problem="detection")
MEASURED = {"fit_seconds": 12.3, "seconds_per_image": 0.045, "peak_mib": 1234.0}


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, 200])
def test_seconds_and_memory_are_shown_at_every_width(tmp_path: Path, width: int) -> None:
    """Where they have no room beside the metrics they make a table of their own."""
    for name, right in (("finetune", 14), ("augment", 12)):
        counts = {"per_class": [10, 5, 3, 2], "train_counts": [50, 20, 10, 8]}  # a tail: a column that is wide
        fabricate(tmp_path / name, name, right=right, **counts, **MEASURED)
    out = printed(tmp_path, width)
    assert max(map(len, out.splitlines())) <= width
    tables = [block.splitlines() for block in out.split("\n\n") if "finetune" in block and "MiB" in block]
    assert len(tables) == 1
    row = next(line for line in tables[0] if line.startswith("finetune"))
    assert row.split()[-3:] == ["12.3", "0.045", "1234"]
    assert ("0.700" in row) == (width == 200)  # beside the accuracy
    assert "Left out" not in out
    heads = " ".join(tables[0][: tables[0].index(row)])
    assert ("rare" in heads) == (width != 80)  # at 60 beside the seconds, where there is room, at 80 above them


def test_what_has_room_nowhere_is_named(tmp_path: Path) -> None:
    for name, right in (("finetune", 14), ("augment", 12)):
        fabricate(tmp_path / name, name, right=right, per_class=[10, 5, 3, 2], train_counts=[50, 20, 10, 8], **MEASURED)
    said = "Left out for lack of room: tail recall. summary.csv has every column."
    assert said in " ".join(printed(tmp_path, 26).split())


@pytest.mark.parametrize("width", [20, 24, 30])
def test_no_figure_is_cut_in_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    for name, right in (("augment", 12), ("finetune_of_the_last_stage", 14)):
        fabricate(tmp_path / name, name, right=right)
    monkeypatch.setenv("COLUMNS", str(width))
    evaluate._print("best.ckpt", DETECTION, {"test": {**FIGURES, "images": 17}}, {"map50": (0.203, 0.702)})
    for out, bounds in (
        (printed(tmp_path, width), ("[0.48,", "0.85]")),
        (capsys.readouterr().out, ("[0.203,", "0.702]")),
    ):
        assert max(map(len, out.splitlines())) <= width
        assert all(bound in out for bound in bounds)


FIGURES = {"iou": None, "map50": 0.5, "map": 0.25, "box_recall": 0.75, "image_auroc": 0.9, "recall": 1.0}


def test_evaluate_prints_whole_names_and_no_empty_column(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = ("broken_large", "cut_outer_insulation")
    test = {**FIGURES, "images": 17, "by_type": {name: {**FIGURES, "images": 4} for name in names}}
    both = {"test": test, "val": {"map50": 0.6, "images": 8}}
    evaluate._print("run/best.ckpt on mvtec/bottle", DETECTION, both, {"map50": (0.2, 0.7)})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert "IoU" not in out
    assert "Dice" not in out
    assert next(line for line in out.splitlines() if line.startswith("mAP50 ")).split() == [
        "mAP50",
        "0.600",
        "0.500",
        "[0.200,",
        "0.700]",
    ]
    assert out.index("8 images") < out.index("17 images")  # whichever was computed first
    for name in names:
        assert any(line.startswith(f"{name} ") for line in out.splitlines())


def test_evaluate_makes_a_further_table_of_what_has_no_room(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    test = {**FIGURES, "images": 17, "by_type": {"broken_large": {**FIGURES, "images": 4}}}
    evaluate._print("best.ckpt", DETECTION, {"test": test}, {})
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("broken_large ")]
    assert len(rows) == 2
    assert [cell for row in rows for cell in row[1:]] == ["4", "0.500", "0.250", "0.750", "0.900", "1.000"]
