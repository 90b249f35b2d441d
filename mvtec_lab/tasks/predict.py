"""task=predict: a checkpoint on new images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mvtec_lab.config import Config, validate
from mvtec_lab.data.images import EXTENSIONS, each_image
from mvtec_lab.data.transforms import normalise, read_picture
from mvtec_lab.errors import LabError
from mvtec_lab.reporting.figures import sheet
from mvtec_lab.results import PREDICTIONS, write_csv
from mvtec_lab.tasks.evaluate import the_classifier
from mvtec_lab.tasks.outcome import SHOWN, write_picture
from mvtec_lab.tasks.setup import claim


def predict(config: Config, run_dir: str | Path) -> list[dict[str, Any]]:
    """Classify ``config.source``, an image or every image below a folder: predictions.csv and predictions.jpg.

    Returns:
        One row an image: path, prediction, confidence (the probability of the prediction), prob_<class>.

    Raises:
        LabError: no checkpoint or source, or an image that cannot be read; raised before anything is written.
    """
    validate(config)
    classifier = the_classifier(config, "predict")
    if config.source is None:
        raise LabError("task=predict needs source=FILE_OR_FOLDER")
    source = Path(config.source)
    paths = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.suffix.lower() in EXTENSIONS)
    if not paths:
        what = "holds no image" if source.is_dir() else "does not exist"
        raise LabError(f"source={source} {what}: give an image or a folder of {', '.join(EXTENSIONS)}")
    shown: list[np.ndarray] = []

    def batches() -> Iterator[dict[str, Tensor]]:
        pictures = each_image(paths, partial(read_picture, size=classifier.hparams["image_size"]))
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
