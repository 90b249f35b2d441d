"""Where the curves of a run go besides its history.csv: TensorBoard, and by extra MLflow and Weights & Biases.

Light to import: a missing extra is named before PyTorch is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mvtec_lab.config import Config, loggers_of
from mvtec_lab.errors import LabError
from mvtec_lab.foreign import read_json

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
    """Write a sweep's verdict into the runs that it has in MLflow, as their description.

    Weights & Biases takes nothing for a run that has ended, unless it is online.

    Raises:
        LabError: a file that names a logger's run is damaged.
    """
    files = sorted(directory.rglob(LOGGED))
    names = [name for path in files if (name := read_json(path).get("mlflow"))]
    if not names or not _installed("mlflow"):
        return
    import mlflow

    client = mlflow.MlflowClient()
    try:
        for name in names:
            client.set_tag(name, _DESCRIPTION, "\n".join(verdict)[:_LONGEST])
    except mlflow.MlflowException as error:
        log.warning("MLflow did not take the verdict: %s", str(error).splitlines()[0])


def _installed(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.origin is not None  # a folder of that name, as wandb leaves one, is no package
