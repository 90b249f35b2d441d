"""Lightning's Trainer on the devices of a configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from mvtec_lab.config import Config
from mvtec_lab.engine.hardware import no_precision
from mvtec_lab.engine.process import without_hints
from mvtec_lab.errors import LabError

ONE = (1, "1", [0])  # values of trainer.devices that mean a single device


@contextmanager
def process_restored() -> Iterator[None]:
    """Set up the process for a run, and restore what it changes: environment, PyTorch's threads and determinism."""
    environment, threads = dict(os.environ), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    # With determinism PyTorch fills each new tensor before it is written to: 1,300 more kernels per step of a ResNet50.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def precision(config: Config) -> str:
    """Return the Trainer's precision: the configuration's, or the fastest that the device has.

    Raises:
        LabError: the device does not have the precision asked for.
    """
    wanted, gpu = config.trainer.precision, on_gpu(config)
    bf16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return "bf16-mixed" if bf16 else "16-mixed" if gpu else "32"
    if (wanted.startswith("16") and not gpu) or (wanted.startswith("bf16") and gpu and not bf16):
        raise no_precision(wanted)
    return wanted


def on_gpu(config: Config) -> bool:
    """Return whether a configuration trains on a GPU of this machine."""
    return torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda")


def build_trainer(config: Config, **kwargs: Any) -> pl.Trainer:
    """Return Lightning's Trainer on the devices of a configuration.

    Raises:
        LabError: a device, strategy or precision that this machine does not have.
    """
    t = config.trainer
    # Plain DDP refuses parameters without a gradient: stages before the warm-up's end, a linear layer beside retrieval
    # alone, and the stages that stop once the groups of group_softmax train.
    resting = config.model.warmup_epochs > 0 or config.model.head == "retrieval" or config.loss.name == "group_softmax"
    rests = t.strategy in ("auto", "ddp") and t.devices not in ONE and resting
    try:
        with without_hints("pytorch_lightning"):
            return pl.Trainer(
                accelerator=t.accelerator,
                devices=t.devices,
                strategy="ddp_find_unused_parameters_true" if rests else t.strategy,
                precision=precision(config),  # type: ignore[arg-type]
                # On a GPU some kernels are deterministic only on request; on a CPU all that are used here are.
                deterministic="warn" if torch.cuda.is_available() else None,
                use_distributed_sampler=False,  # EpochSampler shares the images out itself
                num_sanity_val_steps=0,
                enable_model_summary=False,
                **kwargs,
            )
    except (MisconfigurationException, ImportError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise LabError(
            f"trainer.accelerator={t.accelerator} trainer.devices={t.devices} trainer.strategy={t.strategy} "
            f"cannot be used here: {reason}"
        ) from error


def check_devices(config: Config) -> int:
    """Return the number of devices.

    Raises:
        LabError: devices, a strategy or a precision that this machine does not have.
    """
    return build_trainer(config, logger=False, enable_checkpointing=False, enable_progress_bar=False).num_devices
