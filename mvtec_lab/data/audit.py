"""What makes figures worth less than they look, found before training: copies, tiny sets, classes left out.

A finding is one line. One image in two splits is looked for by its file, then by its picture: photographs of a product
are so alike that what counts is how each departs from the others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mvtec_lab.data.catalogue import GOOD
from mvtec_lab.data.images import digests, each_image, odd_masks
from mvtec_lab.data.samples import Sample, classes_of
from mvtec_lab.data.splits import SPLITS

if TYPE_CHECKING:
    from mvtec_lab.data.datamodule import MVTecDataset

TINY = 10  # validation images; with fewer, one image is more than ten points of accuracy
MANY = 8  # classes of one line each, as many as MVTec has defect types; more are named together
LEAKS = (("train", "test"), ("train", "val"), ("val", "test"))  # the worst first
SHOWN = 3  # odd masks named; where a whole folder is inverted, one line for each would bury the rest
SAME, NEARLY = "the same file as", "nearly the same picture as"

SIDE = 64  # pixels: a shift by two of 900 becomes a seventh of one, and grain is averaged away
HASH = 16  # numbers a side of a perceptual hash
# The nearest by their hashes are an image's like. On bottle each of 520 copies had its original among the nearest four;
# more than an image has of its own kind would mix kinds (eight: from nine images of a kind up).
LIKE = 8
ALIKE = 0.7  # least cosine of two hashes; 0.95 was the least between bottles and their copies (0.9 on the sample)
TILES = 8  # a side: so small that one large defect fills few of them
NOISE = 2.0  # grey levels; what varies less in a tile says nothing, JPEG alone changes that much
# Of what an image's like leave unexplained, its copy leaves this much at most in three tiles of four. Measured at 64
# and 224 pixels on MVTec's 292 bottles and the sample's 374 images, 40 copies each: JPEG 60 0.03, brightness +3% 0.10,
# shifted by one pixel 0.12, by two of 900 0.45 (by two of the sample's 256 0.64), all at once 0.48; different
# photographs from 0.98 up, but for one bottle that was photographed twice (train/good/069 and 070: 0.13).
COPY = 0.6

Pairs = list[tuple[int, int]]  # places of two samples
_known: dict[tuple[object, ...], Pairs] = {}  # the jobs of a sweep mostly look at the same pictures


def audit(dataset: MVTecDataset) -> list[str]:
    """Everything found in these images and their splits, a line each, copies first."""
    samples = dataset.samples
    paths = [dataset.folder / s.path for s in samples]
    files = digests(paths)
    key = (dataset.image_size, *files)
    if key not in _known:
        place = {path: k for k, path in enumerate(paths)}
        _known[key] = near_copies(list(each_image(paths, lambda path: thumbnail(dataset.picture(place[path])))))
    near = [(i, j) for i, j in _known[key] if files[i] != files[j]]
    findings = same_files(samples, files) + _leaks(samples, near, NEARLY) + thin_splits(samples)
    odd = odd_masks([dataset.folder / s.mask for s in samples if s.mask])
    return findings + odd[:SHOWN] + ([f"and {len(odd) - SHOWN} more such masks"] if len(odd) > SHOWN else [])


def same_files(samples: Sequence[Sample], files: Sequence[str]) -> list[str]:
    """Findings on images of equal ``files``, by their digests: in two splits, of two classes, twice in one split."""
    by_file: dict[str, list[int]] = defaultdict(list)
    for place, file in enumerate(files):
        by_file[file].append(place)
    across: Pairs = []
    labels: Pairs = []
    twice: dict[str, Pairs] = {split: [] for split in SPLITS}
    for group in by_file.values():
        by_split = {split: [k for k in group if samples[k].split == split] for split in SPLITS}
        for split, places in by_split.items():
            across += [(other[0], k) for name, other in by_split.items() if other and name != split for k in places]
            twice[split] += [(k, places[0]) for k in places[1:]]
        labels += [(k, group[0]) for k in group if samples[k].label != samples[group[0]].label]
    findings = _leaks(samples, across, SAME)
    if labels:
        findings.append(f"{len(labels)} image(s) of two classes: {_example(samples, labels[0], SAME)}")
    for split, pairs in twice.items():
        if pairs:
            findings.append(f"{len(pairs)} image(s) twice in {split}: {_example(samples, pairs[0], SAME)}")
    return findings


def thin_splits(samples: Sequence[Sample]) -> list[str]:
    """Findings on a tiny validation set, and on classes with no image or a single one in val or test."""
    findings = []
    for split in ("val", "test"):
        counts = Counter(s.label for s in samples if s.split == split)
        total = sum(counts.values())
        if split == "val" and 0 < total < TINY:
            one_class = {s.label for s in samples if s.split in ("train", "val")} == {GOOD}
            share = f"one image is {100 / total:.0f} points of its accuracy"
            findings.append(f"val has {total} image(s): {'the threshold rests on them' if one_class else share}")
        # with validation = test there is no val; a one-class method validates on the class that it learns
        judged = [s for s in samples if split == "test" or s.split == "train"]
        names = classes_of(judged) if total else []
        findings += _each_class([n for n in names if counts[n] == 1], f"a single image in {split}", "recall is 0 or 1")
        findings += _each_class([n for n in names if not counts[n]], f"no image in {split}")
    return findings


def _each_class(names: list[str], what: str, so: str = "") -> list[str]:
    """A line for each class, or one for all where they are too many to read."""
    if len(names) > MANY:
        return [f"{len(names)} classes have {what}, {names[0]!r} is one" + (f": their {so}" if so else "")]
    return [f"class {name!r} has {what}" + (f": its {so}" if so else "") for name in names]


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """A picture [S, S, 3] in grey, ``SIDE`` pixels a side or S where that is less; uint8."""
    side = min(SIDE, len(picture))
    return cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (side, side), interpolation=cv2.INTER_AREA)


def near_copies(pictures: Sequence[np.ndarray]) -> Pairs:
    """Places of pictures [s, s] that show one photograph: saved again, scaled, brighter, or a few pixels aside.

    A perceptual hash, the picture's departure from the mean of all, proposes its nearest; then the pixels of the one
    have to explain those of the other much better than the mean of its like does, and nearly everywhere: two products
    with the same defect agree there alone.
    """
    if len(pictures) < 3:
        return []  # nothing tells what is usual
    grey = np.stack(pictures)
    mean = grey.mean(axis=0)
    everything = _variations(mean)
    hashes = np.stack([_shrink(_unexplained(picture, everything), HASH).ravel() for picture in grey])
    hashes = (hashes / (np.linalg.norm(hashes, axis=1, keepdims=True) + 1e-6)).astype(np.float32)  # 1e-6: may be blank
    like: list[np.ndarray] = []  # the places of each picture's nearest, in order
    for start in range(0, len(grey), 256):  # rows at a time: 10 MB with 10,000 pictures
        cosines = hashes[start : start + 256] @ hashes.T
        cosines[range(len(cosines)), range(start, start + len(cosines))] = -1.0  # itself
        nearest = np.argpartition(-cosines, min(LIKE, len(grey) - 1) - 1, axis=1)[:, :LIKE]
        order = np.take_along_axis(cosines, nearest, 1).argsort(axis=1)[:, ::-1]
        like += list(np.take_along_axis(nearest, order, 1))

    def explains(other: int, place: int) -> bool:
        its_like = grey[[k for k in like[place] if k != other]].mean(axis=0)
        usual = min((_left(grey[place], by) for by in (its_like, mean)), key=np.sum)
        telling = usual > NOISE**2
        left = _left(grey[place], grey[other])[telling]
        return bool(telling.any()) and float(np.quantile(left / usual[telling], 0.75)) < COPY

    found = set()
    for place, others in enumerate(like):
        for other in others:
            if hashes[place] @ hashes[other] > ALIKE and explains(other, place) and explains(place, other):
                found.add((min(place, int(other)), max(place, int(other))))
    return sorted(found)


def _left(picture: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Mean squares of what one picture leaves unexplained of another, [TILES, TILES]."""
    return _shrink(_unexplained(picture, _variations(by)) ** 2, TILES)


