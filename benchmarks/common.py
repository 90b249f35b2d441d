"""What every benchmark needs: its options, a fresh process for each piece, the machine's description and a table.

Nothing here imports torch: the process that starts the measured ones stays small and idle.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

README = Path(__file__).with_name("README.md")
SAMPLED = 0.02  # seconds between two looks at the memory


def options(description: str | None) -> argparse.Namespace:
    """The command line, the same for every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data-root", default=os.environ.get("MVTEC_ROOT"), help="holds bottle/; else the sample")
    parser.add_argument("--repeats", type=int, default=3, help="of every variant; the table shows medians")
    parser.add_argument("--epochs", type=int, default=5, help="of a run, the sweep of four apart")
    parser.add_argument("--grid-epochs", type=int, default=30, help="of the sweep of four attempts")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 1_000, 10_000], help="of growth")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has anomalib, for anomaly")
    return parser.parse_args()


def nulls(description: str | None, default: int, batch: int) -> int:
    """The command line of a simulation: how many pairs of equal attempts a cell has, in whole batches."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--nulls", type=int, default=default, help="pairs of equal attempts of a cell: fewer are rough")
    return -(-int(parser.parse_args().nulls) // batch) * batch


@dataclass
class Measured:
    """What a function returned, and the peaks of its process in MiB."""

    value: Any
    anonymous: float  # what the process allocated; mapped cache files are the kernel's to take back
    resident: float  # those included, as far as they were read


def fresh(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Measured:
    """Call a module's function in a new Python process, so that no cache and no memory of another call is there."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        wall, measured = timed(pool.submit(_measure, function, args, kwargs).result)
    print(f"{function.__name__.strip('_')}: {wall:.0f} s, imports included", file=sys.stderr)
    return measured


def _measure(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Measured:
    # Imports are measured by themselves (startup), so that here they are done before the clock starts.
    import torchvision  # noqa: F401

    import mvtec_lab.tasks.train  # noqa: F401

    logging.disable(logging.WARNING)  # what the lab says of its epochs and weights is no result of a benchmark
    warnings.simplefilter("ignore")
    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLED):
            peak = max(peak, _status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        value = function(*args, **kwargs)
    finally:
        done.set()
        watcher.join()
    return Measured(value, peak, _status("VmHWM"))


def _status(field: str) -> float:
    """A size from Linux's account of this process, MiB; VmHWM is ru_maxrss without what a parent process had."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else float("nan")


def data_overrides(root: str | None) -> list[str]:
    """MVTec's bottle where it is at hand, else the built-in sample, at the same image size."""
    if root and (Path(root) / "bottle").is_dir():
        return ["data=mvtec", f"data.root={Path(root).resolve()}", "data.category=bottle"]
    return ["data.image_size=224", "data=sample"]  # 224: as MVTec's


@cache
def model(backbone: str) -> tuple[str | None, list[str]]:
    """The weights that it starts from, IMAGENET1K_V1 where at hand, and the lab's overrides that say so."""
    weights = fresh(weights_at_hand, backbone).value
    return weights, [f"model.backbone={backbone}", f"model.weights={weights or 'null'}"]


def weights_at_hand(backbone: str) -> str | None:
    import torch
    from torchvision.models import get_model_weights

    entry = get_model_weights(backbone)["IMAGENET1K_V1"]
    return entry.name if (Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name).is_file() else None


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[float, Any]:
    """Wall seconds of a call, and what it returned."""
    began = time.perf_counter()
    value = function(*args, **kwargs)
    return time.perf_counter() - began, value


def later(epochs: Sequence[float]) -> float:
    """The median epoch without the first, in which loaders start and a cold cache is made."""
    return median(epochs[1:] or epochs)


def _text(cell: str | float) -> str:
    """Of a cell; numbers have three significant digits, or all before the point."""
    return cell if isinstance(cell, str) else f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


@cache
def machine() -> str:
    """Where and with what this was measured, in one line."""
    return fresh(_machine).value


def _machine() -> str:
    import torch

    from mvtec_lab.tasks.train import versions

    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        f"{torch.get_num_threads()} torch threads, {torch.backends.cpu.get_cpu_capability()}",
        *([f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"] if torch.cuda.is_available() else []),
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    return f"{date.today().isoformat()}: " + "; ".join(parts)


def show(
    name: str, notes: Sequence[str], header: Sequence[str], rows: Iterable[Sequence[str | float]], timed: bool = True
) -> None:
    """Print a table, and put it into README.md between its marks; below it the machine, where it was ``timed``."""
    console, table, notes = Console(), Table(*header, title=name), [*notes, *([machine()] if timed else [])]
    if not console.is_terminal:  # a log has room for a row on one line
        console.width = 160
    texts = [[_text(cell) for cell in row] for row in rows]
    for row in texts:
        table.add_row(*row)
    console.print(table, *notes, sep="\n", soft_wrap=True)
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *texts)]
    text = README.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, after = text.split(begin)[0], text.split(end)[1]
    written = "\n".join([begin, *lines, "", *(f"* {note}" for note in notes), end])
    README.write_text(before + written + after, encoding="utf-8")
