"""Name the product that each run is of, wherever its files lie: folders of one name, and versions of a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath

from mvtec_lab.errors import LabError
from mvtec_lab.foreign import file_of, read_json
from mvtec_lab.results import SAMPLES, VERSION, RunResult, table_of

Samples = Mapping[str, list[dict[str, str]]]  # the rows of each run's samples.csv, by its directory; maybe none

_VERSION = re.compile(r"version-\d+")  # as a review names its folders


def product_of(run: RunResult) -> tuple[str, str]:
    """Return what tells products apart, wherever their files lie: the data set, and the category."""
    return run.data, run.category


def told_apart(runs: Sequence[RunResult]) -> list[RunResult]:
    """Return runs of which those of different products in folders of one name have categories of their own.

    Folders of one name that lie in different places are one product where they share an image, as copies of a data set
    on several machines do. Others get as much of their path as tells them apart, ``line_1/bottle``. A version of a data
    set is its product, whatever its folder is called, where exactly the same images are tested.

    Images are those of samples.csv. Where all runs are of one product in one place, nobody looks; elsewhere a completed
    run whose file is damaged has the status ``damaged``, as nobody knows which product it is of.
    """
    if len({(*product_of(run), run.paths.get("data.root", "")) for run in runs if not run.damaged}) < 2:
        return [*runs]
    runs, samples = _with_samples(runs)
    places: dict[tuple[str, str], dict[str, RunResult]] = {}
    for run in sorted(runs, key=lambda run: not samples[run.run_dir]):  # those that failed early: last
        places.setdefault(product_of(run), {}).setdefault(run.paths.get("data.root", ""), run)
    named: dict[tuple[str, str, str], str] = {}
    for (data, category), of_product in places.items():
        for place, name in _names_of(of_product, category, samples).items() if len(of_product) > 1 else ():
            named[data, category, place] = name
    keys = [(*product_of(run), run.paths.get("data.root", "")) for run in runs]
    return _versions(
        [replace(run, category=named[key]) if key in named else run for run, key in zip(runs, keys, strict=True)],
        samples,
    )


def _with_samples(runs: Sequence[RunResult]) -> tuple[list[RunResult], Samples]:
    """Return the runs with their samples, those whose file is damaged set aside."""
    known, samples = list[RunResult](), dict[str, list[dict[str, str]]]()
    for run in runs:
        samples[run.run_dir] = []
        try:
            samples[run.run_dir] = table_of(run.run_dir, SAMPLES, "path", "split") or []
        except LabError as error:
            run = run.set_aside(error) if run.completed else run
        known.append(run)
    return known, samples


def of_its_product(run: RunResult) -> RunResult:
    """Return a run, by itself: on a version of a data set, of its product, ``finetune on version-1``.

    The version's own version.json says which data set it is of, if it still lies where the run found it.
    """
    place = folder = Path(run.paths.get("data.root") or "")
    with suppress(LabError):  # a damaged one says as much as none
        for _ in range(99):  # a version of a version
            path = file_of(folder, VERSION) if _VERSION.fullmatch(folder.name) else None
            about = {} if path is None else read_json(path)
            if not isinstance(about, dict) or not isinstance(data := about.get("data"), str):
                break
            folder = Path(data)
    return run if folder == place else replace(run, category=folder.name, attempt=f"{run.attempt} on {place.name}")


@dataclass
class Version(RunResult):
    """Hold a run on a version of a data set, with the very test images of another run under other names.

    ``names`` has the other run's name of each of them, by the path that it has in this run.
    """

    names: dict[str, str] = field(default_factory=dict)


def _versions(runs: Sequence[RunResult], samples: Samples) -> list[RunResult]:
    """Return runs of which those on a version of another run's data set are of its product, ``finetune on version-1``.

    A review writes such versions: more or other images train, and what is tested stays tested. Their test images are,
    byte by byte, those of the other run, with the same labels; their folders have other names, and so may their files.
    """
    if len({product_of(run) for run in runs}) < 2:
        return [*runs]
    first: dict[frozenset[tuple[str, str]], tuple[RunResult, dict[tuple[str, str], str]]] = {}
    others: dict[int, Version] = {}
    for place in sorted(range(len(runs)), key=lambda place: _VERSION.fullmatch(runs[place].category) is not None):
        run = runs[place]
        rows = samples[run.run_dir] if run.completed and not isinstance(run, Version) else []
        rows = [row for row in rows if row["split"] == "test"]
        images = {(row.get("digest") or "", row.get("label") or ""): row["path"] for row in rows if row["path"]}
        if not images or len(images) < len(rows) or any(not digest for digest, _ in images):
            continue  # without digests, or with copies among them, nobody knows which image is which
        of, names = first.setdefault(frozenset(images), (run, images))
        if product_of(of) != product_of(run):
            known = {path: names[image] for image, path in images.items()}
            others[place] = Version(**{**vars(run), "data": of.data, "category": of.category, "names": known})
    roots = {_root(runs[place]) for place in others}
    length = next((n for n in range(1, 99) if len({root.parts[-n:] for root in roots}) == len(roots)), 99)
    for version in others.values():
        version.attempt += f" on {'/'.join(_root(version).parts[-length:])}"
    return [others.get(place, run) for place, run in enumerate(runs)]


def _root(run: RunResult) -> PureWindowsPath:
    """Return the folder of a run's data set; its separators are those of every platform."""
    return PureWindowsPath(run.paths.get("data.root") or run.category)


def _names_of(places: Mapping[str, RunResult], category: str, samples: Samples) -> dict[str, str]:
    """Return the name of the product in each place of several; nothing where all are one product.

    Args:
        places: a run of each, by its ``data.root``.
        category: their name.
        samples: of all runs.
    """
    groups: list[tuple[set[str], list[str]]] = []  # images that are one product, and where they lie
    for place, run in places.items():
        images = {row["digest"] for row in samples[run.run_dir] if row.get("digest")}
        same = next((group for group in groups if not images or not group[0] or images & group[0]), None)
        if same is None:
            groups.append((images, [place]))
        else:
            same[0].update(images)
            same[1].append(place)
    if len(groups) < 2:
        return {}
    parts = [PureWindowsPath(own[0]).parts for _, own in groups]  # its separators are those of every platform
    folders = [(*part, *[category] * (part[-1:] != (category,))) for part in parts]
    length = next((n for n in range(2, 99) if len({folder[-n:] for folder in folders}) == len(folders)), 99)
    return {
        place: "/".join(folder[-length:]) for folder, (_, own) in zip(folders, groups, strict=True) for place in own
    }
