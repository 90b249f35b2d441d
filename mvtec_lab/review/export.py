"""Write what a review decided as a new version of the data set: MVTec's layout, COCO's json, and a list of changes.

Images are copied, never linked: programs that read such folders rewrite damaged files in place, and the originals stay
as they are. A version is written under another name first, and gets its own when all of it is on the disk.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mvtec_lab.data.annotations.coco import coco_content
from mvtec_lab.data.annotations.export import Annotated
from mvtec_lab.data.images import digests, image_size
from mvtec_lab.data.layouts.base import MASKS
from mvtec_lab.data.regions import Region, Size, regions_of
from mvtec_lab.data.samples import Sample
from mvtec_lab.data.splits import SPLITS
from mvtec_lab.errors import LabError, disk_full
from mvtec_lab.locks import held
from mvtec_lab.results import DEFECT, GOOD, VERSION, write_csv
from mvtec_lab.review.items import Base, Subject
from mvtec_lab.review.pictures import unpacked
from mvtec_lab.review.store import State

SPLIT_FILE, CHANGES = "split.csv", "CHANGES.csv"
# Keys of a run that say nothing of how a version of its data is learnt.
_OF_DATA = {
    *("task", "attempt", "data", "resume", "race", "audit", "study"),
    *(f"data.{name}" for name in ("name", "root", "category", "good", "labels", "archive", "sha256", "masks")),
    *("data.per_class", "data.imbalance"),  # new images would be left out again
}
_COLUMNS = ("change", "path", "was", "label", "label_was", "split", "mask", "boxes", "at")


@dataclass
class _Placed:
    """Hold an image of the new version: its file, its class and part, what was decided of it, and where it will lie."""

    source: Path
    was: str
    label: str
    split: str
    sample: Sample | None
    state: State | None
    path: str = ""
    mask: np.ndarray | None = None
    regions: list[Region] = field(default_factory=list)

    @property
    def change(self) -> str:
        """Return what was done with it, in a word; empty where nothing was."""
        if self.state is None:
            return ""
        if self.sample is None:
            return "added"
        if self.label != self.sample.label:
            return "relabelled"
        return "marked" if self.marked else "confirmed" if self.state.decided else ""

    @property
    def marked(self) -> bool:
        """Return whether somebody has drawn a mask or boxes."""
        return self.state is not None and (self.state.mask is not None or bool(self.state.boxes))


def write_version(subject: Subject, states: Mapping[str, State], out: Path) -> dict[str, Any]:
    """Write the next version of the data set below ``out``, and return what is in it.

    The images of the data set keep their part, whatever their new class: what is tested stays tested. New images that
    somebody has judged train; the others, and those that were dropped, are left out. A new image that is, byte by byte,
    one of the data set counts as that one.

    Args:
        subject: what was reviewed.
        states: what was decided, by the item's key.

    Raises:
        LabError: there is no image, a file cannot be read, or another process writes a version.
        DiskFullError: there is no room for it; nothing of it stays.
    """
    placed, dropped = _planned(subject, states)
    if not placed:
        raise LabError("a version of these decisions would hold no image: confirm or relabel some first")
    with held(out):
        for left in out.glob(".version-*.tmp"):  # of a process that was killed: this one holds the lock
            shutil.rmtree(left, ignore_errors=True)
        partial = out / f".version-{os.getpid()}.tmp"
        try:
            facts = _write(subject, placed, dropped, partial)
            folder = _named(partial, out)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                reason = f"{error.filename or out} cannot be written ({error.strerror}): make its folder writable"
                raise disk_full(error, out) or LabError(reason) from error
            raise
    return {"folder": str(folder), "command": _command(subject.base, folder, facts), **facts}


def _planned(subject: Subject, states: Mapping[str, State]) -> tuple[list[_Placed], list[_Placed]]:
    """Return the images of the new version, and those that were dropped."""
    base, placed = subject.base, list[_Placed]()
    own: dict[str, State] = {}  # path of the data set's image -> what was decided of it
    new = []
    for item in subject.items:
        state = states.get(item.key)
        if state is None or not (state.decided or state.boxes or state.mask is not None):
            continue
        if item.sample is not None:
            own[item.sample.path] = state
        elif state.decided:
            new.append((item, state))
    if base is not None:
        if new:
            known = dict(zip(digests([base.folder / s.path for s in base.samples]), base.samples, strict=True))
            same = [known.get(digest) for digest in digests([item.file for item, _ in new])]
            own |= {s.path: state for s, (_, state) in zip(same, new, strict=True) if s is not None}
            new = [pair for s, pair in zip(same, new, strict=True) if s is None]
        for s in base.samples:
            state = own.get(s.path)
            label = state.label if state is not None and state.decided else s.label
            if label == DEFECT and s.label != GOOD:  # what a model that knows no types says: the type is known
                label = s.label
            placed.append(_Placed(base.folder / s.path, s.path, label, s.split, s, state))
    seen: set[str] = set()
    for (item, state), digest in zip(new, digests([item.file for item, _ in new]), strict=True):
        if digest not in seen or state.verdict == "dropped":  # an image that was predicted twice is added once
            placed.append(_Placed(item.file, item.key, state.label, "train", None, state))
        seen.add(digest)
    dropped = [p for p in placed if p.state is not None and p.state.verdict == "dropped"]
    kept = [p for p in placed if p.state is None or p.state.verdict != "dropped"]
    _name(kept, base)
    return kept, dropped


def _name(placed: Sequence[_Placed], base: Base | None) -> None:
    """Give every image its place in MVTec's layout: the one that it has, where its class still is the same."""
    taken: set[str] = set()
    own = [p for p in placed if p.sample is not None and p.label == p.sample.label]  # these keep their names
    for p in [*own, *(p for p in placed if p not in own)]:
        pure = PurePosixPath(p.was) if p.sample is not None else PurePosixPath(p.source.name)
        tested = pure.parts[0] == "test" if p.sample is not None and base is not None else False
        learnt = p.label == GOOD and (p.split in ("train", "") or pure.parts[0] == "train") and not tested
        home = f"train/{GOOD}" if learnt else f"test/{p.label}"
        stem, number = pure.stem[:100], 2  # letters: with a suffix it stays below 255 bytes
        name = stem
        while {f"{home}/{name}".casefold(), f"{home}/{name}_mask".casefold()} & taken:
            name, number = f"{stem}__{number}", number + 1
        taken |= {f"{home}/{name}".casefold(), f"{home}/{name}_mask".casefold()}  # masks go by names without suffix
        p.path = f"{home}/{name}{pure.suffix.lower()}"


