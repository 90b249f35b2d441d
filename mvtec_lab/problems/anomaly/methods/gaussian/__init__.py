"""A Gaussian over pooled features (Rippel et al., ICPR 2020; Ahuja et al., 2019)."""

from mvtec_lab.problems.base import LAYERS, Method, Option

METHOD = Method(
    "gaussian",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.gaussian.model:Gaussian",
    trains=False,
    draws=False,
    options={
        "layers": LAYERS,
        "dimensions": Option(int, "principal components, beside which the residual counts; null: all, shrunk", least=1),
    },
)
