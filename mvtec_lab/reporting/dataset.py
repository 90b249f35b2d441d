"""Write dataset.html: one self-contained page on the images of one data set or several; find the one of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import escape

from mvtec_lab.reporting.figures import to_data_uri
from mvtec_lab.reporting.pages import write_page
from mvtec_lab.results import RunResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "dataset.html"
HEAD = 64 * 1024  # characters of a page, at most, that say which data it describes


@dataclass(frozen=True)
class DataSet:
    """Hold what the page shows of a data set.

    Args:
        facts: those of ``tasks.describe``.
        protocol: how it is split, in words.
        marks: those of the facts' warnings that are said of the images, whatever is done with them.
        figure: the images of each class.
        pictures: class -> path -> uint8 RGB [H, W, 3].
        outlined: the paths of those in which a defect is outlined.
    """

    facts: Mapping[str, Any]
    protocol: str
    marks: Sequence[str]
    figure: Figure
    pictures: Mapping[str, Mapping[str, np.ndarray]]
    outlined: frozenset[str]


def write_dataset_page(sets: Sequence[DataSet], directory: Path) -> Path:
    """Write dataset.html, complete or not at all, and return its path."""
    path = directory / PAGE
    write_page(
        path,
        "dataset.html.j2",
        sets=[_shown(of) for of in sets],
        marks=dict.fromkeys(mark for of in sets for mark in of.marks),
        whole=lambda values: " / ".join(f"{value:,.0f}" for value in values),
        percent=lambda shares: " / ".join(f"{100 * share:.{1 if share < 0.1 else 0}f}" for share in shares) + "%",
    )
    return path


def page_of(run: RunResult, directory: Path) -> Path | None:
    """Return the page that describes a run's data: in a report's directory, or in its sweep's; None without one."""
    named = f'<meta name="data" content="{escape(f"{run.data}/{run.category}")}">'
    for folder in (directory, *Path(run.run_dir).absolute().parents[:2]):
        path = folder / PAGE
        if path.is_file() and not path.is_symlink():
            with path.open(encoding="utf-8", errors="replace") as file:
                if named in file.read(HEAD):
                    return path
    return None


def _shown(of: DataSet) -> dict[str, Any]:
    """Return what the template needs of a data set beside its facts."""
    facts, objects = of.facts, of.facts["objects"].values()
    return {
        "facts": facts,
        "title": f"{facts['data']}/{facts['category']}",
        "protocol": of.protocol,
        "totals": {split: sum(counts.values()) for split, counts in facts["classes_by_split"].items()},
        "idle": facts["images_found"] - facts["images_used"],
        "objects": sum(o["objects"] for o in objects),
        "marked": facts["images_marked"],
        "official": facts["official"] if facts["official"] != facts["found"] else None,
        "findings": [line for line in facts["warnings"] if line not in of.marks],
        "chart": to_data_uri(of.figure),
        "spoken": ", ".join(f"{name} {count}" for name, count in facts["counts"].items()),
        "examples": {
            name: {path: to_data_uri(picture) for path, picture in pictures.items()}
            for name, pictures in of.pictures.items()
        },
        "outlined": of.outlined,
    }
