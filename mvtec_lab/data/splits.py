"""Split samples: which images take part, and which of them train, choose and judge.

Each class draws from a generator of its own, so its split does not change when another class gains or loses images.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mvtec_lab.checks import validate_split
from mvtec_lab.config import SplitConfig, untested
from mvtec_lab.data.samples import Sample, classes_of, no_good
from mvtec_lab.errors import LabError, unknown
from mvtec_lab.results import DEFECT, GOOD, read_csv

SPLITS = ("train", "val", "test")


def split_samples(samples: Sequence[Sample], split: SplitConfig) -> list[Sample]:
    """Give every sample its split; those that take no part keep an empty one.

    With ``val_is_test`` no sample is called val: the test samples serve as both.

    Raises:
        LabError: a setting out of range, a class with too few images (or groups) for the split, or a split file that
            does not fit the samples.
    """
    validate_split(split)
    samples = [replace(s, group=_group(s, split.group_by)) for s in samples]
    if split.group_by and all(s.group == s.path for s in samples) and split.protocol != "test_folder":
        raise LabError(f"split.group_by={split.group_by!r} matches no image, {samples[0].path} for one")
    asked, split = split.protocol, settled(samples, split)
    if split.protocol == "own":
        try:
            result = _own(samples, split)
            _check_classes(result)
        except LabError as error:
            if asked != "auto":
                raise
            raise LabError(f"{error}; split.protocol=holdout draws from all images instead") from error
        return result
    if split.protocol == "test_folder":
        return [replace(s, split="test" if _is_test(s) else "") for s in _with_test(samples, split)]
    if split.protocol == "test_only":
        tested = {s.path for s in pool_of(samples, split.pool)}
        return [replace(s, split="test" if s.path in tested else "") for s in samples]
    if split.protocol == "one_class":
        return _one_class(samples, split)
    result = _drawn(samples, split) if split.file is None else _from_file(samples, Path(split.file), split.val_is_test)
    _check_classes(result)
    return result


def settled(samples: Sequence[Sample], split: SplitConfig) -> SplitConfig:
    """Return a split whose protocol is not ``auto``: ``own`` for samples that are divided already, else ``holdout``.

    Settings of a draw, ``pool`` and ``per_class``, ask for ``holdout``.
    """
    if split.protocol != "auto":
        return split
    own = division(samples) and split.per_class is None and split.pool == "test"
    return replace(split, protocol="own" if own else "holdout")


def division(samples: Sequence[Sample]) -> list[str]:
    """Return the parts of a data set on which a classifier can be trained and judged: train and others, else none."""
    own = [part for part in SPLITS if any(s.split == part for s in samples)]
    divided = len(own) > 1 and all(s.split for s in samples)
    return own if divided and any(s.label != GOOD for s in samples if s.split == "train") else []


def parted(samples: Sequence[Sample], split: SplitConfig) -> list[str]:
    """Return a line in a list where a data set is divided and all of it is drawn from, else an empty list.

    Args:
        samples: before the split, with the data set's own division.
    """
    own = division(samples) if split.protocol in ("holdout", "kfold") else []
    return [
        f"the images are divided already, into {', '.join(own)}, and {split.protocol} draws from all of them: "
        "split.protocol=own takes the parts as they are"
    ] * bool(own)


def pool_of(samples: Sequence[Sample], pool: str) -> list[Sample]:
    """Return the samples that may be drawn: the data set's test images where the others are good alone, else all.

    Args:
        pool: ``all`` takes the good images for training as well.
    """
    others = [s for s in samples if not _is_test(s)]
    one_class = len(others) < len(samples) and all(s.label == GOOD for s in others)
    return [s for s in samples if _is_test(s)] if one_class and pool == "test" else list(samples)


def has_test(samples: Iterable[Sample]) -> bool:
    """Tell whether a data set has test images of its own."""
    return any(map(_is_test, samples))


def _is_test(sample: Sample) -> bool:
    """Tell whether a sample is of the test images that the data set itself has."""
    return sample.split == "test" if sample.split else sample.path.startswith("test/")


def _own(samples: Sequence[Sample], split: SplitConfig) -> list[Sample]:
    """Return the parts that an annotated data set has; one that it lacks is drawn from train, as a holdout is."""
    parts = {s.split for s in samples}
    if "" in parts:
        raise LabError(
            "split.protocol=own is for data=coco, data=yolo and folders train/, val/, test/, which have parts: give "
            "split.protocol=holdout"
        )
    if split.val_is_test and "val" in parts:
        raise LabError("the data set has validation images: leave out split.val_is_test")
    if "test" in parts and split.test == 0:
        raise LabError(
            "split.test=0: the data set has test images of its own: split.protocol=holdout learns them as well"
        )
    if "test" in parts:  # of split.val nothing is said: attempts set a share of their own, for data without that part
        _leave_out("test", split.test, "has test images of its own")
    units = _units([s for s in samples if s.split == "train"])
    tested = set() if "test" in parts else _draw(units, units, split.test, split.seed, "test")
    rest = {label: [u for u in groups if u not in tested] for label, groups in units.items()}
    drawn = set() if "val" in parts or split.val_is_test else _draw(units, rest, split.val, split.seed, "val")

    def split_of(sample: Sample) -> str:
        if sample.split != "train":
            return sample.split
        return "test" if sample.group in tested else "val" if sample.group in drawn else "train"

    result = [replace(s, split=split_of(s)) for s in samples]
    _check_groups(result, "the data set's own division")
    return result


def _drawn(samples: Sequence[Sample], split: SplitConfig) -> list[Sample]:
    """Return a split that is drawn class by class: holdout or kfold."""
    pooled, seed = pool_of(samples, split.pool), split.seed
    if split.per_class is not None:
        pooled = _draw_per_class(pooled, split.per_class, seed)
    units = _units(pooled)
    if split.protocol == "kfold":
        tested = _fold(units, split.folds, split.fold, seed)
    else:
        tested = _draw(units, units, split.test, seed, "test")
    rest = {label: [u for u in groups if u not in tested] for label, groups in units.items()}
    chosen = set() if split.val_is_test else _draw(units, rest, split.val, seed, "val")
    used = {s.path for s in pooled}

    def split_of(sample: Sample) -> str:
        if sample.path not in used:
            return ""
        return "test" if sample.group in tested else "val" if sample.group in chosen else "train"

    return [replace(s, split=split_of(s)) for s in samples]


def _one_class(samples: Sequence[Sample], split: SplitConfig) -> list[Sample]:
    """Return a split in which a share of the good images is val, the others train, and the test images are test.

    Good images that the data set has for validation are val instead. Without test images of its own, all defects and
    a share of the good images are test.
    """
    if all(s.label != GOOD for s in samples):
        raise LabError(no_good(classes_of(samples)))
    if has_test(samples):
        _leave_out("test", split.test, "has test images of its own")
    samples = _with_test(samples, split)
    learnt = [s for s in samples if not _is_test(s) and s.label == GOOD]
    chosen = {s.group for s in learnt if s.split == "val"}
    if chosen and any(s.split == "train" for s in learnt):
        _leave_out("val", split.val, "has validation images of its own")
        _check_groups([s for s in learnt if s.group in chosen], "the data set's own division")
    else:
        chosen = _held_out(learnt, split.val, split.seed)
    tested = {s.group: s.path for s in samples if _is_test(s)}
    if torn := [s for s in learnt if s.group in tested]:
        raise LabError(
            f"group {torn[0].group!r} of split.group_by is in train/good ({torn[0].path}) and in test/ "
            f"({tested[torn[0].group]}): one_class tests on all of test/: remove one of them"
        )

    def split_of(sample: Sample) -> str:
        if not _is_test(sample) and sample.label != GOOD:
            return ""
        return "test" if _is_test(sample) else "val" if sample.group in chosen else "train"

    return [replace(s, split=split_of(s)) for s in samples]


def _with_test(samples: Sequence[Sample], split: SplitConfig) -> list[Sample]:
    """Return samples with test images: the data set's own, or all defects and the share ``split.test`` of the rest."""
    if has_test(samples):
        return list(samples)
    tested = {s.group for s in samples if s.label != GOOD}  # of a good image's group as well
    units = _units([s for s in samples if s.group not in tested])
    if units:
        tested |= _draw(units, units, split.test, split.seed, "test")
    return [replace(s, split="test" if s.group in tested else s.split or "train") for s in samples]


