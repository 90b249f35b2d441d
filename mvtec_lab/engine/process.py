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
def without_hints() -> Iterator[None]:
    """Silence Lightning's hints for the duration of a block: they would hide what the lab reports."""
    lightning = logging.getLogger("pytorch_lightning")
    before = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        yield
    finally:
        lightning.setLevel(before)
