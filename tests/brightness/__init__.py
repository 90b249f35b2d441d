"""A made-up third problem: how bright an image is. One folder, and the line in its test that registers it."""

from __future__ import annotations

import numpy as np

from mvtec_lab.evaluation.specs import Metric
from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "brightness_regressor",
    "brightness",
    home="brightness.problem:Regressor",
    backbone=False,
    options={"start": Option(float, "initial brightness", default=0.0, least=0, most=1)},
)
METRICS = (
    Metric(
        "error",
        "brightness",
        "absolute error",
        heading="error",
        better="lower",
        unit="grey levels",
        decides=True,
        of_images=lambda rows: np.array([abs(float(row["truth"]) - float(row["prediction"])) for row in rows]),
    ),
)
