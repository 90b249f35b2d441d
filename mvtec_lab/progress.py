"""The progress bar of everything that takes more than a few seconds."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress


def bar() -> Progress:
    """Return a progress bar on stderr, which shows nothing where stderr is no terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_interactive)
