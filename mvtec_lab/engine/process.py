"""Settings of the whole process: the command line makes them, library calls do not. Light to import."""

from __future__ import annotations

import gc
import logging
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds without a byte, for each address of a host in turn: a slow server answers within them, a firewall never does.
SILENCE = 10.0


@contextmanager
def command_line_settings(trains: bool = False) -> Iterator[None]:
    """Make the command line's settings of the process for the duration of a block; ``keep_memory`` stays.

    Downloads of weights give up a silent server: PyTorch's loader has no setting of its own for that.

    Args:
        trains: whether a network is trained by gradient, which keeps its memory.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    if trains:
        keep_memory()
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def keep_memory() -> None:
    """Let the C library keep what a network frees, for the next step to take again; this cannot be undone.

    glibc gives blocks of this size back at once, and the system has to clear each of their pages again: a fifth of a
    ResNet18's forward pass at 224 pixels on two cores. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        import ctypes  # a command line that trains nothing does without

        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: no block of a network is larger
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the most it takes


_jobs = 0  # that began in this process


def spare_imports() -> None:
    """Leave what a process has imported out of garbage collection from its second job on, of which it is told here.

    A run collects what the one before it left, which took longer than to fit a small model: the collector walked
    through all of PyTorch. By the second job all is imported.
    """
    global _jobs
    _jobs += 1
    if _jobs == 2 and not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@contextmanager
def without_hints(*names: str) -> Iterator[None]:
    """Log only warnings and errors of these loggers, for the duration of a block.

    Args:
        names: of the loggers, which pass their level on to those below them.
    """
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
