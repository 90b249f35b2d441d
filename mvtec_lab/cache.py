"""Arrays that are made once and then mapped from disk: one ``.npy`` file an entry, named by what went into it.

An entry is complete or not there: it is written under another name and renamed, so that readers, other writers and a
kill in the middle never meet. A checksum of all bytes stands behind the array, where NumPy does not look: an entry that
does not match it is made again. A cache can be deleted at any time; a caller that gets no array does without, with the
same result.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mvtec_lab.progress import bar

log = logging.getLogger(__name__)

STALE = 600.0  # seconds without a write, after which an unfinished file belongs to a process that is no more
FORMAT = 2  # of an entry's file; counted up when it changes, so that entries of before are not met
CHECKSUM = 4  # bytes: CRC-32, at 7 GB a second far faster than a disk
# Nothing else in the folder is ever touched, whatever folder somebody may name.
_ENTRY, _UNFINISHED = re.compile(r".*_[0-9a-f]{20}\.npy"), re.compile(r".*_[0-9a-f]{20}_[0-9a-f]{32}\.tmp")
_verified: set[tuple[str, int, int, int]] = set()  # entries are read whole once, not by every run of a sweep
_said: set[str] = set()  # every trouble is said once, not by every run of a sweep


@dataclass(frozen=True)
class Entry:
    """Describe one array of a cache folder; sizes in bytes, ``used`` in seconds since the epoch."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    used: float


class ArrayCache:
    """Keep arrays in a folder of bounded size: what was used least recently makes room.

    Args:
        folder: made when the first array is written.
        max_gb: bound of the whole folder, in 10^9 bytes.
    """

    def __init__(self, folder: str | Path, max_gb: float = 10.0) -> None:
        self.folder, self.max_bytes = Path(folder).expanduser(), int(max_gb * 1e9)

    def get(
        self, name: str, key: Any, rows: int, dtype: str, blocks: Callable[[], Iterable[np.ndarray]]
    ) -> np.ndarray | None:
        """Return the array [rows, ...] that belongs to ``key``, mapped from disk; None where it cannot be kept there.

        Args:
            name: what it holds, for a person who reads the folder.
            key: everything that the content depends on, as JSON takes it.
            blocks: makes the array, in consecutive pieces [n, ...]; whatever it raises leaves no entry.
        """
        digest = hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()[:20]
        path = self.folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}_{digest}.npy"
        array = self._open(path, rows, np.dtype(dtype))
        if array is None and self._write(path, name, rows, np.dtype(dtype), blocks):
            array = self._open(path, rows, np.dtype(dtype))
        return array

    def entries(self) -> list[Entry]:
        """Return what lies in the folder, the most recently used first; damaged files have no shape."""
        entries = []
        for path in self._files(_ENTRY):
            try:
                array = np.load(path, mmap_mode="r")
                shape, dtype = array.shape, str(array.dtype)
            except (OSError, ValueError, EOFError):
                shape, dtype = (), "damaged"
            stat = path.stat()
            entries.append(Entry(path, shape, dtype, stat.st_size, stat.st_mtime))
        return sorted(entries, key=lambda entry: -entry.used)

    def clear(self) -> int:
        """Delete every entry, unfinished ones included; returns the bytes set free."""
        freed = 0
        for path in [*self._files(_ENTRY), *self._files(_UNFINISHED)]:
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
        return freed

    def _files(self, pattern: re.Pattern[str]) -> list[Path]:
        return [path for path in self.folder.glob("*") if pattern.fullmatch(path.name)]

    def _open(self, path: Path, rows: int, dtype: np.dtype) -> np.ndarray | None:
        if not path.exists():
            return None
        try:
            _verify(path)
            # "c": pages are the file's until written to, which nobody does; PyTorch wants an array that could be.
            array = np.load(path, mmap_mode="c")
            if len(array) != rows or array.dtype != dtype:
                raise ValueError(f"{len(array)} rows of {array.dtype.str}, not {rows} of {dtype.str}")
        except (OSError, ValueError, EOFError, TypeError) as error:
            self._say(f"{path} is damaged ({' '.join(str(error).split())}): it is made again")
            return None
        with suppress(OSError):  # a folder of somebody else's may well be read
            os.utime(path)  # the least recently used goes first
            _verified.add(_stamp(path))  # it has changed now
        return array

    def _write(
        self, path: Path, name: str, rows: int, dtype: np.dtype, blocks: Callable[[], Iterable[np.ndarray]]
    ) -> bool:
        partial = None
        new = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.stem}_{uuid.uuid4().hex}.tmp")
            with partial.open("xb") as file, bar() as progress:
                task, written, checksum = progress.add_task(f"caching {name}", total=rows), 0, 0
                for block in blocks():
                    if not written:
                        if not self._make_room(block[0].nbytes * rows + 128 + CHECKSUM, name):  # 128: the header
                            return False
                        header = io.BytesIO()
                        shape = (rows, *block.shape[1:])
                        np.lib.format.write_array_header_1_0(
                            header, {"descr": dtype.str, "fortran_order": False, "shape": shape}
                        )
                        file.write(header.getvalue())
                        checksum = zlib.crc32(header.getvalue())
                    values = np.ascontiguousarray(block, dtype).data
                    file.write(values)
                    checksum = zlib.crc32(values, checksum)
                    written += len(block)
                    progress.advance(task, len(block))
                file.write(checksum.to_bytes(CHECKSUM, "little"))
                file.flush()
                os.fsync(file.fileno())  # or a power cut after the renaming leaves a file of zeros
            partial.replace(path)
            partial = None
        except OSError as error:
            self._say(f"{self.folder} cannot be written ({error.strerror or error}): going on without it")
            return False
        finally:
            if partial is not None:
                partial.unlink(missing_ok=True)
                with suppress(OSError):  # another process has put something there
                    for folder in new:
                        folder.rmdir()
        return True

    def _make_room(self, needed: int, name: str) -> bool:
        for path in self._files(_UNFINISHED):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink(missing_ok=True)
        if needed > self.max_bytes:
            self._say(f"{name} takes {needed / 1e9:.3g} GB, more than cache.max_gb: going on without")
            return False
        entries = self.entries()
        total = sum(entry.bytes for entry in entries)
        while entries and total + needed > self.max_bytes:
            oldest = entries.pop()
            oldest.path.unlink(missing_ok=True)  # a process that has it mapped keeps it until it is done
            total -= oldest.bytes
        if shutil.disk_usage(self.folder).free < needed:
            self._say(f"{self.folder} has no room for {name} ({needed / 1e9:.3g} GB): going on without")
            return False
        return True

    @staticmethod
    def _say(trouble: str) -> None:
        if trouble not in _said:
            _said.add(trouble)
            log.warning("cache: %s", trouble)


def _verify(path: Path) -> None:
    """Compare an entry with its checksum, once a process for a file that stays as it is.

    Raises:
        ValueError: they do not match.
    """
    stamp = _stamp(path)
    if stamp in _verified:
        return
    checksum, left = 0, stamp[1] - CHECKSUM
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        if file.read() != checksum.to_bytes(CHECKSUM, "little"):
            raise ValueError("its checksum does not match")
    _verified.add(stamp)


def _stamp(path: Path) -> tuple[str, int, int, int]:
    stat = path.stat()
    return str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino
