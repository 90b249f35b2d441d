"""Draw invented products, whole and with defects, no two alike: images to pretrain a backbone on.

A product has a ground, a body (or fills the picture), and parts on it in a ring, a grid, a row or none; the parts have
a shape, colours, and often small elements inside. Then up to two defects change it. Everything is drawn from a
generator, so a picture is its seed's alone.

Lengths and colours are as in ``strokes``. The built-in sample is never drawn: a round body with a ring of three round
parts that hold elements is left out, whatever its colours.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from mvtec_lab.data.strokes import CIRCLE, WHITE, Rng, any_angle, at, band, bevel, cloud, fill, wobbly

HUES = 9  # eight sectors of the colour circle, and grey
CELLS = 16  # targets are a grid of CELLS x CELLS, which is averaged to the size of a map
DARK = np.array([28.0, 28, 28])
GRAIN = 96  # pixels of the picture in which marks are drawn before they become cells

Outline = np.ndarray


@dataclass(eq=False)  # eq: arrays do not compare to one truth value
class _Part:
    centre: np.ndarray
    radius: float
    outline: Outline
    colour: np.ndarray
    hue: int
    inner: float = 0.0  # radius of the bed that elements lie in; 0: none
    elements: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))  # x, y, radius, brightness a row
    present: bool = True


@dataclass(eq=False)
class _Piece:
    """Describe one picture before it is painted."""

    light: np.ndarray  # unit vector towards the light
    ground: np.ndarray
    body: Outline | None  # None: it fills the picture
    centre: np.ndarray
    radius: float  # of the body
    colour: np.ndarray
    seat: float  # brightness of the bed below each part, relative to the body; 1: none is seen
    metal: np.ndarray  # colour of the elements
    parts: list[_Part]
    over: list[tuple[Outline, np.ndarray]] = field(default_factory=list)  # painted last
    soft: list[tuple[Outline, np.ndarray, float]] = field(default_factory=list)  # outline, colour, strength: blended

    def spot(self, rng: Rng, reach: float = 0.85) -> np.ndarray:
        """Return a place on the body."""
        return self.centre + reach * self.radius * rng.uniform() ** 0.5 * at(any_angle(rng))

    def pick(self, rng: Rng) -> _Part:
        there = [part for part in self.parts if part.present]
        return there[rng.integers(len(there))]


def _dye(rng: Rng, hue: float | None = None) -> tuple[np.ndarray, int]:
    """Return a colour and its hue's number; ``hue`` in [0, 1), None: any, or grey."""
    grey = hue is None and rng.uniform() < 0.35
    hue = rng.uniform() if hue is None else hue % 1
    saturation = rng.uniform(0, 0.1) if grey else rng.uniform(0.2, 0.8)
    colour = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, rng.uniform(0.3, 0.9)))
    return colour, HUES - 1 if grey else int(hue * (HUES - 1))


def _shape(centre: np.ndarray, radius: float, corners: int, roundness: float, turn: float) -> Outline:
    """Return a circle (corners = 0), or a regular polygon whose edges bulge by ``roundness`` in [0, 1]."""
    if corners == 0:
        return centre + radius * at(np.linspace(0, 2 * np.pi, 48, endpoint=False))
    t = np.linspace(0, 2 * np.pi, 12 * corners, endpoint=False)
    half = np.pi / corners
    straight = np.cos(half) / np.cos((t % (2 * half)) - half)
    return centre + (radius * (roundness + (1 - roundness) * straight))[:, None] * at(t + turn)


def _places(rng: Rng, layout: str, radius: float) -> tuple[np.ndarray, float]:
    """Return where the parts lie around the middle, (n, 2), and the largest radius at which they do not touch."""
    if layout == "none":
        return np.zeros((int(rng.uniform() < 0.6), 2)), radius
    if layout == "ring":
        count = int(rng.choice(range(2, 7), p=[0.2, 0.3, 0.25, 0.15, 0.1]))
        share = np.sin(np.pi / count)
        most = radius * share / (1 + share)
        places = (radius - most) * rng.uniform(0.9, 1) * at(np.arange(count) * 2 * np.pi / count)
        if count > 4 and rng.uniform() < 0.5:
            places = np.vstack([places, [[0, 0]]])
        return places, most
    rows, columns = (1, int(rng.integers(2, 5))) if layout == "row" else rng.integers(2, 4, 2)
    step = 1.9 * radius / max(rows, columns) * (0.75 if rows > 1 else 1)  # 0.75: a grid's corners stay on a round body
    y, x = np.mgrid[:rows, :columns].reshape(2, -1)
    return step * np.stack([x - (columns - 1) / 2, y - (rows - 1) / 2], -1), step / 2


