"""SuperSimpleNet (Rolih et al., ICPR 2024): two heads learn to find noise in good features, and known defects."""

from typing import Any

from mvtec_lab.errors import LabError
from mvtec_lab.problems.anomaly import SCORE
from mvtec_lab.problems.base import LAYERS, Method, Option


def _rules(config: Any) -> None:
    if config.model.options.get("known") and config.augment.transforms:
        raise LabError(
            "augment.transforms moves images but not the known defects' masks: leave it out, or model.options.known"
        )


METHOD = Method(
    "supersimplenet",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.supersimplenet.model:SuperSimpleNet",
    options={
        "score": SCORE,
        "layers": LAYERS,
        # Of 0.2, 0.5 and 1 on the sample and on hazelnut: 0.2 was not learnt, 1 too easily, and found less of defects.
        "noise": Option(float, "noise of a made-up defect, in standard deviations of the good features", 0.5, above=0),
        "known": Option(int, "defects of each type to learn from beside good images, at most; 0: none", 0, least=0),
    },
    rules=_rules,
)
