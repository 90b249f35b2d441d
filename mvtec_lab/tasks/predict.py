"""task=predict: a checkpoint on new images."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

from mvtec_lab.config import Config, validate
from mvtec_lab.data.images import EXTENSIONS, check_images, each_image, read_image, too_bright
from mvtec_lab.data.transforms import normalise, read_picture
from mvtec_lab.errors import LabError
from mvtec_lab.models.anomaly.base import AnomalyDetector
from mvtec_lab.models.anomaly.frozen import bar
from mvtec_lab.reporting.figures import INK, PALETTE, PAPER, sheet
from mvtec_lab.results import PREDICTIONS, write_csv
from mvtec_lab.tasks.evaluate import the_model
from mvtec_lab.tasks.outcome import SHOWN, write_picture
from mvtec_lab.tasks.scores import CLASSES, DEFECT
from mvtec_lab.tasks.setup import claim

log = logging.getLogger(__name__)

MAPS = "maps"
COOL, HOT = 0.75, 1.5  # of the map's threshold: where its colour begins and is fullest; good images stay nearly without
SMALL, LARGE = 320, 1024  # pixels of a drawn map's longer side: lines need the one, a screen shows the other


def predict(config: Config, run_dir: str | Path) -> list[dict[str, Any]]:
    """Judge ``config.source``, an image or every image below a folder: predictions.csv and predictions.jpg.

    Of a method that localises there is maps/ as well: of each image, by its name below the source, a .jpg to look at
    and the map itself as a .tiff of 32-bit floats, which covers the whole image, at whatever resolution.

    Returns:
        One row an image. Of a classifier: path, prediction, confidence (the probability of the prediction),
        prob_<class>. Of a one-class method: path, prediction (good or defect), score, threshold.

    Raises:
        LabError: no checkpoint or source, or an image that cannot be read; raised before anything is written.
    """
    validate(config)
    classifier, about = the_model(config, "predict")
    paths = _paths(config)
    for warning in too_bright(paths, about["white"]):
        log.warning(warning)
    if isinstance(classifier, AnomalyDetector):
        return _predict_detector(config, run_dir, classifier, about, paths)
    shown: list[np.ndarray] = []

    def batches() -> Iterator[dict[str, Tensor]]:
        pictures = each_image(paths, partial(read_picture, size=about["image_size"], white=about["white"]))
        while batch := list(islice(pictures, config.data.batch_size)):
            shown.extend(batch[: SHOWN - len(shown)])
            yield {"image": normalise(np.stack(batch), classifier.mean, classifier.std)}

    probabilities = classifier.probabilities(batches())
    rows = [
        {
            "path": str(path),
            "prediction": classifier.classes[scores.argmax()],
            "confidence": f"{scores.max():.6g}",
            **{f"prob_{name}": f"{p:.6g}" for name, p in zip(classifier.classes, scores, strict=True)},
        }
        for path, scores in zip(paths, probabilities, strict=True)
    ]
    run_dir = claim(run_dir, PREDICTIONS)
    write_csv(run_dir / PREDICTIONS, rows, list(rows[0]))
    captions = [f"{row['prediction']} ({float(row['confidence']):.2f})" for row in rows[:SHOWN]]
    write_picture(run_dir / "predictions.jpg", sheet(shown, captions, [None] * len(shown)))
    for row in rows[:SHOWN]:
        print(f"{row['prediction']:<24} {float(row['confidence']):.2f}  {row['path']}")
    if len(rows) > SHOWN:
        print(f"... and {len(rows) - SHOWN} more")
    print(f"written to {run_dir}")
    return rows


def _paths(config: Config) -> list[Path]:
    if config.source is None:
        raise LabError("task=predict needs source=FILE_OR_FOLDER")
    source = Path(config.source)
    paths = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in EXTENSIONS)
    if not paths:
        what = "holds no image" if source.is_dir() else "does not exist"
        raise LabError(f"source={source} {what}: give an image or a folder of {', '.join(EXTENSIONS)}")
    return paths


def _predict_detector(
    config: Config, run_dir: str | Path, detector: AnomalyDetector, about: dict[str, Any], paths: list[Path]
) -> list[dict[str, Any]]:
    check_images(paths)  # maps are written as they come: those of a day's production do not fit into memory
    run_dir, threshold = claim(run_dir, PREDICTIONS), about["threshold"]
    rows: list[dict[str, Any]] = []
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    scored = zip(paths, _names(paths, Path(config.source or "")), _scores(config, detector, about, paths), strict=True)
    with bar() as progress:
        for path, name, (picture, score, heat) in progress.track(scored, len(paths), description="scoring images"):
            found = CLASSES[int(score > threshold)]
            rows.append(
                {"path": str(path), "prediction": found, "score": f"{score:.9g}", "threshold": f"{threshold:.9g}"}
            )
            shown = {f"{found} ({score:.3g}; threshold {threshold:.3g})": picture}
            if heat is not None:
                target = run_dir / MAPS / name
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(heat).save(f"{target}.tiff")
                drawn = _map_over(read_image(path, about["white"]), heat, about["map_threshold"])
                write_picture(Path(f"{target}.jpg"), drawn)
                shown[f"map, outlined where above {about['map_threshold']:.3g}"] = drawn
            if len(tiles) < SHOWN:
                tiles += shown.values()
                captions += shown
    write_csv(run_dir / PREDICTIONS, rows, list(rows[0]))
    write_picture(run_dir / "predictions.jpg", sheet(tiles, captions, [None] * len(tiles)))
    for row in rows[:SHOWN]:
        print(f"{row['prediction']:<8} {float(row['score']):<10.4g} {row['path']}")
    if len(rows) > SHOWN:
        print(f"... and {len(rows) - SHOWN} more")
    defects = sum(row["prediction"] == DEFECT for row in rows)
    print(f"{defects} of {len(rows)} called a {DEFECT}: score above the threshold {threshold:.4g}")
    if heat is None:
        print(f"{about['method']} does not localise: no maps")
    print(f"written to {run_dir}")
    return rows


def _scores(
    config: Config, detector: AnomalyDetector, about: dict[str, Any], paths: list[Path]
) -> Iterator[tuple[np.ndarray, np.float32, np.ndarray | None]]:
    """Of each image: as the method sees it, its score, its map."""
    pictures = each_image(paths, partial(read_picture, size=about["image_size"], white=about["white"]))
    while batch := list(islice(pictures, config.data.batch_size)):
        with torch.no_grad():
            found = detector(normalise(np.stack(batch), about["mean"], about["std"]))
        maps = repeat(None) if found.map is None else found.map.numpy()
        yield from zip(batch, found.image.numpy(), maps)  # noqa: B905 # repeat has no end


def _names(paths: list[Path], source: Path) -> list[Path]:
    """Below the source, without suffix, unless a.png and a.jpg would have one name."""
    names = [path.relative_to(source) if path != source else Path(path.name) for path in paths]
    stems = Counter(name.with_suffix("") for name in names)
    return [stem if stems[stem := name.with_suffix("")] == 1 else name for name in names]


def _map_over(image: np.ndarray, heat: np.ndarray, limit: float) -> np.ndarray:
    """Orange from about the map's threshold up, outlined where above it: one scale for whatever images there will be.

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
    share = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR) / max(limit, 1e-12)
    grey = Image.fromarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)).convert("L").convert("RGB")
    opaque = np.clip((share - COOL) / (HOT - COOL), 0, 1) * 215  # of 255: the image stays to be seen
    tile = Image.composite(Image.new("RGB", size, PALETTE[4]), grey, Image.fromarray(opaque.astype(np.uint8)))
    drawn = np.array(tile)
    lines, _ = cv2.findContours((share > 1).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(2, side // 160)  # a pixel on a sheet
    for wide, colour in ((2 * width, INK), (width, PAPER)):  # a dark rim, as the line crosses bright and dark
        cv2.drawContours(drawn, lines, -1, ImageColor.getrgb(colour), wide)
    return drawn
