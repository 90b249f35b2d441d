"""The folder of a task is whole or absent, and what a killed process left is taken over."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mvtec_lab.engine.folder import whole_folder
from mvtec_lab.errors import LabError

NAMES = ("a.txt", "config.yaml", "marker.json")


def fill(run_dir: Path, text: str) -> None:
    with whole_folder(run_dir, "marker.json") as folder:
        for name in NAMES:
            (folder / name).write_text(text)


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that is killed at one point is a fork")
@pytest.mark.parametrize("moved", range(len(NAMES)))
def test_the_same_command_works_after_a_kill(moved: int, tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        move, count = Path.replace, iter(range(len(NAMES)))

        def replace(self: Path, target: Path) -> Path:
            if Path(target).name in NAMES and next(count) == moved:
                os.kill(os.getpid(), signal.SIGKILL)
            return move(self, target)

        Path.replace = replace  # type: ignore[method-assign, assignment]
        fill(tmp_path / "out", "old")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not files(tmp_path / "out")["marker.json"]  # it is not complete
    fill(tmp_path / "out", "new")
    assert files(tmp_path / "out") == dict.fromkeys(NAMES, "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "out", "marker.json") as folder:
            (folder / "a.txt").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not files(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_of_two_at_once_one_is_refused_and_what_is_complete_stays(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out", "marker.json") as folder:
        with pytest.raises(LabError, match="in use by another process"):
            fill(tmp_path / "out", "second")
        for name in NAMES:
            (folder / name).write_text("first")
    with pytest.raises(LabError, match="holds another run"):
        fill(tmp_path / "out", "third")
    assert files(tmp_path / "out") == dict.fromkeys(NAMES, "first")
