"""Name this machine, and refuse devices that it lacks, or nobody has, before PyTorch is imported. Light to import."""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from contextlib import suppress
from pathlib import Path

from mvtec_lab.config import TrainerConfig
from mvtec_lab.engine.threads import cores
from mvtec_lab.errors import LabError, unknown
from mvtec_lab.registry import written

# What Lightning knows; a test asks it. Its registries would have to be imported, and so would PyTorch.
ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps", "tpu")
_DDP = ("ddp", "ddp_fork", "ddp_notebook", "ddp_spawn")
STRATEGIES = (
    "auto",
    *_DDP,
    *(f"{name}_find_unused_parameters_{flag}" for name in _DDP for flag in ("false", "true")),
    "deepspeed",
    *(f"deepspeed_stage_{n}" for n in ("1", "2", "2_offload", "3", "3_offload", "3_offload_nvme")),
    *("fsdp", "fsdp_cpu_offload", "single_device", "single_tpu", "single_xla", "xla", "xla_debug"),
)
_GPU = ("auto", "cuda", "gpu")
_BUILD = re.compile(r"^(__version__|cuda|hip)\b[^=\n]*= *['\"]", re.MULTILINE)


def machine(root: Path = Path("/")) -> str:
    """Return the processor and the cores that this process may use: ``AMD EPYC 7763, 2 cores``.

    Args:
        root: of the file system, for tests.
    """
    name = platform.processor() or platform.machine() or "unknown processor"
    with suppress(OSError):  # Linux alone has the file, and on ARM no name in it
        known = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^model name\s*: (.+)$", known, re.MULTILINE):
            name = " ".join(found[1].split())
    return f"{name}, {cores()} core{'s' if cores() > 1 else ''}"


def look(trainer: TrainerConfig, here: bool = True) -> None:
    """Refuse an accelerator, strategy or precision that does not exist, or that this machine cannot have.

    Where PyTorch is imported already, this process may have registered names of its own: they are left to Lightning.

    Args:
        here: whether it is this machine that trains.

    Raises:
        LabError: the first one, with the key and what it takes.
    """
    if "torch" not in sys.modules:
        for key, name, known in (
            ("trainer.accelerator", trainer.accelerator, ACCELERATORS),
            ("trainer.strategy", trainer.strategy, STRATEGIES),
        ):
            if name not in known:
                raise unknown(key, name, known)
    if not here:
        return
    if trainer.precision.startswith("16") and (trainer.accelerator not in _GPU or without_gpu()):
        raise no_precision(trainer.precision)
    gpu = trainer.accelerator == "cuda" or (trainer.accelerator == "gpu" and sys.platform != "darwin")
    if gpu and without_gpu():
        raise LabError(
            f"trainer.accelerator={trainer.accelerator} cannot be used here: PyTorch finds no GPU (task=doctor says "
            "more): leave it out, or give trainer.accelerator=cpu"
        )


def no_precision(precision: str) -> LabError:
    """Return the error of a precision that a device does not have."""
    return LabError(f"this device does not have trainer.precision={precision}: give auto or 32")


def without_gpu() -> bool:
    """Tell whether it is certain that PyTorch finds no GPU but Apple's: it is built without, or no driver is there."""
    build = written("torch", "version.py", _BUILD)
    if "hip" in build or not build:
        return False
    if "cuda" not in build:
        return True
    try:  # by this name CUDA itself looks for it
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return True
    return False