def _elements(rng: Rng, part: _Part, packed: bool) -> None:
    """Give a part elements: packed ones, or a few with gaps."""
    part.inner = part.radius * rng.uniform(0.5, 0.88)
    count, size = (int(rng.integers(12, 38)), rng.uniform(0.45, 0.55)) if packed else (int(rng.integers(4, 20)), 0.3)
    row, column = np.mgrid[-5:6, -5:6].reshape(2, -1)
    grid = np.stack([column + row / 2, row * np.sqrt(3) / 2], -1) + rng.uniform(-0.5, 0.5, 2)  # the densest packing
    grid = grid[np.argsort(np.hypot(*grid.T))[:count]] + rng.normal(0, rng.uniform(0, 0.07), (count, 2))
    pitch = part.inner / (np.hypot(*grid.T).max() + 0.5)
    cos, sin = at(any_angle(rng))
    places = part.centre + pitch * grid @ [[cos, sin], [-sin, cos]]
    tones = rng.normal(1, rng.uniform(0.02, 0.15), count).clip(0.6, 1.3)
    part.elements = np.column_stack([places, pitch * size * rng.normal(1, 0.05, count), tones])


def _piece(rng: Rng) -> _Piece:
    centre, light = 0.5 + rng.normal(0, 0.02, 2), at(any_angle(rng))
    layout = rng.choice(["none", "ring", "grid", "row"], p=[0.1, 0.65, 0.15, 0.1])
    corners = int(rng.choice([0, 0, 0, 4, 6, 8]))
    radius = rng.uniform(0.38, 0.48)
    whole = rng.uniform() < (0.4 if layout == "none" else 0.1)
    body = None if whole else _shape(centre, radius, corners, rng.uniform(0, 0.6), any_angle(rng))
    inside = radius * rng.uniform(0.82, 0.95)
    places, most = _places(rng, layout, inside)
    form, roundness, turn = int(rng.choice([0, 0, 0, 3, 4, 6])), rng.uniform(0, 0.6), any_angle(rng)
    cos, sin = at(turn)
    size = most * rng.uniform(0.75, 0.99) if len(places) > 1 else most * rng.uniform(0.35, 0.9)
    filling = rng.choice(["plain", "packed", "sparse"], p=[0.25, 0.5, 0.25])
    if layout == "ring" and len(places) == 3 and form == corners == 0:
        filling = "plain"  # the sample's own is left out

    first, scheme = rng.uniform(), rng.choice(["same", "all different", "in turn"], p=[0.3, 0.55, 0.15])
    dyes = [_dye(rng, first)] if scheme == "same" else [_dye(rng, first + k / max(2, len(places))) for k in range(12)]
    if scheme == "in turn":
        dyes = dyes[:2] if len(places) % 2 == 0 else dyes[:1]
    elif len(dyes) > 1 and rng.uniform() < 0.4:
        dyes[0] = rng.uniform(70, 200) * rng.normal(1, 0.03, 3), HUES - 1  # one of them is grey
    parts = []
    for k, place in enumerate(places):
        middle = centre + place @ [[cos, sin], [-sin, cos]] + rng.normal(0, 0.003, 2)
        colour, hue = dyes[k % len(dyes)]
        outline = _shape(middle, size, form, roundness, turn + rng.normal(0, 0.05))
        parts.append(_Part(middle, size * (1 if form == 0 else 0.85), outline, colour * rng.normal(1, 0.03), hue))
        if filling != "plain":
            _elements(rng, parts[-1], filling == "packed")
    metal = _dye(rng)[0] if rng.uniform() < 0.5 else np.array([205, 150, 110]) * rng.normal(1, 0.1, 3)
    seat = 1.0 if rng.uniform() < 0.3 else rng.uniform(0.2, 0.7)
    return _Piece(light, _dye(rng)[0], body, centre, radius, _dye(rng)[0], seat, metal.clip(30, 250), parts)


# A defect changes the piece and returns the outlines of what it changed.


def _missing_part(piece: _Piece, rng: Rng) -> list[Outline]:
    part = piece.pick(rng)
    part.present = False
    return [part.outline]


