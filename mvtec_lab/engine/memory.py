"""The most memory that a run held."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch


def give_back_memory() -> None:
    """Give the system the memory that the C library keeps and does not use, as ``keep_memory`` lets it."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory(device: torch.device) -> Callable[[], float]:
    """Return a function that returns the most memory held at once since this call, in MiB.

    On the CPU of another system than Linux it is the most since the process began.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) / 2**20
    give_back_memory()  # an earlier run of this process may have left some
    status = Path("/proc/self/status")
    try:  # psutil can neither reset Linux's high-water mark nor read it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        if b"VmHWM" in status.read_bytes():
            return lambda: int(status.read_bytes().split(b"VmHWM:")[1].split()[0]) / 2**10
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return lambda: psutil.Process().memory_info().peak_wset / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # a Mac counts bytes
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
