"""Find copies of a photograph: mirrored, turned, cropped, moved, brighter or saved again.

Photographs of a product are much alike, so what counts is how each departs from the others. First, every picture is
laid on the mean of all where it fits best. Hashes of the departures, under the eight symmetries of a square, propose
pairs; then the pixels of the one have to explain those of the other much better than the mean of its like does.

A view is a 3x3 matrix from the places that are seen to places in a picture; both run from -1 to 1, across and down.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

SIDE = 64  # pixels: a shift by two of 900 becomes a seventh of one, and grain is averaged away
SHARE = 13 / 16  # of a side, what is compared: a crop of 90% may have lost a tenth of it at one edge

# Laying. A picture is moved and scaled in small steps; the coarse ones reach a tenth of the side.
Steps = tuple[tuple[int, int], ...]
STEPS: Steps = ((20, 6), (32, 2))  # pixels a side, and how many steps; two that lie on the mean need the last alone
FREE = 0.04  # standard deviation of a move, in half sides: most pictures lie where they should
AREA = 10  # neighbouring pixels of 16 x 16 that depart together; with less, grids move as they please
ODD = 1.5  # times the usual departure: such a picture is also tried mirrored and turned,
TURNED = 0.5  # and taken so where that leaves less than this share of the squares

# Proposing.
FINE = 32  # pixels a side
HASH = 13  # numbers a side of a hash, of the SHARE of FINE
VALID = 1.5  # a symmetry under which a picture departs this many times more from the mean is not the product's
# The nearest by their hashes are an image's like. Of the copies measured nearly all had their original first; more
# than an image has of its own kind would mix kinds (eight: from nine images of a kind up).
LIKE = 8
ALIKE = 0.7  # least cosine of two hashes
ROWS = 256  # pictures at a time: blocks of 10 MB with 10,000 pictures

# Deciding, by what is left of an image's pixels, tile by tile, compared with what similar images leave.
TILES = 8  # a side: so small that one large defect fills few of them
FEW = 8  # telling tiles; fewer prove nothing (the copies measured had 30 or more)
NOISE = 1.2  # grey levels after blurring; what varies less in a tile says nothing, JPEG alone changes that much
# A copy leaves less than these shares, in three tiles of four and of the sum. Measured at 64 and 224 pixels on MVTec's
# bottles and hazelnuts and on the sample, 15 copies of each of 31 kinds: 0.57 and 0.27 at most (a bottle mirrored,
# cropped, brighter and saved as JPEG); other pairs 0.70 and 0.43 at least (cables that lack the same conductor).
COPY, TOTAL = 0.6, 0.33
CROPPED = 0.01  # change of scale that is a crop's; crops of 98% have 0.02

# The eight symmetries of a square; first the picture as it is.
SYMMETRIES = np.zeros((8, 3, 3))
SYMMETRIES[:, 2, 2] = 1
for _k, _signs in enumerate([(1, 1), (1, -1), (-1, 1), (-1, -1)]):
    SYMMETRIES[_k, (0, 1), (0, 1)] = _signs
    SYMMETRIES[_k + 4, (0, 1), (1, 0)] = _signs

Views = dict[int, np.ndarray]  # of other pictures, by their places
Copies = dict[tuple[int, int], str]  # places of two pictures, and what was done: "mirrored and cropped", "" if nothing


class _Laid(NamedTuple):
    """Hold all pictures and the views that lay them on the mean."""

    grey: np.ndarray  # [N, s, s]
    by_mean: np.ndarray  # variations of the mean
    usual: float  # squares by which half of the pictures depart from the mean
    views: np.ndarray  # of each picture, as it looks most like the mean
    like: np.ndarray  # [N, LIKE]: the places of each picture's nearest, and the views that make them so
    views_of_like: np.ndarray


def near_copies(pictures: Sequence[np.ndarray]) -> Copies:
    """Return the places of pictures [s, s] uint8 that show one photograph, in order."""
    if len(pictures) < 3:
        return {}  # nothing tells what is usual
    grey = np.stack(pictures)
    mean = grey.mean(axis=0).astype(np.float32)
    by_mean = _by(mean, round(FINE * SHARE))
    some = list(grey[:: -(-len(grey) // ROWS)])
    usual = float(np.median(_departs(some, _still(len(some)), by_mean))) + 1  # blank pictures depart by nothing
    # A product that stands beside the middle moves when it is mirrored: where it is symmetrical, it is laid again.
    turned = [_seen(mean, turn, len(mean), share=1) for turn in SYMMETRIES]
    laid = _lay(turned, mean, _still(8), usual)
    symmetrical = _departs(turned, laid, by_mean) < usual
    turns = SYMMETRIES @ np.where(symmetrical[:, None, None], laid, np.eye(3))

    views, hashes = _views_and_hashes(grey, mean, turns, usual)
    like, turn_of_like, cosines = _nearest(hashes)
    pool = _Laid(grey, _by(mean, round(len(mean) * SHARE)), usual, views, like, views[like] @ turns[turn_of_like])
    asked: dict[int, Views] = defaultdict(dict)
    for place, rank in np.argwhere(cosines > ALIKE).tolist():
        other = int(like[place, rank])
        if place not in asked.get(other, ()):
            asked[place][other] = pool.views_of_like[place, rank]
    back: dict[int, Views] = defaultdict(dict)  # both have to explain each other
    for place, others in asked.items():
        for other, view in _explaining(pool, place, others).items():
            back[other][place] = views[place] @ np.linalg.inv(view) @ views[other]
    copies = {
        (min(place, other), max(place, other)): _changes(view @ np.linalg.inv(views[place]))
        for place, others in back.items()
        for other, view in _explaining(pool, place, others).items()
    }
    return dict(sorted(copies.items()))


def _views_and_hashes(
    grey: np.ndarray, mean: np.ndarray, turns: np.ndarray, usual: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the view [N, 3, 3] of each picture that looks most like the mean, and hashes [8, N, HASH**2] of its turns.

    The hash of a turn that is not the product's is zero.
    """
    views = np.empty((len(grey), 3, 3))
    hashes = np.zeros((8, len(grey), HASH**2), np.float32)
    side = round(FINE * SHARE)
    by_mean = _by(mean, side)
    for start in range(0, len(grey), ROWS):
        rows = slice(start, start + ROWS)
        some = list(grey[rows])
        views[rows] = _lay(some, mean, _still(len(some)), usual)
        odd = start + np.flatnonzero(_departs(some, views[rows], by_mean) > ODD * usual)
        if odd.size:
            turned = np.stack([_lay(list(grey[odd]), mean, np.stack([turn] * len(odd)), usual) for turn in turns])
            departs = np.stack([_departs(list(grey[odd]), laid, by_mean) for laid in turned])
            best = np.where(departs.min(axis=0) < TURNED * departs[0], departs.argmin(axis=0), 0)
            views[odd] = turned[best, range(len(odd))]
        soft = [_soft(picture, FINE) for picture in some]
        for k, turn in enumerate(turns):
            departure = _unexplained(_all_seen(soft, views[rows] @ turn, side), by_mean)
            size = (departure**2).sum(axis=1)
            if k == 0:
                least = VALID**2 * size
            cells = departure.reshape(-1, HASH, side // HASH, HASH, side // HASH).sum(axis=(2, 4))
            cells = cells.reshape(len(some), -1) * (size <= least)[:, None]
            hashes[k, rows] = cells / (np.linalg.norm(cells, axis=1, keepdims=True) + 1e-6)  # 1e-6: may be blank
    return views, hashes


def _nearest(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the places [N, LIKE] of each picture's nearest, in order, with their turns and cosines."""
    count = hashes.shape[1]
    keep = min(LIKE, count - 1)
    like, turns, nearness = np.empty((count, keep), int), np.empty((count, keep), int), np.empty((count, keep))
    for start in range(0, count, ROWS):
        rows = slice(start, min(start + ROWS, count))
        cosines = np.full((rows.stop - start, count), -1.0, np.float32)
        turn = np.zeros(cosines.shape, np.int8)
        for k, turned in enumerate(hashes):
            under = hashes[0, rows] @ turned.T
            turn[under > cosines] = k
            np.maximum(cosines, under, out=cosines)
        cosines[range(len(cosines)), range(rows.start, rows.stop)] = -1.0  # itself
        nearest = np.argpartition(-cosines, keep - 1, axis=1)[:, :keep]
        order = np.take_along_axis(cosines, nearest, 1).argsort(axis=1)[:, ::-1]
        like[rows] = np.take_along_axis(nearest, order, 1)
        turns[rows] = np.take_along_axis(turn, like[rows], 1)
        nearness[rows] = np.take_along_axis(cosines, like[rows], 1)
    return like, turns, nearness


def _explaining(pool: _Laid, place: int, asked: Views) -> Views:
    """Return those of the pictures ``asked`` that explain the one at ``place``, each with the view that does it best.

    Its like are laid on it as well: a move of its own must not be what tells a picture from the others.
    """
    own, like, size = pool.views[place], pool.like[place], len(pool.grey[place])
    side = round(size * SHARE)
    pixels = _seen(_soft(pool.grey[place], FINE), own, side).ravel()
    whole = _seen(pool.grey[place], own, size, share=1)
    by_whole = _by(whole, round(FINE * SHARE))

    def laid(others: Sequence[int], views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        some = [pool.grey[other] for other in others]
        moved = _lay(some, whole, views, pool.usual, STEPS[1:])
        better = _departs(some, moved, by_whole) < _departs(some, views, by_whole)  # on a grid the step may lead astray
        views = np.where(better[:, None, None], moved, views)
        return views, _all_seen([_soft(picture, FINE) for picture in some], views, side).reshape(-1, side, side)

    explaining: Views = {}
    like_seen = None
    others = list(asked)
    for other, view, seen in zip(others, *laid(others, np.stack(list(asked.values()))), strict=True):
        inside = _inside(own, side, size) & _inside(view, side, size)

        def left(variations: np.ndarray, inside: np.ndarray = inside) -> np.ndarray:
            squares = np.zeros(side * side)
            squares[inside] = _unexplained(pixels[inside], variations[:, inside]) ** 2
            tiles = _shrink(squares.reshape(side, side), TILES)
            tiles[_shrink(inside.reshape(side, side).astype(np.float32), TILES) < 0.99] = 0  # seen in part alone
            return tiles

        by_other, usual = left(_variations(seen)), left(pool.by_mean)
        if not _much_less(by_other, usual):
            continue
        if like_seen is None:
            _, like_seen = laid(like.tolist(), pool.views_of_like[place])
        by_like = left(_variations(like_seen[like != other].mean(axis=0)))
        if _much_less(by_other, min(usual, by_like, key=np.sum)):
            explaining[other] = view
    return explaining


def _much_less(left: np.ndarray, usual: np.ndarray) -> bool:
    telling = usual > NOISE**2
    if telling.sum() < FEW:
        return False
    left, usual = left[telling], usual[telling]
    return bool(np.quantile(left / usual, 0.75) < COPY and left.sum() < TOTAL * usual.sum())


def _inside(view: np.ndarray, side: int, pixels: int) -> np.ndarray:
    """Return which of the pixels seen lie in a picture, a pixel and a half from its edge: that far, blur mixes it."""
    at = _seen_at(side)
    places = view[:2] @ np.stack([*(axis.ravel() for axis in np.meshgrid(at, at)), np.ones(side * side)])
    return np.abs(places).max(axis=0) < 1 - 3 / pixels


def _changes(view: np.ndarray) -> str:
    """Say what was done to a picture that is seen so."""
    across = view[:2, :2]
    words = []
    if np.linalg.det(across) < 0:
        words.append("mirrored")
    elif across[0, 0] < abs(across[0, 1]):
        words.append("turned")
    if np.abs(np.log(np.abs(across).sum(axis=0))).max() > CROPPED:
        words.append("cropped")
    return " and ".join(words)


def _lay(
    pictures: Sequence[np.ndarray], template: np.ndarray, views: np.ndarray, usual: float, steps: Steps = STEPS
) -> np.ndarray:
    """Return the views, moved and scaled a little, that make the pictures look most like a template.

    Least squares, with the move held back by what is usually left: a template without structure moves nothing.
    """
    moved = np.zeros((len(pictures), 4))  # down, right, scaled down, scaled right
    for pixels, times in steps:
        soft = [_soft(picture, pixels) for picture in pictures]
        side = round(pixels * SHARE)
        kinds = _variations(_seen(_soft(template, pixels), np.eye(3), side))[:6]
        kinds[2:] *= side / 2 / SHARE  # change of grey for a move by half a side
        kinds[4:] *= SHARE
        held = AREA * (pixels / 16) ** 2 * usual / FREE**2
        inverse = np.linalg.pinv(kinds @ kinds.T + np.diag([0, 0] + [held] * 4))
        for _ in range(times):
            slopes = _all_seen(soft, views, side) @ kinds.T
            slopes[:, 2:] -= held * moved
            fit = slopes @ inverse
            # by its contrast; limits: a picture that fits nowhere must not leave
            step = (fit[:, 2:] / fit[:, 1:2].clip(0.5, 2)).clip(-0.1, 0.1)
            moved += step
            change = _still(len(views))
            change[:, (1, 0), (2, 2)] -= step[:, :2]
            change[:, (1, 0), (1, 0)] -= step[:, 2:]
            views = views @ change
    return views


def _departs(pictures: Sequence[np.ndarray], views: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return the mean squares of what variations of one picture leave unexplained of others, [N]."""
    seen = _all_seen([_soft(picture, FINE) for picture in pictures], views, round(FINE * SHARE))
    return (_unexplained(seen, by) ** 2).mean(axis=1)


def _by(picture: np.ndarray, side: int) -> np.ndarray:
    """Return the variations of a picture's middle, [9, side * side]."""
    return _variations(_seen(_soft(picture, FINE), np.eye(3), side))


def _unexplained(pixels: np.ndarray, variations: np.ndarray) -> np.ndarray:
    """Return what remains of pixels [..., P] after the best mixture of variations [K, P]."""
    unit = variations / (np.linalg.norm(variations, axis=1, keepdims=True) + 1e-9)
    inverse = np.linalg.inv(unit @ unit.T + 1e-7 * np.eye(len(unit)))  # 1e-7: a blank picture has one kind
    return pixels - ((pixels @ unit.T) @ inverse) @ unit


def _variations(picture: np.ndarray) -> np.ndarray:
    """Return a picture [s, s] brighter, with more contrast, shifted, scaled and blurred a little: [9, s * s].

    To the second order in the shift, so that a small one need not be found.
    """
    picture = picture.astype(np.float64)
    down, right = _slope(picture, 0, 1), _slope(picture, 1, 0)
    twice_down, both, twice_right = _slope(down, 0, 1), _slope(down, 1, 0), _slope(right, 1, 0)
    at = _seen_at(len(picture)) / SHARE
    kinds = (np.ones_like(picture), picture, down, right, at[:, None] * down, at * right, twice_down, both, twice_right)
    return np.stack([kind.ravel() for kind in kinds])


def _slope(image: np.ndarray, right: int, down: int) -> np.ndarray:
    return cv2.Sobel(image, cv2.CV_64F, right, down, ksize=1, scale=0.5, borderType=cv2.BORDER_REPLICATE)


def _still(count: int) -> np.ndarray:
    return np.tile(np.eye(3), (count, 1, 1))


def _seen_at(side: int) -> np.ndarray:
    """Return the places of the pixels seen along one axis."""
    return ((np.arange(side) + 0.5) / side * 2 - 1) * SHARE


def _seen(picture: np.ndarray, view: np.ndarray, side: int, share: float = SHARE) -> np.ndarray:
    """Return the middle ``share`` of what a view shows, [side, side]."""
    return _warp(picture, _matrices(view, len(picture), side, share), side)


def _all_seen(pictures: Sequence[np.ndarray], views: np.ndarray, side: int) -> np.ndarray:
    """Return what views show of equally large pictures, [N, side * side]."""
    matrices = _matrices(views, len(pictures[0]), side, SHARE)
    seen = [_warp(picture, matrix, side).ravel() for picture, matrix in zip(pictures, matrices, strict=True)]
    return np.stack(seen).astype(np.float64)


def _matrices(views: np.ndarray, pixels: int, side: int, share: float) -> np.ndarray:
    """Return OpenCV's matrices [..., 2, 3], from pixels seen to pixels of a picture."""
    scale, first = 2 * share / side, share * (1 / side - 1)
    places = views @ np.array([[scale, 0, first], [0, scale, first], [0, 0, 1]])
    return (places[..., :2, :] * pixels + (pixels - 1) * np.array([0, 0, 1])) / 2


def _warp(picture: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, matrix, (side, side), flags=how, borderMode=cv2.BORDER_REPLICATE)


def _soft(picture: np.ndarray, pixels: int) -> np.ndarray:
    """Return a picture without what ``pixels`` a side cannot show (1.3: a box lets some of it pass)."""
    width = round(1.3 * len(picture) / pixels) | 1
    return cv2.blur(picture, (width, width), borderType=cv2.BORDER_REPLICATE)


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
