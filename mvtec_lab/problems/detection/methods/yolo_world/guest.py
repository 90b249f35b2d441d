"""Let ultralytics work in this process, and leave the process as it was."""

from __future__ import annotations

import importlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from mvtec_lab.engine.devices import process_restored
from mvtec_lab.engine.process import without_hints
from mvtec_lab.problems.detection.methods.yolo_world import PACKAGE, require

_REPLACED = [(owner, name) for owner, name in ((torch, "save"), (cv2, "imread"), (cv2, "imwrite"), (cv2, "imshow"))]
_settings = tempfile.TemporaryDirectory(prefix=f"{PACKAGE}-", ignore_cleanup_errors=True)  # removed with the process


@contextmanager
def guest() -> Iterator[None]:
    """Allow imports and calls of ultralytics within a block.

    It looks names up in the network, installs packages that it lacks and writes settings into the user's folder: it is
    told not to. It also replaces functions of other libraries and changes their settings: these are put back, and so
    are the states of random generators.

    Raises:
        LabError: it is not installed.
    """
    require()
    functions = [(owner, name, getattr(owner, name)) for owner, name in _REPLACED if hasattr(owner, name)]
    threads, numpy_prints = cv2.getNumThreads(), np.get_printoptions()
    torch_prints = dict(vars(torch._tensor_str.PRINT_OPTS))  # PyTorch can set them in public, but not tell them
    safe = torch.serialization.get_safe_globals()
    with process_restored(), warnings.catch_warnings(), isolate_rng():
        os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="0")
        os.environ.setdefault("YOLO_CONFIG_DIR", _settings.name)
        try:
            _import_silently()
            with without_hints(PACKAGE):
                yield
        finally:
            for owner, name, function in functions:
                setattr(owner, name, function)
            cv2.setNumThreads(threads)
            np.set_printoptions(**numpy_prints)
            torch.set_printoptions(**torch_prints)
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(safe)


def _import_silently() -> None:
    """Import it; a first import tells of new settings before anybody can ask it not to."""
    logger = logging.getLogger(PACKAGE)
    logger.addFilter(_only_warnings)
    try:
        importlib.import_module(PACKAGE)
    finally:
        logger.removeFilter(_only_warnings)


def _only_warnings(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
