"""Judge images with the model beside this file: python infer.py IMAGE_OR_FOLDER ... [--map FOLDER] [--model NAME]

It needs onnxruntime, numpy and Pillow alone; export.json says how images are prepared and what the outputs mean. An
image has a line, with tabs between: decision, class, score, confidence, file. REJECT lies above the threshold, REVIEW
between ``accept`` and the threshold; UNKNOWN is unlike all that the model learnt. The exit status is 1 where an image
cannot be read.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def read(path: Path, white: int) -> np.ndarray:
    """Return an image as levels, uint8 RGB [H, W, 3], upright; in a 16-bit file, ``white`` becomes 255."""
    with Image.open(path) as file:
        deep = file.format in ("PNG", "TIFF") and ";16" in str(getattr(file, "tile", ""))
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16"):
            grey = np.minimum(np.asarray(image), white).astype(np.uint32)
            return np.repeat(((grey * 510 + white) // (2 * white)).astype(np.uint8)[..., None], 3, axis=2)
        if deep or image.mode in ("I", "F"):
            raise ValueError("Pillow reads no colours of 16 bits and no pixels of 32 bits: save it with 8 bits")
        image.info.pop("transparency", None)
        return np.asarray(image.convert("RGB"))


def shrink(rows: np.ndarray, length: int, even: bool) -> np.ndarray:
    """Return the means of what each of fewer rows covers of rows [n, ...]; sums where it is whole rows: ``even``.

    It adds in 32 bits and in the order of cv2.INTER_AREA, as many means lie halfway between two levels.
    """
    low = np.arange(length) * (len(rows) / length)
    high, total = low + len(rows) / length, np.zeros((length, *rows.shape[1:]), np.float32)
    for step in range(len(rows) // length + 2):
        row = low.astype(int) + step
        part = np.minimum(row + 1, high) - np.maximum(row, low)
        weight = np.where(part > 1e-3, part / (1 if even else np.minimum(high, len(rows)) - low), 0).astype(np.float32)
        total += weight[:, None, None] * rows[np.minimum(row, len(rows) - 1)]
    return total


def grow(rows: np.ndarray, length: int, fixed: bool) -> np.ndarray:
    """Interpolate rows [n, ...] to more, by the cubic of a = -0.75, like cv2.INTER_CUBIC, perhaps in fixed point."""
    if length <= len(rows):
        return rows
    at = (np.arange(length) + 0.5) * len(rows) / length - 0.5
    total = np.zeros((length, *rows.shape[1:]))
    for step in (-1, 0, 1, 2):
        row = np.floor(at).astype(int) + step
        d = np.abs(at - row)
        weight = np.where(d <= 1, (1.25 * d - 2.25) * d * d + 1, ((3.75 - 0.75 * d) * d - 6) * d + 3)
        weight = np.rint(weight * 2048) / 2048 if fixed else weight
        total += weight[:, None, None] * rows[np.clip(row, 0, len(rows) - 1)]
    return total


def place(height: int, width: int, size: int, fit: str) -> tuple[int, int, int, int]:
    """Return where an image lies in the square that the network sees: top, left, height, width."""
    h, w = size, size
    if fit == "letterbox":
        h, w = (max(1, round(side * size / max(height, width))) for side in (height, width))
    return (size - h) // 2, (size - w) // 2, h, w


def square(image: np.ndarray, size: int, fit: str, fixed: bool = False) -> np.ndarray:
    """Return what the network sees of an image: uint8 [size, size, 3]; ``fixed``: OpenCV enlarged in fixed point."""
    height, width = image.shape[:2]
    top, left, h, w = place(height, width, size, fit)
    less, fewer = min(h, height), min(w, width)
    even = height % less == width % fewer == 0
    part = shrink(shrink(image.swapaxes(0, 1), fewer, even).swapaxes(0, 1), less, even)
    part = part * np.float32(less * fewer / (height * width)) if even else part
    half = (height, width) == (2 * less, 2 * fewer)  # where OpenCV rounds .5 up, and elsewhere to even
    image = (np.floor(part + 0.5) if half else np.rint(part)).astype(np.uint8)
    fixed = fixed or min(less, fewer) < 4  # so narrow an image everywhere
    part = grow(grow(image, h, fixed).swapaxes(0, 1), w, fixed).swapaxes(0, 1)
    image = np.clip(np.rint(part), 0, 255).astype(np.uint8)
    rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])  # its colour is beside a letterboxed image
    whole = np.full((size, size, 3), np.rint(rim.mean(axis=0)), np.uint8)
    whole[top : top + h, left : left + w] = image
    return whole


def look(image: np.ndarray, session: Any, about: dict[str, Any], maps: bool) -> dict[str, np.ndarray]:
    """Return what the model gives of an image, by name; ``map`` as it covers the image, [H, W], if maps are wanted."""
    size, fit = about["image_size"], about["fit"]
    levels = square(image, size, fit, about.get("fixed_point", False)).transpose(2, 0, 1)[None]
    values = session.run(None, {"images": (levels / 255).astype(np.float32)})
    outputs = dict(zip((output.name for output in session.get_outputs()), values, strict=True))
    if maps and "map" in outputs:
        heat = Image.fromarray(outputs["map"][0].astype(np.float32))
        top, left, h, w = place(image.shape[0], image.shape[1], size, fit)
        if (h, w) != (size, size):
            heat = heat.resize((size, size), Image.Resampling.BILINEAR).crop((left, top, left + w, top + h))
        outputs["map"] = np.asarray(heat.resize(image.shape[1::-1], Image.Resampling.BILINEAR))
    return outputs


def starts(length: int, tile: int) -> list[int]:
    """Return where tiles begin along a side: evenly, and neighbours share an eighth of a tile or more."""
    shared = round(tile / 8)
    last = -(-(length - shared) // (tile - shared)) - 1
    return [round(k * (length - tile) / last) for k in range(last + 1)] if length > tile else [0]


def look_at_tiles(image: np.ndarray, session: Any, about: dict[str, Any], maps: bool) -> dict[str, np.ndarray]:
    """Return what the model gives of the tile with the highest score; ``map`` is of all tiles, as in ``look``."""
    tile, found = about["tile"], []
    heat, total = np.zeros(image.shape[:2], np.float32), np.zeros(image.shape[:2], np.float32)
    for top in starts(image.shape[0], tile):
        for left in starts(image.shape[1], tile):
            part = np.s_[top : top + tile, left : left + tile]
            found.append(look(image[part], session, about, maps))
            if maps and "map" in found[-1]:
                sides = (np.arange(n) + 0.5 for n in total[part].shape)
                weight = np.minimum.outer(*(np.minimum(side, side[::-1]) for side in sides))  # distance from its border
                heat[part] += weight * found[-1].pop("map")
                total[part] += weight
    best = max(found, key=lambda outputs: float(outputs["score"][0]))
    return {**best, "map": heat / total} if total.any() else best


def verdict(score: float, about: dict[str, Any]) -> str:
    """Return the decision that the thresholds make of a score."""
    if score > about["threshold"]:
        return "REJECT"
    return "REVIEW" if score > about.get("accept", about["threshold"]) else "OK"


def unlike(outputs: dict[str, np.ndarray], about: dict[str, Any], decision: str) -> bool:
    """Tell whether an image is unlike all that was learnt, so that what the model says of it means nothing."""
    known = about.get("unknown")
    if known is None or decision == "-" or (decision == "REJECT" and not known["first"]):
        return False
    return bool(outputs["distance"][0] > known["above"])


def draw_map(image: np.ndarray, outputs: dict[str, np.ndarray], about: dict[str, Any]) -> Image.Image:
    """Return the image, red where its map is above ``map_threshold``."""
    above = (outputs["map"] > about["map_threshold"])[..., None]
    return Image.fromarray(np.where(above, image // 2 + np.array([127, 0, 0], np.uint8), image))


def main(see: Callable, decide: Callable, draw: Callable | None) -> int:
    """Judge the images of the command line; return the exit status."""
    import onnxruntime

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="an image, or a folder of images")
    parser.add_argument("--map", type=Path, help="a folder for pictures of what was found")
    parser.add_argument("--model", default="model.onnx", help="a file beside this one, such as model_int8.onnx")
    given, status = parser.parse_args(), 0
    if hasattr(signal, "SIGPIPE"):  # `| head -1` ends this as it ends other commands, without a traceback
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if given.map and draw is None:
        parser.error("--map: this model does not say where a defect is")
    about = json.loads((HERE / "export.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(HERE / given.model), providers=["CPUExecutionProvider"])
    for source in given.images:
        below = sorted(path for path in source.rglob("*") if path.suffix.lower() in ENDINGS)
        for path in below if source.is_dir() else [source]:
            try:
                image = read(path, about["white"])
            except (OSError, SyntaxError, ValueError) as error:
                print("ERROR", path, error, sep="\t", file=sys.stderr)
                status = 1
                continue
            outputs = see(image, session, about, given.map is not None)
            decision, name, *values = decide(outputs, about)
            decision = "UNKNOWN" if unlike(outputs, about, decision) else decision
            print(decision, name, *("-" if v is None else f"{v:.6g}" for v in values), path, sep="\t", flush=True)
            if given.map and draw:
                target = Path(f"{given.map / (path.name if path == source else path.relative_to(source))}.png")
                target.parent.mkdir(parents=True, exist_ok=True)
                draw(image, outputs, about).save(target)
    return status
