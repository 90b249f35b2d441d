"""task=describe: what is in a data set. Number and names of classes, images used, splits, dimensions, masks."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mvtec_lab.config import Config, validate
from mvtec_lab.data.catalogue import CATEGORIES, GOOD
from mvtec_lab.data.images import image_size, read_image, read_mask
from mvtec_lab.data.samples import Sample, classes_of
from mvtec_lab.data.splits import SPLITS
from mvtec_lab.data.transforms import resize
from mvtec_lab.reporting.figures import sheet
from mvtec_lab.tasks.outcome import write_picture
from mvtec_lab.tasks.setup import build_data

log = logging.getLogger(__name__)

TILE = 224  # pixels of an example on dataset.jpg


def describe(config: Config, run_dir: str | Path) -> dict[str, Any]:
    """Describe the data set and the split of a configuration: a table, dataset.json and dataset.jpg in ``run_dir``.

    Mask coverage is the share of an image's pixels that its mask marks. The imbalance ratio is the training images of
    the most frequent class over those of the rarest.
    """
    validate(config)
    data = build_data(config)
    used = [s for s in data.samples if s.split]
    sizes = Counter(image_size(data.folder / s.path) for s in data.samples)
    coverage = {
        name: [read_mask(data.folder / s.mask).mean() for s in data.samples if s.label == name and s.mask]
        for name in data.classes
    }
    counts = data.counts()
    train = counts["train"].values()
    official = CATEGORIES.get(data.folder.name) if config.data.name == "mvtec" else None
    facts = {
        "data": config.data.name,
        "category": data.folder.name,
        "folder": str(data.folder),
        "num_classes": data.num_classes,
        "classes": data.classes,
        "images_found": len(data.samples),
        "images_used": len(used),
        "split": vars(config.split),
        "classes_by_split": counts,
        "found": {
            "train/good": sum(s.path.startswith("train/") for s in data.samples),
            **{
                f"test/{name}": sum(s.label == name and s.path.startswith("test/") for s in data.samples)
                for name in classes_of(data.samples)
            },
        },
        "official": {"train/good": official.train, **{f"test/{k}": v for k, v in official.test.items()}}
        if official
        else None,
        "imbalance_ratio": max(train) / min(train),
        "dimensions": [{"width": w, "height": h, "mode": mode, "images": n} for (w, h, mode), n in sizes.most_common()],
        "mask_coverage": {
            name: {"images": len(c), "mean": float(sum(c) / len(c)), "min": float(min(c)), "max": float(max(c))}
            for name, c in coverage.items()
            if c
        },
        "warnings": data.warnings,
    }
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "dataset.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_picture(run_dir / "dataset.jpg", _examples(data.folder, used, data.classes))
    _print(facts, run_dir)
    return facts


def _examples(folder: Path, samples: list[Sample], classes: list[str]) -> Any:
    """An example of each class, the rim of its defect drawn where there is a mask."""
    import cv2
    import numpy as np

    pictures = []
    for name in classes:
        example = next(s for s in samples if s.label == name)
        picture = resize(read_image(folder / example.path), TILE).copy()
        if example.mask:
            mask = cv2.resize(
                read_mask(folder / example.mask).astype(np.uint8), (TILE, TILE), interpolation=cv2.INTER_AREA
            )
            rims, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, rims, -1, (255, 0, 0), 1)
        pictures.append(picture)
    return sheet(pictures, classes, [None] * len(classes), columns=min(5, len(classes)), tile=TILE)


def _print(facts: dict[str, Any], run_dir: Path) -> None:
    console = Console()
    title = f"{facts['data']}/{facts['category']}: {facts['num_classes']} classes, {facts['images_used']} images used"
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for column in (*SPLITS, "used", "share", "mask coverage"):
        table.add_column(column, justify="right")
    used = facts["images_used"]
    by_split = facts["classes_by_split"]
    once = [s for s in SPLITS if not (s == "val" and facts["split"]["val_is_test"])]
    for name in facts["classes"]:
        total = sum(by_split[split][name] for split in once)
        cover = facts["mask_coverage"].get(name)
        table.add_row(
            name,
            *(str(by_split[split][name]) for split in SPLITS),
            str(total),
            f"{total / used:.0%}",
            f"{cover['mean']:.1%} ({cover['min']:.1%} to {cover['max']:.1%})" if cover else "",
        )
    table.add_section()
    table.add_row("all", *(str(sum(by_split[split].values())) for split in SPLITS), str(used), "100%", "")
    console.print(table)
    sizes = ", ".join(f"{d['width']} x {d['height']} {d['mode']} ({d['images']})" for d in facts["dimensions"][:5])
    console.print(f"found     {', '.join(f'{k} {v}' for k, v in facts['found'].items())}", highlight=False)
    if facts["official"] and facts["official"] != facts["found"]:
        differ = [f"{k} {v}" for k, v in facts["official"].items() if facts["found"].get(k) != v]
        console.print(f"official  differs: {', '.join(differ)}", highlight=False)
    console.print(f"images    {sizes}", highlight=False)
    console.print(
        f"imbalance {facts['imbalance_ratio']:.2f} (most frequent class of train over the rarest), "
        f"{GOOD}: {by_split['train'].get(GOOD, 0)} of {sum(by_split['train'].values())} train",
        highlight=False,
    )
    for warning in facts["warnings"]:
        console.print(f"warning   {warning}", style="yellow", highlight=False, markup=False)
    console.print(f"written   {run_dir / 'dataset.json'}, {run_dir / 'dataset.jpg'}", highlight=False, soft_wrap=True)
