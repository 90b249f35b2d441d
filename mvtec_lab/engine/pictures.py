"""Pictures of images: sheets, outlines and heat maps, in a run's directory and in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageOps
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.nn import functional
from torch.utils.tensorboard import SummaryWriter

from mvtec_lab.reporting.figures import FIELD, INK, PALETTE, PAPER, SOFT, to_jpeg, wrap
from mvtec_lab.reporting.fonts import Letters
from mvtec_lab.results import write_whole

RIGHT, WRONG = PALETTE[2], PALETTE[1]  # green and red, which this pair keeps apart for everyone
SIDE = 320  # pixels of a drawn tile: twice as large as that of a sheet, which makes its lines smooth
SHOWN = 24  # images on a sheet: four rows of six
COOL, FULL = 0.75, 1.5  # of the map's threshold: where its colour begins and is fullest; good images hardly have one
SMALL, LARGE = 320, 1024  # pixels of a drawn map's longer side: lines need the one, a screen shows the other


def sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    marks: Sequence[bool | str | None],
    columns: int = 6,
    tile: int = 160,
    files: Sequence[str] = (),
) -> np.ndarray:
    """Lay images out on one picture, each scaled into a square with its caption below.

    Args:
        images: uint8 RGB arrays [H, W, 3] of any sizes, at least one.
        captions: one an image; a line break is kept, a long line wrapped, the fourth line and on cut off.
        marks: True a green frame, False a red one, None none; or the colour of the frame.
        columns: images a row.
        tile: the square's side in pixels.
        files: the path of each image, ``""`` where none is named; its folder and name stand below the caption.

    Returns:
        The picture, uint8 RGB [H, W, 3].
    """
    gap, frame, size, leading, most = 10, 4, 11, 15, 3  # pixels; at most three lines of text
    letters = Letters(size)
    texts = [wrap(caption, int(tile / 6.5), most) for caption in captions]  # a letter is about 6.5 pixels wide
    columns = min(columns, len(images))
    height = tile + 4 + leading * (max(map(len, texts)) + any(files))
    places = [_short(path, letters, tile) for path in files] or [""] * len(texts)
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (gap + columns * (tile + gap), gap + rows * (height + gap)), PAPER)
    for index, (image, lines, mark, place) in enumerate(zip(images, texts, marks, places, strict=True)):
        cell = Image.new("RGB", (tile, height), PAPER)  # of its own: a line too wide is cut, not drawn over a neighbour
        draw = ImageDraw.Draw(cell)
        shade = mark if isinstance(mark, str) else FIELD if mark is None else RIGHT if mark else WRONG
        draw.rectangle((0, 0, tile - 1, tile - 1), fill=shade)
        inner = tile - 2 * frame
        cell.paste(ImageOps.pad(Image.fromarray(image), (inner, inner), color=FIELD), (frame, frame))
        for number, line in enumerate(lines):
            letters.write(draw, (0, tile + 4 + size + number * leading), line, INK)
        letters.write(draw, (0, tile + 4 + size + len(lines) * leading), place, SOFT)
        row, column = divmod(index, columns)
        page.paste(cell, (gap + column * (tile + gap), gap + row * (height + gap)))
    return np.asarray(page)


def _short(path: str, letters: Letters, width: int) -> str:
    """Return the folder and the name of a file, as much of their end as fits into ``width`` pixels."""
    name = "/".join(path.replace("\\", "/").split("/")[-2:])
    kept = len(name)
    while letters.length(short := name if kept == len(name) else f"…{name[-kept:]}") > width:
        kept -= 1
    return short


def outlined(image: np.ndarray, mask: np.ndarray | None = None, found: np.ndarray | None = None) -> np.ndarray:
    """Draw outlines over an image: of its mask in blue, of what was found in orange; what is missing is left out.

    Args:
        image: uint8 RGB [H, W, 3].
        mask, found: bool, of any size.

    Returns:
        uint8 RGB [H, W, 3], of the image's proportions, 320 pixels on its longer side.
    """
    tile = Image.fromarray(image).resize(tile_of(image)[::-1])
    for area, colour in ((mask, PALETTE[5]), (found, PALETTE[4])):
        if area is not None:
            _outline(tile, area, colour)
    return np.asarray(tile)


def tile_of(image: np.ndarray) -> tuple[int, int]:
    """Return height and width of a drawn tile in an image's proportions: its longer side has SIDE pixels."""
    height, width = (max(1, round(side * SIDE / max(image.shape[:2]))) for side in image.shape[:2])
    return height, width


