"""A convolutional autoencoder: a defect does not pass its narrow code."""

from mvtec_lab.problems.anomaly import SCORE
from mvtec_lab.problems.base import Method, Option

METHOD = Method(
    "autoencoder",
    "anomaly",
    home="mvtec_lab.problems.anomaly.methods.autoencoder.model:Autoencoder",
    backbone=False,
    options={
        "score": SCORE,
        # The paper's for textures; that of MVTec AD, CVPR 2019, for whole objects at 128 pixels.
        "latent": Option(int, "size of the code", default=100, least=1, most=100_000),
        "reconstruction": Option(str, "error of a pixel", default="l2", choices=("l2", "ssim")),
    },
)