def drawn_test(listed: Sequence[Sample], samples: Sequence[Sample], split: SplitConfig) -> list[str]:
    """Return a line in a list where one_class tests images that the data set does not set apart, else an empty list.

    Args:
        listed: the samples before the split, with the data set's own division.
        samples: the same after it.
    """
    if split.protocol != "one_class" or has_test(listed):
        return []
    tested = Counter(s.label == GOOD for s in samples if s.split == "test")
    return [
        f"the data set has no test images of its own: {tested[True]} good images, drawn by split.test={split.test:g}, "
        f"and all {tested[False]} defects are tested"
    ]


def to_keep(split: SplitConfig) -> list[str]:
    """Return a line in a list where nothing is tested, as the model is to be kept; else an empty list."""
    if not untested(split):
        return []
    return [
        "no image is tested (split.test=0): what to expect of this model is its attempt's figure in cross-validation"
    ]


def _leave_out(key: str, share: float, why: str) -> None:
    """Refuse a share that is drawn from nothing."""
    if share != getattr(SplitConfig(), key):
        raise LabError(f"split.{key}={share:g} does nothing for a data set that {why}: leave it out")


def good_alone(samples: Sequence[Sample], listed: Sequence[Sample], split: SplitConfig, known: int = 0) -> list[Sample]:
    """Let a fold's samples train and validate a one-class method: the test images stay, the fold's others take no part.

    It learns from train/good, as with ``one_class`` (from the good images of an annotated data set that are not its
    test images), but not from an image of which the fold tests the group: with ``split.pool=all`` it tests some of
    train/good. Other protocols than kfold and holdout are left as they are.

    Args:
        samples: of ``split_samples``.
        listed: the same images as ``split_samples`` was given them, with the data set's own division.
        split: its settings.
        known: defects of each type that train as well, at most: of those that are not tested; with ``one_class``, those
            that the data set does not set apart for testing. Of two draws the smaller is part of the larger.

    Raises:
        LabError: too few good images are left to learn from.
    """
    if split.protocol not in ("kfold", "holdout"):
        return _with_known(samples, samples, listed, split, known)
    tested = {s.group for s in samples if s.split == "test"}
    learnt = [
        s
        for s, own in zip(samples, listed, strict=True)
        if s.label == GOOD and s.group not in tested and not _is_test(own)
    ]
    chosen, paths = _held_out(learnt, split.val, split.seed), {s.path for s in learnt}

    def split_of(sample: Sample) -> str:
        if sample.path not in paths:
            return sample.split if sample.split == "test" else ""
        return "val" if sample.group in chosen else "train"

    alone = [replace(s, split=split_of(s)) for s in samples]
    return _with_known(alone, samples, listed, split, known)