def boxed(image: np.ndarray, truth: Sequence[Any], found: Sequence[Any]) -> np.ndarray:
    """Draw boxes over an image: true ones in blue, found ones in orange with their type and score.

    Where names would lie on each other, those of the first boxes are written.

    Args:
        image: uint8 RGB [H, W, 3].
        truth, found: boxes with ``kind``, ``score`` and the corners x0, y0, x1, y1 in pixels of the image.

    Returns:
        uint8 RGB [H, W, 3], of the image's proportions, 320 pixels or more on its longer side.
    """
    scale = max(1.0, SIDE / max(image.shape[:2]))
    tile = Image.fromarray(image)
    tile = tile.resize((round(tile.width * scale), round(tile.height * scale)))
    draw, width = ImageDraw.Draw(tile), max(2, max(tile.size) // 160)
    placed = [(box, [scale * value for value in (box.x0, box.y0, box.x1, box.y1)]) for box in (*truth, *found)]
    for number, (_, corners) in enumerate(placed):
        colour = PALETTE[5] if number < len(truth) else PALETTE[4]
        for wide, shade in ((2 * width, INK), (width, colour)):  # a dark rim, as the line crosses bright and dark
            draw.rectangle(corners, outline=shade, width=wide)
    letters = Letters(max(20, max(tile.size) // 32))  # 20: a sheet shows the tile at half its size
    taken: list[tuple[float, ...]] = []
    for box, corners in placed[len(truth) :]:
        name = _name(box, letters, tile.width - 4)
        extent = letters.extent(draw, name, stroke_width=2)
        area = _free(extent, corners, tile.size, taken)
        if area is not None:
            taken.append(area)
            place = area[0] - extent[0], area[1] - extent[1]  # of the base line, to the right of the stroke
            letters.write(draw, place, name, PALETTE[4], stroke_width=2, stroke_fill=INK)
    return np.asarray(tile)


def _name(box: Any, letters: Letters, width: int) -> str:
    """Return a box's type and score, the type cut where both are wider than ``width`` pixels."""
    name, kept = f"{box.kind} {box.score:.2f}", len(box.kind)
    while kept and letters.length(name) > width:
        kept -= 1
        name = f"{box.kind[:kept]}… {box.score:.2f}"
    return name


def _free(
    text: Sequence[float], box: Sequence[float], size: tuple[int, int], taken: Sequence[Sequence[float]]
) -> tuple[float, float, float, float] | None:
    """Return where a text fits: above, below or within a box, inside the picture and on no other text; None: nowhere.

    Args:
        text, box, taken: x0, y0, x1, y1 in pixels; of ``text`` the extent counts.
        size: the picture's width and height.
    """
    wide, high = text[2] - text[0], text[3] - text[1]
    x = max(0.0, min(box[0], size[0] - wide))
    for y in (box[1] - high, box[3], box[1], box[3] - high):
        area = (x, y, x + wide, y + high)
        apart = all(area[2] <= o[0] or o[2] <= area[0] or area[3] <= o[1] or o[3] <= area[1] for o in taken)
        if 0 <= y <= size[1] - high and apart:
            return area
    return None


PALE = 110  # of 255: the darkest grey below a map
WARM, HOT = (255, 225, 60), (200, 0, 20)  # RGB of the lowest and of the highest heat


def coloured(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return an image in pale grey below a veil, yellow where it is warm and red where it is hot, uint8 RGB.

    The grey is pale because colours over a dark product, a bottle say, would be nearly black.

    Args:
        image: uint8 RGB [H, W, 3].
        heat: [H, W]; 0 has no colour, 1 and above the most.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low, high = np.percentile(grey, (1, 99))
    pale = PALE + (240 - PALE) * np.clip((grey - low) / max(high - low, 1), 0, 1)
    share = np.clip(heat, 0, 1).astype(np.float32)[..., None]
    veil = 0.85 * share**0.7  # at most 0.85: the image stays to be seen
    colours = (1 - share) * np.array(WARM) + share * np.array(HOT)
    return ((1 - veil) * pale[..., None] + veil * colours).astype(np.uint8)


def heat_over(image: np.ndarray, heat: np.ndarray, peak: Sequence[int], mask: np.ndarray | None = None) -> np.ndarray:
    """Draw a map over its image, from yellow to red: its peak ringed, the mask outlined in blue.

    Args:
        image: uint8 RGB [H, W, 3].
        heat: of any size, in [0, 1].
        peak: row and column in pixels of the image.
        mask: bool, of any size, or None.

    Returns:
        uint8 RGB, of the size ``tile_of(image)``.
    """
    size = tile_of(image)[::-1]
    tile = Image.fromarray(coloured(np.asarray(Image.fromarray(image).resize(size)), cv2.resize(heat, size)))
    if mask is not None:
        _outline(tile, mask, PALETTE[5])
    draw = ImageDraw.Draw(tile)
    y, x = ((position + 0.5) * SIDE / max(image.shape) for position in peak)
    for radius, width, colour in ((12, 8, INK), (10, 4, PAPER)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=width)
    return np.asarray(tile)


def map_at(score_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map [h, w] as float32 [H, W] of a size (H, W), to be drawn: interpolated along a side that grows.

    Where it shrinks, the highest value of each pixel is kept: a defect in a large image may be smaller than a pixel.
    """
    small = min(score_map.shape[0], size[0]), min(score_map.shape[1], size[1])
    highest = functional.adaptive_max_pool2d(torch.from_numpy(np.ascontiguousarray(score_map))[None], small)[0].numpy()
    return cv2.resize(highest, size[::-1], interpolation=cv2.INTER_LINEAR)


def _outline(tile: Image.Image, area: np.ndarray, colour: str) -> None:
    # Every pixel that the area touches: a thin one is not to vanish.
    shares = cv2.resize(area.astype(np.float32), tile.size, interpolation=cv2.INTER_AREA)
    inside = (shares > 0).astype(np.uint8) * 255
    for width, shade in ((7, INK), (3, colour)):  # a dark rim, as the line crosses bright and dark
        rim = cv2.morphologyEx(inside, cv2.MORPH_GRADIENT, np.ones((width, width), np.uint8))
        tile.paste(shade, mask=Image.fromarray(rim))


def write_picture(path: Path, picture: np.ndarray) -> None:
    write_whole(path, to_jpeg(picture))


def log_picture(writer: SummaryWriter, tag: str, picture: np.ndarray, step: int) -> None:
    """Show a picture [H, W, 3] in TensorBoard. As JPEG: add_image's PNG takes a tenth of a second for a sheet."""
    height, width, channels = picture.shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=to_jpeg(picture))
    # Private: nothing public takes a picture that is encoded already.
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def map_over(image: np.ndarray, heat: np.ndarray, limit: float) -> np.ndarray:
    """Draw a map over its image, coloured from about the map's threshold up, and outlined where it is above it.

    All images have one scale, whatever images there will be.

    Args:
        image: uint8 RGB [H, W, 3].
        heat: [h, w].
        limit: the map's threshold.

    Returns:
        uint8 RGB of the image's proportions.
    """
    longest = max(image.shape[:2])
    side = min(max(longest, SMALL), LARGE)
    size = max(1, round(image.shape[1] * side / longest)), max(1, round(image.shape[0] * side / longest))
    share = map_at(heat, size[::-1]) / max(limit, 1e-12)
    drawn = coloured(cv2.resize(image, size, interpolation=cv2.INTER_AREA), (share - COOL) / (FULL - COOL))
    lines, _ = cv2.findContours((share > 1).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(2, side // 160)  # a pixel on a sheet
    for wide, colour in ((2 * width, INK), (width, PAPER)):  # a dark rim, as the line crosses bright and dark
        cv2.drawContours(drawn, lines, -1, ImageColor.getrgb(colour), wide)
    return drawn
