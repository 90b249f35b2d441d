"""Settings of the whole process: the command line makes them, library calls do not. Light to import."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds without a byte, for each address of a host in turn: a slow server answers within them, a firewall never does.
SILENCE = 10.0


@contextmanager
def command_line_settings() -> Iterator[None]:
    """Give up silent servers, for the duration of a block: downloads of weights have no other way to set a timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


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
