"""The plain loop, the lab without caches and the lab with them, in turn: seconds an epoch and for a whole attempt."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import common

BACKBONES = ("resnet18", "mobilenet_v2")
GRID = ("finetune", "augment", "earlystop", "cosine")
# How many times faster than the plain loop's an epoch shall be, with resnet18.
TARGETS = {"head": {"warm": 50}, "finetune": {"warm": 4}, "augment": {"warm": 1.8, "8 views, warm": 3}}
GRID_TARGET = 3  # of the four attempts as a whole, the cache made on the way


def prepare(data: list[str]) -> dict[str, Any]:
    """The lab's split for the plain loop. Decodes every image: no variant shall be the first to read it from disk."""
    from mvtec_lab import compose
    from mvtec_lab.problems.model import build_data

    built = build_data(compose(*data, "cache.dir=null"))
    built.setup()
    index = {name: i for i, name in enumerate(built.classes)}
    splits = {
        name: [(str(built.folder / s.path), index[s.label]) for s in built.of_split(name)]
        for name in ("train", "val", "test")
    }
    return {"splits": splits, "classes": len(index), "size": built.frame.size}


def run_plain(*attempts: str, **kwargs: Any) -> dict[str, Any]:
    """Wall seconds of some attempts, and for each its epochs' seconds and its test accuracy."""
    from benchmarks import plain

    seconds, runs = common.timed(lambda: [plain.train(attempt, **kwargs) for attempt in attempts])
    return {"seconds": seconds, "runs": runs}


def run_lab(overrides: list[str], run_dir: str) -> dict[str, Any]:
    """The same of one attempt of the lab."""
    from mvtec_lab import compose, run_attempt

    seconds, _ = common.timed(lambda: run_attempt(compose(*overrides), run_dir))
    return {"seconds": seconds, "runs": finished(run_dir)}


def run_sweep(overrides: list[str], sweep_dir: str) -> dict[str, Any]:
    """The same of a sweep, its table and report included."""
    from mvtec_lab.cli import main

    with redirect_stdout(StringIO()):  # its table is no result of ours
        seconds, status = common.timed(main, ["-m", *overrides, f"hydra.sweep.dir={sweep_dir}"])
    if status:
        raise RuntimeError(f"the sweep ended with status {status}")
    return {"seconds": seconds, "runs": finished(sweep_dir)}


def finished(directory: str) -> list[dict[str, Any]]:
    from mvtec_lab.results import HISTORY, find_runs, read_csv

    return [
        {
            "epochs": [float(row["seconds"]) for row in read_csv(Path(run.run_dir) / HISTORY)],
            "accuracy": run.metrics["test"]["accuracy"],
        }
        for run in find_runs(directory)  # in the order in which they started
    ]


def main() -> None:
    args = common.options(__doc__)
    data = common.data_overrides(args.data_root)
    plain = common.fresh(prepare, data).value
    # Decoding in the loop's own process or in two beside it: the plain loop gets whichever is faster here.
    tried = {n: common.fresh(run_plain, "head", "head", epochs=3, workers=n, **plain).value for n in (0, 2)}
    plain["workers"] = min(tried, key=lambda n: common.later(tried[n]["runs"][1]["epochs"]))
    weights = ", ".join(f"{name} {common.model(name)[0] or 'random'}" for name in BACKBONES)
    about = [
        f"{data[-1]}; images: " + ", ".join(f"{len(samples)} {split}" for split, samples in plain["splits"].items()),
        f"the plain loop with {plain['workers']} loader workers, the faster of 0 and 2 here; weights: {weights}",
    ]
    attempts(args.repeats, args.epochs, data, plain, about)
    grid(args.grid_epochs, data, plain, about)


def attempts(repeats: int, epochs: int, data: list[str], plain: dict[str, Any], about: list[str]) -> None:
    rows = []
    for backbone in BACKBONES:
        weights, overrides = common.model(backbone)
        theirs = {**plain, "backbone": backbone, "weights": weights, "epochs": epochs}
        for attempt, targets in TARGETS.items():
            ours = [*data, *overrides, f"attempt={attempt}", f"trainer.max_epochs={epochs}"]
            found = defaultdict(list)
            for _ in range(repeats):  # the variants in turn: a slow minute of the machine hits all of them
                with tempfile.TemporaryDirectory() as folder:
                    cached, views = [f"cache.dir={folder}/cache"], [f"cache.dir={folder}/views", "augment.views=8"]
                    variants = {"uncached": ["cache.dir=null"], "cold": cached, "warm": cached}
                    if attempt == "augment":
                        variants |= {"8 views, cold": views, "8 views, warm": views}
                    found["plain"].append(common.fresh(run_plain, attempt, **theirs))
                    for name, more in variants.items():
                        found[name].append(common.fresh(run_lab, [*ours, *more], f"{folder}/{name}"))
            goals = targets if backbone == BACKBONES[0] else {}
            rows += [[backbone, attempt, *cells] for cells in compared(found, goals)]
    header = ["backbone", "attempt", "variant", "first epoch, s", "a later one, s", "plain / it"]
    header += ["whole attempt, s", "plain / it", "peak MiB", "test accuracy"]
    common.show("speed", [*about, f"medians of {repeats} repeats of {epochs} epochs"], header, rows)


def compared(found: dict[str, list[common.Measured]], goals: dict[str, float]) -> list[list[str | float]]:
    """A row for every variant: medians of its repeats, and their ratios to the plain loop's."""
    rows: list[list[str | float]] = []
    for variant, repeats in found.items():
        runs = [repeat.value["runs"][0] for repeat in repeats]
        first = median(run["epochs"][0] for run in runs)
        epoch = median(common.later(run["epochs"]) for run in runs)
        whole = median(repeat.value["seconds"] for repeat in repeats)
        if variant == "plain":
            plain_epoch, plain_whole = epoch, whole
        per_epoch = f"{plain_epoch / epoch:.2f}" + (f" (target {goals[variant]})" if variant in goals else "")
        peak, accuracy = median(repeat.anonymous for repeat in repeats), median(run["accuracy"] for run in runs)
        rows.append([variant, first, epoch, per_epoch, whole, f"{plain_whole / whole:.2f}", peak, accuracy])
    return rows


def grid(epochs: int, data: list[str], plain: dict[str, Any], about: list[str]) -> None:
    """The attempts of the README's first command, each side in one process."""
    weights, overrides = common.model(BACKBONES[0])
    with tempfile.TemporaryDirectory() as folder:
        ours = [*data, *overrides, f"attempt={','.join(GRID)}", f"trainer.max_epochs={epochs}", f"cache.dir={folder}/c"]
        sides = {
            "plain": common.fresh(run_plain, *GRID, weights=weights, epochs=epochs, **plain),
            "lab, cold cache": common.fresh(run_sweep, ours, f"{folder}/sweep"),
        }
    rows = []
    for side, run in sides.items():
        ratio = f"{sides['plain'].value['seconds'] / run.value['seconds']:.2f}"
        goal = "" if side == "plain" else f" (target {GRID_TARGET})"
        each = [f"{one['accuracy']:.3f} ({len(one['epochs'])})" for one in run.value["runs"]]
        rows.append([side, run.value["seconds"], ratio + goal, run.anonymous, *each])
    notes = [*about, f"{BACKBONES[0]}, up to {epochs} epochs, one repeat; test accuracy and epochs trained of each"]
    common.show("grid", notes, ["side", "all four, s", "plain / it", "peak MiB", *GRID], rows)


if __name__ == "__main__":
    main()
