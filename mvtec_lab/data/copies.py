"""Find pictures that show one photograph: mirrored, turned, cropped, moved, brighter or saved again.

Photographs of a product are so alike that what counts is how each departs from the others. So every picture is first
laid on the mean of all pictures, as it fits best. Hashes of the departures, under the eight symmetries of a square,
propose pairs. Then the pixels of one picture have to explain those of the other.

A view is a 3x3 matrix that maps places of what is seen to places in a picture; both run from -1 to 1, across and down.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

SIDE = 64  # pixels: a shift by two of 900 becomes a seventh of one, and grain is averaged away
SHARE = 13 / 16  # of a side is compared: a crop of 90% may have lost a tenth of it, and a shift leaves a bar
HASH = 13  # numbers a side of a perceptual hash: two pixels each
# The nearest pictures by their hashes are a picture's like. Each of 520 copies of bottles had its original among the
# nearest four; more pictures than one has of its own kind would mix kinds (eight: from nine of a kind up).
LIKE = 8
ALIKE = 0.7  # least cosine of two hashes; 0.95 was the least between bottles and their unturned copies
COARSE = 32  # pixels a side at which pictures are laid on the mean and hashed
STEPS = ((20, 6), (COARSE, 2))  # pixels a side, and how often a picture is moved: coarse first, or a tenth is too far
ODD = 2.0  # a picture that departs this many times more than usual may be turned against the others
TURNED = 0.5  # it is, where another symmetry leaves less of the squares than this share
VALID = 1.5  # a symmetry under which a picture departs this many times more than at best is not the product's
FREE = 0.04  # expected standard deviation of a change of scale, in half sides: grain alone would fit any
TILES = 8  # a side: so small that one large defect fills few of them
NOISE = 1.0  # grey levels after blurring; what varies less in a tile says nothing, JPEG alone changes that much
BLUR = 3  # pixels: resampling has blurred the one picture of a pair more than the other
# Of what its like leave unexplained, a copy leaves at most this share in three tiles of four, and this of all squares.
# Measured at 64 pixels on MVTec's 292 bottles, 60 hazelnuts and the sample's 374 images, 15 copies each of 31 kinds:
# the eight symmetries, crops of 90 to 98%, shifts of 10 of 900 pixels, JPEG 60, brightness +3%, one degree, and several
# at once. 1,391 of 1,395 were found, and no pair of different photographs. The four: a bottle cropped to 90% at random,
# two bottles and a hazelnut with several changes at once. It takes 1.7 times the seconds of one without symmetries.
COPY, TOTAL = 0.5, 0.33
CROPPED = 0.01  # change of scale from which a copy is called cropped
ROWS = 256  # pictures at a time: 10 MB with 10,000 pictures

# The symmetries of a square: the picture as it is, mirrored, turned by 180 degrees, and the same with axes exchanged.
SYMMETRIES = np.zeros((8, 3, 3))
SYMMETRIES[:, 2, 2] = 1
for _k, _axes in enumerate((x, y) for x in (1, -1) for y in (1, -1)):
    SYMMETRIES[_k, (0, 1), (0, 1)] = _axes
    SYMMETRIES[_k + 4, (0, 1), (1, 0)] = _axes

Views = dict[int, np.ndarray]  # place of a picture -> view of it
Copies = dict[tuple[int, int], str]  # places of two pictures -> how one differs from the other


def near_copies(pictures: Sequence[np.ndarray]) -> Copies:
    """Return the pairs of pictures [s, s] uint8 that show one photograph, by their places.

    Returns:
        For each pair how the copy was made, where that is known: mirrored, turned, cropped; otherwise an empty text.
    """
    if len(pictures) < 3:
        return {}  # nothing tells what is usual
    grey = np.stack(pictures)
    mean = grey.mean(axis=0).astype(np.float32)
    some = grey[:: -(-len(grey) // ROWS)]
    noise = float(np.median(_departs(some, _same(len(some)), mean))) + 1
    # A product that stands beside the middle moves when it is mirrored: each symmetry of the mean is laid on it again.
    turned = [_seen(mean, turn, len(mean), 1.0) for turn in SYMMETRIES]
    laid = _lay(turned, mean, _same(8), noise)
    alike = _departs(turned, laid, mean) < noise
    turns = SYMMETRIES @ np.where(alike[:, None, None], laid, np.eye(3))
    views, hashes = _laid(grey, mean, turns, noise)
    like, how = _nearest(hashes)
    explains = _Explains(grey, mean, views, views[like] @ turns[how], like, noise)
    cosine = np.einsum("ije,ije->ij", hashes[how, like], hashes[0][:, None])
    ahead: dict[int, Views] = defaultdict(dict)
    for place, rank in zip(*np.nonzero(cosine > ALIKE), strict=True):
        other = int(like[place, rank])
        if place not in ahead.get(other, ()):
            ahead[int(place)][other] = views[other] @ turns[how[place, rank]]
    back: dict[int, Views] = defaultdict(dict)
    for place, asked in ahead.items():
        for other, view in explains(place, asked).items():
            back[other][place] = views[place] @ np.linalg.inv(view) @ views[other]
    return {
        (min(place, other), max(place, other)): _difference(view @ np.linalg.inv(views[other]))
        for other, asked in sorted(back.items())
        for place, view in explains(other, asked).items()
    }


class _Explains:
    """Decide which pictures explain the pixels of another one much better than the mean of its like does."""

    def __init__(
        self, grey: np.ndarray, mean: np.ndarray, views: np.ndarray, its: np.ndarray, like: np.ndarray, noise: float
    ) -> None:
        self.grey, self.views, self.its, self.like, self.noise = grey, views, its, like, noise
        self.side = round(grey.shape[1] * SHARE)
        self.mean = _variations(_seen(_blurred(mean), np.eye(3), self.side))

    def __call__(self, place: int, asked: Views) -> Views:
        """Return those of the pictures asked about that explain the one at ``place``, and their views."""
        picture, view = self.grey[place], self.views[place]
        pixels = _seen(_blurred(picture), view, self.side).ravel()
        template = _seen(picture, view, len(picture), 1.0)
        own, usual_by, found = self._inside(view), None, {}
        views, looks = self._looks(list(asked), np.stack(list(asked.values())), template)
        for other, its_view, look in zip(asked, views, looks, strict=True):
            both = own & self._inside(its_view)
            whole = _shrink(both.reshape(self.side, -1).astype(np.float32), TILES) > 0.99
            remains, usual = self._left(pixels, look, both), self._left(pixels, self.mean, both)
            if not _passes(remains, usual, whole):
                continue
            if usual_by is None:  # only now: most pairs are told apart by the mean of all
                _, usual_by = self._looks(self.like[place], self.its[place], template, False)
            its_like = _variations(usual_by[self.like[place] != other].mean(axis=0))
            usual = min(usual, self._left(pixels, its_like, both), key=np.sum)
            if _passes(remains, usual, whole):
                found[other] = its_view
        return found

    def _looks(
        self, others: Sequence[int] | np.ndarray, views: np.ndarray, template: np.ndarray, varied: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        views = _lay(self.grey[others], template, views, self.noise)
        seen = [_seen(_blurred(self.grey[k]), v, self.side) for k, v in zip(others, views, strict=True)]
        return views, np.stack([_variations(look) for look in seen] if varied else seen)

    def _inside(self, view: np.ndarray) -> np.ndarray:
        """Return which pixels lie within a picture, but for its outermost ones: blurred, they are not its own."""
        at = ((np.arange(self.side) + 0.5) / self.side * 2 - 1) * SHARE
        x, y = np.meshgrid(at, at)
        places = np.tensordot(view[:2], np.stack([x, y, np.ones_like(x)]), 1)
        return (np.abs(places).max(axis=0) < 1 - BLUR / self.grey.shape[1]).ravel()

    def _left(self, pixels: np.ndarray, variations: np.ndarray, both: np.ndarray) -> np.ndarray:
        """Return the mean squares that remain unexplained, [TILES, TILES]."""
        rest = np.zeros(self.side**2)
        rest[both] = _unexplained(pixels[both], variations[:, both]) ** 2
        return _shrink(rest.reshape(self.side, -1), TILES)


def _passes(left: np.ndarray, usual: np.ndarray, whole: np.ndarray) -> bool:
    telling = whole & (usual > NOISE**2)
    left, usual = left[telling], usual[telling]
    return bool(len(left) and np.quantile(left / usual, 0.75) < COPY and left.sum() < TOTAL * usual.sum())


def _difference(change: np.ndarray) -> str:
    """Return words for a change of view."""
    across, words = change[:2, :2], []
    if np.linalg.det(across) < 0:
        words.append("mirrored")
    elif across[0, 0] < abs(across[0, 1]):
        words.append("turned")
    if abs(np.log(np.abs(across).sum(axis=0))).max() > CROPPED:
        words.append("cropped")
    return " and ".join(words)


def _laid(grey: np.ndarray, mean: np.ndarray, turns: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the view [N, 3, 3] under which each picture looks most like the mean, and its hashes [8, N, HASH**2]."""
    views = np.empty((len(grey), 3, 3))
    hashes = np.zeros((8, len(grey), HASH**2), np.float32)
    side = round(COARSE * SHARE)
    variations = _variations(_seen(_soft(mean, COARSE), np.eye(3), side))
    for start in range(0, len(grey), ROWS):
        rows = slice(start, start + ROWS)
        some = grey[rows]
        views[rows] = _lay(some, mean, np.stack([turns[0]] * len(some)), noise)
        odd = start + np.flatnonzero(_departs(some, views[rows], mean) > ODD * noise)
        if odd.size:
            each = np.stack([_lay(grey[odd], mean, np.stack([turn] * len(odd)), noise) for turn in turns])
            departs = np.stack([_departs(grey[odd], view, mean) for view in each])
            best = np.where(departs.min(axis=0) < TURNED * departs[0], departs.argmin(axis=0), 0)
            views[odd] = each[best, range(len(odd))]
        soft = [_soft(picture, COARSE) for picture in some]
        least = None
        for turn, into in zip(turns, hashes, strict=True):
            departs = _unexplained(_all_seen(soft, views[rows] @ turn, side), variations)
            size = np.linalg.norm(departs, axis=1)
            least = size if least is None else least
            cells = departs.reshape(-1, HASH, side // HASH, HASH, side // HASH).mean(axis=(2, 4)).reshape(len(some), -1)
            length = np.linalg.norm(cells, axis=1) + 1e-6  # a picture may be blank
            into[rows] = np.where((size <= VALID * least)[:, None], cells / length[:, None], 0)
    return views, hashes


def _departs(pictures: Sequence[np.ndarray] | np.ndarray, views: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the mean squares of grey levels by which pictures depart from the mean."""
    side = round(COARSE * SHARE)
    seen = _all_seen([_soft(picture, COARSE) for picture in pictures], views, side)
    return (_unexplained(seen, _variations(_seen(_soft(mean, COARSE), np.eye(3), side))) ** 2).mean(axis=1)


def _nearest(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places [N, LIKE] of each picture's nearest, the nearest first, and the symmetries of each."""
    count = hashes.shape[1]
    keep = min(LIKE, count - 1)
    like, how = np.empty((count, keep), int), np.empty((count, keep), int)
    for start in range(0, count, ROWS):
        rows = slice(start, min(start + ROWS, count))
        cosines = hashes[0, rows] @ hashes[0].T
        which = np.zeros(cosines.shape, np.int8)
        for turn in range(1, 8):
            turned = hashes[0, rows] @ hashes[turn].T
            which[turned > cosines] = turn
            np.maximum(cosines, turned, out=cosines)
        cosines[range(len(cosines)), range(rows.start, rows.stop)] = -1.0  # itself
        nearest = np.argpartition(-cosines, keep - 1, axis=1)[:, :keep]
        order = np.take_along_axis(cosines, nearest, 1).argsort(axis=1)[:, ::-1]
        like[rows] = np.take_along_axis(nearest, order, 1)
        how[rows] = np.take_along_axis(which, like[rows], 1)
    return like, how


def _lay(
    pictures: Sequence[np.ndarray] | np.ndarray, template: np.ndarray, views: np.ndarray, noise: float
) -> np.ndarray:
    """Return the views, moved and scaled a little, under which the pictures look most like a template.

    Gauss-Newton steps on light, contrast, shift and scale; ``FREE`` holds the scale where there is nothing to fit.
    """
    moved = np.zeros((len(pictures), 4))  # down, right, and scaled so
    for pixels, times in STEPS:
        soft = [_soft(picture, pixels) for picture in pictures]
        side = round(pixels * SHARE)
        slopes = _variations(_seen(_soft(template, pixels), np.eye(3), side))[:6]
        slopes[2:] *= side / 2 / SHARE
        slopes[4:] *= SHARE
        prior = np.diag([0, 0] + [3 * (pixels / 16) ** 2 * noise / FREE**2] * 4)
        inverse = np.linalg.pinv(slopes @ slopes.T + prior)
        for _ in range(times):
            seen = _all_seen(soft, views, side)
            fit = (seen @ slopes.T - np.pad(moved, ((0, 0), (2, 0))) @ prior) @ inverse
            step = (fit[:, 2:] / fit[:, 1:2].clip(0.5, 2)).clip(-0.1, 0.1)
            moved += step
            change = np.zeros((len(views), 3, 3))
            change[:, 2, 2] = 1
            change[:, 1, 1], change[:, 0, 0] = 1 - step[:, 2], 1 - step[:, 3]
            change[:, 1, 2], change[:, 0, 2] = -step[:, 0], -step[:, 1]
            views = views @ change
    return views


def _same(count: int) -> np.ndarray:
    return np.stack([np.eye(3)] * count)


def _seen(picture: np.ndarray, view: np.ndarray, side: int, share: float = SHARE) -> np.ndarray:
    return _warp(picture, _matrices(view, len(picture), side, share), side)


def _all_seen(pictures: Sequence[np.ndarray], views: np.ndarray, side: int) -> np.ndarray:
    """Return what is seen of pictures under a view each, [N, side * side]."""
    matrices = _matrices(views, len(pictures[0]), side)
    seen = [_warp(picture, matrix, side) for picture, matrix in zip(pictures, matrices, strict=True)]
    return np.reshape(seen, (len(seen), -1)).astype(np.float64)


def _matrices(views: np.ndarray, inside: int, side: int, share: float = SHARE) -> np.ndarray:
    """Return views as OpenCV's matrices [..., 2, 3], from pixels seen to pixels of a picture ``inside`` wide."""
    scale, shift = 2 * share / side, share * (1 / side - 1)
    to = views @ np.array([[scale, 0, shift], [0, scale, shift], [0, 0, 1]])
    return inside / 2 * to[..., :2, :] + (inside - 1) / 2 * to[..., 2:, :]


def _warp(picture: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _blurred(picture: np.ndarray, width: int = BLUR) -> np.ndarray:
    return cv2.blur(picture, (width, width), borderType=cv2.BORDER_REPLICATE)


def _soft(picture: np.ndarray, pixels: int) -> np.ndarray:
    return _blurred(picture, len(picture) // pixels | 1)


def _unexplained(pixels: np.ndarray, variations: np.ndarray) -> np.ndarray:
    variations = variations / (np.linalg.norm(variations, axis=1, keepdims=True) + 1e-9)
    inverse = np.linalg.inv(variations @ variations.T + 1e-7 * np.eye(len(variations)))
    return pixels - ((pixels @ variations.T) @ inverse) @ variations


def _variations(picture: np.ndarray) -> np.ndarray:
    """Return a picture [s, s] with more light, more contrast, shifted, scaled and blurred a little: [9, s * s].

    To the second order in the shift, so that no picture has to be moved to be compared.
    """
    picture = picture.astype(np.float64)
    down, right = np.gradient(picture)
    (twice_down, both), (_, twice_right) = np.gradient(down), np.gradient(right)
    y, x = (np.mgrid[: len(picture), : len(picture)] + 0.5) / len(picture) * 2 - 1
    kinds = (np.ones_like(picture), picture, down, right, y * down, x * right, twice_down, both, twice_right)
    return np.stack([kind.ravel() for kind in kinds])


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
