"""task=export: a checkpoint as a folder that needs no lab: model.onnx, infer.py and what is known of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mvtec_lab.checks import formats_of, validate
from mvtec_lab.config import Config
from mvtec_lab.data.frame import Frame
from mvtec_lab.data.images import digests, each_image
from mvtec_lab.data.tiles import OVERLAP
from mvtec_lab.data.transforms import Cut, normalise, read_cut, resize
from mvtec_lab.engine.bundle import SCRIPT, SUMS, script, write_sums
from mvtec_lab.engine.folder import whole_folder
from mvtec_lab.engine.infer import square
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.onnx import (
    FILES,
    Difference,
    Normalised,
    Run,
    difference,
    onnx_runner,
    openvino_runner,
    to_onnx,
    to_openvino,
    write,
)
from mvtec_lab.engine.origin import checkpoint_of
from mvtec_lab.errors import LabError
from mvtec_lab.problems import METHODS
from mvtec_lab.problems.model import exported, load_model
from mvtec_lab.reporting.card import CARD, card
from mvtec_lab.results import write_whole
from mvtec_lab.tasks.evaluate import run_of
from mvtec_lab.tasks.int8 import add_int8, told_of_int8
from mvtec_lab.tasks.parity import check_script, told

log = logging.getLogger(__name__)

EXPORT = "export.json"
CHECKED = 8  # images that the file is compared on
BATCHES = (1, 3, CHECKED)  # numbers of images that the file is given at once
# How an image of any size is judged by a file that sees tiles, for its metadata.
TILES = (
    f"cut an image evenly into squares of tile pixels, which overlap by {OVERLAP:g} of a tile or more; a side that is "
    "no longer is not cut; each is one of images; the image's score is the highest of its tiles', its map theirs, and "
    "their mean where they overlap, weighted by the distance from a tile's border"
)
# How images get into the square, by ``data.fit``.
_AXES = "cv2.INTER_AREA along a side that shrinks, then cv2.INTER_CUBIC along one that grows"
_RESIZE = {
    "squeeze": f"to the square: {_AXES}",
    "letterbox": f"both sides times image_size / the longer one, rounded: {_AXES}; then into the middle of a square of "
    "the mean colour of the border of the result, one pixel wide, rounded to levels of 255",
}
PLACE = (
    "an image of width W and height H has w = max(1, round(W * image_size / max(W, H))) pixels in the square, and h "
    "likewise, from left = (image_size - w) // 2 and top = (image_size - h) // 2 on. Resize a map to the square, and "
    "cut it or a mask there, before it is resized to the image; x of a box is (x - left) * W / w of the image's, y "
    "(y - top) * H / h"
)
DECISION = (
    "with score (of a classifier the sum of the probabilities of all classes but good; of a detector the highest of "
    "scores, 0 without a box): REJECT above threshold, REVIEW above accept and not above threshold, else OK"
)
LARGEST = 1e-4  # difference, as a share of the largest value; rounding gave up to 6e-6


@torch.no_grad()
def export(config: Config, run_dir: str | Path) -> dict[str, Any]:
    """Write ``config.ckpt`` as a folder that judges images without the lab, all of it or nothing.

    It holds model.onnx, infer.py, export.json, model_card.md and SHA256SUMS, and what ``config.format`` adds. infer.py
    judges the run's test images in a process of its own, as the checkpoint does, before the folder is there.

    The file takes ``images``, float32 [N, 3, S, S], RGB in [0, 1], and gives ``score`` [N] and ``map`` [N, h, w] (none
    where the method does not localise; ``types`` [N, K] beside them where types are named), or a classifier's
    ``probabilities`` [N, C]. A detector's file takes one image, and gives ``boxes`` [K, 4] in pixels, ``labels`` [K],
    which count the classes, and ``scores`` [K], the highest first. Its metadata holds method, classes, image size,
    threshold and white, and ``use``, how to get from the outputs to a verdict.

    Raises:
        LabError: there is no checkpoint, it cannot be read or written as ONNX, the extra is not installed, or the
            file's outputs or the script's words differ from the checkpoint's.
    """
    validate(config)
    ckpt = checkpoint_of(config)
    model = load_model(ckpt)
    file = OnnxFile(ckpt, model)
    worst = file.check(onnx_runner(file.content), "use task=predict")
    (wanted_format,) = formats_of(config)
    openvino = to_openvino(file.content, file.about, ckpt) if wanted_format == "openvino" else None
    if openvino is not None:
        other = file.check(openvino_runner(openvino), "give format=onnx, or use task=predict")
        worst = max(worst, other, key=lambda each: each.share)
    about, images, batches = file.about, len(file.images), file.batches
    check = {"images": images, "of": file.source, "batches": batches, "difference": worst.share, "allowed": LARGEST}
    check["at_cuts"] = [file.shown[i] for i in worst.at_cuts]
    report = {**about, "ckpt": ckpt, "torch": torch.__version__, "check": check}
    lines = [
        f"checked with {images} images ({file.source}) in batches of {', '.join(map(str, batches))}: differs from the "
        f"checkpoint by {worst.share:.1g} of the largest value at most"
    ]
    if worst.at_cuts:
        lines.append(
            f"in {len(worst.at_cuts)} of them rounding moves a value of the checkpoint's own across a cut, such as a "
            "box's corner to the next pixel: the file gives what the checkpoint gives on one side of it"
        )
    with whole_folder(run_dir := Path(run_dir), SUMS) as folder:
        write(file.content, folder / FILES["onnx"])
        if openvino is not None:
            write(openvino, folder / FILES["openvino"])
        _write(folder, report)
        if (own := getattr(file.network, "infer", None)) is not None:
            decide, draw = own
            write_whole(folder / SCRIPT, script(decide, draw, model.tile is not None))
            report["infer"] = check_script(folder, Path(ckpt), model)
            lines.append(told(report["infer"]))
        if wanted_format == "int8":
            report["int8"] = add_int8(folder, Path(ckpt), model, file.content)
            lines.append(told_of_int8(report["int8"]))
        _write(folder, report)
        write_whole(folder / CARD, card(Path(ckpt), report, METHODS[model.method].licence))
        write_sums(folder)
        mib = {path.name: path.stat().st_size / 2**20 for path in sorted(folder.glob("model*.[obx]*"))}
    sizes = ", ".join(f"{name} {size:.1f} MiB" for name, size in mib.items())
    print(f"{sizes}: {model.method}; input {about['input']}; output {about['output']}")
    print("\n".join([*lines, f"written to {run_dir}"]))
    return report


class OnnxFile:
    """Hold a model's network as an ONNX file, and the images on which it is compared with its checkpoint.

    Args:
        ckpt: the checkpoint's path; of its run are the images.
        model: the same, loaded.

    Raises:
        LabError: it cannot be written as ONNX, or the extra is not installed.
    """

    @torch.no_grad()
    def __init__(self, ckpt: str, model: Model) -> None:
        self.ckpt = ckpt
        self.network = network = cast(Any, exported(model))
        pictures, self.shown, self.source = _pictures(Path(ckpt), model.frame, model.white)
        self.seen = normalise(pictures, model.mean, model.std)
        self.images = torch.from_numpy(pictures).movedim(-1, 1).float() / 255
        wanted = network(self.seen[:1])
        self.names, self.single = network.outputs[: len(wanted)], getattr(network, "single", False)
        self.rows = getattr(network, "rows", "K") if self.single else "N"  # what the outputs have a row for
        self.batches = (1,) if self.single else BATCHES
        self.about = _about(model, network, self.names, wanted, self.rows)
        whole = Normalised(network, model.mean, model.std)
        self.content = to_onnx(whole, self.names, model.image_size, self.about, ckpt, self.single)

    def check(self, run: Run, instead: str) -> Difference:
        """Return how far a file's outputs are from the checkpoint's.

        Args:
            instead: what to do where they differ.

        Raises:
            LabError: they differ by more than LARGEST.
        """
        found = difference(self.network, self.seen, run, self.images, self.batches, LARGEST, self.single)
        _require_near(self.ckpt, found, self.names, self.shown, instead)
        return found


def _about(
    model: Model, network: Any, names: Sequence[str], wanted: Sequence[torch.Tensor], rows: str
) -> dict[str, Any]:
    """Return what has to be known to use the file: what its metadata holds, and export.json begins with.

    Args:
        names, wanted, rows: of the outputs of an image.
    """
    size = model.image_size
    shapes = (", ".join([rows, *map(str, values.shape[1:])]) for values in wanted)
    outputs = (f"{name} [{shape}]" for name, shape in zip(names, shapes, strict=True))
    about = {
        "method": model.method,
        "classes": model.classes,
        "image_size": size,
        **({} if model.tile is None else {"tile": model.tile, "tiles": TILES}),
        "input": f"images: float32 [{'N' if rows == 'N' else 1}, 3, {size}, {size}], RGB in [0, 1]",
        "fit": model.fit,
        # Another rule moves scores across the threshold: OpenCV's default gave 7 false rejects in 20 good bottles.
        "resize": _RESIZE[model.fit],
        **({"fixed_point": True} if enlarges_in_fixed_point() else {}),  # weights of INTER_CUBIC in 1 / 2048
        **({"place": PLACE} if model.frame.pads else {}),
        "white": model.white,  # the value of 16-bit files that becomes 1; in 8-bit files it is 255
        "output": ", ".join(outputs),
        **getattr(network, "about", {}),
    }
    for key in ("threshold", "accept", "map_threshold"):  # a score above it is a defect
        if (value := getattr(model, key)) is not None:
            about[key] = value
    return about if model.accept is None else {**about, "decision": DECISION}


def enlarges_in_fixed_point() -> bool:
    """Tell whether OpenCV rounds its cubic's weights to 1 / 2048 here, as it does without Intel's IPP.

    A level in 3 to 6% of the values of an enlarged image depends on it.
    """
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    wanted = resize(noise, 48)
    exact, fixed = (int((square(noise, 48, "squeeze", kind) != wanted).sum()) for kind in (False, True))
    return fixed < exact


def _require_near(ckpt: str, found: Difference, names: Sequence[str], shown: Sequence[str], instead: str) -> None:
    """Refuse a file whose outputs are not the checkpoint's.

    Raises:
        LabError: they differ by more than LARGEST.
    """
    if found.share <= LARGEST:  # not true of NaN
        return
    given, wanted = found.rows
    where = f"{names[found.output]} of {shown[found.image]}"
    what = f"{where} differs by {found.share:.2g} of its largest value from the checkpoint's, more than {LARGEST:g}"
    if given != wanted:
        what = f"{where} has {given} row(s), the checkpoint's has {wanted}"
    raise LabError(f"{ckpt} cannot be exported: {what}: {instead}")


def _write(folder: Path, report: dict[str, Any]) -> None:
    write_whole(folder / EXPORT, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def _seen(cut: Cut) -> np.ndarray:
    """Return what the network sees of an image: its picture, or its middle tile."""
    return cut.picture if cut.tiles is None else cut.tiles[len(cut.tiles) // 2]


def _pictures(ckpt: Path, frame: Frame, white: int) -> tuple[np.ndarray, list[str], str]:
    """Return images [N, S, S, 3] uint8 to check with, their names, and what they show."""
    run = run_of(ckpt)
    rows = [row for row in run[1] if row["split"] == "test"] if run else []
    rows, whose = (rows, "test images") if rows or not run else ([row for row in run[1] if row["split"]], "images")
    try:
        taken = [rows[i] for i in np.linspace(0, len(rows) - 1, CHECKED).astype(int)] if rows else []
        shown = [run[0] / row["path"] for row in taken] if run else []
        same = all(row["digest"] == digest for row, digest in zip(taken, digests(shown), strict=True))
        if shown and same:
            pictures = np.stack(list(each_image(shown, lambda path: _seen(read_cut(path, frame, white)))))
            return pictures, [row["path"] for row in taken], f"the run's {whose}"
    except LabError as error:
        log.info("checked without the run's images: %s", error)
    noise = np.random.default_rng(0).integers(0, 256, (CHECKED, frame.size, frame.size, 3), np.uint8)
    return noise, [f"noise image {i}" for i in range(CHECKED)], "noise, the run's are missing"
