"""What make does, without installing anything, and the commands that are printed for the shell that ran it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mvtec_lab.reporting.summary import curves

REPOSITORY = Path(__file__).resolve().parents[1]
TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a package index, and its folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()


def offer(folder: Path, package: str, version: str, build: str = "%2Bcpu", tag: str = TAG) -> None:
    (folder / package).mkdir(exist_ok=True)
    name = f"{package}-{version}{build}-{tag}-{tag}-manylinux_2_28_x86_64.whl"
    (folder / package / "index.html").write_text(f'<a href="/whl/{name}">{name}</a>')


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the registry's wheels are small")
def test_cpu_wheels_are_taken_where_the_index_offers_both_and_no_gpu_is_there(
    index: tuple[str, Path], tmp_path: Path
) -> None:
    address, folder = index
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("numpy==2\ntorch==2.14.1\ntorchvision==0.29.1\n")

    def asked(path: str = str(tmp_path), url: str = address) -> tuple[str, str]:
        command = [sys.executable, REPOSITORY / ".ci/torch_index", url, constraints]
        process = subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=True)
        return process.stdout.strip(), process.stderr

    if not Path("/dev/nvidia0").exists():
        offer(folder, "torch", "2.14.1")
        assert asked()[0] == ""
        assert "does not answer" in asked()[1]  # of torchvision there is no page
        for build, tag in [("", TAG), ("%2Bcu130", TAG), ("%2Bcpu", "cp27")]:
            offer(folder, "torchvision", "0.29.1", build, tag)
            assert asked() == ("", f"PyTorch with CUDA: {address} has no torchvision 0.29.1 for the CPU\n")
        offer(folder, "torchvision", "0.29.1")
        assert asked() == (address, f"PyTorch for the CPU alone, from {address}\n")
        assert asked(url="http://127.0.0.1:1")[0] == ""
    assert asked(url="") == ("", "the registry's PyTorch\n")
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    assert asked() == ("", "PyTorch with CUDA: there is an NVIDIA GPU\n")


@needs_make
@pytest.mark.parametrize("uv", [True, False])
def test_make_says_what_it_does_and_takes_uv_where_there_is_one(tmp_path: Path, uv: bool) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    if uv:
        (tmp_path / "uv").touch(mode=0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin"}

    def plan(*words: str) -> str:
        command = ["make", "-n", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    said = plan()
    assert "installing into .venv: one to four minutes" in said
    pip = said.index(".venv/bin/python -m pip install")  # also the way out where uv fails
    assert ("uv pip install --python .venv/bin/python" in said[:pip]) is uv
    assert said.count("-c constraints.txt -e '.'") == 1 + uv
    assert "https://download.pytorch.org/whl/cpu" in said
    assert "torch_index '' constraints.txt" in plan("TORCH_INDEX=")
    assert "-e '.[test]'" in plan("fast")
    assert "make shell" in said


@needs_make
@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])
def test_make_shell_finds_the_programs_of_the_environment(tmp_path: Path, shell: str) -> None:
    if not Path(shell).exists():
        pytest.skip(f"there is no {shell}")
    home, tmp_path = tmp_path, tmp_path / "my lab"
    tmp_path.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    (programs / "python").touch(mode=0o755)
    (programs / "tensorboard").write_text("#!/bin/sh\necho this one\n")
    (programs / "tensorboard").chmod(0o755)
    (tmp_path / ".venv/installed").touch()
    (home / ".bashrc").write_text("PATH=/usr/bin:/bin\n")
    environment = {**os.environ, "SHELL": shell, "HOME": str(home)}
    process = subprocess.run(
        ["make", "shell"], cwd=tmp_path, env=environment, input="tensorboard\nexit\n", capture_output=True, text=True
    )
    assert "this one" in process.stdout, process.stderr


def test_the_curves_are_shown_by_a_program_that_the_shell_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "my lab/.venv/bin"
    programs.mkdir(parents=True)
    (programs / "tensorboard").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    assert curves("outputs/a b") == "'my lab/.venv/bin/tensorboard' --logdir 'outputs/a b'"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert curves("x") == f"'{programs / 'tensorboard'}' --logdir x"
    monkeypatch.setenv("PATH", str(programs))  # as in a shell of .venv
    assert curves("x") == "tensorboard --logdir x"
    (programs / "tensorboard").unlink()  # a Python without it: the name says what is missing
    assert curves("x") == "tensorboard --logdir x"
