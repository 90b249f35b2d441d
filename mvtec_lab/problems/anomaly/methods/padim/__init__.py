"""PaDiM (Defard et al., ICPR 2020 workshops): a Gaussian at each place of the image."""

from mvtec_lab.problems.anomaly import SCORE
from mvtec_lab.problems.base import LAYERS, Method, Option

METHOD = Method(
    "padim",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.padim.model:Padim",
    trains=False,
    options={
        "score": SCORE,
        "layers": LAYERS,
        "dimensions": Option(int, "channels drawn at random; null: 100, or all where there are fewer", least=1),
    },
)
