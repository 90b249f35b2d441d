"""From the bytes of an image to what is answered: the columns of predictions.csv, as JSON."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from mvtec_lab.data.content import Content
from mvtec_lab.data.images import read_image
from mvtec_lab.data.transforms import Cut, cut_of
from mvtec_lab.engine.model import Model
from mvtec_lab.engine.pictures import map_over
from mvtec_lab.evaluation.segmentation import spread
from mvtec_lab.problems.base import Prediction
from mvtec_lab.reporting.figures import to_jpeg
from mvtec_lab.results import GOOD

Size = tuple[int, int]  # height and width of an image, pixels
TEXTS = ("decision", "prediction", "found_type", "set", "certainty")  # columns that hold names, even one like 7
_OF_CLASS = "prob_"  # how the columns of probabilities begin; the class's name follows


def seen(content: Content, model: Model) -> tuple[Cut, Size]:
    """Return an image as the model sees it, and its height and width.

    Raises:
        LabError: it cannot be read.
    """
    image = read_image(content, model.white)
    return cut_of(image, model.frame), (image.shape[0], image.shape[1])


def answer(
    model: Model, judged: tuple[Prediction, Mapping[str, str]], content: Content, size: Size, pictures: bool
) -> dict[str, Any]:
    """Return what is answered of an image.

    Args:
        judged: as ``judge`` returns it.
        size: (H, W) of the image.
        pictures: with ``mask`` and ``overlay``, where the model says where a defect is.
    """
    prediction, further = judged
    prediction = prediction.sized(size) if prediction.sized else prediction
    result = {
        "name": content.name,
        **values(model.decided({**prediction.row, **further})),
        "width": size[1],
        "height": size[0],
    }
    image = None
    if prediction.files is not None and (pictures or prediction.boxes is not None):
        image = read_image(content, model.white)  # again: of what waits only the model's picture is kept
        files = prediction.files(image)
        if isinstance(text := files.get(".json"), str):
            result["boxes"] = json.loads(text)["boxes"]
        if pictures:
            result |= _pictures(files.get(".png"), files.get(".jpg"))
    if pictures and prediction.heat is not None and model.map_threshold is not None:
        image = read_image(content, model.white) if image is None else image
        heat = prediction.heat if model.tile is not None else model.frame.cut(prediction.heat, size)
        marked = (spread(heat, size) > model.map_threshold) & (prediction.row["prediction"] != GOOD)
        result |= _pictures(marked.astype(np.uint8) * 255, map_over(image, heat, model.map_threshold))
    return result


def values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of predictions.csv with numbers as numbers, and its probabilities by class.

    >>> values({"prediction": "7", "confidence": "0.75", "prob_7": "0.75", "prob_good": "0.25"})
    {'prediction': '7', 'confidence': 0.75, 'probabilities': {'7': 0.75, 'good': 0.25}}
    """
    result: dict[str, Any] = {}
    for key, value in row.items():
        if key not in TEXTS and isinstance(value, str):
            with suppress(ValueError):
                value = float(value)
        if key.startswith(_OF_CLASS):
            result.setdefault("probabilities", {})[key.removeprefix(_OF_CLASS)] = value
        else:
            result[key] = value
    return result


def _pictures(mask: Any, overlay: Any) -> dict[str, str]:
    """Return pictures as text: a mask as PNG, 0 and 255 in the image's own size, and a JPEG to look at."""
    result = {}
    if isinstance(mask, np.ndarray):
        file = io.BytesIO()
        Image.fromarray(mask).save(file, "png", compress_level=1)  # of two values: half the time, about as small
        result["mask"] = base64.b64encode(file.getbuffer()).decode()
    if isinstance(overlay, np.ndarray):
        result["overlay"] = base64.b64encode(to_jpeg(overlay)).decode()
    return result