def _odd_part(piece: _Piece, rng: Rng) -> list[Outline]:
    part = piece.pick(rng)
    others = [p for p in piece.parts if p.hue != part.hue]
    if others:  # it has the colour of another
        other = others[rng.integers(len(others))]
        part.colour, part.hue = other.colour * rng.normal(1, 0.03), other.hue
    else:
        part.colour, part.hue = _dye(rng, (part.hue + rng.uniform(2, 6)) / (HUES - 1))
    return [part.outline]


def _missing_elements(piece: _Piece, rng: Rng) -> list[Outline]:
    full = [part for part in piece.parts if part.present and len(part.elements) > 3]
    part = full[rng.integers(len(full))]
    middle = part.centre + part.inner * rng.uniform(0, 0.85) * at(any_angle(rng))
    order = np.argsort(np.hypot(*(part.elements[:, :2] - middle).T))
    count = max(1, int(len(order) * rng.uniform(0.08, 0.4)))
    taken, part.elements = part.elements[order[:count]], part.elements[order[count:]]
    return [[x, y] + 1.1 * r * CIRCLE for x, y, r, _ in taken]


def _bite(rng: Rng, outline: Outline, centre: np.ndarray, depth: float, width: float) -> Outline:
    """Return a ragged bite out of an outline around ``centre``: how deep it is, and how wide at the rim."""
    rim = outline[rng.integers(len(outline))] - centre
    radius, angle = np.hypot(*rim), np.arctan2(rim[1], rim[0])
    steps = np.linspace(0, 1, 6)
    half = width / 2 * (1 - steps * rng.uniform(0.1, 0.8)) * rng.normal(1, 0.1, (2, 6))
    radii = radius * 1.03 - steps * (depth + 0.03 * radius)
    left, right = angle + rng.normal(0, 0.1) * steps + np.array([[-1], [1]]) * half / radius
    return centre + np.concatenate([radii, radii[::-1]])[:, None] * at(np.concatenate([left, right[::-1]]))


def _notch(piece: _Piece, rng: Rng) -> list[Outline]:
    assert piece.body is not None
    outline = _bite(rng, piece.body, piece.centre, rng.uniform(0.04, 0.13), rng.uniform(0.06, 0.25))
    piece.over.append((outline, piece.ground if rng.uniform() < 0.4 else rng.uniform(0.2, 0.6) * piece.colour))
    return [outline]


def _chip(piece: _Piece, rng: Rng) -> list[Outline]:
    part = piece.pick(rng)
    depth = (part.radius - part.inner) if part.inner else 0.5 * part.radius
    outline = _bite(rng, part.outline, part.centre, depth * rng.uniform(0.5, 1), part.radius * rng.uniform(0.3, 1.1))
    piece.over.append((outline, (part.colour if rng.uniform() < 0.6 else piece.colour) * rng.uniform(0.2, 0.6)))
    return [outline]


def _hole(piece: _Piece, rng: Rng) -> list[Outline]:
    place, below = piece.spot(rng), piece.colour
    if piece.parts and rng.uniform() < 0.6:
        part = piece.pick(rng)
        place = part.centre + part.radius * rng.uniform(0.1, 0.9) * at(any_angle(rng))
        below = part.colour
    outline = wobbly(rng, place, rng.uniform(0.018, 0.045), 0.12)
    lip = (below * rng.choice([0.4, 1.4])).clip(0, 255)
    piece.over += [(outline, lip), (place + rng.uniform(0.6, 0.85) * (outline - place), DARK)]
    return [outline]


def _path(rng: Rng, start: np.ndarray, length: float, bend: float, points: int = 12) -> np.ndarray:
    t, heading = np.linspace(0, 1, points), any_angle(rng)
    return start + length * (np.outer(t, at(heading)) + np.outer(bend * t * (1 - t), at(heading + np.pi / 2)))


def _thread(piece: _Piece, rng: Rng) -> list[Outline]:
    start = piece.pick(rng).centre if piece.parts and rng.uniform() < 0.6 else piece.spot(rng)
    colour = piece.metal if rng.uniform() < 0.6 else _dye(rng)[0]
    length, radius, marks = rng.uniform(0.1, 0.4), rng.uniform(0.004, 0.011), []
    for _ in range(rng.integers(1, 6)):
        path = _path(rng, start + rng.normal(0, 0.02, 2), length * rng.uniform(0.7, 1.1), rng.normal(0, 0.6))
        for scale, bright in ((1.0, 0.5), (0.7, 0.95), (0.35, 1.2)):
            lit = path + (1 - scale) * 0.3 * radius * piece.light
            piece.over.append((band(lit, scale * radius), (colour * bright).clip(0, 255)))
        marks.append(band(path, radius))
    return marks


