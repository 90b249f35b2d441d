"""Render the lab's pages: self-contained HTML in one style, without scripts or addresses outside the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from mvtec_lab.reporting import summary
from mvtec_lab.reporting.attempts import Estimate
from mvtec_lab.results import GOOD, write_whole


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page, complete or not at all.

    Args:
        template: its file beside this one.
        values: what the template names.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # class names, paths and error texts come from files
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = summary.number
    environment.tests["estimate"] = lambda cell: isinstance(cell, Estimate)
    write_whole(path, environment.get_template(template).render(**values))


def protocol(settings: Mapping[str, str], counts: Mapping[str, Mapping[str, int]], drawn_from_all: bool) -> str | None:
    """Return how images were split, in words; None where the settings do not say it.

    Args:
        settings: dotted key -> value as text.
        counts: split -> class -> images.
        drawn_from_all: whether the pool holds all images, not those for testing alone.
    """
    train = counts.get("train", {})
    split = {key.removeprefix("split."): value for key, value in settings.items() if key.startswith("split.")}
    match split.get("protocol"):
        case None:
            return None
        case "kfold":
            text = f"{split['folds']}-fold cross-validation"
            if train.get(GOOD) and train[GOOD] == sum(train.values()):  # a one-class method
                return f"{text}, trained on train/good, {split['val']} of it held out for validation"
            text += f", validation {split['val']}"
        case "one_class":
            held_out = sum(counts.get("val", {}).values())
            return f"Trained on good images alone, {held_out} others held out for validation; tested on the test images"
        case "own":
            return f"The data set's own split; what it lacks is drawn: validation {split['val']}, test {split['test']}"
        case "file":
            return f"Split by {split['file']}"
        case _:
            text = f"Holdout, validation {split['val']}, test {split['test']}"
    pool = "all images" if drawn_from_all or split["pool"] == "all" else "the test folder"
    return f"{text} of {pool}" + ("" if split["per_class"] == "null" else f", {split['per_class']} images a class")
