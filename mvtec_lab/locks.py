"""Lock a run's directory: one process works there, and others can see that it does.

The lock is the system's: it needs no file, and ends with its process in any case. Windows and some network file systems
have no such lock: there no process is kept out, and none is seen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mvtec_lab.errors import LabError, disk_full

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOOK = 0.05  # seconds; in_use holds the lock for microseconds


@contextmanager
def held(run_dir: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a directory while this process writes there, so that others keep out.

    Args:
        run_dir: is created where it does not exist.
        wait: until another process has finished.

    Raises:
        LabError: another process holds it and ``wait`` is false, or the directory cannot be created.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{run_dir} cannot be written ({error.strerror}): give hydra.run.dir=FOLDER"
        raise disk_full(error, run_dir) or LabError(reason) from error
    if fcntl is None:
        yield
        return
    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        looked_again = False
        while not _locked(descriptor, fcntl.LOCK_EX):
            if looked_again and not wait:
                raise LabError(f"{run_dir} is in use by another process: wait for it, or give another directory")
            time.sleep(LOOK)
            looked_again = True
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: worker processes share the descriptor
        os.close(descriptor)


def in_use(run_dir: Path) -> bool:
    """Tell whether a process works in a run's directory."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(run_dir, os.O_RDONLY)
    except OSError:  # it does not exist, or may not be read
        return False
    try:
        return not _locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    """Take a lock and return True; False where another process has it; True where the file system has no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
