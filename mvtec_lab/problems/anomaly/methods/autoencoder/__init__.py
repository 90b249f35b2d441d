"""A convolutional autoencoder: a defect does not pass its narrow code."""

from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "autoencoder",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.autoencoder.detector:Detector",
    backbone=False,
    options={
        "latent": Option(int, "size of the code; null: 100", least=1),
        "reconstruction": Option(str, "error of a pixel; null: l2", choices=("l2", "ssim")),
    },
)