def _scratch(piece: _Piece, rng: Rng) -> list[Outline]:
    start, marks = piece.spot(rng), []
    tone = (piece.colour * rng.choice([0.5, 1.5]) + rng.choice([-25, 25])).clip(0, 255)
    for _ in range(rng.integers(1, 4)):
        path = _path(rng, start + rng.normal(0, 0.02, 2), rng.uniform(0.1, 0.35), rng.normal(0, 0.1))
        marks.append(band(path, rng.uniform(0.003, 0.006)))
        piece.over.append((marks[-1], tone))
    return marks


def _crack(piece: _Piece, rng: Rng) -> list[Outline]:
    steps = rng.normal(0, 0.9, 10)[:, None]
    path = piece.spot(rng) + np.cumsum(rng.uniform(0.015, 0.035) * at(any_angle(rng) + steps[:, 0]), axis=0)
    outline = band(path, rng.uniform(0.003, 0.006))
    piece.over.append((outline, DARK))
    return [outline]


def _stain(piece: _Piece, rng: Rng) -> list[Outline]:
    outline = wobbly(rng, piece.spot(rng), rng.uniform(0.05, 0.12), 0.25)
    piece.soft.append((outline, _dye(rng)[0], rng.uniform(0.5, 0.9)))
    return [outline]


def _specks(piece: _Piece, rng: Rng) -> list[Outline]:
    middle, colour, spread = piece.spot(rng), _dye(rng)[0], rng.uniform(0.02, 0.1)
    marks = [
        wobbly(rng, middle + rng.normal(0, spread, 2), rng.uniform(0.005, 0.015), 0.2)
        for _ in range(rng.integers(4, 16))
    ]
    piece.over += [(outline, colour) for outline in marks]
    return marks


_CHANGES: list[Callable[[_Piece, Rng], list[Outline]]] = [_missing_part, _odd_part, _missing_elements, _notch]
_CHANGES += [_chip, _hole, _thread, _scratch, _crack, _stain, _specks]
KINDS = {change.__name__[1:]: change for change in _CHANGES}
_OF_PARTS = ("missing_part", "odd_part", "missing_elements", "chip")
CHANNELS = len(KINDS) + HUES  # of the targets


def _possible(piece: _Piece) -> list[str]:
    several = sum(part.present for part in piece.parts) > 1
    needs = dict.fromkeys(("missing_part", "odd_part"), several)
    needs |= {"notch": piece.body is not None, "chip": any(part.present for part in piece.parts)}
    needs["missing_elements"] = any(part.present and len(part.elements) > 3 for part in piece.parts)
    return [kind for kind in KINDS if needs.get(kind, True)]


def _paint(canvas: np.ndarray, piece: _Piece) -> None:
    if piece.body is not None:
        bevel(canvas, piece.body, piece.colour, 0.07, 0.004 * piece.light)
    for part in piece.parts:
        if piece.seat < 1:
            fill(canvas, part.centre + 1.06 * (part.outline - part.centre), piece.seat * piece.colour)
    for part in piece.parts:
        if not part.present:
            continue
        bevel(canvas, part.outline, part.colour, 0.16, 0.004 * piece.light)
        if part.inner:
            fill(canvas, part.centre + 1.03 * part.inner * CIRCLE, 0.35 * part.colour)
        places, radii, tones = part.elements[:, :2], part.elements[:, 2:3], part.elements[:, 3:]
        for scale, shift, bright in ((1.0, 0.0, 0.55), (0.8, 0.08, 0.9), (0.4, 0.22, 1.15)):
            lit = np.rint(((places + shift * radii * piece.light) * len(canvas) - 0.5) * 16).astype(int).tolist()
            sizes = np.rint(scale * radii[:, 0] * len(canvas) * 16).astype(int).tolist()
            colours = (piece.metal * tones * bright).clip(0, 255).tolist()
            for middle, radius, colour in zip(lit, sizes, colours, strict=True):
                cv2.circle(canvas, middle, radius, colour, -1, cv2.LINE_AA, 4)  # 4: fractional bits
    for outline, colour in piece.over:
        fill(canvas, outline, colour)


