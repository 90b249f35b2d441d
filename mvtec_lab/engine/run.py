"""What a run of any problem leaves of itself: its inputs, its log for TensorBoard, what it ran on."""

from __future__ import annotations

import os
import platform
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger

from mvtec_lab.config import Config
from mvtec_lab.data.datamodule import MVTecDataModule
from mvtec_lab.errors import redacted
from mvtec_lab.results import CONFIG, SAMPLES, RunResult, write_csv, write_whole


def write_inputs(config: Config, data: MVTecDataModule, result: RunResult) -> None:
    run_dir = Path(result.run_dir)
    write_whole(run_dir / CONFIG, as_yaml(config))
    rows = sample_rows(data, result)
    write_csv(run_dir / SAMPLES, rows, list(rows[0]))


def as_yaml(config: Config) -> str:
    """The configuration as it is shown and kept: without the credentials of the archive's address."""
    archive = config.data.archive
    shown = replace(config, data=replace(config.data, archive=None if archive is None else redacted(archive)))
    return OmegaConf.to_yaml(OmegaConf.structured(shown))


def sample_rows(data: MVTecDataModule, result: RunResult) -> list[dict[str, Any]]:
    digests = data.contents()
    return [
        {
            "path": s.path,
            "label": s.label,
            "split": s.split,
            "fold": result.fold,
            "group": s.group,
            "mask": s.mask,
            "digest": digests[s.path],
            "mask_digest": digests[s.mask] if s.mask else None,
        }
        for s in data.samples
    ]


class RunLogger(TensorBoardLogger):
    def save(self) -> None:
        """Without hparams.yaml: config.yaml says more."""
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Close the events; where a run failed, its own error counts, not that they cannot be written."""
        with suppress(OSError) if status == "failed" else nullcontext():
            super().finalize(status)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's hints that do not apply here, by what they say."""
    hints = (
        "does not have many workers",  # nothing to gain at a few dozen small images
        "smaller than the logging interval",
        "exists and is not empty",  # the run's own config.yaml
        "in eval mode at the start",  # frozen stages stay there on purpose
        "`training_step` returned `None`",  # a vote of neighbours has nothing to train
        "LeafSpec",  # Lightning's own use of PyTorch
    )
    with warnings.catch_warnings():
        for hint in hints:
            warnings.filterwarnings("ignore", f".*{hint}.*")
        yield


def versions() -> dict[str, str]:
    """Of Python and the libraries that results depend on."""
    names = ("mvtec_lab", "torch", "torchvision", "pytorch-lightning", "torchmetrics", "albumentations", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a bare checkout is not installed
            found[name] = "not installed"
    return found


def git_revision() -> str | None:
    """Of the checkout that this package runs from; None where it is installed."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", "-C", os.fspath(here)]  # status would rewrite the index
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if dirty else "")
