"""List what the cache holds (task=cache), or delete all of it (task=clear_cache)."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mvtec_lab.cache import ArrayCache, Entry
from mvtec_lab.checks import validate
from mvtec_lab.config import Config
from mvtec_lab.errors import LabError


def list_cache(config: Config, run_dir: str | Path) -> list[Entry]:
    """Print every array of ``config.cache.dir``, the most recently used first."""
    cache = _cache(config)
    entries = cache.entries()
    table = Table(title=f"{cache.folder}", title_justify="left")
    table.add_column("what", overflow="fold")
    for name in ("rows", "one row", "MB"):
        table.add_column(name, justify="right")
    table.add_column("last used")
    for entry in entries:
        row = " x ".join(map(str, entry.shape[1:])) + f" {entry.dtype}" if entry.shape else entry.dtype
        rows = f"{entry.shape[0]:,}" if entry.shape else ""
        what = entry.path.stem.rpartition("_")[0].replace("_", " ")
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(what, rows, row, f"{entry.bytes / 1e6:,.1f}", used)
    Console().print(table)
    total = sum(entry.bytes for entry in entries) / 1e9
    print(f"{total:.3f} of {config.cache.max_gb:g} GB (cache.max_gb); task=clear_cache deletes all of it")
    return entries


def clear_cache(config: Config, run_dir: str | Path) -> int:
    """Delete every array of ``config.cache.dir`` and return the bytes set free."""
    cache = _cache(config)
    freed = cache.clear()
    print(f"{freed / 1e6:,.1f} MB of {cache.folder} deleted")
    return freed


def _cache(config: Config) -> ArrayCache:
    validate(config)
    if config.cache.dir is None:
        raise LabError("cache.dir=null is no cache: give cache.dir=FOLDER")
    return ArrayCache(config.cache.dir, config.cache.max_gb)
