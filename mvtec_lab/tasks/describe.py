"""task=describe: what is in a data set. Number and names of classes, images used, splits, dimensions, masks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from mvtec_lab.config import Config
from mvtec_lab.data.audit import audit
from mvtec_lab.data.catalogue import CATEGORIES
from mvtec_lab.data.dataset import MVTecDataset
from mvtec_lab.data.frame import Frame
from mvtec_lab.data.images import (
    attempts,
    check_image,
    image_format,
    image_size,
    read_image,
    too_bright,
    white_level,
)
from mvtec_lab.data.samples import Sample, Scan, classes_of
from mvtec_lab.data.splits import SPLITS, drawn_test, good_alone, parted, pool_of, settled, split_samples
from mvtec_lab.engine.pictures import boxed, outlined, sheet, write_picture
from mvtec_lab.engine.setup import claim, data_module, marks
from mvtec_lab.errors import LabError
from mvtec_lab.evaluation.detection import Box
from mvtec_lab.problems import check, problem_of
from mvtec_lab.progress import bar
from mvtec_lab.reporting.dataset import DataSet, write_dataset_page
from mvtec_lab.reporting.figures import counts_figure
from mvtec_lab.reporting.pages import describe_command, protocol
from mvtec_lab.results import flatten, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATASET = "dataset.json"
WARNINGS = 30  # in the terminal, where broken files would push the table out of sight; all are in dataset.json
TILE = 224  # pixels of an example on dataset.jpg
PIXELS = 500_000_000  # of masks that a sweep's page reads: four seconds, as bottle's 63 with 51 million take 0.4
EACH, MOST = 4, 48  # images of a class on the page, and images on it: 20 KB each


@dataclass(frozen=True)
class Description:
    """Hold what is in a data set, and how a configuration splits it.

    Args:
        facts: what dataset.json says: ``classes`` (good first), ``classes_by_split`` (split -> class -> images),
            ``found`` (folder -> images), ``dimensions`` and ``formats`` of the files, ``mask_coverage`` and ``objects``
            by class, ``warnings``, and more.
        folder: the product folder.
        samples: its images that take part and can be read.
        marked: the paths of those with a defect that a mask or box marks.
        white: the value of 16-bit files that becomes 255.
    """

    facts: dict[str, Any]
    folder: Path
    samples: Sequence[Sample]
    marked: frozenset[str]
    white: int

    def chart(self) -> Figure:
        """Draw the images of each class, by split where there is one."""
        by_split = self.facts["classes_by_split"]
        parts = {split: by_split[split] for split in _once(self.facts)}
        return counts_figure(parts or {"images": self.facts["counts"]})

    def examples(self, each: int = 1, classes: Sequence[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
        """Return images of each class, spread over its files, with outlines or boxes of what is marked in them.

        Args:
            each: how many of a class at most.
            classes: of which; None: of all.

        Returns:
            class -> path -> uint8 RGB [H, W, 3], 320 pixels on its longer side.

        Raises:
            LabError: a file that cannot be read any more.
        """
        drawn: dict[str, dict[str, np.ndarray]] = {}
        for name in self.facts["classes"] if classes is None else classes:
            of_class = [s for s in self.samples if s.label == name]
            places = {round(place) for place in np.linspace(0, len(of_class) - 1, min(each, len(of_class)))}
            if of_class:
                drawn[name] = {s.path: self._drawn(s) for s in (of_class[place] for place in sorted(places))}
        return drawn

    def _shown(self) -> DataSet:
        """Return what a page shows of it."""
        facts = self.facts
        classes = facts["classes"][:MOST]
        pictures = self.examples(max(1, min(EACH, MOST // len(classes))), classes)
        return DataSet(
            facts,
            protocol(flatten(facts["split"], "split."), facts["classes_by_split"], facts["drawn_from_all"]) or "",
            facts["marks"],
            self.chart(),
            pictures,
            self.marked,
        )

    def sheet(self) -> np.ndarray:
        """Lay one image of each class out on a picture, uint8 RGB [H, W, 3]: dataset.jpg.

        Raises:
            ValueError: no image can be read.
        """
        drawn = self.examples()
        tiles = [tile for of_class in drawn.values() for tile in of_class.values()]
        files = [path for of_class in drawn.values() for path in of_class]
        return sheet(tiles, [*drawn], [None] * len(tiles), columns=5, tile=TILE, files=files)

    def _drawn(self, sample: Sample) -> np.ndarray:
        image = read_image(self.folder / sample.path, self.white)
        try:
            mask = sample.read_mask(self.folder)
        except LabError:  # it stands among the warnings
            mask = None
        tile = outlined(image, mask)
        if sample.outlined or not sample.objects:
            return tile
        scale = max(tile.shape) / max(image.shape)
        return boxed(tile, [Box(o.label, 1.0, *(scale * edge for edge in o.box)) for o in sample.objects], [])


def describe(config: Config, decode: bool = True) -> Description:
    """Describe the data set and the split of a configuration; nothing is written but a data set that is fetched.

    Mask coverage is the share of an image's pixels that its mask marks; an object is an 8-connected component of it, or
    what annotations say. The imbalance ratio is the training images of the most frequent class over those of the rarest
    one that trains. What would stop a training, a broken file or a class with too few images for the split, stands
    among the warnings.

    Args:
        config: as ``compose`` returns it.
        decode: decode every file that was found, to know whether it can be read; False: those that take part alone.

    Raises:
        LabError: there is no such data set, or no image in it.
    """
    check(config)
    data = data_module(config)
    scanned = data.list_files()
    folder = scanned.folder
    broken = _broken([folder / s.path for s in scanned.samples], check_image if decode else image_format)
    sound = [s for s in scanned.samples if folder / s.path not in broken]
    files = [folder / s.path for s in sound]
    formats = Counter(map(image_format, files)).most_common()
    samples, white, findings = _divided(config, scanned, sound)
    used = [s for s in samples if s.split] or samples
    classes = classes_of(used)
    by_split = _by_split(used, classes, config.split.val_is_test)
    objects, marked = _objects(folder, [s for s in sound if s.label in classes])
    trained = _trained(by_split.get("train") or _counts(used, classes))
    facts = {
        "data": config.data.name,
        "category": folder.name,
        "folder": str(folder),
        "num_classes": len(classes),
        "classes": classes,
        "images_found": len(scanned.samples),
        "images_used": len(used),
        "split": dict(vars(settled(scanned.samples, config.split))),
        "drawn_from_all": len(pool_of(scanned.samples, config.split.pool)) == len(scanned.samples),
        "counts": _counts(used, classes),
        "classes_by_split": by_split,
        "found": _found(scanned.samples),
        "official": _official(folder.name) if config.data.name == "mvtec" else None,
        "imbalance_ratio": max(trained) / min(trained),
        "dimensions": _dimensions(files),
        "formats": [{**f._asdict(), "images": n} for f, n in formats],
        "decoded": decode,
        "white": white if any(f.bits == 16 for f, _ in formats) else None,
        "mask_coverage": _coverage(folder, sound, classes),
        "objects": objects,
        "images_marked": len(marked),
        "marks": marks(config),
        "command": describe_command(flatten(asdict(config))),
        "warnings": [
            *marks(config),
            *broken.values(),
            *(f"mask: {problem}" for problem in scanned.mask_problems),
            *findings,
        ],
    }
    readable = {s.path for s in sound}
    return Description(facts, folder, [s for s in used if s.path in readable], frozenset(marked), white)


def write_description(config: Config, run_dir: str | Path) -> dict[str, Any]:
    """Describe a data set: a table, dataset.json, dataset.jpg and dataset.html, the page, in ``run_dir``.

    No image that can be read: no dataset.jpg.

    Raises:
        LabError: as ``describe``; or the directory holds another run, or cannot be written.
    """
    description = describe(config)
    run_dir = claim(run_dir, DATASET)
    write_whole(run_dir / DATASET, json.dumps(description.facts, indent=2, ensure_ascii=False) + "\n")
    if description.samples:
        write_picture(run_dir / "dataset.jpg", description.sheet())
    page = write_dataset_page([description._shown()], run_dir)
    _print(description.facts, run_dir)
    print(f"{'page':<10}{page}")
    return description.facts


def describe_sweep(configs: Sequence[Config], directory: Path) -> None:
    """Write dataset.html on the data of a sweep's jobs: of each data set as its first job splits it.

    Little is left to do, as the sweep's check has decoded and audited the images that take part. Not for more
    than PIXELS of masks, whose objects are found one by one; task=describe has no limit.

    Raises:
        LabError: the images are not there any more.
    """
    first: dict[str, Config] = {}
    for config in configs:
        first.setdefault(repr((config.data.name, config.data.root, config.data.category)), config)
    if first and sum(map(_pixels_of_masks, first.values())) <= PIXELS:
        write_dataset_page([describe(config, decode=False)._shown() for config in first.values()], directory)


def _pixels_of_masks(config: Config) -> int:
    scanned = data_module(config).list_files()
    masks = (scanned.folder / s.mask for s in scanned.samples if s.mask and not s.objects)
    return sum(width * height for width, height, _ in map(image_size, masks))


def _found(samples: list[Sample]) -> dict[str, int]:
    """Return the number of images by class, with its part in front where the data set has parts: ``test/crack``."""
    parts = [s.split or s.path.split("/")[0] for s in samples]
    divided = any(not s.split for s in samples) or len({*parts}) > 1
    pairs = zip(parts, samples, strict=True)
    return dict(Counter(f"{part}/{s.label}" if divided and part in SPLITS else s.label for part, s in pairs))


def _trained(counts: Mapping[str, int]) -> list[int]:
    """Return the images of the classes that train: an anomaly model trains on good alone."""
    return [count for count in counts.values() if count]


def _dimensions(paths: list[Path]) -> list[dict[str, Any]]:
    """Return the sizes and modes of images, the most frequent first."""
    sizes = Counter(map(image_size, paths)).most_common()
    return [{"width": w, "height": h, "mode": mode, "images": n} for (w, h, mode), n in sizes]


def _divided(config: Config, scanned: Scan, sound: list[Sample]) -> tuple[list[Sample], int, list[str]]:
    """Return the samples with their splits, the white level, and what takes from the worth of the split."""

    def files(samples: list[Sample]) -> list[Path]:
        return [scanned.folder / s.path for s in samples]

    try:
        problem, samples = problem_of(config.model.method), split_samples(scanned.samples, config.split)
        if problem.good_alone:
            samples = good_alone(samples, scanned.samples, config.split, problem.known_defects(config))
        readable = {s.path for s in sound}
        used = [s for s in samples if s.split and s.path in readable]
        white = config.data.white or white_level(files([s for s in used if s.split == "train"]))
        frame = Frame(config.data.image_size, config.data.fit)
        pictures = MVTecDataset(scanned.folder, used, image_size=frame, white=white)
        findings = [*audit(pictures, problem.chosen_on_val(config), problem.good_alone), *problem.findings(config)]
        said = [*parted(scanned.samples, settled(scanned.samples, config.split)), *scanned.oddities(samples)]
        said += drawn_test(scanned.samples, samples, config.split)
        return samples, white, [*said, *too_bright(files(used), white), *findings]
    except LabError as error:
        samples = pool_of(scanned.samples, config.split.pool)
        return samples, config.data.white or white_level(files(sound)), [f"no split: {error}"]


def _counts(samples: list[Sample], classes: list[str]) -> dict[str, int]:
    counter = Counter(s.label for s in samples)
    return {name: counter[name] for name in classes}


def _by_split(used: list[Sample], classes: list[str], val_is_test: bool) -> dict[str, dict[str, int]]:
    parts = {split: [s for s in used if s.split == split] for split in SPLITS}
    if val_is_test:
        parts["val"] = parts["test"]
    return {split: _counts(part, classes) for split, part in parts.items() if part}


def _once(facts: dict[str, Any]) -> list[str]:
    """Return the splits in which an image stands once: without val, where it is test."""
    return [split for split in facts["classes_by_split"] if not (split == "val" and facts["split"]["val_is_test"])]


def _official(category: str) -> dict[str, int] | None:
    """Return MVTec AD's own number of images by folder; None for a category that it does not have."""
    official = CATEGORIES.get(category)
    if official is None:
        return None
    return {"train/good": official.train, **{f"test/{kind}": n for kind, n in official.test.items()}}


