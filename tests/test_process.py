"""Library calls leave the process as it was; what changes it is the command line's."""

from __future__ import annotations

import gc
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mvtec_lab.cli import main
from mvtec_lab.engine import process
from mvtec_lab.engine.devices import process_restored

BASE = "attempt=base model.backbone=squeezenet1_1"
ROOT = Path(__file__).resolve().parents[1]
LOOK = """
import json, logging, os, signal, socket, sys, warnings

def look():
    import cv2, torch
    loggers = logging.root.manager.loggerDict.items()
    return {
        "levels": {name: log.level for name, log in loggers if isinstance(log, logging.Logger)},
        "root": [logging.root.level, len(logging.root.handlers), logging.root.manager.disable],
        "environment": dict(os.environ),
        "timeout": socket.getdefaulttimeout(),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads(), cv2.getNumThreads()],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "hook": str(sys.excepthook),
        "warnings": len(warnings.filters),
    }

import pytorch_lightning, sklearn, tensorboard, torchvision  # what importing these changes is theirs
before, settings, folder = look(), sys.argv[1].split(), sys.argv[2]
import ctypes
whole, opened = ctypes.CDLL, []
ctypes.CDLL = lambda name, *more: opened.append(name) or whole(name, *more)
import mvtec_lab
from mvtec_lab.problems.model import load_model
mvtec_lab.DefectClassifier, mvtec_lab.MVTecDataModule
imported = look()
config = mvtec_lab.compose(*settings)
mvtec_lab.run_attempt(config, folder)
load_model(folder + "/best.ckpt")
print(json.dumps([before, imported, look(), opened.count(None)]))
"""


@pytest.mark.slow  # a process that imports all libraries
@pytest.mark.parametrize("attempt", [BASE, "attempt=autoencoder"])
def test_an_import_and_a_run_leave_the_process_as_it_was(attempt: str, product: Path, tmp_path: Path) -> None:
    settings = (
        f"{attempt} data=folder data.root={product.parent} data.category={product.name} data.image_size=32 "
        "cache.dir=null model.weights=null trainer.max_epochs=1 trainer.accelerator=cpu"
    )
    if "autoencoder" in attempt:  # it has no weights
        settings = settings.replace(" model.weights=null", "")
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LOOK, settings, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, imported, after, trimmed = json.loads(done.stdout.splitlines()[-1])
    levels = before.pop("levels")
    for state in (imported, after):
        of_libraries = {name: level for name, level in state.pop("levels").items() if not name.startswith("mvtec_lab")}
        assert {name: of_libraries[name] for name in levels} == levels  # others come with their libraries
        assert state == before
    # The C library was never asked to keep memory; to give some back, only where memory is watched.
    assert trimmed == ("autoencoder" in attempt)


def test_the_command_line_keeps_memory_and_restores_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(process, "keep_memory", lambda: kept.append(True))
    before = socket.getdefaulttimeout()
    with process.command_line_settings(trains=True):
        assert socket.getdefaulttimeout() == process.SILENCE
    with process.command_line_settings():
        pass
    assert socket.getdefaulttimeout() == before
    assert kept == [True]


def test_the_command_line_restores_handlers_and_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(name) for name in (None, "mvtec_lab", "pytorch_lightning")]
    monkeypatch.setattr(loggers[2], "level", logging.ERROR)
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    assert main(["task=cache", f"cache.dir={tmp_path}"]) == 0
    assert [(logger.handlers, logger.level) for logger in loggers] == before


def test_only_a_training_by_gradient_keeps_memory(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(process, "keep_memory", lambda: kept.append(True))
    assert lab("attempt=gaussian", "model.options.layers=[features.relu2]", "hydra.run.dir=once") == 0
    assert not kept
    assert lab("attempt=base", "trainer.max_epochs=1", "hydra.run.dir=run") == 0
    assert kept == [True]


def test_what_lightning_changes_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEPT", "before")
    threads, fill = torch.get_num_threads(), torch.utils.deterministic.fill_uninitialized_memory
    with process_restored():
        assert not torch.utils.deterministic.fill_uninitialized_memory
        os.environ["LAB_KEPT"], os.environ["LAB_NEW"] = "during", "1"
        torch.set_num_threads(threads + 1)
        torch.use_deterministic_algorithms(True, warn_only=True)
    assert os.environ["LAB_KEPT"] == "before"
    assert "LAB_NEW" not in os.environ
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == fill


def test_imports_are_no_garbage_from_the_second_job_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run collects what is left of the one before: among all modules that took longer than a small fit."""
    monkeypatch.setattr(process, "_jobs", 0)
    gc.unfreeze()  # as the suite leaves it
    try:
        process.spare_imports()
        assert not gc.get_freeze_count()
        process.spare_imports()
        assert gc.get_freeze_count()
    finally:
        gc.freeze()
