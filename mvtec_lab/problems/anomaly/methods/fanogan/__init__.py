"""f-AnoGAN (Schlegl et al., 2019): a generator of good images, and an encoder that finds the code of a similar one."""

from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "fanogan",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.fanogan.detector:Detector",
    backbone=False,
    options={
        # The official code's.
        "latent": Option(int, "size of the code", default=128, least=1),
    },
)
