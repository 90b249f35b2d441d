"""Turn a user's mistake into one line: the exception, the near misses of a typo, names without credentials."""

from __future__ import annotations

import difflib
import errno
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

# No room on the disk, the user's share of it used up, or a file larger than this process may write.
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quotas of that kind


class LabError(Exception):
    """Report a mistake that the user can correct: one line with the value and the remedy (exit status 2)."""

    status = 2
    word = "error"  # before its line

    def __init__(self, message: object) -> None:
        super().__init__(redacted(str(message)))


class IncompleteError(LabError):
    """Report that a part of the input could not be used; the rest is done and written (exit status 1)."""

    status = 1


class ChangedError(LabError):
    """Report that new images are unlike those of training; all is written (exit status 3)."""

    status = 3
    word = "changed"


class MissingWeights(LabError):  # noqa: N818 # it says what is the matter, not that something is
    """Report a file of weights that is not there; a sweep names those of all its jobs at once.

    Args:
        what: the file, and why it is not there.
        remedy: what to do; empty: ``what`` says it.
    """

    def __init__(self, what: object, remedy: str = "") -> None:
        super().__init__(f"{what}: {remedy}" if remedy else what)
        self.what, self.remedy = str(what), remedy

    @classmethod
    def of_all(cls, errors: Sequence[MissingWeights]) -> MissingWeights:
        """Return one error of several."""
        distinct = list({str(error): error for error in errors}.values())
        if len(distinct) == 1:
            return distinct[0]
        remedies = dict.fromkeys(error.remedy.replace("put it into", "put them into") for error in distinct)
        what = f"{len(distinct)} files of weights are missing: {'; '.join(error.what for error in distinct)}"
        return cls(what, "; ".join(filter(None, remedies)))


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


class DiskFullError(LabError):
    """Report a full disk: the file, what it needs and what is free (exit status 1)."""

    status = 1


def disk_full(error: BaseException, path: Path, needed: int | None = None) -> DiskFullError | None:
    """Return what to raise instead of an error that a full disk has caused; None if it has another cause.

    Args:
        path: the file that was written to, or its folder, if the error does not name it.
        needed: the file's bytes, if they are known.
    """
    cause: BaseException | None = error if isinstance(error, Exception) else None
    while cause is not None and not isinstance(cause, DiskFullError):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            path = Path(cause.filename2 or cause.filename or path).absolute()  # the second is what a copy writes
            free = shutil.disk_usage(next(p for p in (path, *path.parents) if p.is_dir())).free
            takes = "" if needed is None else f"it takes {_size(needed)}, and "
            missing = "" if needed is None or needed <= free else f" for {_size(needed - free)} more"
            return DiskFullError(
                f"{path} cannot be written: {takes}{_size(free)} are free ({cause.strerror}): make room{missing} (a "
                "training continues with resume=true), or give a directory on another disk"
            )
        cause = cause.__cause__ or cause.__context__
    return cause


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB" if count >= 1e3 else f"{count} bytes"


def unknown(what: str, name: object, known: Iterable[str]) -> LabError:
    """Return the error of a name that does not exist, with the nearest known names, or all of them if they are few.

    >>> unknown("optimizer", "adm", ["adam", "adamw", "sgd"]).args[0]
    "unknown optimizer 'adm': did you mean adam, adamw?"
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.6)
    if near:
        return LabError(f"unknown {what} {str(name)!r}: did you mean {', '.join(near)}?")
    shown = ", ".join(known[:20]) + (f" ... ({len(known)} in all)" if len(known) > 20 else "")
    return LabError(f"unknown {what} {str(name)!r}: known are {shown}")


def setting(key: str, value: str | Path) -> str:
    """Return ``key=value`` as it is typed: in quotes where a shell would part or expand it.

    >>> setting("data.root", "/data/my product [1]")
    '"data.root=/data/my product [1]"'
    """
    words = f"{key}={value}"
    return words if re.fullmatch(r"[\w./:=~+,@%-]+", words) else f'"{words}"'


def is_text(text: str) -> bool:
    """Tell whether a name can be written into a file as UTF-8: on Linux file names may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Return the text on one line, with escapes where it is none."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
