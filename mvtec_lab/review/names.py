"""Check the name of a class, which becomes a folder on any system."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from mvtec_lab.data.layouts.base import MASKS
from mvtec_lab.errors import LabError, is_text

LONGEST = 60  # letters: a folder's name and an image's stay below the 255 bytes that file systems take
_FORBIDDEN = set('/\\:*?"<>|')
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}  # of Windows


def class_name(given: object, known: Iterable[str]) -> str:
    """Return a class's name as it is kept.

    Args:
        given: what somebody typed.
        known: the names that there are.

    Raises:
        LabError: it cannot be a folder's name, or differs from a known one by upper and lower case alone.
    """
    if not isinstance(given, str):
        raise LabError("label is no text: give a class's name")
    known = set(known)
    if given in known:
        return given
    name = " ".join(unicodedata.normalize("NFC", given).split())
    if name in known:
        return name
    if not name or len(name) > LONGEST:
        raise LabError(f"a class's name has 1 to {LONGEST} letters, not {len(name)}")
    odd = sorted({c for c in name if c in _FORBIDDEN or not c.isprintable()})
    if odd or not is_text(name):
        raise LabError(f"{name!r} cannot be a folder's name: leave out {' '.join(odd) or 'what is no text'}")
    stem = name.partition(".")[0].strip().casefold()
    if name[0] == "." or name[-1] == "." or stem in _DEVICES or name.casefold() == MASKS:
        raise LabError(f"{name!r} cannot be a folder's name on every system: give another one")
    if alike := next((other for other in known if other.casefold() == name.casefold()), None):
        raise LabError(f"{name!r} differs from {alike!r} by upper and lower case alone: take {alike!r}")
    return name
