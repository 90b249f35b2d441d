"""task=doctor says what a machine has and lacks, with the remedy, whatever is broken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mvtec_lab import compose
from mvtec_lab.cli import main
from mvtec_lab.errors import IncompleteError
from mvtec_lab.tasks import doctor
from mvtec_lab.tasks.doctor import examine

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["Python", "packages", "extras", "PyTorch", "device", "threads", "data", "weights", "cache", "disk"]


def lines(said: str) -> dict[str, str]:
    return {line.split()[1]: line for line in said.splitlines()}


def test_every_line_says_what_there_is(product: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert main(["task=doctor"]) == 0
    said = lines(capsys.readouterr().out)
    assert list(said) == NAMES
    assert sys.executable in said["Python"]
    assert said["threads"].endswith("OMP_NUM_THREADS=3")
    folder = tmp_path / "torch/hub/checkpoints"
    own = "SAMPLE_V1 of shufflenet_v2_x1_0 for the sample, part of the lab"
    assert said["weights"] == f"ok    weights   {own}; no file in {folder}"
    assert "GB free for runs in" in said["disk"]
    assert not list(Path().iterdir())  # it leaves nothing behind

    real = ["task=doctor", "data=folder", f"data.root={product}", "cache.dir=null"]
    assert main(real) == 0
    said = lines(capsys.readouterr().out)
    assert said["weights"].startswith("note  weights   resnet18-f37072fd.pth of resnet18 is not there, no file in ")
    assert f"put it into {folder}, or give model.weights=FILE" in said["weights"]

    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").touch()
    assert main(real) == 0
    said = lines(capsys.readouterr().out)
    assert said["weights"] == f"ok    weights   resnet18-f37072fd.pth of resnet18, 1 file in {folder}"
    assert said["data"].startswith(f"ok    data      {product}; task=describe")
    assert said["cache"].startswith("note")


def test_what_stops_every_training_is_an_exit_status(tmp_path: Path, capsys) -> None:
    with pytest.raises(IncompleteError, match="nothing trains here before this is put right: data"):
        examine(compose("task=doctor", "data=folder", f"data.root={tmp_path / 'missing'}"), tmp_path)
    assert "LACKS data" in capsys.readouterr().out
    assert main(["task=doctor", "data=folder", f"data.root={tmp_path / 'missing'}"]) == 1
    assert list(lines(capsys.readouterr().out)) == NAMES


def test_packages_outside_the_ranges_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    wanted = {
        "Version": [],
        "Requires-Python": [">=2.7,<3"],
        "Provides-Extra": [],
        "Requires-Dist": ["numpy<1", "no-such-thing>=2", 'onnx; extra == "x"'],
    }
    monkeypatch.setattr(doctor, "_of_lab", wanted.__getitem__)
    monkeypatch.setattr(doctor, "ROOM", 1e18)
    with pytest.raises(IncompleteError, match=r"right: Python, packages$"):
        examine(compose("task=doctor"), tmp_path)
    said = lines(capsys.readouterr().out)
    assert "the lab needs >=2.7,<3" in said["Python"]
    assert "is not <1; no-such-thing is missing: make, or pip install" in said["packages"]
    assert "onnx" not in said["packages"]
    assert said["disk"].startswith("note")


def test_extras_are_named_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    of_lab = {
        "Provides-Extra": ["docs", "big", "gone", "nested", "old", "test", "yolo-world"],
        "Requires-Dist": [
            "rich>=1",
            'numpy>=1; extra == "big"',
            'mvtec_lab[big]; extra == "nested"',
            'pillow>=1; extra == "nested"',
            'no-such-thing>=2; extra == "gone"',
            'numpy<1; extra == "old"',
            'pytest; extra == "test"',
            'requests; extra == "yolo-world"',
        ],
    }
    monkeypatch.setattr(doctor, "_of_lab", of_lab.__getitem__)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    before = {*sys.modules}
    said = str(doctor._extras())
    assert said == (
        'ok    extras    installed: big, nested; not installed: gone, old (pip install "mvtec_lab[gone,old]", or those '
        'you need), yolo-world (pip install "mvtec_lab[yolo-world]" && pip install --no-deps ultralytics==8.4.190)'
    )
    assert not {"requests", "ultralytics"} & ({*sys.modules} - before)
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    of_lab["Provides-Extra"] = ["big", "test"]
    assert str(doctor._extras()) == "ok    extras    installed: big"


@pytest.mark.parametrize(
    ("cuda", "hip", "usable", "said"),
    [
        ("13.0", None, True, "1 GPU: Instinct MI300X, 192 GiB, by CUDA 13.0"),
        (None, "6.4", True, "1 GPU: Instinct MI300X, 192 GiB, by ROCm 6.4"),
        (
            "13.0",
            None,
            False,
            "an AMD GPU that PyTorch, built for CUDA 13.0, cannot use: install the PyTorch of https:",
        ),
        (None, None, False, "an AMD GPU that PyTorch, built for the CPU, cannot use"),
    ],
)
def test_an_amd_gpu_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None, hip: str | None, usable: bool, said: str
) -> None:
    torch = SimpleNamespace(
        version=SimpleNamespace(cuda=cuda, hip=hip),
        cuda=SimpleNamespace(
            is_available=lambda: usable,
            device_count=lambda: 1,
            get_device_name=lambda i: "Instinct MI300X",
            get_device_properties=lambda i: SimpleNamespace(total_memory=192 * 2**30),
        ),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False)),
    )
    monkeypatch.setattr(doctor, "NVIDIA", tmp_path / "none")
    monkeypatch.setattr(doctor, "AMD", tmp_path)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert said in str(doctor._device(torch))


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line where PyTorch is broken, in an empty folder."""
    for name in ("torch", "torchvision"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("raise OSError('libcudart.so.12: cannot open it')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    environment.pop("OMP_NUM_THREADS", None)
    (tmp_path / "here").mkdir()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mvtec_lab", *words]
        return subprocess.run(command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_what_takes_seconds_is_said_first(broken: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for words, begins in [
        ((), "importing PyTorch ..."),
        (("-m", "seed=0,1"), "importing PyTorch, then checking 2 job"),
    ]:
        process = broken(*words)
        first, answer = process.stderr.splitlines()
        assert process.returncode == 2
        assert first.startswith(begins)
        assert "   threads: " in first
        assert answer.startswith("error: task=train cannot be imported (OSError: libcudart.so.12: cannot open it)")
        assert answer.endswith(": task=doctor says what is lacking")


def test_it_works_where_torch_cannot_be_imported(broken: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    process = broken("task=doctor")
    assert process.returncode == 1
    said = lines(process.stdout)
    assert list(said) == NAMES
    assert said["PyTorch"].startswith("LACKS PyTorch   torch cannot be imported (OSError: libcudart.so.12:")
    assert "make, or pip install -c constraints.txt -e ." in said["PyTorch"]
    assert process.stderr == "error: nothing trains here before this is put right: PyTorch\n"


def test_a_python_without_the_lab_s_packages_says_how_to_install(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-m", "mvtec_lab", "task=doctor"]  # -S: without site-packages
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: hydra is not installed for {sys.executable}: make installs the lab")
    assert process.stderr.count("\n") == 1
