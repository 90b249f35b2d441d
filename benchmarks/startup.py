"""Import and start-up: what a help page, a typo and an import cost, and a run beyond its training epochs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from unittest import mock

from benchmarks import common

LAB = ("-m", "mvtec_lab")
COMMANDS = {  # what Python is given, and the exit status that is right
    "python -c pass": (("-c", "pass"), 0),
    "import mvtec_lab": (("-c", "import mvtec_lab"), 0),
    "--help": ((*LAB, "--help"), 0),
    "--cfg job": ((*LAB, "--cfg", "job"), 0),
    "a typo, optimizer=adm": ((*LAB, "optimizer=adm"), 2),
    "import torch, torchvision": (("-c", "import torch, torchvision"), 0),
    "all that a run imports": (("-c", "import mvtec_lab.tasks.train"), 0),
}
BACKBONE = "resnet18"


def command(arguments: tuple[str, ...], status: int) -> tuple[float, float]:
    """Wall and CPU seconds of a Python process."""
    before, began = os.times(), time.perf_counter()
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    wall, after = time.perf_counter() - began, os.times()
    if run.returncode != status:
        raise RuntimeError(f"{arguments} ended with {run.returncode}, not {status}: {run.stderr}")
    return wall, sum(after[2:4]) - sum(before[2:4])  # of children that have ended: user and system


def jobs(overrides: list[str], sweep_dir: str) -> list[dict[str, float]]:
    """Return the seconds of each job of one sweep: all of them, those of its epochs, and those before the epochs.

    Raises:
        RuntimeError: the sweep failed.
    """
    from mvtec_lab.cli import main
    from mvtec_lab.results import HISTORY, read_csv
    from mvtec_lab.tasks.train import run_attempt

    found = []

    def timed_run(config, run_dir, **options):  # type: ignore[no-untyped-def]
        wall, result = common.timed(partial(run_attempt, **options), config, run_dir)
        epochs = sum(float(row["seconds"]) for row in read_csv(Path(run_dir) / HISTORY))
        found.append({"wall": wall, "epochs": epochs, "before": result.startup_seconds})
        return result

    with mock.patch("mvtec_lab.tasks.train.run_attempt", timed_run), redirect_stdout(StringIO()):
        status = main(["-m", *overrides, f"hydra.sweep.dir={sweep_dir}"])
    if status:
        raise RuntimeError(f"the sweep ended with status {status}")
    return found


def main() -> None:
    args = common.options(__doc__)
    times = defaultdict(list)
    for _ in range(args.repeats):
        for name, (arguments, status) in COMMANDS.items():
            times[name].append(command(arguments, status))
    rows = [[name, *map(median, zip(*measured, strict=True))] for name, measured in times.items()]
    common.show("startup", [f"medians of {args.repeats} repeats"], ["process", "wall, s", "CPU, s"], rows)
    overhead(args.repeats, args.epochs, common.data_overrides(args.data_root))


def overhead(repeats: int, epochs: int, data: list[str]) -> None:
    """What a run takes besides its epochs: of a sweep of three frozen backbones, whose first job makes the cache."""
    overrides = [*data, *common.model(BACKBONE)[1], "attempt=head,base,cosine", f"trainer.max_epochs={epochs}"]
    sweeps = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            sweeps.append(common.fresh(jobs, [*overrides, f"cache.dir={folder}/cache"], f"{folder}/sweep").value)
    rows = []
    for i, name in enumerate(("1, cold cache", "2", "3")):
        keys = ("wall", "epochs", "before")
        wall, inside, before = (median(sweep[i][key] for sweep in sweeps) for key in keys)
        rows.append([name, wall, inside, wall - inside, before])
    notes = [f"attempts head, base and cosine of {BACKBONE}, {epochs} epochs, in one process; {repeats} repeats"]
    common.show("overhead", notes, ["job", "wall, s", "its epochs", "besides them", "of which before"], rows)


if __name__ == "__main__":
    main()
