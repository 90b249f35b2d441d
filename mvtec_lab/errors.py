"""The one exception that a user's mistake becomes, and the near misses that answer a typo."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabError(Exception):
    """A mistake that the user can mend: one line that names the value, the file and the remedy (exit status 2)."""


def unknown(what: str, name: object, known: Iterable[str]) -> LabError:
    """The answer to a name that does not exist: the nearest known names, or all of them where they are few.

    >>> unknown("optimizer", "adm", ["adam", "adamw", "sgd"]).args[0]
    "unknown optimizer 'adm': did you mean adam, adamw?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.6)
    if near:
        return LabError(f"unknown {what} {str(name)!r}: did you mean {', '.join(near)}?")
    shown = ", ".join(known[:20]) + (f" ... ({len(known)} in all)" if len(known) > 20 else "")
    return LabError(f"unknown {what} {str(name)!r}: known are {shown}")
