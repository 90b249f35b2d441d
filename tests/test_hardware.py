"""What is known of devices before PyTorch is imported is what Lightning and PyTorch say afterwards."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.strategies import StrategyRegistry

from mvtec_lab.config import TrainerConfig
from mvtec_lab.engine import hardware
from mvtec_lab.engine.hardware import machine
from mvtec_lab.errors import LabError


def test_the_names_are_those_of_lightning() -> None:
    assert {*hardware.ACCELERATORS} == {"auto", "gpu", *AcceleratorRegistry.available_accelerators()}
    assert {*hardware.STRATEGIES} >= {"auto", *StrategyRegistry.available_strategies()}  # older ones have fewer


def test_where_a_gpu_is_ruled_out_there_is_none() -> None:
    assert not (hardware.without_gpu() and torch.cuda.is_available())


@pytest.mark.parametrize(
    ("build", "driver", "ruled_out"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", True, True),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None", True, False),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None", False, True),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'", False, False),
    ],
)
def test_a_gpu_is_ruled_out_by_the_build_or_the_driver(
    monkeypatch: pytest.MonkeyPatch, build: str, driver: bool, ruled_out: bool
) -> None:
    def load(name: str) -> None:
        if not driver:
            raise OSError(name)

    monkeypatch.setattr(
        hardware, "written", lambda package, files, pattern: pattern.findall(f"__version__ = '2.14'\n{build}\n")
    )
    monkeypatch.setattr(hardware.ctypes, "CDLL", load)
    assert hardware.without_gpu() is ruled_out


def test_what_this_machine_lacks_is_said_of_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "without_gpu", lambda: True)
    monkeypatch.setattr(sys, "platform", "linux")
    for trainer, said in (
        (TrainerConfig(accelerator="gpu"), r"trainer.accelerator=gpu cannot be used here: PyTorch finds no GPU"),
        (TrainerConfig(precision="16-mixed"), r"this device does not have trainer.precision=16-mixed: give auto or 32"),
    ):
        with pytest.raises(LabError, match=said):
            hardware.look(trainer)
        hardware.look(trainer, here=False)
    monkeypatch.setattr(sys, "platform", "darwin")  # whose GPU is Apple's
    hardware.look(TrainerConfig(accelerator="gpu"))
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(LabError, match=r"unknown trainer.strategy 'dpp': did you mean ddp"):
        hardware.look(TrainerConfig(strategy="dpp"), here=False)


def test_a_machine_has_the_name_of_its_processor(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: AMD  EPYC 7763\n\nmodel name\t: AMD  EPYC 7763\n"
    )
    assert re.fullmatch(r"AMD EPYC 7763, \d+ cores?", machine(tmp_path))
    assert re.fullmatch(r".+, \d+ cores?", machine(tmp_path / "none"))  # as on macOS and Windows
