"""Go on with a watched folder whose task=predict was stopped or killed: no image is judged twice, none left out."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mvtec_lab.data.incoming import VERSION
from mvtec_lab.errors import LabError
from mvtec_lab.foreign import damaged, read_json
from mvtec_lab.results import CONFIG, PREDICTED, PREDICTIONS, read_csv


@dataclass(frozen=True)
class Before:
    """Hold what was judged before.

    Args:
        rows: of predictions.csv.
        columns: of its header; empty where there is none yet.
        images: the version of each file that was judged, by its absolute path: one that changed since, or while it
            waited to be judged, is judged again.
        begun: whether there is a predictions.csv, perhaps without a row.
    """

    rows: Sequence[Mapping[str, str]] = ()
    columns: Sequence[str] = ()
    images: Mapping[Path, str] = field(default_factory=dict)
    begun: bool = False


def judged_before(run_dir: Path, ckpt: str, source: Path) -> Before | None:
    """Return what a task has judged in a directory before; None where it has not begun there.

    A row that a power cut has left without its end is removed: its image is judged again.

    Args:
        ckpt: the checkpoint that judges now.
        source: the folder that is watched now.

    Raises:
        LabError: another checkpoint or another folder was used, or the files are damaged.
    """
    path, described = run_dir / PREDICTIONS, run_dir / PREDICTED
    if not path.is_file() or (run_dir / CONFIG).exists():  # a run has a table of that name, too
        return None
    if not path.stat().st_size:
        return Before(begun=True)
    about = read_json(described)
    if not isinstance(about, dict) or not isinstance(about.get("directory"), str):
        raise damaged(described, "it is not what task=predict writes")
    now = {"ckpt": str(Path(ckpt).absolute()), "root": str(source.absolute())}
    if other := next((key for key in now if about.get(key) != now[key]), None):
        raise LabError(
            f"{run_dir} was begun with {about.get(other)}, not with {now[other]}: give another directory, "
            "hydra.run.dir=NEW_FOLDER"
        )
    data = path.read_bytes()
    if (whole := data.rfind(b"\n") + 1) < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    try:
        rows = read_csv(path) if whole else []
    except (ValueError, csv.Error) as error:
        raise damaged(path, error) from error
    if any(row.get("path") is None for row in rows):
        raise damaged(path, "a row has no path")
    images = {(Path(about["directory"]) / row["path"]).absolute(): row.get(VERSION) or "" for row in rows}
    return Before(rows, list(rows[0]) if rows else [], images, begun=True)
