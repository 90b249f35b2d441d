"""The one exception that a user's mistake becomes, the near misses that answer a typo, and names on one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class LabError(Exception):
    """A mistake that the user can mend: one line that names the value, the file and the remedy (exit status 2)."""

    status = 2

    def __init__(self, message: object) -> None:
        super().__init__(redacted(str(message)))


class IncompleteError(LabError):
    """A part of the input could not be used; the rest was done and is written (exit status 1)."""

    status = 1


def redacted(text: str) -> str:
    """Hide what may be a credential in every URL of a text: user, password, the query's values and the fragment.

    >>> redacted("from https://me:secret@host/a.tar?token=abc&v=1")
    'from https://***@host/a.tar?token=***&v=***'
    """
    return _URL.sub(_hidden, text)


# scheme, user and password (which should have no slash, but may), host and path, query, fragment
_URL = re.compile(r"\b([a-z][a-z0-9+.-]{0,20}://)([^?#\s]*@)?([^?#\s]*)(?:\?([^#\s]*))?(?:#(\S*))?", re.IGNORECASE)


def _hidden(url: re.Match[str]) -> str:
    scheme, user, place, query, fragment = url.groups()
    values = "&".join(f"{part.partition('=')[0]}=***" if "=" in part else "***" for part in (query or "").split("&"))
    return f"{scheme}{'***@' if user else ''}{place}{f'?{values}' if query else ''}{'#***' if fragment else ''}"


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


def is_text(text: str) -> bool:
    """Whether a name can be written into a file as UTF-8: on Linux file names may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """The text on one line, with escapes where it is none."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
