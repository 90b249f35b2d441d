"""Measure what a race saves by the clock: the same sweep without and with ``race=true``, and what both say.

    python -m benchmarks.raced --data-root DIR [WORDS ...]     # DIR/bottle is MVTec's

Each sweep is a command of its own, and a short one before both fills the caches. Words go to every command:
``cache.dir=FOLDER``, say. With ``--study`` one study is measured and printed, and README.md stays.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import common
from mvtec_lab.reporting.pairs import COMPARISON

MODEL = ["model.backbone=mobilenet_v2", "model.weights=IMAGENET1K_V1"]
STUDIES = {  # cuts of both studies without the attempts that take hours
    "bottle": ["attempt=head,finetune,lab/global,lab/where,lab/all", "cv.folds=5", "cv.repeats=2"],
    "long tail": [
        "+study=longtail",
        "attempt="
        + ",".join(f"longtail/{name}" for name in ("ce", "balanced", "rac", "cosine_classifier", "knn", "ldam")),
    ],
}


class Sweep(NamedTuple):
    """Hold what a sweep took and found."""

    wall: float  # seconds
    cpu: float  # seconds of all its processes
    runs: int
    left_out: int
    found: dict[str, Any]  # comparison.json


def swept(words: list[str], directory: Path) -> Sweep:
    """Run a sweep, quietly, and return what it took and found."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "mvtec_lab", "-m", *words, f"hydra.sweep.dir={directory}"]
    wall, done = common.timed(subprocess.run, command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads((directory / COMPARISON).read_text(encoding="utf-8"))
    states = [json.loads(path.read_text(encoding="utf-8"))["status"] for path in directory.rglob("result.json")]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sweep(wall, cpu, len(states), states.count("dropped"), found)


def different(found: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the pairs that a verdict calls different, the better one first."""
    sides = ((pair, pair["difference"]["value"] > 0) for pair in found["pairs"] if pair["different"])
    return {(p["first"], p["second"]) if ahead else (p["second"], p["first"]) for p, ahead in sides}


def main() -> None:
    """Run both studies, print the table, and write it into README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default=os.environ.get("MVTEC_ROOT"), required="MVTEC_ROOT" not in os.environ)
    parser.add_argument("--study", choices=STUDIES, help="this one alone")
    parser.add_argument("words", nargs="*", help="of every command")
    given = parser.parse_args()
    data = ["data=mvtec", f"data.root={Path(given.data_root).resolve()}", "data.category=bottle", *MODEL, *given.words]
    rows, notes = [], []
    for name, study in STUDIES.items() if given.study is None else [(given.study, STUDIES[given.study])]:
        with tempfile.TemporaryDirectory() as folder:
            swept([*study, *data, "cv.folds=2", "cv.repeats=1"], Path(folder, "caches"))
            whole = swept([*study, *data], Path(folder, "whole"))
            raced = swept([*study, *data, "race=true"], Path(folder, "raced"))
        shown, again = different(whole.found), different(raced.found)
        rows.append(
            [
                name,
                f"{raced.left_out} of {whole.runs}",
                f"{whole.wall:.0f} / {raced.wall:.0f} = {raced.wall / whole.wall:.2f}",
                f"{whole.cpu:.0f} / {raced.cpu:.0f} = {raced.cpu / whole.cpu:.2f}",
                f"{whole.found['best']} / {raced.found['best']}",
                f"{len(shown)} / {len(again)}, {len(shown & again)} in both",
            ]
        )
        for better, worse in sorted(shown ^ again):
            notes.append(
                f"{name}: {better} better than {worse} {'without' if (better, worse) in shown else 'with'} race"
            )
        print(*rows[-1], *whole.found["verdict"], "---", *raced.found["verdict"], sep="\n", file=sys.stderr)
    header = ["study", "runs left out", "wall seconds", "CPU seconds", "best by validation", "pairs shown to differ"]
    if given.study is not None:
        print(header, *rows, *notes, common.machine(), sep="\n")
        return
    common.show("raced", ["without a race / with it", *notes], header, rows)


if __name__ == "__main__":
    main()
