"""Names of classes in any script, in figures and on sheets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import font_manager

from mvtec_lab.engine import pictures
from mvtec_lab.reporting import figures, fonts, terminal

CLASSES = ["good", "裂纹_大", "裂"]


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Forget which fonts there are, before and after."""

    def forget() -> None:
        fonts._known.clear()
        fonts._complained.clear()
        fonts._fonts.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def no_font(forgotten: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(font_manager, "findSystemFonts", list)


@pytest.fixture
def own_font(forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The only font here: squares for the three characters of the classes."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", "one", "two", "three"]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, "裂纹大"), names[1:], strict=True)))
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200)
    builder.setupNameTable({"familyName": "Three Squares", "styleName": "Regular"})
    builder.setupPost()
    path = tmp_path / "squares.ttf"
    builder.save(path)
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    known = font_manager.fontManager.ttflist
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*known])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "broken.ttf"), str(path)])
    return "Three Squares"


def drawn(caption: str) -> np.ndarray:
    return pictures.sheet([np.zeros((32, 32, 3), np.uint8)], [caption], [None])


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_in_a_font_that_has_them(own_font: str) -> None:
    """Boxes stood there, and a warning for each of them."""
    figure = figures.confusion_figure(np.eye(3, dtype=int), CLASSES, "裂纹")
    figures.to_data_uri(figure)
    labels = {label.get_text(): label.get_fontfamily() for label in figure.axes[0].get_yticklabels()}
    assert [own_font in families for families in labels.values()] == [False, True, True]
    assert own_font in figure.axes[0].title.get_fontfamily()
    assert [*labels] == CLASSES
    square, mark = drawn("裂 0.93"), drawn("? 0.93")
    assert square.shape == mark.shape
    assert (square[174:190, 10:22] == (31, 41, 51)).all(axis=2).sum() > 60  # ink: most of a square, 9 pixels wide
    letters, box = pictures.Letters(20), SimpleNamespace(kind="裂纹" * 20, score=0.9)
    assert pictures._name(box, letters, 300).endswith("… 0.90")
    assert letters.length("裂纹") == pytest.approx(40)


@pytest.mark.filterwarnings("error")
def test_one_line_says_what_to_do_where_no_font_has_them(no_font: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        figure = figures.confusion_figure(np.eye(3, dtype=int), CLASSES)
        figures.to_data_uri(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["good", "??_?", "?"]
    assert (drawn("裂 0.93") == drawn("? 0.93")).all()
    (line,) = caplog.messages
    assert "no font here has 大纹裂: pictures show ? instead" in line
    assert "apt install fonts-noto-cjk" in line


def test_wide_letters_take_the_place_of_two() -> None:
    assert figures.wrap("裂纹裂纹 ab", 4) == ["裂纹", "裂纹", "ab"]
    assert figures.wrap("裂" * 9, 6, 2) == ["裂裂裂", "裂裂…"]
    assert terminal.width_of(["裂纹", "abc"]) == 5
