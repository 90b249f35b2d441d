"""Choose with how many threads the command line computes, by what this machine has to spare. Light to import.

Two trainings that share two cores and start two threads each take twice as long as with one thread each. A library call
leaves the choice to PyTorch, which takes all cores.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

VARIABLE = "OMP_NUM_THREADS"  # which PyTorch, NumPy's and SciPy's libraries read when they are loaded
SHORTEST = 0.2  # seconds of measuring; the system counts in hundredths, so that less would be noise


class Usage(NamedTuple):
    """Hold what the processors have done so far, in seconds."""

    wall: float
    all: float  # of every process on this machine
    own: float  # of this one


class Threads(NamedTuple):
    """Hold a choice.

    Args:
        number: threads to compute with; None leaves it to the libraries, or to the environment.
        reason: the number and why, for the terminal: ``1 of 2 cores, others use 1.3``.
    """

    number: int | None
    reason: str


def usage() -> Usage:
    """Return the time that the processors of this machine have worked so far."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    inside = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted as user and nice already
    return Usage(time.monotonic(), sum(times) - idle - inside, time.process_time())


def choose(began: Usage) -> Threads:
    """Return the number of threads that finds free cores, at least one.

    Cores are those of this process, by affinity and by the quota of its control group. Busy is what other processes
    have used since ``began``, or the load average of the last minute where that is less: a command that has just ended
    is in the average still, one that has just begun is in the measurement alone.
    """
    if given := os.environ.get(VARIABLE):
        return Threads(None, f"{VARIABLE}={given}")
    mine, total = cores(), os.cpu_count() or 1
    busy = _busy(began)
    free = max(1, min(mine, round(total - busy)))
    if free >= _affinity():  # nothing to leave to others: PyTorch knows which of the cores are real ones
        return Threads(None, f"all {free} cores" if free > 1 else "the only core")
    count = min(free, psutil.cpu_count(logical=False) or free)
    why = [f"this process may use {mine}"] * (mine < total) + [f"others use {busy:.1f}"] * (free < mine)
    return Threads(count, f"{count} of {total} cores, {', '.join(why)} ({VARIABLE}=N sets another number)")


def cores() -> int:
    """Return the number of cores that this process may use, at least 1."""
    quota = cpu_quota()
    return _affinity() if quota is None else max(1, min(_affinity(), int(quota)))


def _affinity() -> int:
    with suppress(AttributeError):  # macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the cores that this process's control group may use on average; None without a limit.

    Args:
        root: of the file system, for tests.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return None
    quotas = []
    for line in groups:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":  # version 2
            quotas += [_quota_2(folder) for folder in _upwards(root / "sys/fs/cgroup", path)]
        elif "cpu" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / name for name in (controllers, "cpu")]
            quotas += [_quota_1(folder) for mount in mounts for folder in _upwards(mount, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _upwards(mount: Path, path: str) -> list[Path]:
    """Return the folders of a group and of those that it lies in; a container may see its own as the mount itself."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:k]) for k in range(len(parts), -1, -1)]


def _quota_2(folder: Path) -> float | None:
    with suppress(OSError, ValueError):  # "max 100000"
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return float(quota) / float(period)
    return None


def _quota_1(folder: Path) -> float | None:
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (
            float((folder / f"cpu.cfs_{what}_us").read_text(encoding="utf-8")) for what in ("quota", "period")
        )
        return quota / period if quota > 0 else None  # -1: no limit
    return None


def _busy(began: Usage) -> float:
    """Return how many cores other processes use."""
    now = usage()
    wall = now.wall - began.wall
    known = [psutil.getloadavg()[0]] if hasattr(os, "getloadavg") else []  # Windows has none
    if wall >= SHORTEST:
        known.append(max(now.all - began.all - (now.own - began.own), 0.0) / wall)
    return min(known, default=0.0)


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Compute with this number of threads for the duration of a block; None changes nothing.

    Libraries that are loaded within the block read it from the environment; PyTorch is told, if it is there already.
    """
    if threads is None:
        yield
        return
    before, given = _of_torch(threads), os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(threads)
    try:
        yield
    finally:
        _of_torch(before)
        os.environ.pop(VARIABLE)
        if given is not None:
            os.environ[VARIABLE] = given


def _of_torch(threads: int | None) -> int | None:
    """Set PyTorch's threads, where it is loaded, and return their number before."""
    torch: Any = sys.modules.get("torch")
    if torch is None or threads is None:
        return None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    return before
