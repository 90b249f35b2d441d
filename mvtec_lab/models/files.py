"""Tell from a file's first bytes and its end whether PyTorch can have written it. Light to import."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mvtec_lab.errors import LabError

_ARCHIVE, _PICKLE = b"PK\x03\x04", b"\x80"  # how files begin that PyTorch writes, and wrote before version 1.6


def check_file(path: Path, source: str, archive: bool = False) -> None:
    """Refuse a file that is cut off, or that PyTorch cannot have written; what it holds is not looked at.

    Args:
        source: what the error calls it.
        archive: older files than those of PyTorch 1.6 are refused as well: the lab has never written one.

    Raises:
        LabError: as above, or it cannot be read.
    """
    if not path.is_file():  # reading a pipe might never end
        raise LabError(f"{source} is a folder, a pipe or another special file: give a checkpoint or a file of weights")
    try:
        with path.open("rb") as file:
            start = file.read(len(_ARCHIVE))
        whole = zipfile.is_zipfile(path)  # an archive's end says what is in it
    except OSError as error:
        reason = error.strerror or error
        raise LabError(f"{source} cannot be read ({reason}): give a checkpoint or a file of weights") from error
    if start == _ARCHIVE and not whole:
        raise LabError(f"{source} is incomplete, its end is missing: copy or fetch it again")
    if not whole and (archive or not start.startswith(_PICKLE)):
        reason = "it begins otherwise" if start else "it is empty"
        if archive:
            raise LabError(
                f"{source} is damaged or no checkpoint ({reason}): give a run's best.ckpt, its directory or a sweep's"
            )
        raise damaged(source, reason)


def damaged(source: str, reason: object) -> LabError:
    """Return the error of a file that cannot be read."""
    return LabError(
        f"{source} is damaged or was not written by PyTorch ({reason}): copy or fetch it again, or train that run again"
    )
