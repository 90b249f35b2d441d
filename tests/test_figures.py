"""Figures and sheets of pictures, drawn of plain values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mvtec_lab.engine import pictures
from mvtec_lab.reporting import figures


def test_a_sheet_names_the_file_of_an_image() -> None:
    """Who found a mistake on it could not open the image: its caption had no name."""
    image, letters = np.zeros((32, 32, 3), np.uint8), pictures.Letters(11)
    assert pictures._short("test/crack/003.png", letters, 160) == "crack/003.png"
    assert pictures._short("images\\003.png", letters, 160) == "images/003.png"
    cut = pictures._short(f"test/{'long' * 20}/003.png", letters, 160)
    assert (cut[0], cut[-8:]) == ("…", "/003.png")
    assert 140 < letters.length(cut) <= 160
    plain = pictures.sheet([image] * 2, ["one", "two\nlines"], [None] * 2)
    named = pictures.sheet([image] * 2, ["one", "two\nlines"], [None] * 2, files=["test/crack/003.png", ""])
    assert (named.shape[0], named.shape[1]) == (plain.shape[0] + 15, plain.shape[1])
    below = 10 + 160 + 4 + 15  # the second line of a caption
    assert plain[below : below + 15, :170].min() == 255
    assert named[below : below + 15, :170].min() < 150
    assert (named[: plain.shape[0] - 10, 180:] == plain[: plain.shape[0] - 10, 180:]).all()  # a tile without a file


def test_sheet_has_a_frame_and_a_cell_for_every_image() -> None:
    images = [np.full((h, w, 3), 200, dtype=np.uint8) for h, w in [(10, 30), (30, 10), (64, 64), (1, 1), (900, 300)]]
    captions = ["one", "a\nb", "", "x" * 500, "cut_outer_insulation is a long class name, " * 9]
    picture = pictures.sheet(images, captions, [True, False, None, True, False], columns=3, tile=80)
    assert picture.dtype == np.uint8
    assert picture.shape == (10 + 2 * (80 + 4 + 3 * 15 + 10), 10 + 3 * 90, 3)
    corners = [tuple(picture[10, 10 + 90 * i].tolist()) for i in range(3)]
    assert corners == [(0, 158, 115), (213, 94, 0), (238, 241, 244)]  # green, red, none
    assert picture[10 + 80 + 4 : 10 + 80 + 4 + 14, 10:60].min() < 100  # the caption's ink
    assert pictures.sheet(images[:1], ["one"], [None], tile=80).shape == (10 + 80 + 4 + 15 + 10, 10 + 90, 3)


def test_curves_share_a_colour_within_an_attempt_and_scale_to_twelve() -> None:
    history = [{"epoch": str(e), "train/loss": str(1 / e), "val/loss": ""} for e in range(1, 5)]
    figure = figures.curves_figure(
        {"several": [history, history[:2]], "gone": [], **{f"a{i}": [history] for i in range(10)}}
    )
    first, second = figure.axes[:2]
    thin, short, mean, other = first.lines[:4]
    assert thin.get_color() == short.get_color() == mean.get_color() != other.get_color()
    assert np.array_equal(mean.get_xdata(), [1, 2])  # as far as both runs went
    assert not second.lines  # empty cells alone
    styles = {(line.get_color(), line.get_linestyle()) for line in first.lines}
    assert len(styles) == 11
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["several", *(f"a{i}" for i in range(10))]


def test_long_names_are_cut_in_figures() -> None:
    figure = figures.confusion_figure(np.eye(2), ["good", "scratch_" * 30])
    for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert labels[1].get_text().endswith("…")
        assert len(labels[1].get_text()) < 50


def test_a_defect_type_that_begins_like_good_has_a_defects_colour() -> None:
    kinds = {"good": [0.1], "goods_missing": [0.9]}
    good, missing = figures.scores_figure(kinds, 0.5, good=["good"]).axes[0].lines[:2]
    assert good.get_color() != missing.get_color()


@pytest.mark.parametrize(("losses", "scale"), [("1 0.7", "linear"), ("9 0.001", "symlog"), ("-1 2", "symlog")])
def test_axes_of_curves_have_ticks_to_read(losses: str, scale: str) -> None:
    history = [{"epoch": str(e), "train/loss": loss, "val/loss": loss} for e, loss in enumerate(losses.split(), 1)]
    ax = figures.curves_figure({"base": [history]}).axes[0]
    assert ax.get_yscale() == scale
    low, high = ax.get_ylim()
    assert sum(low <= tick <= high for tick in ax.get_yticks()) >= 2


def losses_of(*losses: float) -> list[dict[str, Any]]:
    return [{"epoch": e, "train/loss": loss, "val/loss": loss, "val/iou": 0.5} for e, loss in enumerate(losses, 1)]


def test_one_attempts_outlier_does_not_flatten_the_curves_of_the_others() -> None:
    others = {f"a{i}": [losses_of(1.0, 0.6, 0.4 + i / 50)] for i in range(3)}
    ax = figures.curves_figure(others | {"spike": [losses_of(1.0, 60.0, 0.5)]}).axes[0]
    assert ax.get_ylim() == pytest.approx((0.37, 1.03))
    assert [text.get_text() for text in ax.texts] == ["↑ cut: spike, up to 60"]
    ax = figures.curves_figure(others | {"another": [losses_of(60.0, 50.0, 40.0)]}).axes[0]
    assert (ax.get_yscale(), len(ax.texts)) == ("symlog", 0)  # all of it is far away: cut, nothing would be seen of it
    low, high = ax.get_ylim()
    assert {0.5, 1, 2, 5, 10, 20, 50} <= {round(float(tick), 3) for tick in ax.get_yticks() if low <= tick <= high}
    ax.figure.draw_without_rendering()
    assert "20" in [label.get_text() for label in ax.get_yticklabels()]
    ax = figures.curves_figure(others | {"near": [losses_of(2.0, 1.0, 0.5)]}).axes[0]
    assert (ax.get_yscale(), len(ax.texts)) == ("linear", 0)
    assert ax.get_ylim()[1] > 2


def test_the_epochs_that_were_kept_are_marked() -> None:
    curves = figures.curves_figure({"a": [losses_of(3, 2, 1), losses_of(4, 3)], "b": []}, {"a": [2, None]})
    assert [mark.get_offsets().tolist() for mark in curves.axes[0].collections] == [[[2, 2]]]
    assert [mark.get_offsets().tolist() for mark in curves.axes[2].collections] == [[[2, 0.5]]]


def test_a_single_epoch_has_a_whole_number() -> None:
    history = [{"epoch": "1", "train/loss": "1", "val/loss": "1"}]
    ax = figures.curves_figure({"base": [history]}).axes[1]
    low, high = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1]


def test_curves_of_two_problems_show_a_metric_of_each() -> None:
    """IoU was left out where mAP50 and mAP50-95 had taken both places."""

    def run(**metrics: str) -> list[list[dict[str, str]]]:
        values = {f"val/{name}": value for name, value in metrics.items()}
        return [[{"epoch": str(e), "train/loss": "1", "val/loss": "1", **values} for e in (1, 2)]]

    def metrics(histories: dict[str, Any]) -> list[str]:
        return [title for ax in figures.curves_figure(histories).axes[2:] if (title := ax.get_title())]

    boxes, masks = run(map50="0.4", map="0.2"), run(iou="0.5")
    assert metrics({"boxes": boxes}) == ["validation mAP50", "validation mAP50-95"]
    assert metrics({"boxes": boxes, "masks": masks}) == ["validation mAP50", "validation IoU"]
    assert metrics({"masks": masks}) == ["validation IoU"]
    assert [ax.get_xlabel() for ax in figures.curves_figure({"masks": masks}, columns=1).axes] == ["", "", "epoch"]
    three = figures.curves_figure({"masks": masks}).axes[:3]
    assert [ax.xaxis.get_tick_params()["labelbottom"] for ax in three if ax.get_xlabel()] == [True, True]


def test_a_long_name_of_a_box_keeps_its_score() -> None:
    letters, box = pictures.Letters(20), SimpleNamespace(kind="cut_outer_insulation_of_the_cable", score=0.9)
    name = pictures._name(box, letters, 300)
    assert name.startswith("cut_outer")
    assert name.endswith("… 0.90")
    assert 250 < letters.length(name) <= 300
    assert pictures._name(SimpleNamespace(kind="hole", score=0.9), letters, 300) == "hole 0.90"


def test_names_of_boxes_lie_beside_each_other() -> None:
    """They were six pixels high on a sheet, and lay on each other."""
    image = np.zeros((64, 64, 3), np.uint8)
    boxes = [SimpleNamespace(kind="scratch", score=0.9 - i / 10, x0=30, y0=30, x1=60, y1=60) for i in range(9)]
    taken: list[tuple[float, ...]] = []
    for box in boxes:
        area = pictures._free((0, 0, 100, 20), (box.x0, box.y0, box.x1, box.y1), (320, 320), taken)
        taken += [] if area is None else [area]
    assert len(taken) == 3  # above, below, within: what is left out would lie on these
    assert all(area[0] >= 0 and area[1] >= 0 and area[2] <= 320 and area[3] <= 320 for area in taken)
    one, many = pictures.boxed(image, [], boxes[:1]), pictures.boxed(image, [], boxes)
    rows = np.flatnonzero((one != 0).any((1, 2)))
    assert rows.min() < 5 * 30 - 16  # the name above the box: 16 of 320 pixels and more
    assert (many != one).any()


def test_a_map_over_a_dark_product_can_be_seen() -> None:
    """Orange over a bottle was nearly black."""
    dark = np.full((40, 40, 3), 20, dtype=np.uint8)
    dark[:, :4] = 255  # the light around it
    heat = np.zeros((40, 40), dtype=np.float32)
    heat[10:20, 10:20], heat[25:35, 25:35] = 0.5, 1.0
    cold, warm, hot = (pictures.coloured(dark, heat)[y, y].astype(int) for y in (8, 15, 30))
    assert cold.min() >= 100  # pale, and without a colour
    assert np.ptp(cold) == 0
    assert warm[0] > 150
    assert warm[0] > warm[1] + 40 > warm[2] + 40
    assert hot[0] > 180 > 60 > hot[1:].max()
