"""PatchCore (Roth et al., CVPR 2022): an image is compared with the patches of good images that are remembered."""

from mvtec_lab.problems.anomaly import SCORE
from mvtec_lab.problems.base import LAYERS, Method, Option

METHOD = Method(
    "patchcore",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.patchcore.model:PatchCore",
    trains=False,
    draws=False,
    options={
        "score": SCORE,
        "layers": LAYERS,
        # The least of the paper's three shares. It reports 0.1 points of AUROC less than for 25%, and less is faster to
        # fit and to score.
        "coreset": Option(float, "share of the patches that the bank keeps", default=0.01, above=0, most=1),
    },
)