def _unexplained(picture: np.ndarray, variations: np.ndarray) -> np.ndarray:
    pixels = picture.ravel().astype(np.float64)
    return (pixels - variations @ (variations.T @ pixels)).reshape(picture.shape)


def _variations(picture: np.ndarray) -> np.ndarray:
    """An orthonormal basis [s * s, 9] of a picture, brighter, with more contrast, shifted, scaled and blurred a little.

    To the second order in the shift, so that no picture has to be moved to be compared.
    """
    picture = picture.astype(np.float64)
    down, right = np.gradient(picture)
    (twice_down, both), (_, twice_right) = np.gradient(down), np.gradient(right)
    y, x = np.mgrid[: len(picture), : len(picture)] - (len(picture) - 1) / 2
    kinds = (np.ones_like(picture), picture, down, right, y * down, x * right, twice_down, both, twice_right)
    return np.linalg.qr(np.stack([kind.ravel() for kind in kinds], axis=1))[0]


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def _leaks(samples: Sequence[Sample], pairs: Pairs, how: str) -> list[str]:
    """A finding for every two splits that share an image."""
    findings = []
    both_ways = [pair for i, j in pairs for pair in ((i, j), (j, i))]
    for earlier, later in LEAKS:
        found = {j: i for i, j in both_ways if (samples[i].split, samples[j].split) == (earlier, later)}
        if found:
            total = sum(s.split == later for s in samples)
            example = _example(samples, min(found.items()), how)
            findings.append(f"{len(found)} of {total} {later} images are in {earlier} as well: {example}")
    return findings


def _example(samples: Sequence[Sample], pair: tuple[int, int], how: str) -> str:
    one, other = (samples[k].path for k in pair)
    return f"{one} is {how} {other}"
