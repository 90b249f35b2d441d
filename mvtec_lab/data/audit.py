"""Find before training what makes figures worth less than they look: copies, tiny sets, classes left out.

A finding is one line. An image in two splits is found by its file, then by its picture (copies.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import cv2
import numpy as np

from mvtec_lab.data.copies import SIDE, Copies, near_copies
from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.images import digests, each_image, grey_masks, odd_masks
from mvtec_lab.data.samples import Sample, classes_of
from mvtec_lab.data.splits import SPLITS
from mvtec_lab.results import GOOD

TINY = 10  # validation images; with fewer, one image is more than ten points of any share of them
MANY = 8  # classes of one line each, as many as MVTec has defect types; more are named together
LEAKS = (("train", "test"), ("train", "val"), ("val", "test"))  # the worst first
SHOWN = 3  # odd masks named; where a whole folder is inverted, one line for each would bury the rest
SAME = "the same file as"

Pairs = list[tuple[int, int]]  # places of two samples
_known: dict[tuple[object, ...], Copies] = {}  # the jobs of a sweep mostly audit the same pictures


def audit(dataset: MVTecDataset, chosen: str, good_alone: bool = False) -> list[str]:
    """Return the findings on these images and their splits, one line each, copies first.

    Args:
        chosen: what rests on the images of val, in words; empty: nothing does.
        good_alone: good images validate, whatever else was learnt.
    """
    samples = dataset.samples
    paths = [dataset.folder / s.path for s in samples]
    files = digests(paths)
    key = (dataset.frame, *files)
    if key not in _known:
        place = {path: k for k, path in enumerate(paths)}
        _known[key] = near_copies(list(each_image(paths, lambda path: thumbnail(dataset.shown(place[path])))))
    near = {pair: how for pair, how in _known[key].items() if files[pair[0]] != files[pair[1]]}
    findings = same_files(samples, files) + _leaks(samples, list(near), near) + thin_splits(samples, chosen, good_alone)
    masks = [dataset.folder / s.mask for s in samples if s.mask and not s.objects]
    odd = odd_masks(masks)
    more = [f"and {len(odd) - SHOWN} more such masks"] if len(odd) > SHOWN else []
    return findings + odd[:SHOWN] + more + grey_masks(masks)


def same_files(samples: Sequence[Sample], files: Sequence[str]) -> list[str]:
    """Return findings on images of equal ``files`` (digests): in two splits, of two classes, twice in one split."""
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
    findings = _leaks(samples, across)
    if labels:
        findings.append(f"{len(labels)} image(s) of two classes: {_example(samples, labels[0], SAME)}")
    for split, pairs in twice.items():
        if pairs:
            findings.append(f"{len(pairs)} image(s) twice in {split}: {_example(samples, pairs[0], SAME)}")
    return findings


def thin_splits(samples: Sequence[Sample], chosen: str, good_alone: bool = False) -> list[str]:
    """Return findings on a tiny validation set, and on classes with no image or a single one in val or test.

    Args:
        chosen, good_alone: as in ``audit``.
    """
    findings = []
    for split in ("val", "test") if chosen else ("test",):
        counts = Counter(s.label for s in samples if s.split == split)
        total = sum(counts.values())
        if split == "val" and 0 < total < TINY:
            findings.append(f"val has {total} image(s): {chosen} rests on them")
        # with validation = test there is no val; a one-class method validates on the class that it learns
        judged = [s for s in samples if split == "test" or s.split == "train"]
        names = classes_of(judged) if total else []
        names = [n for n in names if n == GOOD] if split == "val" and good_alone else names
        findings += _each_class(
            [n for n in names if counts[n] == 1], f"a single image in {split}", "figures rest on that one"
        )
        findings += _each_class([n for n in names if not counts[n]], f"no image in {split}")
    return findings


def _each_class(names: list[str], what: str, so: str = "") -> list[str]:
    """Return a line for each class, or one line for all if they are too many to read."""
    if len(names) > MANY:
        return [f"{len(names)} classes have {what}, {names[0]!r} is one" + (f": their {so}" if so else "")]
    return [f"class {name!r} has {what}" + (f": its {so}" if so else "") for name in names]


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """Return a picture [h, w, 3] in grey: uint8, a square of ``SIDE`` pixels, or of its longer side if that is less."""
    side = min(SIDE, max(picture.shape[:2]))
    return cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (side, side), interpolation=cv2.INTER_AREA)


def _leaks(samples: Sequence[Sample], pairs: Pairs, near: Copies | None = None) -> list[str]:
    """Return a finding for every two splits that share an image; ``near``: pairs whose files differ."""
    findings = []
    both_ways = [pair for i, j in pairs for pair in ((i, j), (j, i))]
    for earlier, later in LEAKS:
        copies = {j: i for i, j in both_ways if (samples[i].split, samples[j].split) == (earlier, later)}
        if copies:
            total = sum(s.split == later for s in samples)
            pair = min(copies.items())
            how = SAME if near is None else _nearly(near[min(pair), max(pair)])
            example = _example(samples, pair, how)
            findings.append(f"{len(copies)} of {total} {later} images are in {earlier} as well: {example}")
    return findings


def _nearly(how: str) -> str:
    return f"nearly the same picture{f', {how},' if how else ''} as"


def _example(samples: Sequence[Sample], pair: tuple[int, int], how: str) -> str:
    one, other = (samples[k].path for k in pair)
    return f"{one} is {how} {other}"