def _texture(rng: Rng, side: int) -> np.ndarray:
    """Return a relief [side, side] of about unit variance: grain, clouds, stripes, a weave, wood, or none."""
    kind = rng.integers(6)
    if kind == 0:
        return np.zeros((side, side), np.float32)
    if kind == 1:
        return cloud(rng, int(rng.integers(side // 4, side)), side)
    if kind == 2:
        return cloud(rng, int(rng.integers(4, 16)), side)
    cos, sin = at(any_angle(rng)) * rng.uniform(25, 150)
    x, y = np.meshgrid(*2 * [np.linspace(0, 1, side, dtype=np.float32)])
    along, across = cos * x + sin * y, sin * x - cos * y
    if kind == 3:
        return np.sin(along)
    if kind == 4:
        return np.sin(along) * np.sin(across)
    return np.sin(0.4 * along + 1.5 * cloud(rng, 5, side))


def _inside(outline: Outline, side: int) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    fill(mask, outline, WHITE)
    return mask


def draw(seed: Sequence[int], defects: int, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Draw one picture of the product that a seed stands for; pose, light and noise do not depend on the defects.

    Args:
        seed: numbers, at least 0; the last chooses the defects alone.
        defects: how many of them, 0 to 2.

    Returns:
        The image, (size, size, 3) uint8 RGB, and the targets, (CHANNELS, CELLS, CELLS) uint8: which share of each cell,
        of 255, a defect of each of KINDS covers, then parts of each hue.
    """
    rng, place = np.random.default_rng(seed[:-1]), np.random.default_rng(seed)
    piece = _piece(rng)
    marks: dict[str, list[Outline]] = {}
    for _ in range(defects):
        kinds = [kind for kind in _possible(piece) if kind not in marks]
        weights = np.array([2.0 if kind in _OF_PARTS else 1.0 for kind in kinds])  # for these not every piece will do
        kind = str(place.choice(kinds, p=weights / weights.sum()))
        marks[kind] = KINDS[kind](piece, place)

    side = 2 * size  # drawn twice as large, then averaged: smooth edges
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = piece.ground if piece.body is not None else piece.colour
    _paint(canvas, piece)
    image: np.ndarray = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    for outline, colour, strength in piece.soft:
        share = strength / 255 * cv2.GaussianBlur(_inside(outline, size).astype(np.float32), (0, 0), 0.008 * size)
        image += share[..., None] * (colour.astype(np.float32) - image)
    relief = rng.uniform(0, 0.08) * _texture(rng, size) + 0.04 * cloud(rng, 4, size)
    if piece.body is not None:
        on_body = _inside(piece.body, size) > 127
        relief[on_body] = (rng.uniform(0, 0.05) * _texture(rng, size))[on_body]
    image *= (1 + relief[..., None]).astype(np.float32)
    image *= (rng.uniform(0.8, 1.2) * rng.normal(1, 0.02, 3)).astype(np.float32)  # exposure, white balance
    noise = rng.uniform(0, 5) * rng.standard_normal(image.shape, np.float32)
    image = cv2.GaussianBlur(image, (0, 0), size / 256 * rng.uniform(0.3, 1.0)) + noise
    return image.clip(0, 255).astype(np.uint8), _targets(piece, marks)


def _targets(piece: _Piece, marks: dict[str, list[Outline]]) -> np.ndarray:
    targets = np.zeros((CHANNELS, CELLS, CELLS), np.uint8)
    for kind, outlines in marks.items():
        targets[list(KINDS).index(kind)] = np.ceil(_shares(outlines))  # a scratch is not rounded away
    for hue in {part.hue for part in piece.parts if part.present}:
        outlines = [part.outline for part in piece.parts if part.present and part.hue == hue]
        targets[len(KINDS) + hue] = _shares(outlines)
    return targets


def _shares(outlines: list[Outline]) -> np.ndarray:
    """Return which share of each cell outlines cover, [CELLS, CELLS] in [0, 255]."""
    mask = np.zeros((GRAIN, GRAIN), np.uint8)
    for outline in outlines:
        fill(mask, outline, WHITE)
    return cv2.resize(mask, (CELLS, CELLS), interpolation=cv2.INTER_AREA).astype(np.float32)
