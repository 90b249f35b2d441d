"""SPADE (Cohen & Hoshen, 2020): the cells of an image are compared with those of the most similar good images."""

from mvtec_lab.problems.anomaly import SCORE
from mvtec_lab.problems.base import LAYERS, Method, Option

METHOD = Method(
    "spade",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.spade.model:Spade",
    trains=False,
    draws=False,
    options={
        "score": SCORE,
        "layers": LAYERS,
        # The paper's. 5 take a tenth of the time to score.
        "neighbours": Option(int, "good images that an image is compared with", default=50, least=1, most=100_000),
    },
)
