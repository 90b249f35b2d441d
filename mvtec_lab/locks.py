"""Lock a run's directory: one process works there, and others can see that it does.

The lock is the system's, and ends with its process in any case. Windows and most network file systems have no such
lock, and a machine may not see another one's. So the process leaves a sign as well, a file that says who works there
and is touched every few seconds: a process that cannot see the lock goes by the sign's age.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mvtec_lab.errors import LabError, disk_full

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SIGN = "running.json"
LOOK = 0.05  # seconds; in_use holds the lock for microseconds
BEAT = 5.0  # seconds between two touches of a sign
# Seconds after which an untouched sign counts for nothing: clocks of two machines differ by a minute at most, and a
# network file system shows a change up to a minute late.
GONE = 150.0


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
    descriptor = _opened(run_dir)
    try:
        looked_again = False
        while (locked := _locked(descriptor, exclusive=True)) is False or _signed(run_dir, trusted=bool(locked)):
            if looked_again and not wait:
                raise LabError(
                    f"{run_dir} is in use by another process{_by(run_dir)}: wait for it, or give another directory"
                )
            time.sleep(LOOK)
            looked_again = True
        with _sign(run_dir, bool(locked)):
            yield
    finally:
        _close(descriptor)


def in_use(run_dir: Path) -> bool:
    """Tell whether a process works in a run's directory, on this machine or on another one."""
    try:
        descriptor = _opened(run_dir)
    except OSError:  # it does not exist, or may not be read
        return False
    try:
        locked = _locked(descriptor, exclusive=False)
    finally:
        _close(descriptor)
    return locked is False or _signed(run_dir, trusted=bool(locked))


def _opened(run_dir: Path) -> int | None:
    return None if fcntl is None else os.open(run_dir, os.O_RDONLY)


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough: worker processes share the descriptor
        os.close(descriptor)


def _locked(descriptor: int | None, exclusive: bool) -> bool | None:
    """Take a lock and return True; False where another process has it; None where the file system has no locks."""
    if descriptor is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def _sign(run_dir: Path, locked: bool) -> Iterator[None]:
    """Leave a sign in a directory while this process works there, and touch it."""
    path, over = run_dir / SIGN, threading.Event()

    def touch() -> None:
        while not over.wait(BEAT):
            with suppress(OSError):  # a network that is away: the sign ages, the run goes on
                os.utime(path)

    partial = path.with_name(f"{SIGN}.{os.getpid()}.tmp")
    sign = {"host": platform.node(), "pid": os.getpid(), "system": _system(), "pids": _pids(), "locked": locked}
    with suppress(OSError):  # a full disk ends the run with its own line
        partial.write_text(json.dumps(sign), encoding="utf-8")
        partial.replace(path)
    thread = threading.Thread(target=touch, name="sign of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for left in (partial, path):
            with suppress(OSError):
                left.unlink(missing_ok=True)


def _signed(run_dir: Path, trusted: bool) -> bool:
    """Tell whether the sign in a directory is that of a process which works there.

    Args:
        trusted: this process has got the lock, so that no other one of this system has it.
    """
    sign = _read(run_dir)
    try:
        age = time.time() - (run_dir / SIGN).stat().st_mtime
    except OSError:
        return False
    if age > GONE or sign is None:
        return False
    if sign.get("system") != _system():
        return True
    if sign.get("locked") and trusted:
        return False
    if sign.get("pids") != _pids():  # another container, whose processes are not seen
        return True
    return age < 3 * BEAT if os.name == "nt" else _alive(sign.get("pid"))


def _by(run_dir: Path) -> str:
    """Return who has left the sign in a directory, in brackets; nothing where it cannot be read."""
    sign = _read(run_dir)
    if sign is None:
        return ""
    elsewhere = "" if sign.get("system") == _system() else f"; if it has ended, it is free after {GONE:.0f} s"
    return f" ({sign.get('pid')} on {sign.get('host')}{elsewhere})"


def _read(run_dir: Path) -> dict[str, Any] | None:
    try:
        sign = json.loads((run_dir / SIGN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return sign if isinstance(sign, dict) else None


def _alive(pid: Any) -> bool:
    """Tell whether a process of this machine exists; not for Windows, where signal 0 is Ctrl-C."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _system() -> str:
    """Return what the processes have in common that see each other's locks: a kernel that runs."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return platform.node()


def _pids() -> str:
    """Return what the processes have in common that see each other: on Linux a namespace, which a container has."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 # it leads to no file
    except OSError:
        return ""
