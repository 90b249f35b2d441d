"""Deep SVDD (Ruff et al., ICML 2018): good images are drawn together around a point; others lie farther from it."""

from mvtec_lab.problems.base import LAYERS, Method, Option

METHOD = Method(
    "deep_svdd",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.deep_svdd.model:DeepSvdd",
    options={
        "layers": LAYERS,
        "dimensions": Option(
            int, "principal components that the network sees; null: 64, or all if there are fewer", least=1
        ),
    },
)
