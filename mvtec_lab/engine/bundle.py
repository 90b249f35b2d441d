"""The folder that task=export leaves: its script, run in a clean process, and its sums."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mvtec_lab.engine import infer
from mvtec_lab.errors import LabError
from mvtec_lab.results import write_whole

SCRIPT, SUMS = "infer.py", "SHA256SUMS"
# What a process may import that runs the script: an installed lab must not help it.
_ALONE = """import runpy, sys
class Alone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "PIL", "onnxruntime"}:
            raise ModuleNotFoundError(f"{name} is none of onnxruntime, numpy and Pillow", name=name)
sys.meta_path.insert(0, Alone())
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")"""


def script(decide: Callable, draw: Callable | None, tiled: bool) -> str:
    """Return infer.py of a model: those functions of ``engine.infer`` that it needs, and its problem's own.

    Args:
        decide: outputs by name, and export.json, to decision, class, score and confidence of an image.
        draw: image, outputs and export.json to a picture of what was found; None: there is none to see.
        tiled: it sees tiles of an image.
    """
    tiles: list[Callable] = [infer.starts, infer.look_at_tiles] if tiled else []
    parts: list[Callable] = [infer.read, infer.shrink, infer.grow, infer.place, infer.square, infer.look, *tiles]
    parts += [infer.verdict, infer.unlike, decide]
    sources = [inspect.getsource(part) for part in parts]
    if draw is not None:
        own = inspect.getsource(draw)
        sources += [inspect.getsource(infer.draw_map)] if draw is not infer.draw_map and "draw_map(" in own else []
        sources.append(own)
    names = infer.look_at_tiles if tiled else infer.look, decide, draw
    called = ", ".join("None" if part is None else part.__name__ for part in names)
    head = inspect.getsource(infer).partition("\n\n\ndef ")[0] + "\n"
    end = f'if __name__ == "__main__":\n    sys.exit(main({called}))\n'
    return "\n\n".join([head, *(f"{source}" for source in (*sources, inspect.getsource(infer.main))), end])


class Line(NamedTuple):
    """Hold what infer.py says of an image: decision, class, score and confidence, as text."""

    decision: str
    name: str
    score: str
    confidence: str


def judged(folder: Path, images: Sequence[Path], model: str = "model.onnx") -> dict[str, Line]:
    """Return what the script of a bundle says of images, by their path, in a process that has but its three packages.

    An image that Pillow alone cannot read is left out.

    Args:
        model: which of the folder's files judges.

    Raises:
        LabError: the script fails.
    """
    alone = [sys.executable, "-I", "-X", "utf8", "-c", _ALONE]
    command = [*alone, *map(str, (folder / SCRIPT, *images)), "--model", model]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape")
    if done.returncode not in (0, 1) or (done.returncode and not done.stderr.startswith("ERROR\t")):
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise LabError(f"{SCRIPT} fails in a process of its own ({said}): use task=predict")
    rows = (line.split("\t", 4) for line in done.stdout.splitlines())
    return {path: Line(*row) for *row, path in rows}


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of the files of a folder."""
    names = sorted(path.name for path in folder.iterdir())
    sums = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    write_whole(folder / SUMS, "".join(sums))