def _write(subject: Subject, placed: Sequence[_Placed], dropped: Sequence[_Placed], folder: Path) -> dict[str, Any]:
    """Write a version into a folder and return its facts."""
    base, warnings = subject.base, list[str]()
    for p in placed:
        _copy(p.source, folder / p.path)
        if p.label != GOOD:
            _mark(p, base)
        if p.mask is not None:
            _write_mask(folder / MASKS / p.label / f"{PurePosixPath(p.path).stem}_mask.png", p.mask)
    if base is not None:
        trained = {p.label for p in placed if p.split == "train"}
        idle = sorted({p.label for p in placed if p.split} - trained) if any(p.label != GOOD for p in placed) else []
        for label in idle if _learns_types(base) else []:
            held_out = [p for p in placed if p.label == label and p.split]
            warnings.append(
                f"class {label!r} has no training image: its {len(held_out)} image(s) take no part in {SPLIT_FILE}"
            )
            for p in held_out:
                p.split = ""
        write_csv(folder / SPLIT_FILE, [{"path": p.path, "split": p.split} for p in placed], ("path", "split"))
    warnings += _write_coco(placed, folder)
    changed = [p for p in placed if p.change]
    rows = [_row(p) for p in changed] + [{**_row(p), "change": "dropped", "path": ""} for p in dropped]
    write_csv(folder / CHANGES, sorted(rows, key=lambda row: row["at"]), _COLUMNS)
    facts: dict[str, Any] = {
        "reviewed": str(subject.directory.absolute()),
        "data": None if base is None else str(base.folder),
        "images": len(placed),
        "classes": dict(sorted(Counter(p.label for p in placed).items(), key=lambda pair: (pair[0] != GOOD, pair[0]))),
        "changes": dict(Counter([p.change for p in changed] + ["dropped"] * len(dropped))),
        "splits": None if base is None else dict(Counter(p.split for p in placed if p.split)),
        "warnings": warnings,
    }
    _write_file(folder / VERSION, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    for name in (SPLIT_FILE, CHANGES):
        _flushed(folder / name)
    return facts


def _learns_types(base: Base) -> bool:
    """Tell whether each class needs training images: an anomaly model's run learns good ones alone."""
    return base.config.split.protocol != "one_class"


def _mark(p: _Placed, base: Base | None) -> None:
    """Take the mask and the regions of a defect: what somebody has drawn, else what the data set has."""
    width, height, _ = image_size(p.source)
    size: Size = (height, width)
    state = p.state
    if state is not None and state.mask is not None:
        drawn = unpacked(state.mask, size)
        p.mask = drawn if drawn.any() else None
    elif p.sample is not None and base is not None and p.sample.mask is not None:
        p.mask = p.sample.read_mask(base.folder)
        if p.sample.objects and p.label == p.sample.label:
            p.regions = list(p.sample.objects)
        elif p.sample.objects:
            p.regions = [region._replace(label=p.label) for region in p.sample.objects]
    if p.mask is not None and not p.regions:
        p.regions = regions_of(p.mask, p.label)
    for box in state.boxes if state is not None else ():
        region = Region(p.label, box, size)
        if p.mask is None or not (p.mask & region.mask()).any():  # else the outline in it says the same, and better
            p.regions.append(region)


def _write_coco(placed: Sequence[_Placed], folder: Path) -> list[str]:
    """Write annotations/instances_<part>.json beside the images; return what is not in it."""
    if not any(p.regions for p in placed):
        return []
    bare = [p for p in placed if p.label != GOOD and not p.regions]
    images = []
    for p in placed:
        if p in bare or (part := p.split if any(q.split for q in placed) else "train") not in SPLITS:
            continue
        width, height, _ = image_size(p.source)
        images.append(Annotated(p.source, p.path, part, (height, width), tuple(p.regions)))
    kinds = sorted({region.label for image in images for region in image.regions})
    for part, content in coco_content(images, kinds).items():
        _write_file(folder / "annotations" / f"instances_{part}.json", json.dumps(content, ensure_ascii=False))
    if not bare:
        return []
    return [f"{len(bare)} defect(s) without a mask or a box, {bare[0].path} first, are not in annotations/ (data=coco)"]


def _row(p: _Placed) -> dict[str, Any]:
    state = p.state or State()
    return {
        "change": p.change,
        "path": p.path,
        "was": p.was,
        "label": p.label,
        "label_was": p.sample.label if p.sample else "",
        "split": p.split,
        "mask": "drawn" if state.mask is not None else "",
        "boxes": len(state.boxes) or "",
        "at": state.at,
    }


def _command(base: Base | None, folder: Path, facts: Mapping[str, Any]) -> str:
    """Return the command that trains on a version, with the same images tested where the run says which."""
    words = [f"attempt={base.attempt}" if base else "attempt=finetune", "data=folder", f"data.root={folder}"]
    if base is not None and _learns_types(base):
        given = facts["splits"]
        needed = {"train", "test"} if base.config.split.val_is_test else {*SPLITS}
        if needed <= given.keys():
            words += ["split.protocol=file", f"split.file={folder / SPLIT_FILE}"]
            words += ["split.val_is_test=true"] * base.config.split.val_is_test
        elif "test" not in given:  # a model to keep, which learns all
            words += ["split.protocol=holdout", "split.test=0"]
    words += _settings(base.typed) if base else []
    return " ".join(["python -m mvtec_lab", *map(shlex.quote, words)])  # names come from files, and are pasted


def _settings(typed: Sequence[str]) -> list[str]:
    """Return what was typed for a run, less what says on which images, and how many runs there were of it."""
    keys = [(word.lstrip("+").partition("=")[0], word) for word in typed]
    return [
        word
        for key, word in keys
        if key not in _OF_DATA and not key.startswith(("split.", "cv.", "verdict.", "reported."))
    ]


def _named(partial: Path, out: Path) -> Path:
    """Give a version that is whole on the disk the next free name."""
    for directory, _, _ in os.walk(partial, topdown=False):
        _flushed(Path(directory))
    for number in count(1):
        folder = out / f"version-{number}"
        if folder.exists():
            continue
        with suppress(FileExistsError):
            partial.rename(folder)
            _flushed(out)
            return folder
    raise AssertionError


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    _flushed(target)


def _write_mask(path: Path, mask: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "png")
    _write_file(path, file.getvalue())


def _write_file(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    _flushed(path)


def _flushed(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    with suppress(OSError):  # Windows opens no folder
        descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
