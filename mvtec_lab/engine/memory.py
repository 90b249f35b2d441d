"""The memory of the process: what the C library keeps, and the most that was held."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def keep_memory() -> None:
    """Let the C library keep what the network frees: the next step takes it again.

    glibc gives blocks of this size back at once, and the system has to clear each page of them anew: a fifth of a
    ResNet18's forward pass at 224 pixels on two cores. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: no block of a network's is larger
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the most it takes


def give_back_memory() -> None:
    """Give the system what the C library keeps although nothing is in it: ``keep_memory``'s end."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory(device: torch.device) -> Callable[[], float | None]:
    """Return a function that gives the most memory held at once from now on, in MiB; None where nobody counts it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    give_back_memory()  # what an earlier run of this process was let to keep is none of this one's
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the high-water mark starts anew
        if b"VmHWM" not in status.read_bytes():
            raise OSError
    except OSError:  # elsewhere that of the whole process, in bytes on a Mac
        try:
            import resource
        except ImportError:  # Windows
            return lambda: None
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return lambda: int(status.read_bytes().split(b"VmHWM:")[1].split()[0]) / 2**10
