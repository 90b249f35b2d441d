"""Where the curves of a run go besides its history.csv: TensorBoard, and by extra MLflow and Weights & Biases.

Light to import: a missing extra is named before PyTorch is imported.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mvtec_lab.checks import loggers_of
from mvtec_lab.config import Config
from mvtec_lab.errors import LabError
from mvtec_lab.foreign import read_json
from mvtec_lab.results import write_whole

log = logging.getLogger(__name__)

LOGGED = "loggers.json"  # in a run's directory: logger -> the name of its run there, with which a resumed run goes on
_DESCRIPTION = "mlflow.note.content"  # the tag that MLflow's page shows as the description of a run
_LONGEST = 5000  # letters of a tag: what MLflow's databases hold


def require_loggers(config: Config) -> None:
    """Check that what ``trainer.logger`` names is installed.

    Raises:
        LabError: it is not, with the extra that brings it.
    """
    for name in loggers_of(config.trainer.logger):
        if not _installed(name):
            raise LabError(f'trainer.logger={name} needs an extra: pip install "mvtec_lab[{name}]", or leave it out')


def note_verdict(directory: Path, verdict: Sequence[str]) -> None:
    """Write a sweep's verdict where its runs are logged: in MLflow as the description of each of them.

    In Weights & Biases the verdict is a run of its own in the sweep's group: one that has ended takes nothing more,
    unless it is online.

    Raises:
        LabError: a file that names a logger's run is damaged.
    """
    begun = [read_json(path) for path in sorted(directory.rglob(LOGGED)) if path.parent != directory]
    names, text = [name for of in begun if (name := of.get("mlflow"))], "\n".join(verdict)
    if names and _installed("mlflow"):
        _describe_in_mlflow(names, text[:_LONGEST])
    if any("wandb" in of for of in begun) and _installed("wandb"):
        _add_to_wandb(directory, text)


def _describe_in_mlflow(names: Sequence[str], text: str) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    try:
        for name in names:
            client.set_tag(name, _DESCRIPTION, text)
    except mlflow.MlflowException as error:
        log.warning("MLflow did not take the verdict: %s", str(error).splitlines()[0])


def _add_to_wandb(directory: Path, text: str) -> None:
    """Write the verdict into the run that a sweep has for it, as notes and summary; a later verdict replaces it."""
    import wandb

    path = directory / LOGGED
    begun = read_json(path).get("wandb") if path.exists() else None
    try:  # in the group of its runs, and where they go: see boards.py
        run = wandb.init(
            id=begun,
            name="verdict",
            job_type="verdict",
            notes=text,
            dir=directory,
            project=os.environ.get("WANDB_PROJECT", "mvtec_lab"),
            group=directory.resolve().name,
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings={"console": "off", "silent": True},
        )
        run.summary["verdict"] = text
        run.finish()
    except wandb.Error as error:
        log.warning("Weights & Biases did not take the verdict: %s", str(error).splitlines()[0])
        return
    write_whole(path, json.dumps({"wandb": run.id}) + "\n")


def _installed(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.origin is not None  # a folder of that name, as wandb leaves one, is no package
