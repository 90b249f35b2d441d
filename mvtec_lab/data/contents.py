"""Compare the files of a run with those of later: digests of images and masks by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mvtec_lab.data.images import digests
from mvtec_lab.data.samples import Sample
from mvtec_lab.errors import LabError

# Path below the product folder -> digest of the file's bytes; empty for a file that takes no part, which is not read.
Contents = Mapping[str, str]


def contents_of(folder: Path, samples: Sequence[Sample], used: Sequence[Sample]) -> dict[str, str]:
    """Return the contents of all ``samples``, images and masks, of which ``used`` take part.

    Raises:
        LabError: a file that cannot be read.
    """
    read = [path for sample in used for path in (sample.path, sample.mask) if path]
    known = dict(zip(read, digests([folder / path for path in read]), strict=True))
    return {path: known.get(path, "") for sample in samples for path in (sample.path, sample.mask) if path}


def contents_listed(rows: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return the contents that the rows of a samples.csv list."""
    listed: dict[str, str] = {}
    for row in rows:
        listed[row["path"]] = row["digest"]
        if row["mask"]:
            listed[row["mask"]] = row["mask_digest"]
    return listed


def require_same(folder: Path, now: Contents, then: Contents, whose: str, remedy: str) -> None:
    """Compare the files of a folder with earlier ones; digests are compared where both are known.

    Raises:
        LabError: a file is gone, is new, or has other contents.
    """
    changes = [f"{path} is gone" for path in then if path not in now]
    changes += [f"{path} is new" for path in now if path not in then]
    changes += [f"{path} has changed" for path in now if now[path] and then.get(path) and now[path] != then[path]]
    if changes:
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        raise LabError(f"{folder} holds other files than {whose}: {changes[0]}{more}: {remedy}")
