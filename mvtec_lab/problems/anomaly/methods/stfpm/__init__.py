"""STFPM (Wang et al., BMVC 2021): a student of good images departs from its teacher at a defect."""

from mvtec_lab.problems.anomaly import SCORE
from mvtec_lab.problems.base import LAYERS, Method

METHOD = Method(
    "stfpm",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.stfpm.model:Stfpm",
    options={
        "score": SCORE,
        "layers": LAYERS,
    },
)
