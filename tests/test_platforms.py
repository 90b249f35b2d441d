"""Linux, macOS and Windows: what only one of them has is imported where it is used, and something stands in for it."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import pkgutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mvtec_lab
from mvtec_lab.engine import memory
from mvtec_lab.logs import FILE

# What Python has on POSIX systems alone, by its documentation.
POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
PACKAGE = Path(mvtec_lab.__file__).parent
MODULES = [m.name for m in pkgutil.walk_packages(mvtec_lab.__path__, "mvtec_lab.") if not m.name.endswith("__main__")]


@pytest.fixture
def no_posix(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows for the lab's modules; libraries import here what they need here."""
    whole = builtins.__import__

    def found(name: str, of: Any = None, *rest: Any, **options: Any) -> Any:
        if name in POSIX and str((of or {}).get("__name__", "")).startswith("mvtec_lab"):
            raise ImportError(f"no module named {name}")
        return whole(name, of, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", found)


EXTRAS = ("ultralytics",)  # what no test installs


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_imported_without_posix(no_posix, name: str) -> None:
    try:
        importlib.import_module(name)  # as the others find it
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        pytest.skip(f"{error.name} is not installed")
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # a second time, and nobody else sees it


def test_windows_counts_the_memory_of_the_whole_process(no_posix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "Path", lambda name: Path(f"/none{name}"))  # no /proc
    windows = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3 * 2**20))
    monkeypatch.setattr("psutil.Process", lambda: windows)
    assert memory.peak_memory(torch.device("cpu"))() == 3


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_text_files_name_their_encoding(path: Path) -> None:
    """Elsewhere it would be the system's, which on Windows lacks most letters."""
    for call in (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
            assert "encoding" in {keyword.arg for keyword in call.keywords}, f"{path}, line {call.lineno}"


def test_the_log_names_its_encoding() -> None:
    assert FILE["encoding"] == "utf-8"
