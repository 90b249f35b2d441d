"""Compare what infer.py of an exported folder says of image files with what the checkpoint says."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvtec_lab.data.images import attempts, digests
from mvtec_lab.data.transforms import Cut, read_cut
from mvtec_lab.engine.bundle import SCRIPT, Line, judged
from mvtec_lab.engine.model import Model
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.operating import score_of
from mvtec_lab.problems.model import judge
from mvtec_lab.tasks.evaluate import run_of

MOST = 100  # images: more would take minutes, and say no more
ALLOWED = 1e-3  # of the largest number. Pillow's pixels are the lab's, but for a level in one of 100,000 and more
BATCH = 16  # tiles at once
TRIES = 8  # noises of one level with which an image may fall on the other side of a cut


def images_of(ckpt: Path, split: str, most: int) -> list[Path]:
    """Return images of a split of a checkpoint's run, evenly drawn, as far as they are found and unchanged."""
    try:
        if (run := run_of(ckpt)) is None:
            return []
        rows = [row for row in run[1] if row["split"] == split]
        rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, most).astype(int))] if rows else []
        known = {run[0] / row["path"]: row["digest"] for row in rows if (run[0] / row["path"]).is_file()}
        return [path for path, now in zip(known, digests(list(known)), strict=True) if known[path] == now]
    except LabError:  # a damaged file beside it: what else there is will do
        return []


def check_script(folder: Path, ckpt: Path, model: Model) -> dict[str, Any]:
    """Run infer.py of a folder in a process of its own, and return how far it is from the checkpoint.

    Where a score differs by more than ALLOWED, or the decision does, it has to be what the checkpoint says of the image
    with noise of one level: an image at a cut has two right answers.

    Raises:
        LabError: it fails, or differs.
    """
    paths, of = images_of(ckpt, "test", MOST), "the run's test images"
    with tempfile.TemporaryDirectory() as drawn:
        if not paths:
            paths, of = _noise(Path(drawn), model.image_size), "noise, the run's are missing"
        read = list(attempts(paths, lambda path: read_cut(path, model.frame, model.white), 4))
        lines = judged(folder, paths)
    cuts = {str(path): cut for path, cut in zip(paths, read, strict=True) if not isinstance(cut, LabError)}
    lines = {path: line for path, line in lines.items() if path in cuts}
    said = {path: _says(model, cuts[path]) for path in lines}
    tops = [max((abs(float(line[i])) for line in said.values() if line[i] != "-"), default=1.0) or 1.0 for i in (2, 3)]
    shares, at_cuts = [0.0], []
    for path, line in lines.items():
        share = _apart(line, said[path], tops)
        rng = np.random.default_rng(0)
        for _ in range(TRIES):
            if share <= ALLOWED:
                break
            if path not in at_cuts:
                at_cuts.append(path)
            share = min(share, _apart(line, _says(model, _noisy(cuts[path], rng)), tops))
        if not share <= ALLOWED:
            given, wanted = (" ".join(each) for each in (line, said[path]))
            raise LabError(
                f"{ckpt} cannot be exported: {SCRIPT} says {given} of {path}, and the checkpoint {wanted}: use "
                "task=predict"
            )
        shares.append(share)
    return {
        "images": len(lines),
        "of": of,
        "difference": max(shares),
        "allowed": ALLOWED,
        "at_cuts": at_cuts,
        "unreadable": len(paths) - len(lines),
    }


def told(found: Mapping[str, Any]) -> str:
    """Return in a line what ``check_script`` found."""
    line = (
        f"{SCRIPT}, in a process with onnxruntime, numpy and Pillow alone, decides on {found['images']} images "
        f"({found['of']}) as the checkpoint does; its numbers differ by {found['difference']:.1g} of the largest at "
        "most"
    )
    cuts = f"; {len(found['at_cuts'])} lie at a cut, where a level of one pixel decides" if found["at_cuts"] else ""
    return line + cuts + (f"; {found['unreadable']} cannot be read by it" if found["unreadable"] else "")


def _says(model: Model, cut: Cut) -> Line:
    """Return what infer.py should say of an image, as the checkpoint judges it."""
    ((prediction, further),) = judge(model, [cut], BATCH)
    row, score = {**prediction.row, **further}, score_of(prediction.row)
    name = row.get("found_type") or row["prediction"]
    return Line(model.decision(row) or "-", name, "-" if score is None else str(score), row.get("confidence", "-"))


def _apart(given: Line, wanted: Line, tops: Sequence[float]) -> float:
    """Return by which share of the largest number two lines differ; infinite where a word does."""
    if given[:2] != wanted[:2] or any((a == "-") != (b == "-") for a, b in zip(given, wanted, strict=True)):
        return float("inf")
    pairs = [(a, b, top) for a, b, top in zip(given[2:], wanted[2:], tops, strict=True) if a != "-"]
    return max((abs(float(a) - float(b)) / top for a, b, top in pairs), default=0.0)


def _noisy(cut: Cut, rng: np.random.Generator) -> Cut:
    def noisy(levels: np.ndarray) -> np.ndarray:
        return np.clip(levels + rng.integers(-1, 2, levels.shape), 0, 255).astype(np.uint8)

    return cut._replace(picture=noisy(cut.picture), tiles=None if cut.tiles is None else noisy(cut.tiles))


def _noise(folder: Path, size: int) -> list[Path]:
    """Write images that are as large as the square, larger along both sides, smaller, and both."""
    rng, paths = np.random.default_rng(0), []
    for height, width in ((size, size), (2 * size + 5, 3 * size), (size // 2 + 1, size), (size // 2, 3 * size)):
        paths.append(folder / f"noise_{height}x{width}.png")
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(paths[-1])
    return paths
