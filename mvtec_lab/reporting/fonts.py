"""Write names in any script: with Matplotlib's own font, and in the system's fonts what that one lacks.

Chinese, Japanese and Korean are what it lacks most. No font is brought along: each of them is larger than the lab.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # both take a third of a second that only those who draw need pay
    from matplotlib.figure import Figure
    from PIL import ImageDraw, ImageFont

log = logging.getLogger(__name__)

# How the files of fonts begin that are made for these scripts, on Linux, macOS and Windows, the best first.
_KNOWN = (
    "notosanscjk", "notosanssc", "notosansjp", "notosanskr", "notosanstc", "sourcehansans", "wqy-", "pingfang",
    "hiragino", "applesdgothicneo", "msyh", "yugoth", "meiryo", "malgun", "simhei", "msgothic", "msjh", "nanum", "ipa",
    "takao", "droidsansfallback",
)  # fmt: skip
_STYLED = re.compile(r"bold|italic|oblique|black|thin|light|medium|heavy|condensed|serif", re.IGNORECASE)
_UNFIT = re.compile(r"LastResort|Emoji", re.IGNORECASE)  # boxes for every character; pictures that cannot be scaled
UNKNOWN = "?"  # in place of a character that no font has
REMEDY = (
    "install one (Debian, Ubuntu: apt install fonts-noto-cjk; Fedora: dnf install google-noto-sans-cjk-fonts), or put "
    "the file of one into ~/.local/share/fonts"
)


def lettered(figure: Figure) -> Figure:
    """Give every text of a figure the fonts that have its characters, as far as any has, and return the figure."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if text.get_text().isascii():  # Matplotlib's own font has these, and most of the others
            continue
        if paths := {path for path, _ in pieces(text.get_text())} - {_own()}:
            text.set_fontfamily([*text.get_fontfamily(), *sorted(map(_family, paths))])
    return figure


class Letters:
    """Write lines with Pillow at one size, each character in a font that has it.

    Args:
        size: in pixels.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def length(self, line: str) -> float:
        """Return how wide a line is, in pixels."""
        return sum(font.getlength(part) for font, part in self._runs(line))

    def extent(self, draw: ImageDraw.ImageDraw, line: str, **stroke: Any) -> tuple[float, float, float, float]:
        """Return x0, y0, x1 and y1 of what a line covers, in pixels from the beginning of its base line."""
        boxes, x = [], 0.0
        for font, part in self._runs(line):
            boxes.append(draw.textbbox((x, 0), part, font, anchor="ls", **stroke))
            x += font.getlength(part)
        starts, ends = zip(*((box[:2], box[2:]) for box in boxes or [(0, 0, 0, 0)]), strict=True)
        (x0, y0), (x1, y1) = (map(min, zip(*starts, strict=True)), map(max, zip(*ends, strict=True)))
        return x0, y0, x1, y1

    def write(
        self, draw: ImageDraw.ImageDraw, place: tuple[float, float], line: str, colour: str, **stroke: Any
    ) -> None:
        """Write a line whose base line begins at a place."""
        x, y = place
        for font, part in self._runs(line):
            draw.text((x, y), part, colour, font, anchor="ls", **stroke)
            x += font.getlength(part)

    def _runs(self, line: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        return [(_truetype(path, self.size), part) for path, part in pieces(readable(line))]


def readable(text: str) -> str:
    """Return a text with ``?`` for each character that no font has; the log says so once."""
    unknown = {letter for letter, path in _homes(text).items() if path is None and letter.isprintable()}
    if unknown and not _complained:
        _complained.update(unknown)
        log.warning("no font here has %s: pictures show %s instead: %s", "".join(sorted(unknown)), UNKNOWN, REMEDY)
    return "".join(UNKNOWN if letter in unknown else letter for letter in text)


def pieces(text: str) -> list[tuple[Path, str]]:
    """Return a text in pieces, each with the file of a font that has its characters."""
    homes = _homes(text)
    return [(path, "".join(part)) for path, part in groupby(text, lambda letter: homes[letter] or _own())]


_complained: set[str] = set()
_known: dict[str, Path | None] = {}  # character -> the file of a font that has it; None: none has


def _homes(text: str) -> dict[str, Path | None]:
    """Return the file of the first font that has it for each character of a text."""
    from matplotlib.ft2font import FT2Font

    missing = {*text} - _known.keys()
    for path in (_own(), *(_fonts() if not text.isascii() else ())):
        if missing:
            with suppress(Exception):  # FreeType answers damage in many ways
                font = FT2Font(str(path))
                here = {letter for letter in missing if font.get_char_index(ord(letter))}
                _known.update(dict.fromkeys(here, path))
                missing -= here
    _known.update(dict.fromkeys(missing))
    return {letter: _known[letter] for letter in text}


@cache
def _own() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")


@cache
def _fonts() -> tuple[Path, ...]:
    """Return the system's fonts, the likeliest first."""
    from matplotlib import font_manager

    def rank(path: Path) -> tuple[int, bool, str]:
        place = next((i for i, name in enumerate(_KNOWN) if path.name.lower().startswith(name)), len(_KNOWN))
        return place, bool(_STYLED.search(path.name)), path.name

    paths = (Path(name) for name in font_manager.findSystemFonts())
    return tuple(sorted((path for path in paths if not _UNFIT.search(path.name)), key=rank))


@cache
def _truetype(path: Path, size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(path, size)


@cache
def _family(path: Path) -> str:
    """Return a font's name; Matplotlib learns of it where its list is older than the font."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    if all(Path(entry.fname) != path for entry in fontManager.ttflist):
        fontManager.addfont(str(path))
    return str(FT2Font(str(path)).family_name)
