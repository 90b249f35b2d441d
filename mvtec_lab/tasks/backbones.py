"""List what model.backbone takes (task=backbones), with stages and weights."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mvtec_lab.config import Config
from mvtec_lab.models.backbones import build, input_size, names, stages
from mvtec_lab.models.weights import weights_names


def list_backbones(config: Config, run_dir: str | Path) -> list[str]:
    """Print every backbone with its parameters, stages (what model.unfreeze takes) and named weights."""
    table = Table(title="model.backbone", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("parameters", justify="right")
    table.add_column("size", justify="right")
    table.add_column("stages (model.unfreeze)")
    table.add_column("weights (model.weights)")
    for name in names():
        with torch.device("meta"):  # shapes without memory
            model = build(name, 2)
        parts = stages(model)
        table.add_row(
            name,
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M",
            str(input_size(model) or "any"),
            ", ".join(parts) if len(parts) <= 7 else f"{parts[0]}, {parts[1]} ... {parts[-1]}",
            ", ".join(weights_names(name)),
        )
    Console().print(table)
    return names()
