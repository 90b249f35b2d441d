"""Set up what the command line logs: plain lines in the terminal, and run.log in every run's directory."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mvtec_lab.errors import redacted

CONSOLE = {"class": "logging.StreamHandler", "formatter": "plain", "level": "INFO", "filters": ["once"]}
FILE = {
    "class": f"{__name__}.RunLog",
    "formatter": "full",
    "filename": "${hydra.runtime.output_dir}/run.log",
    "delay": True,  # a run that cannot begin leaves no file
    "encoding": "utf-8",  # the system's, on Windows, lacks most letters
}


def logging_config(**handlers: dict[str, Any]) -> dict[str, Any]:
    """Return what Hydra hands to ``logging.config.dictConfig``, with these handlers."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "plain": {"class": f"{__name__}.Redacted", "format": "%(message)s"},
            "full": {"class": f"{__name__}.Redacted", "format": "%(asctime)s %(levelname)s %(name)s %(message)s"},
        },
        "filters": {"once": {"()": f"{__name__}.Once", "table": False}},
        "handlers": handlers,
        "loggers": {
            "mvtec_lab": {"level": "DEBUG"},  # tracebacks go to the file alone
            "pytorch_lightning": {"level": "WARNING"},  # its hints on devices would hide the lab's own lines
        },
        "root": {"handlers": list(handlers), "level": "INFO"},
    }


@contextmanager
def logging_restored() -> Iterator[None]:
    """Restore the handlers and levels that Hydra replaces: its own would write to streams that are closed by then."""
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, logging_config()["loggers"])]
    before, handlers = [logger.level for logger in loggers], list(root.handlers)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class Redacted(logging.Formatter):
    """Log no credential of a URL: Hydra logs the overrides of each job, and tracebacks contain them as well."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class Once(logging.Filter):
    """Print a run's warnings once.

    Args:
        table: a table that follows has the warnings; the terminal shows them there.
    """

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.table = table

    def filter(self, record: logging.LogRecord) -> bool:
        return not (self.table and hasattr(record, "in_table"))


class Printed(logging.Handler):
    """Collect the warnings that the terminal has shown, so that a table need not repeat them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "in_table"):
            self.lines.add(record.getMessage())


class RunLog(logging.FileHandler):
    """Write run.log; say once, in one line, if it cannot be written. The run fails if its results cannot be."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the file is opened here
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 # logging calls it so
        if not self.said:
            self.said = True
            print(f"warning: {self.baseFilename} is incomplete: {sys.exc_info()[1]}", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # of what it had still to write
            super().close()