def _coverage(folder: Path, sound: list[Sample], classes: list[str]) -> dict[str, dict[str, float]]:
    """Return the shares of the pixels that masks mark: images, mean, min and max of each class that has masks."""
    shares: dict[str, list[float]] = {name: [] for name in classes}
    for sample in sound:
        if sample.label in shares and (share := sample.marked(folder)) is not None:
            shares[sample.label].append(share)
    return {
        name: {"images": len(c), "mean": float(sum(c) / len(c)), "min": float(min(c)), "max": float(max(c))}
        for name, c in shares.items()
        if c
    }


def _objects(folder: Path, samples: list[Sample]) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Return the objects of each type (number, images, quartiles of their sizes), and the images' paths.

    Width, height and area are in pixels, ``share`` is the box's area over the image's.
    """
    by_type: dict[str, list[tuple[float, ...]]] = {}
    images: dict[str, set[str]] = {}
    for sample in samples:
        for region in sample.regions(folder):
            (x0, y0, x1, y1), (height, width) = region.box, region.size
            size = x1 - x0, y1 - y0, region.area(), (x1 - x0) * (y1 - y0) / (height * width)
            by_type.setdefault(region.label, []).append(size)
            images.setdefault(region.label, set()).add(sample.path)
    described: dict[str, dict[str, Any]] = {}
    for name in sorted(by_type):
        quartiles = np.quantile(by_type[name], [0.25, 0.5, 0.75], axis=0).T.tolist()
        sizes = dict(zip(("width", "height", "area", "share"), quartiles, strict=True))
        described[name] = {"objects": len(by_type[name]), "images": len(images[name]), **sizes}
    return described, set().union(*images.values())


def _broken(paths: list[Path], look: Callable[[Path], Any]) -> dict[Path, str]:
    """Return the files that ``look`` cannot read, with the reason."""
    with bar() as progress:
        results = progress.track(attempts(paths, look), len(paths), description="checking images")
        return {path: str(error) for path, error in zip(paths, results, strict=True) if isinstance(error, LabError)}


def _print(facts: dict[str, Any], run_dir: Path) -> None:
    used, by_split = facts["images_used"], facts["classes_by_split"]
    title = f"{facts['data']}/{facts['category']}: {facts['num_classes']} classes, {used} images used"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("class", no_wrap=True)
    covered = ["mask coverage"] if facts["mask_coverage"] else []  # boxes alone cover nothing
    for column in (*by_split, "used", "share", *covered):
        table.add_column(column, justify="right")
    for name in facts["classes"]:
        total = facts["counts"][name]
        cover = facts["mask_coverage"].get(name)
        coverage = f"{cover['mean']:.1%} ({cover['min']:.1%} to {cover['max']:.1%})" if cover else ""
        table.add_row(
            escape(name),
            *(str(counts[name]) for counts in by_split.values()),
            str(total),
            f"{total / used:.0%}",
            *([coverage] if covered else []),
        )
    table.add_section()
    table.add_row("all", *(str(sum(counts.values())) for counts in by_split.values()), str(used), "100%")
    console = Console()
    console.print(table)
    if facts["objects"]:
        console.print(_object_table(facts["objects"]))
    for name, line in _lines(facts).items():
        console.print(f"{name:<10}{line}", highlight=False, markup=False)
    warnings = facts["warnings"]
    if len(warnings) > WARNINGS:
        warnings = [*warnings[:WARNINGS], f"... and {len(warnings) - WARNINGS} more in {DATASET}"]
    for warning in warnings:
        console.print(f"{'warning':<10}{warning}", style="yellow", highlight=False, markup=False)
    print(f"{'written':<10}{run_dir}")


def _object_table(objects: dict[str, dict[str, Any]]) -> Table:
    title = "boxes in pixels and as a share of the image: 25% / 50% / 75% of the boxes are smaller"
    table = Table(Column("objects", overflow="fold", min_width=8), title=title, title_justify="left")
    for column in ("number", "images", "width", "height", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, o in objects.items():
        sizes = ("/".join(f"{value:.0f}" for value in o[side]) for side in ("width", "height"))
        share = "/".join(f"{100 * value:.{1 if value < 0.1 else 0}f}" for value in o["share"]) + "%"
        table.add_row(escape(name), str(o["objects"]), str(o["images"]), *sizes, share)
    return table


def _lines(facts: dict[str, Any]) -> dict[str, str]:
    """Return what stands below the table, by its name."""
    lines = {"found": ", ".join(f"{k} {v}" for k, v in facts["found"].items())}
    if facts["official"] and facts["official"] != facts["found"]:
        differ = [f"{k} {v}" for k, v in facts["official"].items() if facts["found"].get(k) != v]
        lines["official"] = f"differs: {', '.join(differ)}"
    sizes = facts["dimensions"]
    lines["images"] = ", ".join(f"{d['width']} x {d['height']} {d['mode']} ({d['images']})" for d in sizes[:5])
    if len(sizes) > 5:
        lines["images"] += f" and {len(sizes) - 5} more sizes"
    if facts["white"]:
        lines["16 bits"] = f"{facts['white']:,} becomes 255: the bit depth that the training images use, or data.white"
    lines["imbalance"] = (
        f"{facts['imbalance_ratio']:.2f} training images of the most frequent class for one of the rarest"
    )
    return lines