def _with_known(
    alone: Sequence[Sample], drawn: Sequence[Sample], listed: Sequence[Sample], split: SplitConfig, known: int
) -> list[Sample]:
    """Let some defects of each type train beside good images.

    Args:
        alone: the samples with the splits of good images and of test images.
        drawn: the same as ``split_samples`` gave them; its defects that are not tested may train.
    """
    kept = {s.group for s in alone if s.split in ("val", "test")}
    triples = zip(alone, drawn, listed, strict=True)
    free = [
        s
        for s, before, own in triples
        if s.label != GOOD and s.group not in kept and (before.split or not _is_test(own))
    ]
    chosen: set[str] = set()
    for label in classes_of(free):
        of_type = [s.path for s in free if s.label == label]
        chosen.update(of_type[i] for i in _generator(split.seed, "known", label).permutation(len(of_type))[:known])
    return [replace(s, split="train") if s.path in chosen else s for s in alone]


def cross_folds(train: Sequence[Sample], val: Sequence[Sample], seed: int) -> list[list[Sample]]:
    """Divide images into folds of about equal size, the first of which is ``val``; no fold parts a group.

    The training images are dealt out at random, and no fold has more groups than ``val``: a model that is fitted to all
    but one fold learns about as many images as one that is fitted to ``train``.
    """
    groups = _generator(seed, "cross_folds").permutation(sorted({s.group for s in train})).tolist()
    count = -(-len(groups) // len({s.group for s in val}))
    fold_of = {group: place % count for place, group in enumerate(groups)}
    return [list(val), *([s for s in train if fold_of[s.group] == fold] for fold in range(count))]


def _held_out(learnt: list[Sample], val: float, seed: int) -> set[str]:
    """Return the groups of the good images ``learnt`` that validate."""
    units = _units(learnt)
    groups = units.get(GOOD, [])
    if len(groups) < 3:
        raise LabError(
            f"train/good has {len(groups)} image(s) or group(s), too few for one_class (at least 3): add images"
        )
    return _draw(units, units, val, seed, "val")


def thin_out(samples: Sequence[Sample], ratio: float, seed: int) -> list[Sample]:
    """Leave out training images until their classes form an exponential tail, of ``ratio`` images to one.

    The i-th of C classes, from the most frequent one of the pool to the rarest, keeps t * ratio^(1 - i / (C - 1))
    images, Cui et al., CVPR 2019; t, the rarest one's, is the largest whole number that the training images allow, so
    that a whole ratio is exact. Of two draws of a class the smaller is part of the larger. Groups are left out as a
    whole; only one group of each class may be parted.

    Raises:
        LabError: a ratio below 1, or one that leaves the rarest class less than one image.
    """
    if not 1 <= ratio < float("inf"):
        raise LabError(f"data.imbalance={ratio:g} is out of range: give a number of 1 or more")
    used = [s for s in samples if s.split]
    pool = Counter(s.label for s in used)
    order = sorted(classes_of(used), key=lambda label: -pool[label])  # of the pool: the same for every fold
    training = {label: [s for s in used if s.split == "train" and s.label == label] for label in order}
    return _first_drawn(samples, _tail({label: len(training[label]) for label in order}, ratio), seed, "imbalance")


def few_of_each(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """Leave out training images until each class has at most ``count``; of two draws the smaller is in the larger.

    Groups are left out as a whole; only one group of each class may be parted.
    """
    return _first_drawn(samples, {s.label: count for s in samples if s.split == "train"}, seed, "few_of_each")


def _first_drawn(samples: Sequence[Sample], kept: Mapping[str, int], seed: int, name: str) -> list[Sample]:
    """Leave out training images but the first ``kept`` of each class, in the order of a draw."""
    chosen: set[str] = set()
    for label, count in kept.items():
        of_class = [s for s in samples if s.split == "train" and s.label == label]
        drawn = [of_class[i] for i in _generator(seed, name, label).permutation(len(of_class))]
        turn: dict[str, int] = {}  # group -> when its first image was drawn
        for s in drawn:
            turn.setdefault(s.group, len(turn))
        chosen.update(s.path for s in sorted(drawn, key=lambda s: turn[s.group])[:count])
    return [replace(s, split="") if s.split == "train" and s.path not in chosen else s for s in samples]


def _tail(counts: Mapping[str, int], ratio: float) -> dict[str, int]:
    """Return how many training images each class keeps; ``counts``: what it has, the classes in the tail's order."""
    order = list(counts)

    def tail(rarest: int, head: float) -> dict[str, int] | None:
        kept = {label: round(rarest * head ** (1 - i / (len(order) - 1))) for i, label in enumerate(order)}
        return kept if all(kept[label] <= counts[label] for label in order) else None

    kept = next((k for t in range(counts[order[-1]], 0, -1) if (k := tail(t, ratio))), None)
    if kept is None:
        most = next(r for r in range(int(min(ratio, counts[order[0]])), 0, -1) if tail(1, r))
        raise LabError(
            f"data.imbalance={ratio:g} leaves class {order[-1]!r} less than one training image: "
            f"give data.imbalance={most} at most"
        )
    return kept


def _group(sample: Sample, pattern: str | None) -> str:
    """Return the group of an image by the user's pattern; without one the data set's own, or the image alone."""
    match = re.search(pattern, sample.path) if pattern else None
    without = sample.path if pattern else sample.group or sample.path
    return match.group(1) if match and match.group(1) else without


def _generator(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def _draw_per_class(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    drawn = []
    for label in classes_of(samples):
        of_class = [s for s in samples if s.label == label]
        if len(of_class) < count:
            raise LabError(f"split.per_class={count}, but class {label!r} has only {len(of_class)} images")
        picks = _generator(seed, "per_class", label).choice(len(of_class), count, replace=False)
        drawn += [of_class[i] for i in sorted(picks)]
    return drawn


Units = dict[str, list[str]]  # class -> its groups


def _units(samples: list[Sample]) -> Units:
    """Return the groups of each class; a group of several classes counts for the rarest, which needs it most."""
    frequency = Counter(s.label for s in samples)
    members: dict[str, set[str]] = defaultdict(set)
    for s in samples:
        members[s.group].add(s.label)
    units: Units = {label: [] for label in classes_of(samples)}
    for group, labels in members.items():
        units[min(labels, key=lambda label: (frequency[label], label))].append(group)
    return units


def _draw(all_units: Units, left: Units, share: float, seed: int, name: str) -> set[str]:
    """Draw ``share`` of the groups of each class, at least one, and leave at least one; none where it is 0."""
    drawn: set[str] = set()
    if not share:
        return drawn
    for label, groups in left.items():
        if len(groups) < 2:
            raise _too_few(label, len(all_units[label]), "holdout", 3)
        count = min(max(1, round(share * len(all_units[label]))), len(groups) - 1)
        drawn.update(_generator(seed, name, label).permutation(groups)[:count].tolist())
    return drawn


def _fold(units: Units, folds: int, fold: int, seed: int) -> set[str]:
    for label, groups in units.items():
        if len(groups) < folds:
            raise _too_few(label, len(groups), f"{folds} folds", folds)
    from sklearn.model_selection import StratifiedKFold  # and with it SciPy: other splits do without, and mistakes

    groups = [group for label in units for group in units[label]]
    labels = [label for label in units for _ in units[label]]
    pairs = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(groups, labels)
    return {groups[i] for i in list(pairs)[fold][1]}


def _too_few(label: str, count: int, protocol: str, least: int) -> LabError:
    merged = "data.defects=merged (one class of all defects)"
    remedies = f"{'' if label in (GOOD, DEFECT) else f'{merged}, or '}split.protocol=file"
    return LabError(
        f"class {label!r} has {count} image(s) or group(s), too few for {protocol} (at least {least}): "
        f"add images, remove the class, or give {remedies}"
    )


def _from_file(samples: Sequence[Sample], file: Path, val_is_test: bool) -> list[Sample]:
    given = _splits_listed(file, {s.path for s in samples})
    result = [replace(s, split=given.get(s.path, "")) for s in samples]
    named = {s.split for s in result}
    for split in ("train", "test") if val_is_test else SPLITS:
        if split not in named:
            remedy = "; split.val_is_test=true chooses on the test images" if split == "val" else ""
            raise LabError(f"{file} names no {split} image{remedy}")
    _check_groups(result, str(file))
    return result


def _check_groups(samples: Iterable[Sample], said_by: str) -> None:
    homes: dict[str, str] = {}
    for s in (s for s in samples if s.split):
        if homes.setdefault(s.group, s.split) != s.split:
            raise LabError(f"{said_by} parts the group {s.group!r}: it is in {homes[s.group]!r} and in {s.split!r}")


def _splits_listed(file: Path, paths: Collection[str]) -> dict[str, str]:
    """Return the split of each path that a file lists."""
    if not file.is_file():
        raise LabError(f"split.file={file} does not exist")
    try:
        rows = read_csv(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise LabError(f"split.file={file} is not a CSV file in UTF-8 ({error}): save it as one") from error
    if not rows or not {"path", "split"} <= set(rows[0]):
        raise LabError(f"split.file={file} needs a header and rows with the columns path,split")
    given: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        path, split = (row["path"] or "").strip(), (row["split"] or "").strip()
        if path not in paths:
            raise LabError(f"{file} line {line}: {unknown('image', path, paths)}")
        if split not in (*SPLITS, ""):
            raise LabError(f"{file} line {line}: {unknown('split', split, SPLITS)}")
        if given.setdefault(path, split) != split:
            raise LabError(f"{file} line {line}: {path} is in {given[path]!r} and in {split!r}: an image has one split")
    return given


def _check_classes(samples: Iterable[Sample]) -> None:
    used = [s for s in samples if s.split]
    missing = set(classes_of(used)) - {s.label for s in used if s.split == "train"}
    if missing:
        raise LabError(f"class {min(missing)!r} has no training image: the network cannot learn it")
    if len(classes_of(used)) < 2:
        if all(s.label == GOOD for s in used):
            raise LabError(
                "the split has a single class, good, and a classifier needs defects: attempt=patchcore learns good "
                "images alone"
            )
        raise LabError("the split has a single class: a classifier needs two or more (split.pool=all adds train/good)")
